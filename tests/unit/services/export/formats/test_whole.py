"""The whole model as one graph, in ONNX Runtime, against `transformers.VitsModel`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from transformers import VitsModel

from services.export import parity
from services.export.formats import FORMATS, transformers_js
from services.export.formats.subject import Subject
from services.export.formats.transformers_js import ends_of
from services.export.formats.verify import verify
from services.export.formats.whole import DURATION_NOISE, PRIOR_NOISE, build_whole
from services.export.formats.write import write_format
from services.export.graphs import OPSET
from services.export.halo import halo_frames
from shared.errors import ModelError, QualityError, RequestError
from shared.modeling import VitsForTraining

OFF = {"noise_scale": np.zeros(1, np.float32), "noise_scale_duration": np.zeros(1, np.float32)}


def test_every_format_has_a_writer(tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match=r"no format 'sherpa', did you mean 'sherpa-onnx'\?.*transformers-js"
    ):
        write_format("sherpa", tmp_path, tmp_path / "out")
    for name in FORMATS:
        with pytest.raises(ModelError, match="not a model folder"):
            write_format(name, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stochastic", [True, False])
def test_rows_of_a_batch_are_what_the_stock_model_says_of_each_alone(
    make_model: Any, tmp_path: Path, stochastic: bool
) -> None:
    folder = make_model(use_stochastic_duration_prediction=stochastic, speaking_rate=0.8)
    subject = Subject.read(folder)
    onnx.save(build_whole(subject.network, ends_of(subject), {}), tmp_path / "whole.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "whole.onnx")
    stock = VitsModel.from_pretrained(folder, noise_scale=0.0, noise_scale_duration=0.0)
    halo = halo_frames(stock.config) * math.prod(stock.config.upsample_rates)
    generator = np.random.default_rng(1)
    lengths = [23, 9, 1]
    ids = np.full((3, 23), 5)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = generator.integers(0, 30, length)
    mask = (np.arange(23) < np.array(lengths)[:, None]).astype(np.int64)
    waveform, _ = session.run(None, {"input_ids": ids, "attention_mask": mask, **OFF})
    longest = 0
    for row, length, spoken in zip(ids, lengths, waveform, strict=True):
        with torch.no_grad():
            expected = stock(input_ids=torch.tensor(row[None, :length])).waveform[0].numpy()
        # A row's last frames hear what follows: nothing when it is alone, masked latents in a batch.
        heard = expected.size - (halo if spoken.size > expected.size else 0)
        np.testing.assert_allclose(spoken[: max(heard, 0)], expected[: max(heard, 0)], atol=1e-4)
        np.testing.assert_array_equal(spoken[expected.size :], 0)
        longest = max(longest, expected.size)
    assert waveform.shape[1] == longest


@pytest.fixture(scope="module")
def built(make_model: Any) -> tuple[Subject, onnx.ModelProto]:
    """A model with stochastic durations, and its graph."""
    subject = Subject.read(make_model())
    return subject, build_whole(subject.network, ends_of(subject), {"comment": "mms", "n_speakers": 1})


def test_noise_is_drawn_in_the_graph_and_scaled_by_its_inputs(built: tuple[Subject, onnx.ModelProto]) -> None:
    subject, whole = built
    session = onnxruntime.InferenceSession(whole.SerializeToString())
    ids = np.arange(1, 25)[None]
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def speak(**scales: float) -> NDArray[np.float32]:
        given = {name: np.array([value], np.float32) for name, value in scales.items()}
        speech: NDArray[np.float32] = session.run(["waveform"], {**feeds, **given})[0][0]
        assert np.isfinite(speech).all()
        return speech

    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask"]
    silent = {"noise_scale": 0.0, "noise_scale_duration": 0.0}
    np.testing.assert_array_equal(speak(**silent), speak(**silent))
    assert np.abs(speak(noise_scale=1.0, noise_scale_duration=0.0) - speak(**silent)).max() > 1e-4
    assert len({speak(noise_scale=0.0, noise_scale_duration=3.0).size for _ in range(6)}) > 1
    assert speak(length_scale=4.0, **silent).size > 2 * speak(length_scale=1.0, **silent).size
    # The defaults are the model's own.
    values = {t.name: onnx.numpy_helper.to_array(t).item() for t in whole.graph.initializer if t.dims == [1]}
    config = subject.network.config
    assert values["noise_scale"] == pytest.approx(config.noise_scale)
    assert values["noise_scale_duration"] == pytest.approx(config.noise_scale_duration)


def test_the_noise_is_normal_and_a_wrong_use_of_it_is_found(
    built: tuple[Subject, onnx.ModelProto], tmp_path: Path
) -> None:
    subject, whole = built
    path, other = tmp_path / "whole.onnx", onnx.ModelProto()
    onnx.save(whole, path)
    assert verify(path, subject) <= 1e-4
    other.CopyFrom(whole)
    scale = next(node for node in other.graph.node if node.output[0] == "std_BFD")
    scale.op_type = "Identity"  # the logarithm of the standard deviation, instead of that itself
    onnx.save(other, path)
    with pytest.raises(QualityError, match="differs from the model's"):
        verify(path, subject)

    other.CopyFrom(whole)
    for name in (DURATION_NOISE, PRIOR_NOISE):
        other.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(other.SerializeToString())
    ids = np.arange(4000)[None] % 30
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for noise in session.run([DURATION_NOISE, PRIOR_NOISE], feeds):
        assert noise.size > 5000
        assert abs(noise.mean()) < 0.1
        assert abs(noise.std() - 1) < 0.1


def test_the_file_is_portable(built: tuple[Subject, onnx.ModelProto]) -> None:
    _, whole = built
    assert [(opset.domain, opset.version) for opset in whole.opset_import] == [("", OPSET)]
    assert whole.ir_version == 10
    assert {entry.key: entry.value for entry in whole.metadata_props} == {"comment": "mms", "n_speakers": "1"}
    assert not whole.functions
    names = [tensor.name for tensor in whole.graph.initializer]
    assert len(names) == len(set(names))
    assert not any("original" in name for name in names), "weight norm is folded"


@pytest.mark.parametrize(
    ("louder", "slower", "message"),
    [(3.0, 1.0, "differs from the model's by"), (1.0, 9.0, "samples where the model speaks")],
)
def test_a_graph_that_says_something_else_is_not_written(
    built: tuple[Subject, onnx.ModelProto],
    louder: float,
    slower: float,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject, whole = built

    reference = parity.reference

    def spoilt(model: VitsForTraining, case: parity.Case) -> parity.Reference:
        with torch.no_grad():
            model.decoder.conv_post.weight.mul_(louder)
        model.config.speaking_rate = 1 / slower
        return reference(model, case)

    monkeypatch.setattr(transformers_js, "build_whole", lambda *_: whole)
    monkeypatch.setattr(parity, "reference", spoilt)
    with pytest.raises(QualityError, match=message):
        write_format("transformers-js", subject.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_model_is_refused(make_model: Any, tmp_path: Path) -> None:
    folder = make_model()
    (folder / "vocab.json").write_text('{"a": 0, "b": 900}')
    with pytest.raises(ModelError, match="tokenizer is another model's"):
        write_format("sherpa-onnx", folder, tmp_path / "out")
