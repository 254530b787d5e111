"""MMS's generator and discriminator, which are published apart, in one folder to fine-tune from.

The generators are on the hub as ``facebook/mms-tts-<code>``, for ``transformers``. Their discriminators
are only among the original checkpoints, as ``full_models/<code>/D_100000.pth`` in ``facebook/mms-tts``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from services.training.convert import discriminators, hub
from services.training.convert.mms_codes import resolve
from shared.errors import HubUnreachableError, ModelError, NotFoundError
from shared.folders import whole_folder
from shared.modeling import load_model, save_model
from shared.modeling.loading import fetch_from_hub
from shared.provenance import UNKNOWN_LICENCE, Provenance

ORIGINALS = "facebook/mms-tts"
LICENCE = "CC-BY-NC-4.0"


def convert_from_hub(language_code: str, output: Path) -> None:
    """Fetch a language's generator and discriminator and put them together.

    Args:
        language_code: ISO 639-3, with script or dialect where MMS-TTS has several.
        output: The folder to write; a model folder that is there is replaced.

    Raises:
        NotFoundError: MMS-TTS has no model by this code, or several.
        HubUnreachableError: The hub could not be reached; the message says how to go on without it.
        ModelError: What it had cannot be used, or ``output`` is no model folder.
    """
    code = resolve(language_code)
    name, original = f"facebook/mms-tts-{code}", f"full_models/{code}/D_100000.pth"
    try:
        discriminator = hub.download(ORIGINALS, original)
        generator = fetch_from_hub(name)
    except NotFoundError as error:
        raise NotFoundError(
            f"--language_code {language_code}: {error} Codes have three letters (ISO 639-3: spa, not es), and some a "
            "script or dialect behind them (uig-script_arabic); the hub lists them all when searched for "
            "'facebook/mms-tts-'."
        ) from error
    except HubUnreachableError as error:
        raise HubUnreachableError(
            f"The model hub could not be reached for {name} and its discriminator "
            f"({str(error).partition(chr(10))[0]}).\nTo go on without it, fetch both on a machine that reaches it:\n"
            f"  hf download {name} --local-dir mms-tts-{code}\n"
            f"  hf download {ORIGINALS} {original} --local-dir mms-tts\n"
            "copy both folders here, and run\n"
            f"  vits convert mms-discriminator --generator mms-tts-{code} --discriminator mms-tts/{original} "
            f"--output {output}"
        ) from error
    provenance = Provenance(licence=LICENCE, sources=(f"MMS-TTS {code} ({name}), by Meta",))
    with whole_folder(output) as folder:
        try:
            weights = discriminators.read_original(discriminator)
        except ModelError as error:
            raise ModelError(
                f"{error}\nThat is what the hub has as {ORIGINALS}/{original}; for some languages a generator was "
                "published under that name. Two ways to go on:\n"
                f"  - train from {name} as it is, with a fresh discriminator;\n"
                "  - or try another language's discriminator, for it judges sound and no words:\n"
                f"    hf download {ORIGINALS} full_models/spa/D_100000.pth --local-dir mms-tts\n"
                f"    hf download {name} --local-dir mms-tts-{code}\n"
                f"    vits convert mms-discriminator --generator mms-tts-{code} "
                f"--discriminator mms-tts/full_models/spa/D_100000.pth --output {output}"
            ) from error
        _write(generator, weights, folder, provenance)


def convert(
    generator: Path, discriminator: Path, output: Path, *, provenance: Provenance | None = None
) -> None:
    """Put a Hugging Face generator and an original discriminator together.

    Args:
        generator: A Hugging Face VITS folder.
        discriminator: The original ``D_*.pth``.
        output: The folder to write; a model folder that is there is replaced.
        provenance: What is known beside the generator's own ``provenance.json``.

    Raises:
        ModelError: One of them cannot be used, or ``output`` is no model folder; nothing is written.
    """
    with whole_folder(output, sources=[generator, discriminator]) as folder:
        _write(generator, discriminators.read_original(discriminator), folder, provenance)


def _write(
    generator: Path, weights: Mapping[str, Tensor], folder: Path, provenance: Provenance | None
) -> None:
    """Write a generator and a discriminator's folded weights into one folder."""
    save_model(load_model(generator), folder, companions=generator)
    discriminators.save(weights, folder)
    _joined(Provenance.read(generator), provenance).write(folder)


def _joined(known: Provenance, given: Provenance | None) -> Provenance:
    """Both together; an unknown licence beside a known one is what nobody wrote down, not a second one."""
    if given is None:
        return known
    if UNKNOWN_LICENCE in {known.licence, given.licence}:
        licence = known.licence if given.licence == UNKNOWN_LICENCE else given.licence
        return known.joined(given).model_copy(update={"licence": licence})
    return known.joined(given)
