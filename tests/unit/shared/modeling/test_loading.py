"""Model folders: what is written, who can read it, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, BertConfig, VitsModel, VitsTokenizer, pipeline

from shared.container import IMAGE
from shared.errors import HubUnreachableError, ModelError, NotFoundError, UserError
from shared.modeling import (
    VitsForTraining,
    fold_weight_norm,
    load_model,
    loading,
    read_discriminator,
    resblock_type,
    save_model,
    synthesize,
)
from shared.modeling.weight_norm import folded_state_dict

MakeModel = Callable[..., VitsForTraining]
IDS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])


@pytest.fixture
def folder(make_model: MakeModel, tmp_path: Path) -> Path:
    """A saved model of the stock architecture."""
    save_model(make_model(), tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- Weight norm -----------------------------------------------------------------------------------


def test_folding_keeps_the_function(make_model: MakeModel) -> None:
    model = make_model()
    model.decoder.apply_weight_norm()
    with torch.no_grad():
        for name, parameter in model.decoder.named_parameters():
            if "original0" in name:
                parameter.mul_(1.3)
    latents = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0))
    expected = model.decoder(latents)
    folded = folded_state_dict(model.decoder)
    assert any("parametrizations" in name for name in model.decoder.state_dict())
    fold_weight_norm(model.decoder)
    assert not any("parametrizations" in name for name in model.decoder.state_dict())
    torch.testing.assert_close(model.decoder(latents), expected, atol=1e-6, rtol=0)
    for name, value in model.decoder.state_dict().items():
        torch.testing.assert_close(value, folded[name], atol=1e-7, rtol=0)


def test_folding_a_module_without_weight_norm_changes_nothing() -> None:
    layer = nn.Conv1d(2, 3, 1)
    before = layer.weight.clone()
    fold_weight_norm(layer)
    torch.testing.assert_close(layer.weight, before, atol=0, rtol=0)


# --- Writing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_speakers": 3, "speaker_embedding_size": 4},
        {"use_stochastic_duration_prediction": False},
    ],
    ids=["one speaker", "many speakers", "deterministic durations"],
)
def test_stock_transformers_speaks_the_same(
    make_model: MakeModel, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """After training's weight norm on the decoder, every key fits and every sample agrees."""
    model = make_model(**changes)
    model.decoder.apply_weight_norm()
    save_model(model, tmp_path)
    stock, report = cast("Any", VitsModel).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    stock.noise_scale = stock.noise_scale_duration = 0.0
    speaker = 1 if "num_speakers" in changes else None
    with torch.no_grad():
        reference = stock(IDS[None], speaker_id=speaker).waveform[0].numpy()
    ours = synthesize(model, IDS, seed=0, speaker_id=speaker, noise_scale=0.0, noise_scale_duration=0.0)
    assert reference.shape == ours.samples.shape
    assert abs(reference - ours.samples).max() < 1e-5
    assert abs(reference).max() > 1e-3


