"""Folders of ``finetune-hf-vits``, made here as its trainer writes them."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import VitsModel

from services.cli import main
from services.training.convert.finetune_hf_vits import convert
from services.training.convert.weights import DIRECTION, MAGNITUDE
from services.training.discriminator import Discriminator
from shared.errors import ModelError
from shared.modeling import load_model, read_discriminator, synthesize
from shared.provenance import Provenance
from shared.text import FrontEnd
from tests.conftest import write_small_model
from tests.unit.services.training.convert import original
from tests.unit.services.training.convert.original import make_discriminator

pytestmark = pytest.mark.usefixtures("small_discriminator")

IDS = torch.tensor([0, 5, 0, 7, 0, 9, 0])
#: What its configuration has beside that of ``transformers``.
FOREIGN = {
    "architectures": ["VitsModelForPreTraining"],
    "discriminator_kernel_size": 5,
    "discriminator_stride": 3,
    "discriminator_periods": [2, 3, 5, 7, 11],
    "discriminator_period_channels": [1, 32, 128, 512, 1024],
    "discriminator_scale_channels": [1, 16, 64, 256, 1024],
    "segment_size": 8192,
    "hop_length": 256,
}


def folded_discriminator() -> dict[str, Tensor]:
    """The test's discriminator as the trainer's final model has it."""
    weights = make_discriminator()
    plain = {name.removesuffix(".bias") for name in weights if name.endswith(".bias")}
    state = {name: value for name, value in weights.items() if name.endswith(".bias")}
    state |= {f"{name}.weight": original.weight(weights, name).float() for name in plain}
    return {name.replace("conv_post", "final_conv"): value for name, value in state.items()}


def in_training(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A generator's weights in the middle of training: more of them under weight norm, by the old names."""
    normed = re.compile(r"(decoder\.(upsampler|resblocks)\..*|flow\.flows\.\d+\.conv_(pre|post))\.weight$")
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if normed.match(name):
            prefix, scale = name.removesuffix(".weight"), 1.7
            lengths = value.flatten(1).norm(dim=1).reshape(-1, *(1 for _ in value.shape[1:]))
            found[f"{prefix}.weight_g"], found[f"{prefix}.weight_v"] = lengths, scale * value
        else:
            found[name.replace(MAGNITUDE, ".weight_g").replace(DIRECTION, ".weight_v")] = value
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The model that was fine-tuned: our small one, all of whose weights are away from zero."""
    folder = write_small_model(tmp_path / "source")
    state = load_file(folder / "model.safetensors")
    random = torch.Generator().manual_seed(4)
    for name, value in state.items():
        if not value.any():
            state[name] = 0.1 * torch.randn(value.shape, generator=random)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_output(source: Path, folder: Path, *, binary: bool = False, normed: bool = False) -> Path:
    """Its output folder after a whole training."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | FOREIGN))
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_size": 80}))
    state = load_file(folder / "model.safetensors")
    if normed:
        state = in_training(state)
    state |= {f"discriminator.{name}": value for name, value in folded_discriminator().items()}
    if binary:
        (folder / "model.safetensors").unlink()
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_checkpoint(output: Path, *, binary: bool = False) -> Path:
    """A ``checkpoint-N`` in it: two networks' files and pickles, and nothing that describes them."""
    checkpoint = output / "checkpoint-500"
    checkpoint.mkdir()
    both = load_file(output / "model.safetensors")
    generator = in_training({name: both[name] for name in both if not name.startswith("discriminator.")})
    judge = {name.replace("conv_post", "final_conv"): value for name, value in make_discriminator().items()}
    (output / "model.safetensors").unlink()
    for name, state in (("model", generator), ("model_1", judge)):
        if binary:
            torch.save(state, checkpoint / f"pytorch_{name}.bin")
        else:
            save_file(state, checkpoint / f"{name}.safetensors")
    (checkpoint / "optimizer.bin").write_bytes(b"a pickle")
    (checkpoint / "random_states_0.pkl").write_bytes(b"another")
    return checkpoint


