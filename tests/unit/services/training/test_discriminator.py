"""The discriminator: its size, its names, its weights on the disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils import parametrize

from services.training.discriminator import PERIODS, RESOLUTIONS, Discriminator, stored_periods
from services.training.steps import new_discriminator
from shared.errors import ModelError
from shared.modeling import load_model, read_discriminator
from shared.modeling.loading import DISCRIMINATOR_FILE


@pytest.fixture(scope="module")
def full() -> Discriminator:
    return new_discriminator(0)


def test_it_is_as_large_as_the_ancestors(full: Discriminator) -> None:
    """46.7 million, as it is stored and as it is trained (with a magnitude for each channel)."""
    assert sum(tensor.numel() for tensor in full.folded_state_dict().values()) == 46_730_118
    assert sum(parameter.numel() for parameter in full.parameters()) == 46_747_132


def test_its_names_and_shapes_are_the_ancestors(full: Discriminator) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in full.folded_state_dict().items()}
    scale = [(16, 1, 15), (64, 4, 41), (256, 4, 41), (1024, 4, 41), (1024, 4, 41), (1024, 1024, 5)]
    period = [(32, 1, 5, 1), (128, 32, 5, 1), (512, 128, 5, 1), (1024, 512, 5, 1), (1024, 1024, 5, 1)]
    expected: dict[str, tuple[int, ...]] = {}
    for network, layers in enumerate([scale] + [period] * len(PERIODS)):
        last = (1, 1024, 3) if network == 0 else (1, 1024, 3, 1)
        named = {f"convs.{layer}": shape for layer, shape in enumerate(layers)} | {"final_conv": last}
        for name, shape in named.items():
            expected[f"discriminators.{network}.{name}.weight"] = shape
            expected[f"discriminators.{network}.{name}.bias"] = shape[:1]
    assert shapes == expected
    assert (*PERIODS,) == (2, 3, 5, 7, 11)


def test_strides_groups_and_norm(full: Discriminator) -> None:
    scale, *periods = full.discriminators
    convolutions = [layer for layer in scale.modules() if isinstance(layer, torch.nn.Conv1d)]
    assert [layer.stride[0] for layer in convolutions] == [1, 4, 4, 4, 4, 1, 1]
    assert [layer.groups for layer in convolutions] == [1, 4, 16, 64, 256, 1, 1]
    for network in periods:
        layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
        assert [layer.stride for layer in layers] == [(3, 1)] * 4 + [(1, 1)] * 2
        assert all(parametrize.is_parametrized(layer, "weight") for layer in layers)


@pytest.mark.usefixtures("small_discriminator")
@pytest.mark.parametrize("samples", [8192, 8191, 1000])
def test_stored_weights_judge_alike(tmp_path: Path, samples: int) -> None:
    first, second = new_discriminator(1), new_discriminator(2)
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            if name.endswith("original0"):  # magnitudes unlike the directions' own lengths
                parameter.mul_(1.5)
    save_file(first.folded_state_dict(), tmp_path / DISCRIMINATOR_FILE)
    stored = read_discriminator(tmp_path)
    assert stored is not None
    second.load_folded(stored)
    waveform = torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(0))
    for (score, features), (other, others) in zip(first(waveform), second(waveform), strict=True):
        torch.testing.assert_close(other, score, rtol=1e-5, atol=1e-6)
        assert len(features) in {6, 7}
        for feature, again in zip(features, others, strict=True):
            torch.testing.assert_close(again, feature, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("small_discriminator")
def test_an_ancestors_checkpoint_brings_its_discriminator(tmp_path: Path, spanish_model: Path) -> None:
    """A ``*-train`` checkpoint keeps it in the model's own file, under ``discriminator.``."""
    folder = tmp_path / "mms-tts-spa-train"
    shutil.copytree(spanish_model, folder)
    judge = new_discriminator(5).folded_state_dict()
    state = load_file(folder / "model.safetensors")
    both = state | {f"discriminator.{name}": tensor for name, tensor in judge.items()}
    save_file(both, folder / "model.safetensors", {"format": "pt"})
    stored = read_discriminator(folder)
    assert stored is not None
    assert stored.keys() == judge.keys()
    fresh = new_discriminator(6)
    fresh.load_folded(stored)
    for name, tensor in fresh.folded_state_dict().items():
        torch.testing.assert_close(tensor, judge[name], rtol=1e-5, atol=1e-7)
    generator = load_model(folder)  # and the generator beside it is not disturbed
    torch.testing.assert_close(
        generator.state_dict()["decoder.conv_pre.weight"], state["decoder.conv_pre.weight"]
    )
    assert read_discriminator(spanish_model) is None


@pytest.mark.usefixtures("small_discriminator")
@pytest.mark.parametrize("damage", ["shape", "missing", "surplus"])
def test_another_networks_weights_are_refused(damage: str) -> None:
    discriminator = new_discriminator(0)
    before = discriminator.folded_state_dict()
    state = dict(before)
    name = "discriminators.1.convs.0.weight"
    if damage == "shape":
        state[name] = torch.zeros(2, 1, 7, 1)
    elif damage == "missing":
        del state[name]
    else:
        name = "discriminators.9.convs.0.weight"
        state[name] = torch.zeros(1)
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        discriminator.load_folded(state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in discriminator.folded_state_dict().items())