def test_saving_leaves_the_model_as_it_was(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    model.decoder.apply_weight_norm()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = model.config.to_dict()
    save_model(model, tmp_path)
    assert model.config.to_dict() == config
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["VitsModel"]


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_others_may_read_what_the_umask_lets_them(make_model: MakeModel, tmp_path: Path, umask: int) -> None:
    """A server under another user reads the weights: safetensors writes them for the owner alone."""
    before = os.umask(umask)
    try:
        save_model(make_model(), tmp_path)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == 0o666 & ~umask


def test_round_trip(make_model: MakeModel, tmp_path: Path) -> None:
    for kind in ("1", "2"):
        model = make_model(resblock_type=kind, untrained_modules=["posterior_encoder"])
        save_model(model, tmp_path / kind)
        loaded = load_model(tmp_path / kind)
        assert resblock_type(loaded.config) == kind
        assert loaded.config.untrained_modules == ["posterior_encoder"]
        assert not any(module.training for module in loaded.modules())
        assert all(
            torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items()
        )


def test_companions_travel_along(make_model: MakeModel, tmp_path: Path, folder: Path) -> None:
    (folder / "vocab.json").write_text("{}")
    (folder / "speakers.json").write_text('{"ana": 0}')
    (folder / "preprocessor_config.json").write_text('{"sampling_rate": 16000}')
    (folder / "optimizer.bin").write_text("big")
    several = make_model(num_speakers=3, speaker_embedding_size=4)
    save_model(several, tmp_path / "next", companions=folder)
    assert (tmp_path / "next/speakers.json").read_text() == '{"ana": 0}'
    save_model(make_model(), tmp_path / "one", companions=folder)
    assert not (tmp_path / "one/speakers.json").exists()  # they are another table's
    assert not (tmp_path / "one/preprocessor_config.json").exists()  # of another rate than 8 kHz
    save_model(make_model(sampling_rate=16000), tmp_path / "rate", companions=folder)
    assert (tmp_path / "rate/preprocessor_config.json").is_file()
    assert (tmp_path / "next/vocab.json").is_file()
    assert not (tmp_path / "next/optimizer.bin").exists()
    save_model(make_model(), folder, companions=folder)  # onto itself
    assert (folder / "vocab.json").read_text() == "{}"


def test_pipeline_of_transformers_speaks(make_model: MakeModel, tmp_path: Path) -> None:
    save_model(make_model(), tmp_path)
    vocab = {character: number for number, character in enumerate("_abcdefghij")}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        VitsTokenizer(
            tmp_path / "vocab.json",
            phonemize=False,
            is_uroman=False,
            **dict.fromkeys(["pad_token", "unk_token"], "_"),
        ).save_pretrained(tmp_path)
        spoken = cast("Any", pipeline)("text-to-speech", model=str(tmp_path), device="cpu")("abeja")
    assert spoken["sampling_rate"] == 8000
    assert spoken["audio"].size > 0


def test_stock_transformers_refuses_resblock2(make_model: MakeModel, tmp_path: Path) -> None:
    """In a process without our code; every way in raises, also VitsModel's own, which knows no model types."""
    save_model(make_model(resblock_type="2"), tmp_path)
    program = f"""
import transformers
from transformers import AutoConfig, AutoModelForTextToWaveform, VitsModel, pipeline
transformers.logging.set_verbosity_error()
for way_in in (
    AutoConfig.from_pretrained,
    AutoModelForTextToWaveform.from_pretrained,
    lambda folder: pipeline("text-to-speech", model=folder),
    VitsModel.from_pretrained,
):
    try:
        way_in({str(tmp_path)!r})
    except Exception as error:
        print("refused:", "resblock2" in str(error).lower(), type(error).__name__)
    else:
        print("loaded", way_in)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    answers = ran.stdout.split("\n")[:-1]
    assert len(answers) == 4, ran.stdout
    assert all(answer.startswith("refused: True") for answer in answers), ran.stdout


# --- Reading ---------------------------------------------------------------------------------------


def test_old_style_weight_norm_keys_load(make_model: MakeModel, folder: Path) -> None:
    """The hub's MMS files keep ``weight_g`` and ``weight_v``."""

    def age(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        renamed = {
            name.replace("parametrizations.weight.original0", "weight_g").replace(
                "parametrizations.weight.original1", "weight_v"
            ): value
            for name, value in state.items()
        }
        assert sum(name.endswith("weight_g") for name in renamed) == 12
        return renamed

    rewrite(folder, age)
    loaded = load_model(folder).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in make_model().state_dict().items())


def test_missing_weights_are_named(folder: Path) -> None:
    rewrite(folder, lambda state: {k: v for k, v in state.items() if not k.startswith("posterior_encoder.")})
    with pytest.raises(
        ModelError, match=r"lacks \d+ of the model's weights \(posterior_encoder\..*incomplete"
    ):
        load_model(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    rewrite(folder, lambda state: state | {"decoder.conv_pre.weight": torch.zeros(8, 4, 5)})
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder)


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("discriminator.safetensors", "fetch it again, or remove it"), ("model.safetensors", "fetch it again.")],
)
@pytest.mark.parametrize("kept", [0, 50])
def test_a_truncated_discriminator(folder: Path, name: str, remedy: str, kept: int) -> None:
    save_file({"scale.weight": torch.zeros(100)}, folder / name)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:kept])
    with pytest.raises(ModelError, match=f"{name} cannot be loaded: .*{remedy}"):
        read_discriminator(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        load_model(folder)


def test_no_model_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("{}", "cannot be read"),
        ('{"model_type": "no such"}', "cannot be read"),
        ('{"model_type": "vits_resblock2", "resblock_dilation_sizes": {}}', "cannot be read.*resblock2"),
        ('{"model_type": "vits", "hidden_size": "wide"}', "cannot be read.*hidden_size"),
    ],
)
def test_bad_configuration(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=f"(?s){message}"):
        load_model(tmp_path)


