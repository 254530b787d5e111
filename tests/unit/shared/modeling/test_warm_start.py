"""Beginning with some of another model's weights, or with none; and smaller networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import VitsConfig

from shared.errors import ModelError
from shared.modeling import (
    VitsForTraining,
    VitsResblock2Config,
    load_model,
    resblock_type,
    save_model,
    synthesize,
)
from shared.modeling.presets import apply_presets
from shared.modeling.warm_start import new_model, warm_start

MakeModel = Callable[..., VitsForTraining]
IDS = torch.tensor([3, 1, 4, 1, 5])


@pytest.fixture
def model(make_model: MakeModel) -> VitsForTraining:
    return make_model()


@pytest.fixture
def folder(model: VitsForTraining, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "base")
    return tmp_path / "base"


def changed(config: VitsConfig, **changes: Any) -> VitsConfig:
    values = config.to_dict() | changes
    values.pop("model_type")
    return VitsConfig(**values)


# -- From scratch ----------------------------------------------------------------------------------


def test_from_scratch_is_originals_initialisation(model: VitsForTraining) -> None:
    """finetune-hf-vits, defect 28: Kaiming everywhere, and the flow no longer the identity."""
    big = changed(model.config, hidden_size=64, upsample_initial_channel=128, flow_size=32, vocab_size=200)
    fresh: Any = new_model(big, seed=3)
    latents, mask = torch.randn(2, 32, 9), torch.ones(2, 1, 9)
    torch.testing.assert_close(fresh.flow(latents, mask), latents, atol=0, rtol=0)  # two flips
    for coupling in fresh.flow.flows:
        assert not coupling.conv_post.weight.any()
    upsamplers = torch.cat([layer.weight.flatten() for layer in fresh.decoder.upsampler])
    assert upsamplers.std().item() == pytest.approx(0.01, rel=0.05)
    bound = (64 * 5) ** -0.5  # of a WaveNet's layer, through its weight norm
    weight = fresh.posterior_encoder.wavenet.in_layers[0].weight
    assert weight.abs().max() <= bound * 1.0001
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert fresh.text_encoder.embed_tokens.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert not any(module.training for module in fresh.modules())


def test_from_scratch_depends_on_the_seed_alone(model: VitsForTraining) -> None:
    """So that every process of a run starts alike; and the global generator is left as it was."""
    state = torch.get_rng_state()
    first = new_model(model.config, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    second, third = new_model(model.config, seed=3).state_dict(), new_model(model.config, seed=4).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["flow.flows.0.conv_pre.weight"], third["flow.flows.0.conv_pre.weight"])


def test_no_layerdrop_and_the_dropouts_of_original(model: VitsForTraining, folder: Path) -> None:
    """finetune-hf-vits, defect 2: they are at work in training, so that they must be the right ones."""
    hub = changed(model.config, layerdrop=0.1)  # as MMS models say
    for started in (new_model(hub, seed=0), warm_start(folder, hub, seed=0).model):
        made: Any = started
        assert made.text_encoder.encoder.layerdrop == 0.0
        assert made.text_encoder.encoder.layers[0].attention.dropout == 0.1
        assert made.text_encoder.encoder.layers[0].feed_forward.dropout.p == 0.1
        assert made.duration_predictor.conv_dds.dropout.p == 0.5
        assert made.flow.flows[0].wavenet.dropout.p == made.posterior_encoder.wavenet.dropout.p == 0.0


# -- Warm starts -----------------------------------------------------------------------------------


def test_everything_fits_its_own_configuration(model: VitsForTraining, folder: Path) -> None:
    start = warm_start(folder, model.config, seed=0)
    assert (start.fresh, start.unused, start.untrained) == ((), (), ())
    assert all(
        torch.equal(value, start.model.state_dict()[name]) for name, value in model.state_dict().items()
    )


def test_what_does_not_fit_is_fresh_and_named_by_module(
    model: VitsForTraining, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another spectrogram and a deeper posterior: one layer of another shape, some that are not there."""
    wanted = changed(model.config, spectrogram_bins=17, posterior_encoder_num_wavenet_layers=3)
    start = warm_start(folder, wanted, seed=0)
    assert start.fresh == (
        "posterior_encoder.conv_pre",
        "posterior_encoder.wavenet.in_layers.2",
        "posterior_encoder.wavenet.res_skip_layers.1",  # was the last one, which is narrower
        "posterior_encoder.wavenet.res_skip_layers.2",
    )
    assert start.untrained == start.fresh
    assert not start.everything_is_fresh
    assert caplog.records == []  # the caller lists it, once
    old, new, scratch = model.state_dict(), start.model.state_dict(), new_model(wanted, seed=0).state_dict()
    for name, value in new.items():
        source = scratch if name.startswith(start.fresh) else old
        assert torch.equal(value, source[name]), name
    assert not start.model.training


