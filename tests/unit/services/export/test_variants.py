"""Variants on real graphs: the law of a voice in each, the same durations in all, memory that stays flat."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.export.export import EXACT, VARIANTS, export_voice
from services.export.graphs import OPSET, SIGNATURES, build_graph, export_fp16
from shared.errors import EngineError, ModelError, NotFoundError
from shared.processor import cpu_features
from shared.provenance import Provenance
from shared.text import Tokens
from shared.voice import SpeechParameters, Utterance, Voice, VoiceSpec
from shared.voice.engine import GPU_PROVIDER, open_engine, why_not
from shared.voice.latents import Latents
from shared.voice.openvino_engine import MOST_SHAPES, OpenVinoEngine, computed_constants
from shared.voice.selection import choose_variant, measure_variants, usable_variants
from shared.voice.spec import DecoderPlan, round_up
from shared.voice.windows import plan_windows

from .conftest import ALPHABET, Exported, MakeModel, decode_together

needs_bf16 = pytest.mark.skipif(
    not cpu_features() & set(VARIANTS["bf16"].requires), reason="this CPU has no bf16"
)
EACH = [
    *EXACT,
    pytest.param("bf16", marks=needs_bf16),
    "int8",
    pytest.param("int8-bf16", marks=needs_bf16),
    "int8-onnxruntime",
]

#: Samples of the same windows agree so far, whatever shares a call with them; of fp32 those of all windows do.
LAW = 1e-5
#: Another cut of what is not fp32 rounds otherwise: a sum between two numbers may go to either.
FULL = {
    "fp32": LAW,
    "fp32-openvino": LAW,
    "bf16": 0.02,
    "int8": 0.02,
    "int8-bf16": 0.02,
    "int8-onnxruntime": 0.02,
}

texts = st.text(alphabet=ALPHABET[1:], min_size=1, max_size=60).filter(
    lambda text: any(map(str.isalpha, text))
)
seeds = st.integers(0, 2**53 - 1)
orders = st.randoms(use_true_random=False)
#: Frames of the first window and of later ones. OpenVINO compiles each width: of these two plans it keeps all.
splits = st.tuples(st.integers(1, 20), st.integers(1, 40))
compiled = st.sampled_from([(5, 5), (10, 20)])
slow = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=10)


def decoded(voice: Voice, latents_DF: NDArray[np.float32], speaker_id: int) -> NDArray[np.float32]:
    """Whole decoding: zeros after the end, a halo or more of them, and trimmed."""
    frames = latents_DF.shape[1]
    width = round_up(frames + voice.spec.decoder.halo_frames, 100)  # so that widths are few
    inputs = {
        "latents": np.pad(latents_DF, ((0, 0), (0, width - frames)))[None],
        "speaker_id": np.array([speaker_id]),
    }
    return voice.engine.run("decoder", inputs)["waveform"][0, : frames * voice.spec.hop_length]


@pytest.mark.parametrize("variant", EACH)
def test_windows_are_the_whole_alone_and_in_a_crowd(quantised: Exported, variant: str) -> None:
    voice = quantised.voice(variant, streams=2)
    text = "la persona con la que desea hablar no se encuentra en este momento."
    speakers = [seed % voice.spec.num_speakers for seed in range(4)]
    alone = [
        voice.synthesize(text, seed=seed, speaker=speaker).samples for seed, speaker in enumerate(speakers)
    ]
    with ThreadPoolExecutor(4) as crowd:
        together = list(
            crowd.map(
                lambda pair: np.concatenate(list(voice.stream(text, seed=pair[0], speaker=pair[1]))),
                enumerate(speakers),
            )
        )
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=LAW)
    utterance = voice.prepare(text, seed=0)
    windowed = np.concatenate(list(voice.decode(utterance)))
    np.testing.assert_allclose(windowed, alone[0], atol=LAW)
    np.testing.assert_allclose(windowed, decoded(voice, utterance.latents, 0), atol=FULL[variant])
    voice.close()


@pytest.mark.parametrize("variant", EACH)
@slow
@given(
    rows=st.lists(st.tuples(st.integers(1, 85), st.integers(0, 2)), min_size=1, max_size=4),
    split=st.data(),
    most=st.integers(1, 4),
    order=orders,
)
def test_any_split_into_windows_and_batches(
    quantised: Exported,
    variant: str,
    rows: list[tuple[int, int]],
    split: st.DataObject,
    most: int,
    order: Random,
) -> None:
    """Rows of different lengths and speakers, cut anyhow, their windows packed into calls anyhow."""
    voice = opened(quantised.folder, variant)
    halo = voice.spec.decoder.halo_frames
    first, later = split.draw(compiled if isinstance(voice.engine, OpenVinoEngine) else splits)
    plan = DecoderPlan(halo_frames=halo, first_window_frames=first, window_frames=later)
    utterances = []
    for frames, speaker in rows:
        latents = np.random.default_rng(order.getrandbits(31)).standard_normal((4, frames), dtype=np.float32)
        speaker_id = speaker % voice.spec.num_speakers
        windows = plan_windows(frames, plan)
        utterances.append(
            Utterance(
                Tokens((), (), ()), np.zeros(0, np.int64), Latents.known(latents), windows, speaker_id, seed=0
            )
        )
    together = decode_together(voice, utterances, most=most, order=order)
    for utterance, samples in zip(utterances, together, strict=True):
        alone = np.concatenate(list(voice.decode(utterance)))
        np.testing.assert_allclose(samples, alone, atol=LAW)
        whole = decoded(voice, utterance.latents, utterance.speaker_id)
        np.testing.assert_allclose(samples, whole, atol=FULL[variant])


@pytest.mark.parametrize("variant", EACH)
@slow
@given(
    crowd=st.lists(st.tuples(texts, seeds, st.integers(0, 2)), min_size=1, max_size=3),
    most=st.integers(1, 4),
    order=orders,
)
def test_any_texts_and_seeds_in_any_company(
    quantised: Exported, variant: str, crowd: list[tuple[str, int, int]], most: int, order: Random
) -> None:
    """The durations are the same bits in all variants, the samples the same numbers in the exact ones."""
    exact, voice = opened(quantised.folder, "fp32"), opened(quantised.folder, variant)
    scripts = []
    for text, seed, speaker in crowd:
        plan = voice.plan(text, SpeechParameters(seed=seed, speaker=speaker % voice.spec.num_speakers))
        scripts.append([voice.render(plan, number) for number in range(len(plan.script.segments))])
    every = [utterance for utterances in scripts for utterance in utterances]
    together = iter(decode_together(voice, every, most=most, order=order))
    for (text, seed, speaker), utterances in zip(crowd, scripts, strict=True):
        expected, alone = (
            one.synthesize(text, seed=seed, speaker=speaker % voice.spec.num_speakers)
            for one in (exact, voice)
        )
        pieces = [piece for utterance in utterances for piece in (next(together), utterance.pause)]
        np.testing.assert_allclose(np.concatenate(pieces), alone.samples, atol=LAW)
        for one, other in zip(alone.durations, expected.durations, strict=True):
            np.testing.assert_array_equal(one, other)
        assert alone.samples.shape == expected.samples.shape
        assert np.abs(alone.samples).max(initial=0) <= 1
        if variant in EXACT:
            np.testing.assert_allclose(alone.samples, expected.samples, atol=1e-4)


@needs_bf16
def test_bf16_differs_a_little_and_speaks_as_long(exported: Exported) -> None:
    text = "por favor espere un momento."
    exact, rounded = (exported.voice(name).synthesize(text, seed=1) for name in ("fp32", "bf16"))
    for one, other in zip(exact.durations, rounded.durations, strict=True):
        np.testing.assert_array_equal(one, other)
    difference = np.abs(exact.samples - rounded.samples)
    assert 1e-6 < difference.mean() < 0.02


DROPPED = """
import os, signal, sys, threading
from pathlib import Path
from shared.voice import Voice

