"""From a model folder to a voice folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

from transformers import VitsModel

from services.export import parity
from services.export.graphs import OPSET, SIGNATURES, export_graph
from services.export.halo import halo_frames
from shared.errors import ModelError
from shared.modeling import load_model
from shared.provenance import Provenance
from shared.text import FrontEnd
from shared.voice import Voice, VoiceSpec
from shared.voice.spec import DecoderPlan, Defaults, ModelReference, Variant

#: Lengths that token sequences are padded to. Attention grows with the square of it, so short ones are dense.
TOKEN_BUCKETS = [32, 64, 96, 128, 192, 256, 384, 512]

#: Frames for the flow are padded to a multiple of this.
FRAME_MULTIPLE = 64

#: Frames of the first window and of the later ones. Measured on a Piper medium voice (ONNX Runtime, one thread):
#: the first window takes 23 ms (16 frames: 15 ms, 48: 32 ms). Against decoding the whole at once, later windows
#: of 64 frames cost 21, 11 and 7 % more for 1.5, 6 and 21 s of audio, those of 128 frames 9, 1 and 0 %, and longer
#: ones gain nothing more.
FIRST_WINDOW_FRAMES = 32
WINDOW_FRAMES = 128

#: Where a model folder keeps the names of its speakers: ``{"name": id}``.
SPEAKERS_FILE = "speakers.json"

REPORT_FILE = "report.json"


def export_voice(
    model_folder: Path,
    output: Path,
    *,
    provenance: Provenance,
    model: ModelReference | None = None,
    language: str | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> VoiceSpec:
    """Write the voice of a model, and prove that it says what the model says.

    Args:
        model_folder: A Hugging Face VITS folder.
        output: The voice folder to write. It is complete only when this function returns.
        provenance: Licence, sources and consent of the model.
        model: Its name and version, where it comes from a registry.
        language: What it speaks; what the text front end says where not given.
        progress: Called with a line about each step.

    Returns:
        What ``voice.json`` says.

    Raises:
        ModelError: The folder is not a model that can be exported.
        QualityError: The graphs do not compute what the model computes.
    """
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
    (output / "fp32").mkdir(parents=True, exist_ok=True)
    for name in SIGNATURES:
        progress(f"Writing the {name} graph (fp32, opset {OPSET})")
        export_graph(name, exported, output / "fp32" / f"{name}.onnx")
    spec.write(output)

    progress("Comparing with PyTorch")
    voice = Voice.open(output)
    try:
        figures = parity.measure(network, voice)
    finally:
        voice.close()
    text = json.dumps({"schema_version": 1, "parity": figures.to_json()}, indent=2, ensure_ascii=False)
    (output / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
    progress(f"The voice agrees with PyTorch within {figures.worst:.1e} (allowed: {parity.TOLERANCE:.0e})")
    return spec


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
        language=language
        or str(front_end.spec.get("espeak_voice") or front_end.spec.get("language") or "und"),
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
        variants={"fp32": Variant(opset=OPSET, **{name: f"fp32/{name}.onnx" for name in SIGNATURES})},
        licence=provenance.licence,
        sources=list(provenance.sources),
        consent=provenance.consent,
    )


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
