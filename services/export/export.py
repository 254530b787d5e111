"""From a model folder to a voice folder."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path

from transformers import VitsModel

from services.export import parity
from services.export.graphs import OPSET, SIGNATURES, export_decoder_2d, export_fp16, export_graph
from services.export.halo import flow_halo_frames, halo_frames
from services.export.progress import Progress
from services.export.report import REPORT_FILE, add_to_report
from shared.errors import ModelError, NotFoundError, nearest
from shared.modeling import load_model
from shared.provenance import Provenance
from shared.text import FrontEnd
from shared.voice import Voice, VoiceSpec
from shared.voice.selection import PORTABLE
from shared.voice.spec import DecoderPlan, Defaults, ModelReference, Variant

#: Lengths that token sequences are padded to. The encoder is the largest part of a short text, and its time grows
#: with the length, so that short ones are dense; ONNX Runtime prepares nothing for a length.
TOKEN_BUCKETS = [*range(16, 129, 16), *range(160, 257, 32), *range(320, 513, 64)]

#: Frames for the flow are padded to a multiple of this. OpenVINO prepares each length once, which takes it some ten
#: milliseconds: so lengths are not too many.
FRAME_MULTIPLE = 32

#: Frames of the first window and of the later ones. Measured on a Piper medium voice with two threads, a call of
#: 32, 64, 128, 256 and 512 frames and their halos takes in bf16 4.8, 6.9, 10.8, 18.8 and 37 ms, with ONNX Runtime
#: in fp32 21, 30, 52, 104 and 214. Windows of 256 frames would save 13 % of a bf16 decoder's time, which is half
#: of the voice's, and nothing with ONNX Runtime; each caller's first window would wait twice as long for another's
#: call, and nearly twice as many widths would have to stay compiled.
FIRST_WINDOW_FRAMES = 32
WINDOW_FRAMES = 128

#: The decoder over images of height 1, which every variant of OpenVINO reads that does not quantise it.
DECODER_2D = "fp32/decoder-2d.onnx"

_FP32 = Variant(
    encoder="fp32/encoder.onnx",
    flow="fp32/flow.onnx",
    decoder="fp32/decoder.onnx",
    opset=OPSET,
    gate="reference",
)
_OPENVINO = _FP32.model_copy(update={"engine": "openvino", "decoder": DECODER_2D})

#: The variants that this module writes, by name. Quantised ones are built upon them.
VARIANTS: dict[str, Variant] = {
    PORTABLE: _FP32,
    "fp32-openvino": _OPENVINO,
    # The same files: OpenVINO rounds the weights as it loads them.
    "bf16": _OPENVINO.model_copy(
        update={"precision": "bf16", "requires": ["avx512_bf16", "amx_bf16"], "gate": "ungated"}
    ),
    "fp16": _FP32.model_copy(
        update={
            "device": "gpu",
            "precision": "fp16",
            "flow": "fp16/flow.onnx",
            "decoder": "fp16/decoder.onnx",
            "gate": "ungated",
        }
    ),
}

#: Those whose samples are PyTorch's within `parity.TOLERANCE`.
EXACT = [name for name, variant in VARIANTS.items() if variant.gate == "reference"]

#: Variants from the fastest to the slowest, as `benchmarks.synthesis` found them (fp16: presumed).
BY_SPEED = ("fp16", "bf16", "fp32-openvino", PORTABLE)

#: Where a model folder keeps the names of its speakers: ``{"name": id}``.
SPEAKERS_FILE = "speakers.json"


def export_voice(
    model_folder: Path,
    output: Path,
    *,
    provenance: Provenance,
    model: ModelReference | None = None,
    language: str | None = None,
    variants: Sequence[str] = (PORTABLE,),
    progress: Progress | None = None,
) -> VoiceSpec:
    """Write the voice of a model, and prove that it says what the model says.

    Every variant of fp32 is compared with PyTorch. The others differ by design: they are written as
    ``ungated``, and whoever judges them sets `Variant.gate`.

    Args:
        model_folder: A Hugging Face VITS folder.
        output: The voice folder to write. It is complete only when this function returns.
        provenance: Licence, sources and consent of the model.
        model: Its name and version, where it comes from a registry.
        language: What it speaks; what the text front end says where not given.
        variants: Which of `VARIANTS` to write; ``fp32`` is always written.
        progress: Is told of each step.

    Returns:
        What ``voice.json`` says.

    Raises:
        NotFoundError: There is no such variant.
        ModelError: The folder is not a model that can be exported.
        QualityError: The graphs do not compute what the model computes.
    """
    progress = progress or Progress()
    names = check_variants(variants)
    network = load_model(model_folder)
    front_end = FrontEnd.from_folder(model_folder)
    if front_end.vocab_size > network.config.vocab_size:
        raise ModelError(
            f"{model_folder}: the text front end makes token ids up to {front_end.vocab_size - 1}, and the "
            f"model knows {network.config.vocab_size} tokens. The tokenizer is another model's: copy its own."
        )
    broken = [name for name, value in network.state_dict().items() if not bool(value.isfinite().all())]
    if broken:
        raise ModelError(
            f"{model_folder} holds weights that are not numbers ({broken[0]} and {len(broken) - 1} more): "
            "its training went astray. Export an earlier checkpoint."
        )
    spec = describe(
        network,
        front_end,
        speakers=read_speakers(model_folder),
        provenance=provenance,
        model=model,
        language=language,
    )
    exported = load_model(model_folder)  # one to export and one, untouched, to compare with
    write_graphs(exported, output, names, progress)
    spec = spec.model_copy(
        update={
            "variants": {name: VARIANTS[name] for name in names},
            "recommended": [name for name in BY_SPEED if name in names],
        }
    )
    spec.write(output)

    report = {name: check_parity(network, output, name, progress) for name in names if name in EXACT}
    (output / REPORT_FILE).unlink(missing_ok=True)
    sections = {
        "parity": report.pop(PORTABLE),
        "parity_of_variants": report,
    }
    add_to_report(output, sections)
    return spec


def check_variants(names: Collection[str], known: Collection[str] = VARIANTS) -> list[str]:
    """The known variants that are asked for and `PORTABLE`, each once, in the order of ``known``.

    Raises:
        NotFoundError: There is no such variant.
    """
    for name in names:
        if name not in known:
            raise NotFoundError(
                f"There is no variant {name!r}{nearest(name, list(known)) or '.'} There are {', '.join(known)}"
            )
    return [name for name in known if name == PORTABLE or name in names]


def write_graphs(model: VitsModel, output: Path, names: Sequence[str], progress: Progress) -> None:
    """Write the graphs of variants; each file once, however many of them share it.

    Args:
        model: To export. It loses its weight norm.
        output: The voice folder.
        names: The variants.
        progress: Is told of each file.
    """
    files: dict[str, tuple[str, str]] = {}
    for name in names:
        variant = VARIANTS[name]
        for graph in SIGNATURES:
            files[getattr(variant, graph)] = (graph, variant.precision)
    for path, (graph, precision) in files.items():
        progress(f"Writing {path} (opset {OPSET})")
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        if path == DECODER_2D:
            export_decoder_2d(model, output / path)
        elif precision == "fp16" and graph != "encoder":
            export_fp16(graph, model, output / path)
        else:
            export_graph(graph, model, output / path)


def check_parity(network: VitsModel, folder: Path, name: str, progress: Progress) -> dict[str, object]:
    """Compare a variant with the model that it was exported from: the figures for the report.

    Raises:
        QualityError: They differ by more than is allowed.
    """
    voice = Voice.open(folder, variant=name)
    try:
        figures = parity.measure(network, voice, what=f"Comparing {name} with PyTorch", progress=progress)
    finally:
        voice.close()
    difference, bound = figures.worst
    progress(f"{name} agrees with PyTorch within {difference:.1e} (allowed: {bound:.1e})")
    return figures.to_json()


def describe(
    network: VitsModel,
    front_end: FrontEnd,
    *,
    speakers: dict[str, int],
    provenance: Provenance,
    model: ModelReference | None,
    language: str | None,
) -> VoiceSpec:
    """What ``voice.json`` will say of a model."""
    config = network.config
    return VoiceSpec(
        model=model,
        language=language or language_of(front_end),
        sampling_rate=config.sampling_rate,
        hop_length=math.prod(config.upsample_rates),
        latent_channels=config.flow_size,
        num_speakers=max(1, config.num_speakers),
        speakers=speakers,
        defaults=Defaults(
            noise_scale=float(config.noise_scale),
            noise_scale_duration=float(config.noise_scale_duration),
            speaking_rate=float(config.speaking_rate),
        ),
        front_end=front_end.spec,
        decoder=DecoderPlan(
            halo_frames=halo_frames(config),
            first_window_frames=FIRST_WINDOW_FRAMES,
            window_frames=WINDOW_FRAMES,
        ),
        token_buckets=TOKEN_BUCKETS,
        frame_multiple=FRAME_MULTIPLE,
        flow_halo_frames=flow_halo_frames(config),
        variants={PORTABLE: VARIANTS[PORTABLE]},
        licence=provenance.licence,
        sources=list(provenance.sources),
        consent=provenance.consent,
    )


def language_of(front_end: FrontEnd) -> str:
    """The language of a text front end, as it says itself: ``und`` where it does not."""
    return str(front_end.spec.get("espeak_voice") or front_end.spec.get("language") or "und")


def read_speakers(model_folder: Path) -> dict[str, int]:
    """The ids of a model's speakers by name; empty where they have none.

    Raises:
        ModelError: The file is there, and is not such a table.
    """
    path = model_folder / SPEAKERS_FILE
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(table, dict) or not all(type(number) is int for number in table.values()):
        raise ModelError(f'{path} must map each speaker\'s name to its number, like {{"ana": 0, "luis": 1}}')
    return table
