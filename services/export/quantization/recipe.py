"""An int8 variant of a voice: calibrate, equalise, search, write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from services.export.quantization.calibration import SEED, calibrate
from services.export.quantization.decoder import Decoder, in_two_dimensions
from services.export.quantization.equalisation import equalise
from services.export.quantization.grids import grid_of, write_grids
from services.export.quantization.search import DAMAGE_BUDGET, Finding, Probe, choose_layers, measure_layers
from shared.voice import Voice
from shared.voice.spec import Variant

#: See `services.export.quantization.equalisation`. Between 0.3 and 0.5 nothing is to choose.
ALPHA = 0.4

#: See `services.export.quantization.grids.grid_of`. 99.9 clips too much, the maximum wastes steps.
PERCENTILE = 99.99

#: Windows on which layers are compared, and their frames.
PROBED_WINDOWS, PROBED_FRAMES = 6, 128

#: The variant whose graphs are quantised.
SOURCE = "fp32"

#: The file that quantisation writes into the voice folder.
DECODER = "int8/decoder.onnx"

#: CPU features of which one makes int8 fast.
INT8_FEATURES = ["avx512_vnni", "avx_vnni", "amx_int8"]

#: Those of which one makes bf16 fast.
BF16_FEATURES = ["avx512_bf16", "amx_bf16"]

#: The variants that `quantise` makes, and the CPU features of which each needs one.
QUANTISED = {"int8": INT8_FEATURES, "int8-bf16": BF16_FEATURES}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Quantised:
    """What quantisation made and why.

    Attributes:
        variants: The variants, for ``voice.json``, from the faster to the slower: ``int8-bf16`` computes what is
            not quantised in bf16, ``int8`` in fp32. They share their files.
        record: Every choice, for ``report.json``.
    """

    variants: dict[str, Variant]
    record: dict[str, Any]


def quantise(
    folder: Path,
    *,
    sentences: Sequence[str],
    cache: Path,
    budget: float = DAMAGE_BUDGET,
    progress: Progress = lambda line: None,
) -> Quantised:
    """Write an int8 decoder for OpenVINO into a voice folder: ``int8/decoder.onnx``.

    The inputs of the chosen residual-block convolutions are int8, everything else stays in the float type that
    the processor is best at (bf16 or fp32). All weights are stored as int8, so that the file is about a quarter of
    fp32's. Encoder and flow are fp32's own.

    Args:
        folder: The voice folder; its ``voice.json`` is not changed.
        sentences: Calibration sentences in the voice's language; the gate must not score them.
        cache: A folder that may be kept from run to run: what was interrupted goes on where it stopped.
        budget: Log-spectral distance from fp32, in dB, that the search may spend.
        progress: Called with a line about each step.

    Raises:
        ModelError: The decoder is not one that `services.export` wrote.
        MissingExtraError: OpenVINO is not installed.
    """
    voice = Voice.open(folder, variant=SOURCE)
    try:
        source = voice.spec.variant(SOURCE)
        seen = calibrate(voice, folder / source.decoder, sentences, cache=cache, progress=progress)
        probe = Probe(_windows(voice, sentences), voice.sampling_rate)
    finally:
        voice.close()
    build = _builder(folder / source.decoder, seen.samples)
    layers = Decoder.read(folder / source.decoder).residual_layers
    path = cache / f"damage-{_key(folder / source.decoder, sentences)}.json"
    known = _Remembered(path)
    findings = measure_layers(layers, build, probe, known=known, progress=progress)
    expected = probe.speak(_plain(folder / source.decoder))
    chosen, damage, curve = choose_layers(
        findings, lambda names: probe.distance(expected, build(names)), budget=budget
    )
    progress(f"{len(chosen)} of {len(layers)} layers compute in int8: {damage:.2f} dB from fp32")
    model = build(chosen)
    target = folder / DECODER
    target.parent.mkdir(exist_ok=True)
    onnx.save(model, target)
    size = target.stat().st_size / (folder / source.decoder).stat().st_size
    common = {"engine": "openvino", "precision": "int8", "decoder": DECODER, "gate": "ungated"}
    variants = {
        "int8-bf16": source.model_copy(update={**common, "rest": "bf16", "requires": QUANTISED["int8-bf16"]}),
        "int8": source.model_copy(update={**common, "requires": QUANTISED["int8"]}),
    }
    record = {
        "calibration": {
            "sentences": seen.sentences,
            "seconds": round(seen.seconds, 1),
            "seed": SEED,
            "percentile": PERCENTILE,
        },
        "equalisation_alpha": ALPHA,
        "budget_db": budget,
        "damage_db": damage,
        "curve": curve,
        "int8_layers": chosen,
        "layers": [asdict(finding) for finding in findings],
        "decoder_size_against_fp32": size,
    }
    return Quantised(variants, record)


def _builder(path: Path, samples: Any) -> Callable[[Collection[str]], onnx.ModelProto]:
    """Makes decoders with the named layers in int8; the rest of the recipe is fixed."""

    def build(names: Collection[str]) -> onnx.ModelProto:
        decoder = Decoder.read(path)
        scaled = equalise(decoder, samples, alpha=ALPHA, percentile=PERCENTILE)
        in_two_dimensions(decoder)
        grids = {
            layer.input: grid_of(scaled[layer.input], PERCENTILE)
            for layer in decoder.residual_layers
            if layer.name in names
        }
        write_grids(decoder, names, grids)
        return decoder.store_weights()

    return build


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


__all__ = ["Finding", "Quantised", "quantise"]
