"""The graphs against `transformers`, part by part, where a rewrite could go wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import VitsModel
from transformers.models.vits.modeling_vits import (
    VitsAttention,
    _unconstrained_rational_quadratic_spline,
)

import services
from services.export.graphs import OPSET, SIGNATURES, RelativeAttention, inverse_spline

from .conftest import Exported, MakeModel, tiny_config


@pytest.mark.parametrize("window", [1, 4, 7])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8, 21])
def test_attention_by_index_is_attention_by_padding(tokens: int, window: int) -> None:
    torch.manual_seed(tokens)
    attention = VitsAttention(tiny_config(window_size=window)).eval()
    torch.nn.init.normal_(attention.emb_rel_k)
    torch.nn.init.normal_(attention.emb_rel_v)
    states = torch.randn(2, tokens, 8)
    with torch.no_grad():
        expected, _ = attention(states)
        found = RelativeAttention(attention)(states, torch.ones(2, 1, 1, tokens, dtype=torch.bool))
        padded = RelativeAttention(attention)(
            torch.cat([states, torch.randn(2, 5, 8)], dim=1),
            (torch.arange(tokens + 5) < tokens)[None, None, None],
        )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(padded[:, :tokens], expected, atol=1e-6, rtol=1e-5)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.1, 1.0, 3.0]), st.sampled_from([2, 10]))
def test_the_spline_without_boolean_indexing(seed: int, spread: float, bins: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = 4 * draw(2, 1, 50)  # some in the tails
    inputs[0, 0, :3] = torch.tensor([-5.0, 5.0, 0.0])
    widths, heights, derivatives = (spread * draw(2, 1, 50, count) for count in (bins, bins, bins - 1))
    expected, _ = _unconstrained_rational_quadratic_spline(
        inputs, widths, heights, derivatives, reverse=True, tail_bound=5.0
    )
    found = inverse_spline(inputs, widths, heights, derivatives, tail_bound=5.0)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_a_discriminant_below_zero_by_rounding_is_not_a_nan() -> None:
    """In float32 the square root's argument can fall under zero; `transformers` then raises, a trace gives NaN."""
    torch.manual_seed(0)
    shape = (1, 1, 400_000)
    # Steep bins with nearly no slope at their knots, and inputs at the knots themselves.
    widths = 12 * torch.randn(*shape, 10)
    heights = 12 * torch.randn(*shape, 10)
    derivatives = torch.full((*shape, 9), -40.0)
    sizes = 1e-3 + (1 - 1e-2) * torch.softmax(heights, dim=-1)
    knots = 10 * torch.cumsum(sizes, dim=-1)[..., :-1] - 5
    inputs = knots.gather(-1, torch.randint(0, 9, (*shape, 1)))[..., 0]
    inputs = torch.nextafter(inputs, inputs + torch.randn(shape))

    with pytest.raises(Exception, match="Discriminant has negative values"):
        _unconstrained_rational_quadratic_spline(
            inputs, widths, heights, derivatives, reverse=True, tail_bound=5.0
        )
    found = inverse_spline(inputs, widths, heights, derivatives, tail_bound=5.0)
    assert torch.isfinite(found).all()
    assert found.abs().max() <= 5.001


def test_a_graph_does_not_say_where_it_was_exported(exported: Exported) -> None:
    """The exporter notes the stack trace of each node, so that bytes differed with the folder of the installation."""
    files = [path for path in exported.folder.rglob("*.onnx") if path.is_file()]
    assert len(files) > 3
    for path in files:
        written = path.read_bytes()
        assert b"stack_trace" not in written
        assert str(Path(services.__file__).parents[1]).encode() not in written
        assert b".py" not in written