@torch.no_grad()
def check(source: Path, model: Path) -> None:
    """The converted model speaks as the source does, and its discriminator judges as the original's."""
    expected, found = (synthesize(load_model(folder), IDS, seed=3) for folder in (source, model))
    torch.testing.assert_close(
        torch.tensor(found.samples), torch.tensor(expected.samples), rtol=1e-4, atol=1e-6
    )
    assert (found.durations == expected.durations).all()
    stored = read_discriminator(model)
    assert stored is not None
    assert (model / "discriminator.safetensors").is_file()
    judge = Discriminator()
    judge.load_folded(stored)
    waveform = torch.randn(1, 1, 2000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pairs = zip(judge.double()(waveform), original.judge(make_discriminator(), waveform), strict=True)
    for (score, _), (wanted, _) in pairs:
        torch.testing.assert_close(score, wanted, rtol=1e-5, atol=1e-6)
    assert FrontEnd.from_folder(model) == FrontEnd.from_folder(source)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("normed", [False, True])
def test_a_finished_training(source: Path, tmp_path: Path, binary: bool, normed: bool) -> None:
    folder = write_output(source, tmp_path / "output", binary=binary, normed=normed)
    assert convert(folder, tmp_path / "model") == []
    check(source, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["architectures"] == ["VitsModel"]
    assert not FOREIGN.keys() & config.keys() - {"architectures"}
    stock, report = cast("Any", VitsModel).from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert stock.config.sampling_rate == 16000
    provenance = Provenance.read(tmp_path / "model")
    assert provenance.licence == "CC-BY-NC-4.0"
    assert provenance.sources == ("a small model", "fine-tuned with finetune-hf-vits (output)")


@pytest.mark.parametrize("binary", [False, True])
def test_a_checkpoint_of_a_stopped_training(source: Path, tmp_path: Path, binary: bool) -> None:
    output = write_output(source, tmp_path / "output")
    checkpoint = write_checkpoint(output, binary=binary)
    with pytest.raises(ModelError, match=r"has no model\.safetensors.*here: checkpoint-500"):
        convert(output, tmp_path / "model")
    assert convert(checkpoint, tmp_path / "model") == []
    check(source, tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").glob("*.pkl")) == []


def test_what_it_lacks_is_said(tmp_path: Path) -> None:
    folder = write_small_model(tmp_path / "output", num_speakers=3)
    (folder / "vocab.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    # As in its checkpoints: the configuration of the base, from before speakers and tokens were added.
    config |= {"num_speakers": 1, "speaker_embedding_size": 0, "vocab_size": 5}
    (folder / "config.json").write_text(json.dumps(config))
    notes = convert(folder, tmp_path / "model", licence="MIT")
    assert "no discriminator" in notes[0]
    assert "3 speakers, and their names were never saved" in notes[1]
    assert "no tokenizer" in notes[2]
    assert load_model(tmp_path / "model").config.num_speakers == 3
    assert Provenance.read(tmp_path / "model").licence == "MIT"


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.trace),))


def test_a_pickle_is_refused_unread(source: Path, tmp_path: Path) -> None:
    folder = write_output(source, tmp_path / "output", binary=True)
    torch.save({"text_encoder.x": Bomb(tmp_path / "exploded")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin cannot be read as weights alone"):
        convert(folder, tmp_path / "model")
    assert not (tmp_path / "exploded").exists()


def test_weights_of_another_model(source: Path, tmp_path: Path) -> None:
    folder = write_output(source, tmp_path / "output")
    state = load_file(folder / "model.safetensors")
    del state["text_encoder.project.bias"]
    state["duration_predictor.conv_pre.bias"] = torch.zeros(3)
    state["encoder.layers.0.weight"] = torch.zeros(3)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError) as caught:
        convert(folder, tmp_path / "model")
    message = str(caught.value)
    assert "duration_predictor.conv_pre.bias: shape (3,), expected (8,)" in message
    assert "text_encoder.project.bias: missing" in message
    assert "encoder.layers.0.weight: there is no such weight" in message
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("what", ["spectral norm", "not VITS's"])
def test_a_discriminator_that_cannot_be_converted_can_be_left_out(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """It is inside the folder: the advice to leave it out could not be followed."""
    output = write_output(source, tmp_path / "trained")
    state = load_file(output / "model.safetensors")
    layer = "discriminator.discriminators.1.convs.0"
    state[f"{layer}.weight_orig" if what == "spectral norm" else f"{layer}.other"] = state.pop(
        f"{layer}.weight"
    )
    save_file(state, output / "model.safetensors", {"format": "pt"})
    command = ["convert", "finetune-hf-vits", str(output), "--output", str(tmp_path / "model")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert what in error
    assert "--without-discriminator" in error
    assert main([*command, "--without-discriminator"]) == 0
    assert "training starts with a fresh one" in capsys.readouterr().out
    assert read_discriminator(tmp_path / "model") is None
    load_model(tmp_path / "model")


def test_command_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_output(source, tmp_path / "output")
    command = ["convert", "finetune-hf-vits", str(folder), "--output"]
    assert main([*command, str(tmp_path / "model")]) == 0
    assert "every weight in its place" in capsys.readouterr().out
    assert main([*command, str(folder)]) == 2
    assert "would be replaced, and it holds output, which is being read" in capsys.readouterr().err
    assert main(["convert", "finetune-hf-vits", str(tmp_path / "none"), "--output", str(tmp_path / "m")]) == 2
    assert "There is no folder" in capsys.readouterr().err
