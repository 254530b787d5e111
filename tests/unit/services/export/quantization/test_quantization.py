"""Quantisation on tiny decoders: exact where it must be exact, close where it rounds."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.export.graphs import OPSET
from services.export.progress import Progress
from services.export.quantization import calibration, quantise, recipe, search
from services.export.quantization.calibration import calibrate
from services.export.quantization.channels_last import write_channels_last
from services.export.quantization.decoder import Decoder, in_two_dimensions, scale_stream
from services.export.quantization.equalisation import equalise
from services.export.quantization.grids import Grid, grid_of, integer_weight, write_grids
from services.export.quantization.search import (
    Finding,
    Probe,
    choose_layers,
    measure_layers,
    savings,
    within,
)
from services.export.sentences import Line
from shared.errors import ModelError, UserError
from shared.voice import Voice
from shared.voice.engine import computed_by
from tests.unit.services.export.conftest import SENTENCES, Exported


def compute(model: onnx.ModelProto, frames: int = 30, *, speaker: int = 0) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # QDQ as it is written: no fusing, so that float rounding is all that may differ.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    latents = np.random.default_rng(0).normal(size=(1, 4, frames)).astype(np.float32)
    waveform: NDArray[np.float32] = session.run(
        None, {"latents": latents, "speaker_id": np.array([speaker])}
    )[0]
    return waveform


def test_layers_are_found_in_their_stages(exported: Exported) -> None:
    decoder = Decoder.read(exported.folder / "fp32/decoder.onnx")
    blocks = 2 * 2  # kernels, stages
    convolutions = (
        2 if "stochastic" in str(exported.model()) or exported.model().config.num_speakers > 1 else 4
    )
    assert len(decoder.residual_layers) == blocks * convolutions
    assert {layer.stage for layer in decoder.residual_layers} == {1, 2}
    assert [layer.name for layer in decoder.layers if layer.transposed] == ["upsampler.0", "upsampler.1"]
    assert not any(
        layer.residual for layer in decoder.layers if layer.name in ("conv_pre", "conv_post", "cond")
    )


def test_a_graph_that_is_no_decoder_is_refused(exported: Exported) -> None:
    with pytest.raises(ModelError, match="no residual blocks"):
        Decoder.read(exported.folder / "fp32/flow.onnx")


def test_two_dimensions_change_nothing(exported: Exported) -> None:
    path = exported.folder / "fp32/decoder.onnx"
    decoder = Decoder.read(path)
    in_two_dimensions(decoder)
    planar, plain = compute(decoder.store_weights(), speaker=0), compute(onnx.load(path), speaker=0)
    assert planar.shape == plain.shape
    np.testing.assert_allclose(planar, plain, atol=1e-6)


def test_scales_pass_through_every_stream(exported: Exported) -> None:
    path = exported.folder / "fp32/decoder.onnx"
    decoder = Decoder.read(path)
    rng = np.random.default_rng(1)
    streams = decoder.streams()
    assert streams
    for stream in streams:
        writer = stream.writers[0]
        channels = decoder.weights[writer.weight].shape[1 if writer.transposed else 0]
        scale_stream(decoder, stream, np.exp(rng.normal(size=channels)).astype(np.float32))
    np.testing.assert_allclose(compute(decoder.store_weights()), compute(onnx.load(path)), atol=1e-5)


def test_every_residual_layer_reads_a_stream_that_can_be_scaled(exported: Exported) -> None:
    decoder = Decoder.read(exported.folder / "fp32/decoder.onnx")
    scaled = {layer.name for stream in decoder.streams() for layer in stream.readers}
    assert {layer.name for layer in decoder.residual_layers} <= scaled


def test_a_scale_of_zero_is_refused(exported: Exported) -> None:
    decoder = Decoder.read(exported.folder / "fp32/decoder.onnx")
    with pytest.raises(ValueError, match="positive"):
        scale_stream(decoder, decoder.streams()[0], np.zeros(1, dtype=np.float32))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=50))
def test_a_grid_holds_zero_exactly_and_everything_else_to_half_a_step(values: list[float]) -> None:
    signal = np.array(values, dtype=np.float32)
    grid = grid_of(signal, 100)
    assert float(grid.round(np.zeros(1, dtype=np.float32))[0]) == 0.0
    # The zero point is a whole number, which moves either end by half a step at most.
    assert np.abs(grid.round(signal) - signal).max() <= grid.scale * 1.01 + 1e-6


def test_a_percentile_clips_the_extremes() -> None:
    signal = np.concatenate([np.linspace(-1, 1, 100_000), [1000.0]]).astype(np.float32)
    assert grid_of(signal, 99.99).scale < 0.01
    assert grid_of(signal, 100).scale > 3


def test_weights_are_within_half_a_step_of_each_channel() -> None:
    weight = (
        np.random.default_rng(0).normal(size=(5, 3, 7)).astype(np.float32)
        * np.array([1, 10, 0.1, 5, 0])[:, None, None]
    )
    integers, scale = integer_weight(weight.astype(np.float32), axis=0)
    assert integers.min() >= -127
    np.testing.assert_array_less(
        np.abs(integers * scale[:, None, None] - weight).max(axis=(1, 2)), scale * 0.501 + 1e-9
    )


@pytest.mark.parametrize("planar", [False, True])
def test_quantised_inputs_round_as_the_grid_says(exported: Exported, planar: bool) -> None:
    """Near the graph in which weights alone are rounded, and nowhere farther from it than elsewhere."""
    path = exported.folder / "fp32/decoder.onnx"

    def written(names: list[str], grids: dict[str, Grid]) -> onnx.ModelProto:
        decoder = Decoder.read(path)
        if planar:
            in_two_dimensions(decoder)
        write_grids(decoder, names, grids)
        model = decoder.store_weights()
        onnx.checker.check_model(model)
        return model

    layers = Decoder.read(path).residual_layers
    weights_alone = compute(written([], {}))
    grids = {layer.input: Grid(0.02, 128) for layer in layers}
    quantised = compute(written([layer.name for layer in layers], grids))
    assert np.abs(weights_alone - compute(onnx.load(path))).max() < 0.05
    assert np.abs(quantised - weights_alone).max() > 0
    assert np.corrcoef(quantised[0], weights_alone[0])[0, 1] > 0.95
    # Padding means nought, not the grid's lowest value: the ends are no worse than the middle.
    error = np.abs(quantised - weights_alone)[0]
    assert error[:16].max() < 4 * error[16:-16].max()


@pytest.mark.parametrize(
    ("stages", "every_other"), [((), False), ((1,), False), ((1, 2), False), ((2,), True)]
)
def test_channels_last_computes_what_the_grids_say(
    exported: Exported, stages: tuple[int, ...], every_other: bool
) -> None:
    """Integer products beside the same integers made floats: sums in another order are all that differs."""
    path = exported.folder / "fp32/decoder.onnx"
    layers = [layer for layer in Decoder.read(path).residual_layers if layer.stage in stages]
    names = [layer.name for layer in layers][:: 2 if every_other else 1]
    grids = {layer.input: Grid(0.02, 100) for layer in layers if layer.name in names}
    decoder = Decoder.read(path)
    write_grids(decoder, names, grids)
    expected = decoder.store_weights()
    found = write_channels_last(Decoder.read(path), names, grids)
    onnx.checker.check_model(found)
    kinds = [node.op_type for node in found.graph.node]
    assert kinds.count("MatMulIntegerToFloat") == len(names)
    for frames in (1, 30):
        difference = np.abs(compute(found, frames, speaker=0) - compute(expected, frames, speaker=0))
        # A sum that lies between two integers may be rounded either way, and is then a step apart.
        assert np.median(difference) < 1e-5
        assert difference.max() < 0.02
    weights = [tensor for tensor in found.graph.initializer if tensor.name.startswith("decoder.")]
    assert all(tensor.data_type == onnx.TensorProto.INT8 for tensor in weights if np.prod(tensor.dims) > 100)


def test_equalisation_scales_the_samples_with_the_decoder(exported: Exported, tmp_path: Path) -> None:
    path = exported.folder / "fp32/decoder.onnx"
    voice = exported.voice()
    seen = calibrate(voice, path, SENTENCES, cache=tmp_path)
    voice.close()
    decoder = Decoder.read(path)
    scaled = equalise(decoder, seen.samples, alpha=1.0, percentile=100)
    np.testing.assert_allclose(compute(decoder.store_weights()), compute(onnx.load(path)), atol=1e-5)
    stream = decoder.streams()[1]
    ranges = [np.abs(scaled[layer.input].astype(np.float32)).max(axis=1) for layer in stream.readers]
    loudest = np.maximum.reduce(ranges)
    np.testing.assert_allclose(loudest, np.median(loudest), rtol=0.01)


def test_calibration_goes_on_where_it_stopped(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice = exported.voice()
    path = exported.folder / "fp32/decoder.onnx"
    spoken: list[str] = []
    speakers: list[int] = []
    observe = calibration._observe

    def interrupted(*arguments: object) -> None:
        if len(spoken) == 2:
            raise KeyboardInterrupt
        line = arguments[3]
        assert isinstance(line, Line)
        spoken.append(line.text)
        speakers.append(line.speaker)
        observe(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(calibration, "_observe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(voice, path, SENTENCES, cache=tmp_path)
    spoken.clear()
    resumed = calibrate(voice, path, SENTENCES, cache=tmp_path)
    assert spoken == [SENTENCES[2]]
    assert speakers == [number % voice.spec.num_speakers for number in range(3)]
    monkeypatch.undo()
    whole = calibrate(voice, path, SENTENCES, cache=tmp_path / "other")
    voice.close()
    assert resumed.seconds == whole.seconds
    for tensor, samples in whole.samples.items():
        np.testing.assert_array_equal(samples, resumed.samples[tensor])


def test_a_cache_that_cannot_be_written_is_named(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exported.folder / "fp32/decoder.onnx"
    (tmp_path / "file").touch()
    with exported.voice() as voice:
        with pytest.raises(UserError, match=r"file/calibration-.* cannot be written .* set VITS_CACHE"):
            calibrate(voice, path, SENTENCES, cache=tmp_path / "file")

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("numpy.savez", full)
        with pytest.raises(UserError, match=r"calibration-.* cannot be written \(No space.* set VITS_CACHE"):
            calibrate(voice, path, SENTENCES, cache=tmp_path / "cache")
    with pytest.raises(UserError, match=r"file cannot be written .* set VITS_CACHE"):
        recipe._Remembered(tmp_path / "file/damage.json")["layer"] = 1.0


def test_every_speaker_is_probed(stochastic: Exported) -> None:
    pytest.importorskip("openvino")
    path = stochastic.folder / "fp32/decoder.onnx"
    with stochastic.voice() as voice:
        windows = recipe._windows(voice, SENTENCES)
        assert [window.speaker_id for window in windows] == [0, 1, 2]
        spoken = Probe(windows, voice.sampling_rate).speak(onnx.load(path))
        for sentence, window, samples in zip(SENTENCES, windows, spoken, strict=True):
            said = voice.prepare(sentence, speaker=window.speaker_id, seed=calibration.SEED).latents
            said = said[:, : recipe.PROBED_FRAMES]
            np.testing.assert_array_equal(window.latents[0, :, : said.shape[1]], said)
            inputs = {"latents": window.latents, "speaker_id": np.array([window.speaker_id])}
            expected = voice.engine.run("decoder", inputs)["waveform"][0]
            np.testing.assert_allclose(samples, expected, atol=1e-5)


def test_what_a_layer_spoils_is_another_matter_with_another_encoder(
    stochastic: Exported, tmp_path: Path
) -> None:
    folder = tmp_path / "voice"
    shutil.copytree(stochastic.folder, folder)
    path = folder / "fp32/decoder.onnx"
    with Voice.open(folder, threads=1) as voice:
        before = recipe._key(voice, path, SENTENCES)
        assert recipe._key(voice, path, SENTENCES) == before
        assert recipe._key(voice, path, SENTENCES[:2]) != before
        model = onnx.load(folder / "fp32/encoder.onnx")
        model.doc_string = "other bytes"
        onnx.save(model, folder / "fp32/encoder.onnx")
        assert recipe._key(voice, path, SENTENCES) != before


def test_savings_charge_rounding_and_padding_to_their_layers(exported: Exported) -> None:
    layers = Decoder.read(exported.folder / "fp32/decoder.onnx").residual_layers[:2]
    real = {f"{layer.node}/WithoutBiases": 10.0 for layer in layers}
    integer = {f"{layer.node}/WithoutBiases": 4.0 for layer in layers}
    integer |= {f"{layer.name}.padded": 1.0 for layer in layers}
    integer |= {f"{tensor}.q": 2.0 for tensor in {layer.input for layer in layers}}
    shared = 1.0 if layers[0].input == layers[1].input else 2.0
    assert savings(layers, real, integer) == {layer.name: 10 - 4 - 1 - shared for layer in layers}


class Stopwatch:
    """A probe that notes what it is asked to time."""

    def __init__(self) -> None:
        self.timed: list[str] = []

    def speak(self, model: onnx.ModelProto) -> list[NDArray[np.float32]]:
        return []

    def distance(self, expected: object, model: onnx.ModelProto) -> float:
        return 1.0

    def node_times(self, model: onnx.ModelProto, rest: str) -> dict[str, float]:
        self.timed.append(rest)
        return {}


def test_savings_are_measured_beside_every_rest_and_remembered(
    stochastic: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured anew they differ a little: an interrupted export would choose other layers than were judged."""
    layers = Decoder.read(stochastic.folder / "fp32/decoder.onnx").residual_layers
    turns = iter([2.0, 1.0])  # beside fp32, beside bf16
    monkeypatch.setattr(
        search, "savings", lambda layers, *_: dict.fromkeys([x.name for x in layers], next(turns))
    )
    watch, known, saved = Stopwatch(), dict[str, float](), dict[str, float]()

    def measure() -> list[Finding]:
        return measure_layers(
            layers,
            lambda names: onnx.ModelProto(),
            watch,  # type: ignore[arg-type]
            known=known,
            saved=saved,
            rests=["fp32", "bf16"],
            progress=Progress(),
        )

    first = measure()
    assert [finding.saved_ms for finding in first] == [1.5] * len(layers)
    assert watch.timed == ["fp32", "fp32", "bf16", "bf16"]
    assert measure() == first
    assert len(watch.timed) == 4