def test_not_a_vits(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="type 'bert'; only VITS"):
        load_model(tmp_path)


def test_discriminator_of_ours_and_of_the_ancestor(folder: Path) -> None:
    assert read_discriminator(folder) is None
    weights = {"discriminators.0.convs.0.weight": torch.ones(2, 2)}
    rewrite(folder, lambda state: state | {f"discriminator.{k}": v for k, v in weights.items()})
    found = read_discriminator(folder)
    assert found is not None
    assert found.keys() == weights.keys()
    load_model(folder)  # the generator beside it is whole
    own = {"scale.weight": torch.zeros(1)}
    save_file(own, folder / "discriminator.safetensors")
    found = read_discriminator(folder)
    assert found is not None
    assert found.keys() == own.keys()


# --- The hub ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("offline", [False, True], ids=["connection refused", "offline mode"])
def test_hub_unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: bool) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    started = time.monotonic()
    with pytest.raises(HubUnreachableError) as caught:
        loading.fetch_from_hub("facebook/mms-tts-spa", cache_dir=str(tmp_path))
    assert time.monotonic() - started < 60  # not a measurement: it must give up, not wait for a network
    message = str(caught.value)
    assert "'facebook/mms-tts-spa'" in message
    assert "1. a local folder" in message
    assert "2. a store" in message
    assert ("HF_HUB_OFFLINE" if offline else "refused") in message


@pytest.mark.parametrize("name", ["a/b/c", "no such folder", "models/añada"])
def test_what_cannot_be_a_name_on_the_hub(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError, match=f"'{name}' is neither a local folder"):
        loading.fetch_from_hub(name, cache_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "models/espanol",
            "There is no folder 'models/espanol' here, did you mean 'models/español'? Nor is it in the store",
        ),
        (
            "models/espñol",
            "Check the spelling, did you mean 'models/español'?",
        ),  # no name that the hub could have
    ],
)
def test_a_misspelt_folder_is_told_its_neighbour(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, said: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/español").mkdir(parents=True)
    with pytest.raises(UserError, match=re.escape(said)):
        loading.fetch_from_hub(name, cache_dir=str(tmp_path / "cache"))


def test_in_a_container_a_folder_has_to_be_mounted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv(IMAGE, "vits-train")
    with pytest.raises(
        HubUnreachableError, match=r"1\. a local folder: .* mount it at /models.*\n  2\. a store"
    ):
        loading.fetch_from_hub("facebook/mms-tts-spa", cache_dir=str(tmp_path))


@pytest.mark.parametrize("kind", [RepositoryNotFoundError, RevisionNotFoundError])
def test_hub_without_the_model(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    def answer(*args: object, **kwargs: object) -> str:
        error = kind.__new__(kind)
        Exception.__init__(error, "404")
        raise error

    monkeypatch.setattr(loading, "snapshot_download", answer)
    with pytest.raises(NotFoundError, match="no model 'me/mine' at revision 'v2'"):
        loading.fetch_from_hub("me/mine", revision="v2")


def test_hub_with_the_model(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    """Only what is never unpickled is asked for."""
    asked: dict[str, Any] = {}

    def answer(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(shutil.copytree(folder, tmp_path / "cache"))

    monkeypatch.setattr(loading, "snapshot_download", answer)
    load_model(loading.fetch_from_hub("me/mine", cache_dir="cache"))
    assert asked["repository"] == "me/mine"
    assert asked["cache_dir"] == "cache"
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in asked["allow_patterns"])


def test_auto_config_knows_our_type_here(make_model: MakeModel, tmp_path: Path) -> None:
    save_model(make_model(resblock_type="2"), tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "vits_resblock2"
