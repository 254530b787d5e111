"""The int8 variants of a voice: calibrate, equalise, search, write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from services.export.progress import Progress
from services.export.quantization.calibration import SEED, Samples, calibrate
from services.export.quantization.channels_last import write_channels_last
from services.export.quantization.decoder import Decoder, in_two_dimensions
from services.export.quantization.equalisation import equalise
from services.export.quantization.grids import grid_of, write_grids
from services.export.quantization.search import DAMAGE_BUDGET, Probe, choose_layers, measure_layers
from shared.voice import Voice
from shared.voice.selection import PORTABLE
from shared.voice.spec import Variant

#: See `services.export.quantization.equalisation`. Between 0.3 and 0.5 nothing is to choose.
ALPHA = 0.4

#: See `services.export.quantization.grids.grid_of`. 99.9 clips too much, the maximum wastes steps.
PERCENTILE = 99.99

#: Windows on which layers are compared, and their frames.
PROBED_WINDOWS, PROBED_FRAMES = 6, 128

#: CPU features of which one makes int8 fast.
INT8_FEATURES = ["avx512_vnni", "avx_vnni", "amx_int8"]

#: Those of which one makes bf16 fast.
BF16_FEATURES = ["avx512_bf16", "amx_bf16"]

#: The variants that `quantise` makes, from the faster to the slower, and the CPU features of which each needs one.
QUANTISED = {"int8-bf16": BF16_FEATURES, "int8": INT8_FEATURES, "int8-onnxruntime": INT8_FEATURES}

#: The decoders that quantisation writes into the voice folder, by the runtime that computes them.
DECODERS = {"openvino": "int8/decoder.onnx", "onnxruntime": "int8/decoder-onnxruntime.onnx"}


@dataclass(frozen=True)
class Quantised:
    """What quantisation made and why.

    Attributes:
        variants: The variants, for ``voice.json``. All compute the same layers in int8: ``int8-bf16`` the rest in
            bf16, ``int8`` and ``int8-onnxruntime`` in fp32.
        record: Every choice, for ``report.json``.
    """

    variants: dict[str, Variant]
    record: dict[str, Any]


def quantise(
    folder: Path,
    names: Collection[str] = tuple(QUANTISED),
    *,
    sentences: Sequence[str],
    cache: Path,
    search: bool = True,
    budget: float = DAMAGE_BUDGET,
    progress: Progress | None = None,
) -> Quantised:
    """Write int8 decoders into a voice folder: one for OpenVINO, one for ONNX Runtime, as the variants need.

    The inputs of the chosen residual-block convolutions are int8, everything else stays in the float type that
    the processor is best at (bf16 or fp32). All weights are stored as int8, so that the file is about a quarter of
    fp32's. Encoder and flow are fp32's own.

    Args:
        folder: The voice folder; its ``voice.json`` is not changed.
        names: Which of `QUANTISED` to make.
        sentences: Calibration sentences in the voice's language; the gate must not score them.
        cache: A folder that may be kept from run to run: what was interrupted goes on where it stopped.
        search: Whether to find by measurement which layers compute in int8. A voice that does not speak (random
            weights) gives nothing to measure, and has the choice that was found on Joe: all but the last stage.
        budget: Log-spectral distance from fp32, in dB, that the search may spend.
        progress: Is told of each step.

    Raises:
        ModelError: The decoder is not one that `services.export` wrote.
        MissingExtraError: OpenVINO is not installed.
    """
    progress = progress or Progress()
    with Voice.open(folder) as voice:
        source = voice.spec.variant(PORTABLE)
        path = folder / source.decoder
        seen = calibrate(voice, path, sentences, cache=cache, progress=progress)
        windows = _windows(voice, sentences)
    if search:
        probe = Probe(windows, voice.sampling_rate)
        known = _Remembered(cache / f"damage-{_key(path, sentences)}.json")
        chosen, found = _searched(path, seen.samples, probe, known, budget, progress)
    else:
        decoder = Decoder.read(path)
        chosen = [layer.name for layer in decoder.residual_layers if layer.stage < decoder.last_stage]
        found = {"search": "none: the choice that was found on Joe, every stage but the last"}
    progress(f"{len(chosen)} of {len(Decoder.read(path).residual_layers)} layers compute in int8")
    variants, sizes = {}, {}
    for name in (name for name in QUANTISED if name in names):
        runtime = "onnxruntime" if name == "int8-onnxruntime" else "openvino"
        target = folder / DECODERS[runtime]
        if runtime not in sizes:
            target.parent.mkdir(exist_ok=True)
            onnx.save(build_decoder(path, seen.samples, chosen, runtime), target)
            sizes[runtime] = target.stat().st_size / path.stat().st_size
        changes = {"engine": runtime, "precision": "int8", "decoder": DECODERS[runtime], "gate": "ungated"}
        rest = {"rest": "bf16"} if name == "int8-bf16" else {}
        variants[name] = source.model_copy(update={**changes, **rest, "requires": QUANTISED[name]})
    record = {
        "calibration": {
            "sentences": seen.sentences,
            "seconds": round(seen.seconds, 1),
            "seed": SEED,
            "percentile": PERCENTILE,
        },
        "equalisation_alpha": ALPHA,
        **found,
        "int8_layers": chosen,
        "decoder_size_against_fp32": sizes,
    }
    return Quantised(variants, record)


def _searched(
    path: Path,
    samples: Mapping[str, Samples],
    probe: Probe,
    known: dict[str, float],
    budget: float,
    progress: Progress,
) -> tuple[list[str], dict[str, Any]]:
    """The layers to compute in int8, by measurement, and the record of how they were found."""

    def build(names: Collection[str]) -> onnx.ModelProto:
        return build_decoder(path, samples, names, "openvino")

    layers = Decoder.read(path).residual_layers
    findings = measure_layers(layers, build, probe, known=known, progress=progress)
    expected = probe.speak(_plain(path))

    def damage_of(names: Collection[str]) -> float:
        key = "+".join(sorted(names))
        if key not in known:
            known[key] = probe.distance(expected, build(names))
        return known[key]

    chosen, damage, curve = choose_layers(findings, damage_of, budget=budget)
    progress(f"The layers that are worth it spoil {damage:.2f} dB together, of {budget:.1f} allowed")
    return chosen, {
        "budget_db": budget,
        "damage_db": damage,
        "curve": curve,
        "layers": [asdict(finding) for finding in findings],
    }


def build_decoder(
    path: Path, samples: Mapping[str, Samples], names: Collection[str], runtime: str
) -> onnx.ModelProto:
    """A decoder with the named layers in int8, for one of the runtimes of `DECODERS`.

    Args:
        path: The fp32 decoder.
        samples: What calibration saw.
        names: Layers to compute in int8.
        runtime: ``openvino`` or ``onnxruntime``.
    """
    decoder = Decoder.read(path)
    scaled = equalise(decoder, samples, alpha=ALPHA, percentile=PERCENTILE)
    grids = {
        layer.input: grid_of(scaled[layer.input], PERCENTILE)
        for layer in decoder.residual_layers
        if layer.name in names
    }
    if runtime == "onnxruntime":
        return write_channels_last(decoder, names, grids)
    in_two_dimensions(decoder)
    write_grids(decoder, names, grids)
    return decoder.store_weights()


def _plain(path: Path) -> onnx.ModelProto:
    """The fp32 decoder, in two dimensions."""
    decoder = Decoder.read(path)
    in_two_dimensions(decoder)
    return decoder.store_weights()


def _windows(voice: Voice, sentences: Sequence[str]) -> list[NDArray[np.float32]]:
    """Windows ``[1, D, W]`` of the beginnings of some calibration sentences."""
    windows = []
    for sentence in sentences[:PROBED_WINDOWS]:
        latents_DF = voice.prepare(sentence, seed=SEED).latents[:, :PROBED_FRAMES]
        window = np.zeros((1, len(latents_DF), PROBED_FRAMES), dtype=np.float32)
        window[0, :, : latents_DF.shape[1]] = latents_DF
        windows.append(window)
    return windows


def _key(path: Path, sentences: Sequence[str]) -> str:
    """Of all that a layer's damage depends on."""
    digest = hashlib.sha256(path.read_bytes())
    digest.update(
        json.dumps([list(sentences), ALPHA, PERCENTILE, SEED, PROBED_WINDOWS, PROBED_FRAMES]).encode()
    )
    return digest.hexdigest()[:16]


class _Remembered(dict[str, float]):
    """A table that is written to disk whenever it grows."""

    def __init__(self, path: Path) -> None:
        super().__init__(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {})
        self.path = path

    def __setitem__(self, key: str, value: float) -> None:
        super().__setitem__(key, value)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self), encoding="utf-8")
        partial.replace(self.path)
