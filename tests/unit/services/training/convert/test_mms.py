"""MMS's generator and original discriminator put together, from files and from a hub that is a fake or away."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from safetensors.torch import save_file
from torch import Tensor
from transformers import VitsModel

from services.cli import main
from services.training.convert import discriminators, hub, mms
from services.training.convert.mms_codes import resolve
from services.training.convert.weights import MAGNITUDE
from services.training.discriminator import Discriminator
from shared.errors import HubUnreachableError, ModelError, NotFoundError
from shared.modeling import load_model, read_discriminator
from shared.provenance import Provenance
from shared.text import FrontEnd
from tests.unit.services.training.convert import original
from tests.unit.services.training.convert.original import (
    Sizes,
    discriminator_shapes,
    make_discriminator,
    make_generator,
)

pytestmark = pytest.mark.usefixtures("small_discriminator")


@pytest.fixture
def discriminator(tmp_path: Path) -> Path:
    """``D_100000.pth`` as MMS's trainer writes it, of a hundredth of the channels."""
    path = tmp_path / "mms-tts/full_models/spa/D_100000.pth"
    path.parent.mkdir(parents=True)
    optimizer = {"state": {0: {"step": 5.0}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    torch.save(
        {"model": make_discriminator(), "iteration": 100000, "optimizer": optimizer, "learning_rate": 1e-4},
        path,
    )
    return path


@torch.no_grad()
def judges_alike(folder: Path, weights: dict[str, Tensor]) -> bool:
    """Whether the folder's discriminator scores as a plain original one with these weights does."""
    stored = read_discriminator(folder)
    assert stored is not None
    judge = Discriminator()
    judge.load_folded(stored)
    waveform = torch.randn(1, 1, 2000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pairs = zip(judge.double()(waveform), original.judge(weights, waveform), strict=True)
    return all(torch.allclose(found[0], expected[0], rtol=1e-5, atol=1e-6) for found, expected in pairs)


# --- From files ------------------------------------------------------------------------------------


def test_both_are_together_and_unchanged(spanish_model: Path, discriminator: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["--generator", str(spanish_model), "--discriminator", str(discriminator)]
    assert main(["convert", "mms-discriminator", *arguments, "--output", str(output)]) == 0
    assert judges_alike(output, make_discriminator())
    before, after = load_model(spanish_model).state_dict(), load_model(output).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert FrontEnd.from_folder(output) == FrontEnd.from_folder(spanish_model)
    _, report = cast("Any", VitsModel).from_pretrained(output, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert Provenance.read(output) == Provenance.read(spanish_model)


def test_the_ancestors_argument_names(spanish_model: Path, discriminator: Path, tmp_path: Path) -> None:
    command = [
        *("convert", "mms-discriminator", "--pytorch_dump_folder_path", str(tmp_path / "out")),
        *("--generator_checkpoint_path", str(spanish_model), "--checkpoint_path", str(discriminator)),
    ]
    assert main(command) == 0
    assert judges_alike(tmp_path / "out", make_discriminator())


@pytest.mark.parametrize(
    "form", ["weight_g and weight_v", "parametrizations", "folded", "bare", "half precision"]
)
def test_every_form_of_the_same_weights(form: str, tmp_path: Path) -> None:
    weights = make_discriminator()
    if form == "parametrizations":
        weights = {
            name.replace(".weight_g", MAGNITUDE).replace(".weight_v", ".parametrizations.weight.original1"): value
            for name, value in weights.items()
        }  # fmt: skip
    elif form == "folded":
        plain = {name.removesuffix(".bias") for name in weights if name.endswith(".bias")}
        weights = {name: value for name, value in weights.items() if name.endswith(".bias")} | {
            f"{name}.weight": original.weight(make_discriminator(), name).float() for name in plain
        }
    content: Any = weights if form == "bare" else {"model": weights}
    if form == "half precision":
        content = {"model": {name: value.to(torch.float64) for name, value in weights.items()}}
    torch.save(content, tmp_path / "D.pth")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    discriminators.save(discriminators.read_original(tmp_path / "D.pth"), tmp_path / "model")
    assert judges_alike(tmp_path / "model", make_discriminator())


def test_the_published_shapes_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers of published discriminators, against networks of full size without their memory."""
    monkeypatch.undo()
    shapes = discriminator_shapes((16, 64, 256, 1024), (32, 128, 512, 1024))
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        state[f"{name}.weight_v"] = torch.empty(shape, device="meta")
        state[f"{name}.weight_g"] = torch.empty((shape[0], *(1 for _ in shape[1:])), device="meta")
        state[f"{name}.bias"] = torch.empty(shape[:1], device="meta")
    found = discriminators.from_state(state, where=Path("D_100000.pth"))
    assert sum(value.numel() for value in found.values()) == 46_730_118


@pytest.mark.parametrize("what", ["generator", "spectral", "other", "missing", "shape", "nothing of it"])
def test_foreign_discriminators_are_explained(
    what: str, spanish_model: Path, discriminator: Path, tmp_path: Path
) -> None:
    weights = make_discriminator()
    message = {
        "generator": "is a generator, not a discriminator. Give the D_*.pth",
        "spectral": "under spectral norm (use_spectral_norm)",
        "other": "discriminators.6.convs.0.weight: there is no such weight",
        "missing": "discriminators.3.final_conv.bias: missing",
        "shape": "discriminators.2.conv_post.weight → discriminators.2.final_conv.weight: shape (1, 16, 5, 1)",
        "nothing of it": "is not a discriminator of VITS",
    }[what]
    if what == "generator":
        weights = make_generator(Sizes())
    elif what == "spectral":
        weights = {name.replace("weight_v", "weight_orig"): value for name, value in weights.items()}
    elif what == "other":
        weights["discriminators.6.convs.0.weight"] = torch.zeros(3)
    elif what == "missing":
        del weights["discriminators.3.conv_post.bias"]
    elif what == "shape":
        weights["discriminators.2.conv_post.weight_v"] = torch.randn(1, 16, 5, 1)
    else:
        weights = {"convs.0.weight": torch.zeros(3)}
    torch.save({"model": weights}, discriminator)
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        mms.convert(spanish_model, discriminator, tmp_path / "out")
    assert str(discriminator) in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_folder_of_something_else_is_never_replaced(
    spanish_model: Path, discriminator: Path, tmp_path: Path
) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/dear.txt").write_text("dear")
    with pytest.raises(ModelError, match="is there and is not a model folder"):
        mms.convert(spanish_model, discriminator, tmp_path / "letters")
    generator = tmp_path / "generator"
    shutil.copytree(spanish_model, generator)
    with pytest.raises(ModelError, match="which is being read"):
        mms.convert(generator, discriminator, generator)
    assert (tmp_path / "letters/dear.txt").read_text() == "dear"
    assert (generator / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--generator", "folder"],
        ["--discriminator", "D.pth"],
        ["--language_code", "spa", "--generator", "folder", "--discriminator", "D.pth"],
    ],
)
def test_either_a_code_or_both_files(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "mms-discriminator", *arguments, "--output", str(tmp_path / "out")]) == 2
    assert "either --language_code CODE" in capsys.readouterr().err


# --- From the hub ----------------------------------------------------------------------------------


@pytest.fixture
def fake_hub(
    monkeypatch: pytest.MonkeyPatch, spanish_model: Path, discriminator: Path
) -> list[tuple[str, ...]]:
    """A hub with MMS's Spanish alone; what was asked of it."""
    asked: list[tuple[str, ...]] = []

    def download(repository: str, path: str) -> str:
        asked.append((repository, path))
        if path != "full_models/spa/D_100000.pth":
            raise EntryNotFoundError("404")
        return str(discriminator)

    def fetch(repository: str) -> Path:
        asked.append((repository,))
        return spanish_model

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(mms, "fetch_from_hub", fetch)
    return asked


def test_by_language_code(fake_hub: list[tuple[str, ...]], tmp_path: Path) -> None:
    command = ["convert", "mms-discriminator", "--language_code", "spa", "--output", str(tmp_path / "out")]
    assert main(command) == 0
    assert fake_hub == [
        ("facebook/mms-tts", "full_models/spa/D_100000.pth"),
        ("facebook/mms-tts-spa",),
    ]
    assert judges_alike(tmp_path / "out", make_discriminator())
    provenance = Provenance.read(tmp_path / "out")
    assert provenance.licence == "CC-BY-NC-4.0"
    assert any("facebook/mms-tts-spa" in source for source in provenance.sources)


def test_a_code_that_the_hub_does_not_have(fake_hub: list[tuple[str, ...]], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"--language_code es: .*has no full_models/es/.*spa, not es"):
        mms.convert_from_hub("es", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_generator_that_is_published_as_a_discriminator(
    fake_hub: list[tuple[str, ...]], discriminator: Path, tmp_path: Path
) -> None:
    """As MMS has it for Tigrinya: the user cannot mend the file, and is told how to go on without it."""
    torch.save({"model": make_generator(Sizes())}, discriminator)
    with pytest.raises(
        ModelError, match=r"(?s)is a generator.*fresh discriminator.*another language's"
    ) as caught:
        mms.convert_from_hub("spa", tmp_path / "out")
    assert "--generator mms-tts-spa --discriminator mms-tts/full_models/" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_hub_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hub library itself, offline and with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "out"
    with pytest.raises(HubUnreachableError):
        mms.convert_from_hub("spa", output)
    command = ["convert", "mms-discriminator", "--language_code", "spa", "--output", str(output)]
    assert main(command) == 8
    error = capsys.readouterr().err
    assert "could not be reached for facebook/mms-tts-spa" in error
    assert "hf download facebook/mms-tts full_models/spa/D_100000.pth --local-dir mms-tts" in error
    assert "--generator mms-tts-spa --discriminator mms-tts/full_models/spa/D_100000.pth" in error
    assert not output.exists()


class FakeApi:
    """The two calls that a push makes."""

    uploads: list[dict[str, Any]] = []  # noqa: RUF012 (cleared by each test)
    broken = False

    def create_repo(self, name: str, *, exist_ok: bool) -> Any:
        assert exist_ok
        if FakeApi.broken:
            response: Any = SimpleNamespace(headers={}, request=None)
            raise HfHubHTTPError("401 Unauthorized", response=response)
        return SimpleNamespace(repo_id=f"ana/{name}")

    def upload_folder(self, **arguments: Any) -> None:
        self.uploads.append(arguments)


@pytest.mark.parametrize("broken", [False, True])
def test_push_to_hub(
    broken: bool,
    monkeypatch: pytest.MonkeyPatch,
    fake_hub: list[tuple[str, ...]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(hub, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "uploads", [])
    monkeypatch.setattr(FakeApi, "broken", broken)
    output = tmp_path / "out"
    command = ["convert", "mms-discriminator", "--language_code", "spa", "--output", str(output)]
    code = main([*command, "--push_to_hub", "mms-tts-spa-train"])
    said = capsys.readouterr()
    if broken:
        assert code == 8
        assert re.search(r"complete in .*401 Unauthorized.*hf upload mms-tts-spa-train", said.err)
        assert judges_alike(output, make_discriminator())
    else:
        assert code == 0
        assert FakeApi.uploads == [{"repo_id": "ana/mms-tts-spa-train", "folder_path": output}]
        assert "pushed to the hub as ana/mms-tts-spa-train" in said.out


# --- Codes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "resolved"),
    [
        ("spa", "spa"),
        (" kor ", "kor"),
        ("uig-script_arabic", "uig-script_arabic"),
        ("tzh-dialect_bachajón", "tzh-dialect_bachajon"),
        ("quy", "quy"),
    ],
)
def test_codes(code: str, resolved: str) -> None:
    assert resolve(code) == resolved


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("uig", "several models for it. Choose .*: uig-script_arabic, uig-script_cyrillic$"),
        ("kur", "several models for it.*kmr-script_arabic, kmr-script_cyrillic, kmr-script_latin"),
        ("uzb", "a model under another name.*uzb-script_cyrillic"),
        ("que", "several models for it.*quh, .*quy, quz"),
        ("uig-script_latin", "no such model, did you mean 'uig-script_[a-z]+'\\? It has uig-script_arabic, uig"),
        ("uig-arab", r"no such model.* It has uig-script_arabic, uig-script_cyrillic"),
        ("quc", "several models.*quc-dialect_central, quc-dialect_east, quc-dialect_north"),
    ],
)  # fmt: skip
def test_a_code_that_leaves_a_choice_is_answered_with_the_list(
    code: str, message: str, fake_hub: list[tuple[str, ...]], tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match=message):
        mms.convert_from_hub(code, tmp_path / "out")
    assert fake_hub == [], "the hub was asked although the answer was known"


def test_a_folder_with_both_is_read_back_by_the_old_name_too(
    spanish_model: Path, discriminator: Path, tmp_path: Path
) -> None:
    """An embedded discriminator in the generator's file does not survive beside the new one."""
    generator = tmp_path / "generator"
    shutil.copytree(spanish_model, generator)
    state = load_model(generator).state_dict()
    old = {f"discriminator.{name}": value for name, value in make_discriminator(seed=9).items()}
    save_file({**state, **old}, generator / "model.safetensors", {"format": "pt"})
    mms.convert(generator, discriminator, tmp_path / "out")
    assert judges_alike(tmp_path / "out", make_discriminator())
    assert "discriminator" not in json.dumps(list(load_model(tmp_path / "out").state_dict()))