held = [Voice.open(Path(sys.argv[1]), variant="fp32-openvino", threads=1)]
dropping = threading.Thread(target=held.clear)
dropping.start()
dropping.join()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_voice_that_is_dropped_takes_no_thread_its_stack_for_signals(deterministic: Exported) -> None:
    """A server that has swapped its first voice in a thread would end by SIGSEGV when it is told to stop."""
    command = [sys.executable, "-c", DROPPED, str(deterministic.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_memory_is_bounded_however_many_widths_come(deterministic: Exported) -> None:
    voice = deterministic.voice("fp32-openvino")
    engine = voice.engine
    assert isinstance(engine, OpenVinoEngine)
    for width in [*range(1, 40), 5, 39]:
        latents = np.ones((1, 4, width), dtype=np.float32)
        samples = engine.run("decoder", {"latents": latents, "speaker_id": np.zeros(1, np.int64)})["waveform"]
        assert samples.shape == (1, width * voice.spec.hop_length)
    assert len(engine._decoders) == MOST_SHAPES
    # All that a voice decodes fits, so that speaking never compiles after the warm-up.
    widths = {window.width for frames in range(1, 500) for window in plan_windows(frames, voice.spec.decoder)}
    assert len(widths) <= MOST_SHAPES


@pytest.mark.parametrize("variant", ["fp32-openvino", "int8", pytest.param("int8-bf16", marks=needs_bf16)])
def test_streams_share_no_constant_that_is_computed(quantised: Exported, variant: str) -> None:
    """A speaker's weights in int8 become floats in two steps: streams that shared them took the first for both."""
    voice = quantised.voice(variant, streams=2)
    engine = voice.engine
    assert isinstance(engine, OpenVinoEngine)
    decoded(voice, np.ones((4, 9), dtype=np.float32), 0)
    (decoder,) = engine._decoders.values()
    streams = [graph.get_property("NUM_STREAMS") for graph in decoder.graphs]
    if variant.startswith("int8") and voice.spec.num_speakers > 1:
        assert streams == [1, 1]
        assert all("decoder.cond.weight.real" in computed_constants(graph) for graph in decoder.graphs)
    else:
        assert streams == [2]
        assert not computed_constants(decoder.graphs[0])
    voice.close()


def test_results_are_not_overwritten_by_the_next_call(deterministic: Exported) -> None:
    engine = deterministic.voice("fp32-openvino").engine
    inputs: dict[str, NDArray[np.generic]] = {
        "latents": np.ones((1, 4, 9), dtype=np.float32),
        "speaker_id": np.zeros(1, np.int64),
    }
    first = engine.run("decoder", inputs)["waveform"]
    kept = first.copy()
    engine.run(
        "decoder", {"latents": np.zeros((1, 4, 9), dtype=np.float32), "speaker_id": np.zeros(1, np.int64)}
    )
    np.testing.assert_array_equal(first, kept)


def test_every_variant_that_runs_here_is_timed(quantised: Exported) -> None:
    """By these times a server changes its variant, and one that fails is left out of them with a warning alone."""
    spec = VoiceSpec.read(quantised.folder)
    runs = [name for name, variant in spec.variants.items() if why_not(variant) is None]
    assert set(runs) >= {"fp32", "fp32-openvino", "int8", "int8-onnxruntime"}
    seconds = measure_variants(quantised.folder, spec, runs, threads=1)
    assert seconds is not None
    assert seconds.keys() == set(runs)
    assert choose_variant(quantised.folder, spec, threads=1, cache=None) in usable_variants(spec)


def test_files_are_shared_between_variants(exported: Exported) -> None:
    spec = VoiceSpec.read(exported.folder)
    assert list(spec.variants) == ["fp32", "fp32-openvino", "bf16"]
    assert {variant.encoder for variant in spec.variants.values()} == {"fp32/encoder.onnx"}
    assert {variant.flow for variant in spec.variants.values()} == {"fp32/flow.onnx"}
    assert spec.variants["bf16"].decoder == spec.variants["fp32-openvino"].decoder == "fp32/decoder-2d.onnx"
    assert {name: variant.gate for name, variant in spec.variants.items()} == {
        "fp32": "reference",
        "fp32-openvino": "reference",
        "bf16": "ungated",
    }
    report = json.loads((exported.folder / "report.json").read_text())
    assert report["parity_of_variants"].keys() == {"fp32-openvino"}
    assert max(report["parity_of_variants"]["fp32-openvino"]["max_abs_difference"].values()) < 1e-4


def test_the_flat_decoder_is_the_decoder(exported: Exported) -> None:
    flat = onnx.load(exported.folder / "fp32/decoder-2d.onnx")
    assert [(opset.domain, opset.version) for opset in flat.opset_import] == [("", OPSET)]
    assert [value.name for value in flat.graph.input] == list(SIGNATURES["decoder"][0])
    kernels = {
        len(tensor.dims)
        for node in flat.graph.node
        if node.op_type in ("Conv", "ConvTranspose")
        for tensor in flat.graph.initializer
        if tensor.name == node.input[1]
    }
    assert kernels == {4}


def test_an_unknown_variant_is_refused_before_anything_is_written(
    deterministic: Exported, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match="'bf61', did you mean 'bf16'"):
        export_voice(deterministic.model_folder, tmp_path / "out", provenance=Provenance(), variants=["bf61"])
    assert not (tmp_path / "out").exists()


def test_a_missing_and_a_damaged_graph(deterministic: Exported, tmp_path: Path) -> None:
    variant = VARIANTS["fp32-openvino"].model_copy(
        update={
            name: str((deterministic.folder / f"fp32/{name}.onnx").resolve()) for name in ("encoder", "flow")
        }
    )
    with pytest.raises(ModelError, match=r"decoder-2d\.onnx is missing"):
        open_engine(tmp_path, variant, threads=1)
    (tmp_path / "fp32").mkdir()
    (tmp_path / "fp32/decoder-2d.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelError, match="not a graph that OpenVINO reads"):
        open_engine(tmp_path, variant, threads=1)


def test_a_failed_computation(deterministic: Exported) -> None:
    engine = deterministic.voice("fp32-openvino").engine
    with pytest.raises(EngineError, match="OpenVINO could not compute the decoder"):
        engine.run(
            "decoder", {"latents": np.zeros((1, 5, 3), np.float32), "speaker_id": np.zeros(1, np.int64)}
        )


@pytest.mark.parametrize("graph", ["flow", "decoder"])
def test_fp16_graphs_are_half_as_large_and_nearly_the_same(
    make_model: MakeModel, tmp_path: Path, graph: str
) -> None:
    """Computed here on the CPU, which is slow and proves the arithmetic; `gpu` tests run the variant itself."""
    import torch

    from shared.modeling import load_model

    model = load_model(make_model(num_speakers=3, speaker_embedding_size=3))
    path = tmp_path / f"{graph}.onnx"
    export_fp16(graph, model, path)
    weights = onnx.load(path).graph.initializer
    assert sum(t.data_type == onnx.TensorProto.FLOAT16 for t in weights) > len(weights) / 2
    latents = np.random.default_rng(0).standard_normal((2, 4, 20), dtype=np.float32)
    mask = (np.arange(20) < np.array([[[20]], [[13]]])).astype(np.float32)
    every = {"latents": latents, "prior_sample": latents, "frame_mask": mask, "speaker_id": np.array([0, 2])}
    inputs = {name: every[name] for name in SIGNATURES[graph][0]}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, inputs)
    with torch.no_grad():
        expected = build_graph(graph, model)(*(torch.tensor(value) for value in inputs.values())).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=5e-3)


@pytest.mark.gpu
@pytest.mark.skipif(GPU_PROVIDER not in onnxruntime.get_available_providers(), reason="needs onnxruntime-gpu")
def test_fp16_on_a_gpu(make_model: MakeModel, tmp_path: Path) -> None:
    export_voice(make_model(), tmp_path, provenance=Provenance(), variants=["fp16"])
    exact, rounded = (
        Voice.open(tmp_path, variant=name).synthesize("por favor espere.", seed=1)
        for name in ("fp32", "fp16")
    )
    np.testing.assert_allclose(rounded.samples, exact.samples, atol=0.02)


_VOICES: dict[tuple[Path, str], Voice] = {}


def opened(folder: Path, variant: str) -> Voice:
    """A voice that stays open from example to example."""
    key = (folder, variant)
    if key not in _VOICES:
        _VOICES[key] = Voice.open(folder, variant=variant, threads=1)
    return _VOICES[key]