def test_the_cheapest_damage_is_taken_first_and_the_budget_kept() -> None:
    findings = [
        Finding("harmless", 0.1, 5.0),
        Finding("bad", 3.0, 5.0),
        Finding("slow", 0.1, -1.0),
        Finding("fair", 1.0, 5.0),
    ]
    damages = {"harmless": 0.1, "bad": 3.0, "fair": 1.0}

    def damage_of(names: Collection[str]) -> float:
        return 1.5 * sum(damages[name] for name in names)

    names, damage, curve = choose_layers(findings, damage_of, budget=2.0)
    assert names == ["harmless", "fair"]
    assert damage == pytest.approx(1.65)
    assert all(point[1] >= 0 for point in curve)
    assert choose_layers(findings, damage_of, budget=1.0)[0] == ["harmless"]
    assert within(findings, 10.0) == ["harmless", "fair", "bad"]


def test_little_damage_that_saves_nothing_comes_after_more_that_saves_much() -> None:
    findings = [Finding("little", 0.5, 0.1), Finding("more", 1.0, 5.0)]
    assert within(findings, 1.0) == ["more"]
    assert within(findings, 2.0) == ["more", "little"]


def test_an_int8_voice_speaks_like_fp32_from_a_quarter_of_the_weights(
    stochastic: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A tiny decoder is no faster in int8, so that nothing would be chosen.
    monkeypatch.setattr(search, "savings", lambda layers, *times: {layer.name: 1.0 for layer in layers})
    folder = tmp_path / "voice"
    shutil.copytree(stochastic.folder, folder)
    made = quantise(folder, sentences=SENTENCES, cache=tmp_path / "cache", budget=40.0)
    for kept in ("damage", "savings"):
        assert len(list((tmp_path / "cache").glob(f"{kept}-*.json"))) == 1
    assert made.record["int8_layers"]
    assert made.record.keys() == {
        "calibration",
        "equalisation_alpha",
        "budget_db",
        "damage_db",
        "curve",
        "timed_beside",
        "computed_by",
        "layers",
        "int8_layers",
        "decoder_size_against_fp32",
    }
    assert made.record["computed_by"] == computed_by()
    assert {name: (v.engine, v.rest, v.gate) for name, v in made.variants.items()} == {
        "int8-bf16": ("openvino", "bf16", "ungated"),
        "int8": ("openvino", "fp32", "ungated"),
        "int8-onnxruntime": ("onnxruntime", "fp32", "ungated"),
    }
    anywhere = {  # slow without the instructions, not wrong
        name: variant.model_copy(update={"requires": []}) for name, variant in made.variants.items()
    }
    voice = stochastic.voice()
    spec = voice.spec.model_copy(update={"variants": {**voice.spec.variants, **anywhere}})
    spec.write(folder)
    expected = voice.synthesize("hola a todos", seed=5).samples
    voice.close()
    for name in ("int8", "int8-onnxruntime"):
        with Voice.open(folder, variant=name, threads=1) as quantised:
            spoken = quantised.synthesize("hola a todos", seed=5).samples
        assert spoken.shape == expected.shape
        assert np.corrcoef(spoken, expected)[0, 1] > 0.99


def test_only_the_decoders_that_are_wanted_are_written(stochastic: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "voice"
    shutil.copytree(stochastic.folder, folder)
    made = quantise(folder, ["int8-onnxruntime"], sentences=SENTENCES, cache=tmp_path / "cache", search=False)
    assert [path.name for path in (folder / "int8").iterdir()] == ["decoder-onnxruntime.onnx"]
    model = onnx.load(folder / "int8/decoder-onnxruntime.onnx")
    assert {o.domain: o.version for o in model.opset_import} == {"": OPSET, "com.microsoft": 1}
    assert made.variants["int8-onnxruntime"].opset == OPSET
    # Nothing was measured: every stage but the last, as on Joe.
    stages = {layer.name: layer.stage for layer in Decoder.read(folder / "fp32/decoder.onnx").residual_layers}
    assert {stages[name] for name in made.record["int8_layers"]} == {1}
    assert "Joe" in made.record["search"]


def test_without_openvino_nothing_is_measured_and_it_is_said(
    stochastic: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    folder = tmp_path / "voice"
    shutil.copytree(stochastic.folder, folder)
    said: list[str] = []
    progress = Progress(said.append)
    made = quantise(
        folder, ["int8-onnxruntime"], sentences=SENTENCES, cache=tmp_path / "cache", progress=progress
    )
    assert "Joe" in made.record["search"]
    assert any("OpenVINO" in line for line in said)


def test_int8_weights_make_the_file_small(stochastic: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "voice"
    shutil.copytree(stochastic.folder, folder)
    quantise(folder, ["int8"], sentences=SENTENCES, cache=tmp_path / "cache", search=False)
    model = onnx.load(folder / "int8/decoder.onnx")
    assert {o.domain: o.version for o in model.opset_import} == {"": OPSET}
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4]
    assert weights
    assert all(tensor.data_type == onnx.TensorProto.INT8 for tensor in weights)