@pytest.mark.usefixtures("small_discriminator")
def test_fewer_periods_are_taken_from_a_stored_five(tmp_path: Path) -> None:
    """Each network by its period, not by its number; one of a new period stays fresh."""
    stored = new_discriminator(1).folded_state_dict()
    fewer, fresh = new_discriminator(2, [5, 13, 2]), new_discriminator(2, [5, 13, 2]).folded_state_dict()
    fewer.load_folded(stored)
    loaded = fewer.folded_state_dict()
    for place, (source, there) in enumerate([(stored, 0), (stored, 3), (fresh, 2), (stored, 1)]):
        name = f"discriminators.{place}.convs.0.weight"
        expected = source[f"discriminators.{there}.convs.0.weight"]
        torch.testing.assert_close(loaded[name], expected, rtol=1e-5, atol=1e-7)
    assert [network.period for network in list(fewer.discriminators)[1:]] == [5, 13, 2]

    save_file(loaded, tmp_path / DISCRIMINATOR_FILE)  # it says itself which periods it has
    again = read_discriminator(tmp_path)
    assert again is not None
    assert stored_periods(again) == (5, 13, 2)
    five = new_discriminator(3)
    untouched = five.folded_state_dict()
    five.load_folded(again)
    for there, place in ((2, 3), (0, 0)):  # period 3 is not among the stored ones, period 2 is their last
        name = f"discriminators.{there}.convs.0.weight"
        expected = untouched[name] if there == 2 else again[f"discriminators.{place}.convs.0.weight"]
        torch.testing.assert_close(five.folded_state_dict()[name], expected, rtol=1e-5, atol=1e-7)
    first = five.folded_state_dict()["discriminators.1.convs.0.weight"]
    torch.testing.assert_close(first, again["discriminators.3.convs.0.weight"], rtol=1e-5, atol=1e-7)


def test_the_usual_periods_are_stored_as_the_ancestor_stores_them(full: Discriminator) -> None:
    state = full.folded_state_dict()
    assert stored_periods(state) == PERIODS
    assert all(name.startswith("discriminators.") for name in state)


# -- Spectrogram networks --------------------------------------------------------------------------


@pytest.mark.usefixtures("small_discriminator")
def test_spectrogram_networks_come_on_request_and_change_no_other() -> None:
    plain, more = new_discriminator(0), new_discriminator(0, PERIODS, RESOLUTIONS)
    assert len(more.discriminators) == len(plain.discriminators) + 3
    for name, value in plain.state_dict().items():
        assert torch.equal(value, more.state_dict()[name])
    assert not any("window" in name for name in more.state_dict())


@pytest.mark.usefixtures("small_discriminator")
def test_a_spectrogram_network_hears_what_is_at_its_resolution() -> None:
    network = new_discriminator(0, PERIODS, RESOLUTIONS).discriminators[-3]
    time = torch.arange(8192) / 16000
    low, high = (torch.sin(2 * torch.pi * pitch * time)[None, None] for pitch in (500, 4000))
    _, (features, *_) = network(low)
    assert features.shape == (1, 2, 513, 68)  # 1024 // 2 + 1 bands, (8192 + 904 - 1024) // 120 + 1 windows
    assert not torch.allclose(network(low)[0], network(high)[0], rtol=1e-3)
    silence = torch.zeros(1, 1, 8192, requires_grad=True)
    network(silence)[0].sum().backward()
    assert silence.grad is not None
    assert bool(torch.isfinite(silence.grad).all())  # the root of 0 has no slope
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bool(torch.isfinite(network(low.bfloat16())[0]).all())


@pytest.mark.usefixtures("small_discriminator")
def test_spectrogram_networks_are_stored_and_found_again(tmp_path: Path) -> None:
    stored = new_discriminator(1, [2, 3], RESOLUTIONS).folded_state_dict()
    again = new_discriminator(2, [2, 3], RESOLUTIONS)
    again.load_folded(stored)
    for name, value in again.folded_state_dict().items():
        torch.testing.assert_close(value, stored[name], rtol=1e-5, atol=1e-7)
    without = new_discriminator(3, [3])  # leaves them out, and takes its own from its place
    without.load_folded(stored)
    torch.testing.assert_close(
        without.folded_state_dict()["discriminators.1.convs.0.weight"],
        stored["discriminators.2.convs.0.weight"],
        rtol=1e-5,
        atol=1e-7,
    )
    first = new_discriminator(4, [2, 3], RESOLUTIONS)  # from a base that has none: they begin afresh
    fresh = first.folded_state_dict()
    first.load_folded(new_discriminator(1, [2, 3]).folded_state_dict())
    name = "discriminators.3.convs.0.weight"
    torch.testing.assert_close(first.folded_state_dict()[name], fresh[name])


@pytest.mark.usefixtures("small_discriminator")
def test_loaded_weights_lie_in_memory_as_fresh_ones() -> None:
    """Or else each step copies them into that order, and a run that goes on from them rounds otherwise."""
    fresh, loaded = Discriminator(), Discriminator()
    loaded.load_folded(fresh.folded_state_dict())
    assert {name: value.stride() for name, value in loaded.named_parameters()} == {
        name: value.stride() for name, value in fresh.named_parameters()
    }
