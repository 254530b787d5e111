"""The configurations that come with the suite: each can be used, is explained, and is found by its name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from services.training.config_sources import PRESETS, load, read_json, read_overrides
from services.training.diagnosis import Size, evaluation_remedies, remedies
from shared.errors import ConfigError

FOLDER = Path(__file__).parents[4] / "configs"
FILES = sorted(FOLDER.glob("*.json"))
WHOLE = [file for file in FILES if "model_name_or_path" in read_json(file)]
LAYERS = [file for file in FILES if file not in WHOLE]

#: What the analysis document recommends.
STANDARD = {
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "fp16": True,
    "max_eval_samples": 25,
}
RECOMMENDED: dict[str, dict[str, Any]] = {
    "spa.json": STANDARD,
    "standard.json": STANDARD,
    "low-memory.json": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "gradient_checkpointing": True,
        "fp16": True,
        "max_eval_samples": 5,
    },
    "fast-experiment.json": {
        "per_device_train_batch_size": 32,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "fp16": True,
        "num_train_epochs": 50,
        "eval_steps": 200,
    },
    "production.json": {
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 200,
        "learning_rate": 2e-5,
        "eval_steps": 50,
        "save_steps": 100,
        "fp16": True,
    },
}


def test_there_is_one_for_everybody() -> None:
    assert {file.stem for file in WHOLE} == {
        "demo",
        "spa",
        "eng",
        "ljs",
        "vctk",
        "kor",
        "guj",
        "piper",
        "spa-cpu-hour",
    }
    layers = {"low-memory", "standard", "fast-experiment", "production", "multi-speaker", "from-scratch"}
    assert {file.stem for file in LAYERS} == layers


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.name)
def test_a_whole_one_can_be_used_as_it_is(file: Path) -> None:
    config, remarks = load([file], {})
    assert config.do_train
    assert config.do_eval
    assert not config.push_to_hub
    assert not remarks


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.name)
def test_a_whole_one_evaluates_on_what_it_does_not_train_on(file: Path) -> None:
    """The datasets of some have one split: the reader holds recordings out of it, whether they are asked for or not."""
    config, _ = load([file], {})
    assert (config.train_split_name, config.eval_split_name) == ("train", "validation")


@pytest.mark.parametrize("layer", LAYERS, ids=lambda file: file.name)
@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.name)
def test_a_layer_goes_over_every_whole_one(file: Path, layer: Path) -> None:
    config, remarks = load([file, layer], {})
    over = config.model_dump(include=set(read_json(layer)))
    assert over == read_json(layer)
    assert not remarks


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_each_says_for_whom_it_is(file: Path) -> None:
    comment = json.loads(file.read_text(encoding="utf-8"))["_comment"]
    assert comment.startswith("For " if file in WHOLE else "Over another: for ")
    assert f"| [{file.name}]({file.name}) | " in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RECOMMENDED)
def test_the_recommended_ones_are_as_recommended(name: str) -> None:
    assert read_json(FOLDER / name).items() >= RECOMMENDED[name].items()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_a_shipped_layer_below_the_command_line(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITS_CONFIGS", str(FOLDER))
    layer = read_json(FOLDER / PRESETS[preset])
    config, _ = load([FOLDER / "eng.json"], {"preset": preset, "seed": "7"})
    assert config.model_dump(include=set(layer)) == layer
    assert config.seed == 7
    config, _ = load([FOLDER / "eng.json"], {"preset": preset.upper(), "per_device_train_batch_size": "2"})
    assert config.per_device_train_batch_size == 2


def test_a_misspelt_preset_meets_the_others() -> None:
    with pytest.raises(ConfigError, match="no preset '8g', did you mean '8gb'"):
        load([FOLDER / "eng.json"], {"preset": "8g"})


def test_a_preset_that_is_not_at_hand_says_what_it_is_and_where_it_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VITS_CONFIGS", raising=False)
    with pytest.raises(
        ConfigError, match=r"--preset 8gb is the shipped configuration low-memory\.json"
    ) as raised:
        load([FOLDER / "eng.json"], {"preset": "8GB"})
    looked, remedy = raised.value.problems
    assert looked == f"looked for {tmp_path / 'low-memory.json'} and {tmp_path / 'configs/low-memory.json'}"
    assert "set $VITS_CONFIGS to the folder" in remedy
    monkeypatch.setenv("VITS_CONFIGS", str(FOLDER))
    assert load([FOLDER / "eng.json"], {"preset": "8gb"})[0].per_device_train_batch_size == 4


@pytest.mark.parametrize("layer", [None, *LAYERS], ids=lambda file: file.name if file else "alone")
@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.name)
def test_what_is_advised_where_memory_is_short_can_be_done(file: Path, layer: Path | None) -> None:
    """Each remedy by itself, over the configuration that it is given for."""
    paths = [file, *([layer] if layer else [])]
    for given in ({}, {"min_duration_in_seconds": 7.0}, {"early_stopping_patience": 5}):
        config, _ = load(paths, given)
        told = evaluation_remedies(config)
        for tried, fitted in ((Size(4, 300), None), (Size(16, 1000), Size(16, 400)), (Size(1, 60), None)):
            told += remedies(config, tried, fitted, frame_seconds=0.016)
        advised = [
            words
            for line in told
            if line[0].isdecimal()
            for words in re.findall(r"--\w+ \S*[^\s,](?: --\w+ \S*[^\s,])*", line)
        ]
        assert len(advised) > 12
        for words in advised:
            load(paths, given | read_overrides(words.split())[1])


def test_a_strategy_goes_over_the_steps_of_a_file_with_a_remark() -> None:
    config, told = load([FOLDER / "spa.json"], {"eval_strategy": "epoch", "save_strategy": "epoch"})
    assert (config.evaluation_interval(7), config.save_interval(7)) == (7, 7)
    assert told == [
        "eval_steps has no effect: eval_strategy is epoch; set it to steps",
        "save_steps has no effect: save_strategy is epoch; set it to steps",
    ]


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