def test_the_files_are_what_the_voice_says(exported: Exported) -> None:
    for name, (inputs, outputs) in SIGNATURES.items():
        path = exported.folder / "fp32" / f"{name}.onnx"
        onnx.checker.check_model(path, full_check=True)
        model = onnx.load(path)
        # All declared inputs are there, those that this model does not read too: every voice has one signature.
        assert [value.name for value in model.graph.input] == list(inputs)
        assert [value.name for value in model.graph.output] == list(outputs)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
        assert OPSET == exported.voice().spec.variants["fp32"].opset == 18
        drawn = {node.op_type for node in model.graph.node if node.op_type.startswith("Random")}
        assert not drawn
        assert not [t.name for t in model.graph.initializer if "original" in t.name], "weight norm is folded"
        for value in [*model.graph.input, *model.graph.output]:
            sizes = value.type.tensor_type.shape.dim
            assert sizes[0].dim_param == "B"
        if name != "encoder":
            assert model.graph.output[0].type.tensor_type.shape.dim[-1].dim_param
    assert {path.name for path in (exported.folder / "fp32").iterdir()} == {
        "decoder-2d.onnx",
        *(f"{name}.onnx" for name in SIGNATURES),
    }


def test_padding_changes_nothing(exported: Exported) -> None:
    voice = exported.voice()
    generator = np.random.default_rng(0)
    tokens, frames, speaker_id = 9, 21, np.array([voice.spec.num_speakers - 1])
    channels = voice.spec.latent_channels
    ids = generator.integers(0, 30, (1, tokens))
    duration_noise = generator.standard_normal((1, 2, tokens), dtype=np.float32)
    sample = generator.standard_normal((1, channels, frames), dtype=np.float32)

    def run(more: int) -> dict[str, NDArray[np.float32]]:
        """Whatever stands in the padding must not be heard: ids of real tokens, loud noise."""
        encoder: dict[str, NDArray[np.generic]] = {
            "input_ids": np.pad(ids, ((0, 0), (0, more)), constant_values=5),
            "attention_mask": np.pad(np.ones_like(ids), ((0, 0), (0, more))),
            "duration_noise": np.pad(duration_noise, ((0, 0), (0, 0), (0, more)), constant_values=3),
            "speaker_id": speaker_id,
        }
        flow: dict[str, NDArray[np.generic]] = {
            "prior_sample": np.pad(sample, ((0, 0), (0, 0), (0, more)), constant_values=9),
            "frame_mask": np.pad(np.ones((1, 1, frames), dtype=np.float32), ((0, 0), (0, 0), (0, more))),
            "speaker_id": speaker_id,
        }
        return {**voice.engine.run("encoder", encoder), **voice.engine.run("flow", flow)}

    alone = run(0)
    for more in (1, 7, 100):
        padded = run(more)
        for name, value in alone.items():
            axis = 2 if name == "latents" else 1
            valid, rest = np.split(padded[name], [value.shape[axis]], axis=axis)
            np.testing.assert_allclose(valid, value, atol=2e-5, err_msg=name)
            np.testing.assert_array_equal(rest, 0, err_msg=name)


def test_each_row_has_its_own_speaker(stochastic: Exported) -> None:
    voice = stochastic.voice()
    latents = np.repeat(np.random.default_rng(0).standard_normal((1, 4, 20), dtype=np.float32), 3, axis=0)
    together = voice.engine.run("decoder", {"latents": latents, "speaker_id": np.array([0, 1, 2])})[
        "waveform"
    ]
    for speaker in range(3):
        inputs = {"latents": latents[:1], "speaker_id": np.array([speaker])}
        alone = voice.engine.run("decoder", inputs)["waveform"][0]
        np.testing.assert_allclose(together[speaker], alone, atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 1e-4


def test_exporting_reads_any_stock_model(make_model: MakeModel) -> None:
    """Our subclass and `transformers.VitsModel` itself have the same parts under the same names."""
    from services.export.graphs import build_graph

    model = VitsModel.from_pretrained(make_model())
    for name in SIGNATURES:
        assert not any(parameter.requires_grad for parameter in build_graph(name, model).parameters())