def test_a_layer_is_taken_over_whole_or_not_at_all(model: VitsForTraining, folder: Path) -> None:
    """Of a weight norm the magnitude fits and the direction does not: neither is used, nor is the bias."""
    wanted = changed(model.config, wavenet_kernel_size=3)
    start = warm_start(folder, wanted, seed=0)
    assert "posterior_encoder.wavenet.in_layers" in start.fresh
    scratch = new_model(wanted, seed=0)
    for name in ("parametrizations.weight.original0", "parametrizations.weight.original1", "bias"):
        key = f"posterior_encoder.wavenet.in_layers.0.{name}"
        assert torch.equal(start.model.state_dict()[key], scratch.state_dict()[key])


def test_whole_modules_and_tables(folder: Path, model: VitsForTraining) -> None:
    """A whole module goes by its own name; tables of embeddings need no teaching of their own."""

    def without(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name: value
            for name, value in state.items()
            if not name.startswith(("duration_predictor.", "text_encoder.embed_tokens"))
        }

    weights = folder / "model.safetensors"
    save_file(without(load_file(weights)) | {"vocoder.weight": torch.ones(1)}, weights, {"format": "pt"})
    start = warm_start(folder, model.config, seed=0)
    assert start.fresh == ("duration_predictor", "text_encoder.embed_tokens")
    assert start.untrained == ("duration_predictor",)
    assert start.unused == ("vocoder.weight",)
    start.model.get_submodule(start.untrained[0])


def test_nothing_fits(folder: Path, model: VitsForTraining) -> None:
    save_file({"discriminator.x": torch.ones(1)}, folder / "model.safetensors", {"format": "pt"})
    start = warm_start(folder, model.config, seed=0)
    assert start.everything_is_fresh
    assert start.unused == ()


def test_old_style_weight_norm_is_taken_over(folder: Path, model: VitsForTraining) -> None:
    """The hub's MMS files keep ``weight_g`` and ``weight_v``."""
    norm = "parametrizations.weight.original"
    weights = folder / "model.safetensors"
    aged = {
        name.replace(f"{norm}0", "weight_g").replace(f"{norm}1", "weight_v"): value
        for name, value in load_file(weights).items()
    }
    save_file(aged, weights, {"format": "pt"})
    start = warm_start(folder, apply_presets(model.config, ["light-decoder"]), seed=0)
    assert start.fresh == ("decoder.resblocks",)
    name = f"flow.flows.0.wavenet.in_layers.0.{norm}1"
    assert torch.equal(start.model.state_dict()[name], model.state_dict()[name])


def test_weights_that_cannot_be_read(folder: Path, model: VitsForTraining) -> None:
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="cannot be loaded"):
        warm_start(folder, model.config, seed=0)


# -- Presets ---------------------------------------------------------------------------------------


def test_presets_of_mms() -> None:
    mms = VitsConfig(sampling_rate=16000, vocab_size=35)
    small = apply_presets(mms, ["small-encoder"])
    assert (small.hidden_size, small.num_hidden_layers, small.ffn_dim) == (128, 4, 512)
    assert type(small) is VitsConfig
    light = apply_presets(mms, ["light-decoder"])
    assert isinstance(light, VitsResblock2Config)
    assert light.model_type == "vits_resblock2"
    assert resblock_type(light) == "2"
    assert list(light.resblock_kernel_sizes) == [3, 5, 7]
    both = apply_presets(mms, ["light-decoder", "small-encoder"])
    assert isinstance(both, VitsResblock2Config)
    assert both.hidden_size == 128
    assert (both.vocab_size, list(both.upsample_rates)) == (35, [8, 8, 2, 2])
    assert apply_presets(mms, []).to_dict() == mms.to_dict()
    assert mms.hidden_size == 192


@pytest.mark.parametrize(
    ("presets", "millions", "decoder"),
    [
        ([], 36.3, 14.3),
        (["small-encoder"], 23.3, 14.3),
        (["light-decoder"], 27.9, 6.0),
        (["small-encoder", "light-decoder"], 14.9, 6.0),
    ],
)
def test_presets_are_as_small_as_they_say(presets: list[Any], millions: float, decoder: float) -> None:
    with torch.device("meta"):
        model: Any = VitsForTraining(apply_presets(VitsConfig(), presets))

    def size(module: Any) -> float:
        return sum(int(parameter.numel()) for parameter in module.parameters()) / 1e6

    assert size(model) == pytest.approx(millions, abs=0.05)
    assert size(model.decoder) == pytest.approx(decoder, abs=0.05)


def test_a_light_decoder_stays_what_it_is() -> None:
    light = VitsResblock2Config(resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 2]])
    assert apply_presets(light, ["light-decoder"]).to_dict() == light.to_dict()


def test_a_light_decoder_over_a_trained_base(model: VitsForTraining, folder: Path, tmp_path: Path) -> None:
    """All but the residual blocks is kept, it speaks, and it survives its folder."""
    start = warm_start(folder, apply_presets(model.config, ["light-decoder"]), seed=0)
    assert start.fresh == ("decoder.resblocks",)
    assert any(name.startswith("decoder.resblocks.0.convs1.0") for name in start.unused)
    kept = "decoder.upsampler.0.weight"
    assert torch.equal(start.model.state_dict()[kept], model.state_dict()[kept])
    save_model(start.model, tmp_path / "light")
    spoken = synthesize(start.model, IDS, seed=0).samples
    assert (synthesize(load_model(tmp_path / "light"), IDS, seed=0).samples == spoken).all()
