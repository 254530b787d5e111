"""The int8 variants of a voice: calibrate, equalise, search, write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from services.export.export import VARIANTS
from services.export.progress import Progress
from services.export.quantization.calibration import SEED, Samples, calibrate, digest_of
from services.export.quantization.channels_last import write_channels_last
from services.export.quantization.decoder import Decoder, in_two_dimensions
from services.export.quantization.equalisation import equalise
from services.export.quantization.grids import grid_of, write_grids
from services.export.quantization.search import (
    DAMAGE_BUDGET,
    Probe,
    ProbedWindow,
    choose_layers,
    measure_layers,
)
from services.export.sentences import shared_out
from shared.cache import CACHE_REMEDY
from shared.folders import writing
from shared.voice import Voice
from shared.voice.engine import computed_by, why_not
from shared.voice.selection import PORTABLE
from shared.voice.spec import Variant

#: See `services.export.quantization.equalisation`. Between 0.3 and 0.5 nothing is to choose.
ALPHA = 0.4

#: See `services.export.quantization.grids.grid_of`. 99.9 clips too much, the maximum wastes steps.
PERCENTILE = 99.99

#: Windows on which layers are compared, and their frames.
PROBED_WINDOWS, PROBED_FRAMES = 6, 128

_INT8 = VARIANTS[PORTABLE].model_copy(
    update={
        "engine": "openvino",
        "precision": "int8",
        "decoder": "int8/decoder.onnx",
        "requires": ["avx512_vnni", "avx_vnni", "amx_int8"],
        "gate": "ungated",
    }
)

#: The variants that `quantise` makes, from the faster to the slower.
QUANTISED: dict[str, Variant] = {
    "int8-bf16": _INT8.model_copy(update={"rest": "bf16", "requires": VARIANTS["bf16"].requires}),
    "int8": _INT8,
    "int8-onnxruntime": _INT8.model_copy(
        update={"engine": "onnxruntime", "decoder": "int8/decoder-onnxruntime.onnx"}
    ),
}


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
            So has every voice where OpenVINO, which measures, is not installed.
        budget: Log-spectral distance from fp32, in dB, that the search may spend.
        progress: Is told of each step.

    Raises:
        ModelError: The decoder is not one that `services.export` wrote.
        UserError: The cache cannot be written.
    """
    progress = progress or Progress()
    with Voice.open(folder) as voice:
        path = folder / voice.spec.variant(PORTABLE).decoder
        seen = calibrate(voice, path, sentences, cache=cache, progress=progress)
        windows = _windows(voice, sentences)
        key = _key(voice, path, sentences)
    if search and find_spec("openvino") is None:
        progress("OpenVINO, which would measure the layers, is not installed: they are those found on Joe")
        search = False
    if search:
        probe = Probe(windows, voice.sampling_rate)
        known = _Remembered(cache / f"damage-{key}.json")
        rests = sorted({QUANTISED[name].rest for name in names if why_not(QUANTISED[name]) is None})
        rests = rests or ["fp32"]
        saved = _Remembered(cache / f"savings-{'-'.join(rests)}-{key}.json")
        chosen, found = _searched(path, seen.samples, probe, known, saved, rests, budget, progress)
    else:
        decoder = Decoder.read(path)
        chosen = [layer.name for layer in decoder.residual_layers if layer.stage < decoder.last_stage]
        found = {"search": "none: the choice that was found on Joe, every stage but the last"}
    progress(f"{len(chosen)} of {len(Decoder.read(path).residual_layers)} layers compute in int8")
    variants = {name: variant for name, variant in QUANTISED.items() if name in names}
    sizes: dict[str, float] = {}
    for variant in variants.values():
        if variant.engine not in sizes:
            target = folder / variant.decoder
            target.parent.mkdir(exist_ok=True)
            onnx.save(build_decoder(path, seen.samples, chosen, variant.engine), target)
            sizes[variant.engine] = target.stat().st_size / path.stat().st_size
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
    saved: dict[str, float],
    rests: Sequence[str],
    budget: float,
    progress: Progress,
) -> tuple[list[str], dict[str, Any]]:
    """The layers to compute in int8, by measurement, and the record of how they were found."""

    def build(names: Collection[str]) -> onnx.ModelProto:
        return build_decoder(path, samples, names, "openvino")

    layers = Decoder.read(path).residual_layers
    findings = measure_layers(layers, build, probe, known=known, saved=saved, rests=rests, progress=progress)
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
        "timed_beside": list(rests),
        "computed_by": computed_by(),
        "layers": [asdict(finding) for finding in findings],
    }


def build_decoder(
    path: Path, samples: Mapping[str, Samples], names: Collection[str], runtime: str
) -> onnx.ModelProto:
    """A decoder with the named layers in int8, for one of the runtimes.

    Args:
        path: The fp32 decoder.
        samples: What calibration saw.
        names: Layers to compute in int8.
        runtime: Which computes it: ``openvino`` or ``onnxruntime``.
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


def _windows(voice: Voice, sentences: Sequence[str]) -> list[ProbedWindow]:
    """Windows of the beginnings of some calibration sentences, the speakers in turn."""
    windows = []
    for line in shared_out(sentences[:PROBED_WINDOWS], voice.spec.num_speakers):
        latents_DF = voice.prepare(line.text, speaker=line.speaker, seed=SEED).latents[:, :PROBED_FRAMES]
        latents_1DW = np.zeros((1, len(latents_DF), PROBED_FRAMES), dtype=np.float32)
        latents_1DW[0, :, : latents_DF.shape[1]] = latents_DF
        windows.append(ProbedWindow(latents_1DW, line.speaker))
    return windows


def _key(voice: Voice, path: Path, sentences: Sequence[str]) -> str:
    """Of all that a layer's damage and saving depend on."""
    recipe = [ALPHA, PERCENTILE, SEED, PROBED_WINDOWS, PROBED_FRAMES]
    parts = [digest_of(voice, path), list(sentences), voice.spec.num_speakers, recipe, computed_by()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


class _Remembered(dict[str, float]):
    """A table that is written to disk whenever it grows."""

    def __init__(self, path: Path) -> None:
        super().__init__(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {})
        self.path = path

    def __setitem__(self, key: str, value: float) -> None:
        super().__setitem__(key, value)
        partial = self.path.with_suffix(".partial")
        with writing(self.path.parent, CACHE_REMEDY):
            partial.write_text(json.dumps(self), encoding="utf-8")
            partial.replace(self.path)
