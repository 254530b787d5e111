"""Original VITS (and MMS's original) checkpoints, ``G_*.pth`` and ``D_*.pth``, as a Hugging Face folder.

The sizes are read off the weights, and what shapes cannot tell (strides, dilations, the sampling rate) from
the trainer's ``config.json``. Posterior encoder and flow keep the magnitudes and directions of their
weight norm bit for bit; the decoder's is folded, as ``transformers`` wants it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import VitsConfig

from services.training.convert import discriminators, symbols
from services.training.convert.weights import (
    State,
    fitted,
    listed,
    mismatches,
    plain_name,
    plain_shapes,
    read_checkpoint,
    with_new_names,
)
from shared.errors import ModelError
from shared.folders import whole_folder
from shared.modeling import VitsForTraining, VitsResblock2Config, save_model
from shared.original_vits import (
    duration_sizes,
    generator_sizes,
    is_stochastic,
    posterior_sizes,
    rename,
)
from shared.provenance import UNKNOWN_LICENCE, Provenance

#: Keys of ``config.json`` without which a decoder cannot be built.
_DECODER_KEYS = (
    "upsample_rates",
    "upsample_kernel_sizes",
    "upsample_initial_channel",
    "resblock_kernel_sizes",
    "resblock_dilation_sizes",
)


def convert(
    generator: Path,
    output: Path,
    *,
    settings: Path | None = None,
    discriminator: Path | None = None,
    vocabulary: Path | None = None,
    phonemize: bool | None = None,
    language: str | None = None,
    speakers: Sequence[str] = (),
    licence: str | None = None,
) -> list[str]:
    """Convert original checkpoints into a model folder.

    Args:
        generator: ``G_*.pth``.
        output: The folder to write; a model folder that is there is replaced.
        settings: The trainer's ``config.json``; the one beside the generator when left out.
        discriminator: ``D_*.pth`` of the same training.
        vocabulary: One symbol a line; found where :mod:`services.training.convert.symbols` says when left out.
        phonemize: Whether texts go through espeak-ng's American English; by the text cleaners when left out.
        language: To be written into the tokenizer's configuration.
        speakers: Their names in the order of their ids; from ``config.json`` when left out.
        licence: What to write into ``provenance.json``.

    Returns:
        What the user should know beside that it worked.

    Raises:
        ModelError: Something cannot be read or does not fit; nothing is written.
    """
    settings = settings or generator.parent / "config.json"
    sources = [path for path in (generator, settings, discriminator, vocabulary) if path is not None]
    with whole_folder(output, sources=sources) as folder:
        weights = read_checkpoint(generator)  # first: without it there is no talk of its settings
        values = read_settings(settings)
        model = build(weights, values, where=generator)
        data = values["data"]
        table = symbols.find(generator, values, model.config.vocab_size, vocabulary)
        ids = _speaker_ids(speakers or values.get("speakers", ()), model.config.num_speakers, generator)
        if phonemize is None:
            phonemize = symbols.phonemizes(data)
        save_model(model, folder)
        symbols.write_tokenizer(
            folder,
            table,
            add_blank=bool(data.get("add_blank", True)),
            phonemize=phonemize,
            is_uroman=str(data.get("training_files", "")).endswith(".uroman"),
            language=language,
        )
        if discriminator is not None:
            discriminators.save(discriminators.read_original(discriminator), folder)
        if ids:
            (folder / "speakers.json").write_text(json.dumps(ids, indent=2), encoding="utf-8")
        Provenance(
            licence=licence or UNKNOWN_LICENCE, sources=(f"original VITS checkpoint {generator.name}",)
        ).write(folder)
    return symbols.notes(table, data, phonemize=phonemize)


def read_settings(path: Path) -> dict[str, Any]:
    """The trainer's ``config.json``.

    Raises:
        ModelError: It is missing, or lacks something; everything that it lacks is listed.
    """
    if not path.is_file():
        raise ModelError(
            f"There is no {path}. The checkpoint does not tell its strides, dilations and sampling rate: give the "
            "config.json that it was trained with, by --config."
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if isinstance(values, dict) and values.get("model_type") == "vits":
        raise ModelError(
            f"{path} is of a Hugging Face model, not of original VITS. To put an original discriminator beside a "
            "Hugging Face generator, use 'vits convert mms-discriminator'."
        )
    match values:
        case {"model": dict() as model, "data": dict() as data}:
            missing = [f"model.{key}" for key in _DECODER_KEYS if key not in model]
            missing += ["data.sampling_rate"] if "sampling_rate" not in data else []
        case _:
            missing = ["model", "data"]
    if missing:
        raise ModelError(f"{path} is not original VITS's config.json: it lacks {', '.join(missing)}.")
    return dict(values)


def build(state: State, settings: Mapping[str, Any], *, where: Path) -> VitsForTraining:
    """The model of a checkpoint.

    Args:
        state: Weights by original VITS's names.
        settings: What :func:`read_settings` reads.
        where: The checkpoint's file, for messages.

    Raises:
        ModelError: The weights are not a VITS generator's, or not those that the settings describe.
    """
    state = with_new_names(state)
    if not any(name.startswith("enc_p.") for name in state):
        what = "a discriminator" if any(name.startswith("discriminators.") for name in state) else "no VITS"
        raise ModelError(
            f"{where} is {what}: it has no weights called enc_p.…. Give the generator's G_*.pth, and the D_*.pth "
            "with --discriminator."
        )
    config = derive_config(state, settings, where=where)
    model = VitsForTraining(config)
    expected = model.state_dict()
    stochastic = is_stochastic(state)
    names = {name: _renamed(name, stochastic=stochastic) for name in state}
    weights = {new: state[old].float() for old, new in names.items()}
    weights = {
        # A 1×1 convolution that became a linear layer.
        name: value.squeeze(-1) if "_proj." in name and name.startswith("text_encoder.") else value
        for name, value in weights.items()
    }
    weights = fitted(weights, expected)
    origins = {plain_name(new): plain_name(old) for old, new in names.items()}
    problems = mismatches(weights, expected, origins)
    if problems:
        raise ModelError(
            f"{where} does not have the weights that its shapes and its config.json promise. Either the two belong "
            "to different trainings, or the model is of a fork with another architecture, which cannot be "
            f"converted:\n{listed(problems)}"
        )
    model.load_state_dict(weights)
    model.train(False)
    return model


def _renamed(name: str, *, stochastic: bool) -> str:
    """The name of ours, with its weight norm; a foreign name stays as it is."""
    plain = plain_name(name)
    new = rename(plain, stochastic=stochastic) or plain
    return (
        new
        if name == plain
        else new.removesuffix(".weight") + name.removeprefix(plain.removesuffix(".weight"))
    )


def derive_config(state: State, settings: Mapping[str, Any], *, where: Path) -> VitsConfig:
    """The configuration that the weights and the trainer's ``config.json`` give together.

    Raises:
        ModelError: A weight that tells a size is missing, or the decoder's rates do not make up the hop.
    """
    model, data = settings["model"], settings["data"]
    shapes = plain_shapes(state)
    try:
        sizes = {**generator_sizes(shapes), **posterior_sizes(shapes), **duration_sizes(shapes)}
    except KeyError as error:
        raise ModelError(
            f"{where} lacks {error.args[0]}, which every VITS generator has. It is incomplete or of another "
            "architecture; give the G_*.pth as the trainer wrote it."
        ) from error
    hop = data.get("hop_length")
    if hop is not None and hop != math.prod(model["upsample_rates"]):
        raise ModelError(
            f"{where}: a frame of its decoder has {math.prod(model['upsample_rates'])} samples "
            f"(upsample_rates {model['upsample_rates']}) and one of its spectrogram {hop} (hop_length). Give the "
            "config.json that it was trained with."
        )
    dropout = float(model.get("p_dropout", 0.1))
    values = {
        **sizes,
        **{key: model[key] for key in _DECODER_KEYS},
        "sampling_rate": data["sampling_rate"],
        "hidden_dropout": dropout,
        "attention_dropout": dropout,
        "activation_dropout": dropout,
        "layerdrop": 0.0,
    }
    first_kind = any(name.startswith("dec.resblocks.0.convs1.") for name in shapes)
    return VitsConfig(**values) if first_kind else VitsResblock2Config(**values)


def _speaker_ids(names: object, count: int, where: Path) -> dict[str, int]:
    """Speakers' ids by their names, or nothing for a model of one speaker or without names.

    Raises:
        ModelError: There are not as many names as speakers, or one twice.
    """
    if count > 1 and isinstance(names, Mapping):
        return {str(name): int(number) for name, number in names.items()}
    given = (
        [str(name) for name in names] if isinstance(names, Sequence) and not isinstance(names, str) else []
    )
    if count <= 1 or not given:
        return {}
    if len(given) != count or len(set(given)) != count:
        raise ModelError(
            f"{where} has {count} speakers; {len(given)} names were given ({len(set(given))} different ones). Name "
            "each once, in the order of their ids, or leave --speakers out."
        )
    return {name: number for number, name in enumerate(given)}
