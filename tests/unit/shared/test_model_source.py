"""Which model a user means: a folder here, or a name in the store."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from services.cli import main
from shared.errors import ModelError, NotFoundError
from shared.model_source import find_model
from shared.registry import Registry, Version
from shared.store import Store


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a folder of recordings that is called as the model is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-voice").mkdir()
    (tmp_path / "my-voice" / "metadata.csv").write_text("file_name,text\n")
    return tmp_path


@pytest.fixture
def published(here: Path) -> Version:
    model = here / "output" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    registry = Registry(Store.open("store"))
    return registry.publish(
        "models", "my-voice", model, licence="CC0-1.0", sources=[], consent=None, lineage={}
    )


def test_a_folder_that_is_no_model_does_not_hide_the_store(
    published: Version, capsys: pytest.CaptureFixture[str]
) -> None:
    source = find_model("my-voice", "store")
    assert source.version == published
    assert source.provenance.licence == "CC0-1.0"
    assert (source.folder / "config.json").is_file()
    told = capsys.readouterr().out
    assert "The folder my-voice is not a model's: it has no config.json, so the model of the store" in told


def test_a_model_folder_goes_before_the_store(published: Version, here: Path) -> None:
    (here / "my-voice" / "config.json").write_text("{}")
    assert find_model("my-voice", "store").version is None
    assert find_model(published.reference, "store").version == published
    assert find_model("output/model", "store").name == "model"


@pytest.mark.parametrize(
    ("reference", "folder"),
    [
        ("my-voice", "The folder my-voice is not a model's"),
        ("output/nosuch", "There is no folder output/nosuch"),
        ("nosuch", "There is no folder nosuch"),
        ("No Such", "There is no folder No Such"),
    ],
)
def test_what_is_in_neither_place_is_told_of_both(reference: str, folder: str, here: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        find_model(reference, "store")
    message = str(caught.value)
    assert message.startswith(folder)
    assert "the store has no such model" in message
    assert ("'vits train' publishes" in message) == (reference != "No Such")
    assert "Write ./FOLDER for a folder; NAME, NAME@ALIAS or NAME/VERSION for a model in the store" in message
    assert not (here / "store").exists()


@pytest.mark.parametrize(
    ("reference", "message"),
    [("./nosuch", "There is no folder ./nosuch"), ("./my-voice", "is not a model's"), ("a/b/c", "no folder")],
)
def test_what_can_only_be_a_folder_is_not_sought_in_the_store(
    published: Version, reference: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        find_model(reference, "store")


def test_an_alias_that_is_not_there_is_not_advised_again(published: Version) -> None:
    with pytest.raises(NotFoundError) as caught:
        find_model("my-voice@latest", "store")
    message = str(caught.value)
    assert "no alias 'latest'. It has no aliases" in message
    assert f"Its versions: {published.id}" in message
    assert "NAME@latest" not in message
    assert "Write my-voice for its newest version" in message
    assert find_model("my-voice", "store").version == published
    promote = shlex.split(re.findall("'vits (models promote .*?)'", message)[0])
    assert main(promote) == 0, "the advice runs as it stands"
    assert find_model("my-voice@latest", "store").version == published
