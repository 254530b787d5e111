"""``--config spa.json``: the configurations that come with the suite are found by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.training.config_sources import read_json
from shared.errors import ConfigError


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped configurations; the working directory is another, empty one."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "spa.json").write_text('{"seed": 1}')
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("VITS_CONFIGS", str(folder))
    return folder


def test_a_bare_name_is_found_among_the_shipped_ones(shipped: Path) -> None:
    assert read_json(Path("spa.json")) == {"seed": 1}


def test_the_folder_is_configs_if_nothing_else_is_said(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VITS_CONFIGS")
    shipped.rename("configs")
    assert read_json(Path("spa.json")) == {"seed": 1}


@pytest.mark.usefixtures("shipped")
def test_a_file_at_hand_comes_first() -> None:
    Path("spa.json").write_text('{"seed": 2}')
    assert read_json(Path("spa.json")) == {"seed": 2}


@pytest.mark.usefixtures("shipped")
def test_a_path_is_not_a_name() -> None:
    with pytest.raises(ConfigError, match=r"^mine/spa\.json does not exist$"):
        read_json(Path("mine/spa.json"))


@pytest.mark.usefixtures("shipped")
def test_a_misspelt_name_meets_the_shipped_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"^spaa\.json does not exist, nor does .*, did you mean 'spa\.json'\?$"
    ):
        read_json(Path("spaa.json"))
