"""Every key of ``transformers.TrainingArguments`` 4.35 has one fate, and none is silent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.training.config import TrainingConfig, resolve
from services.training.hf_arguments import ANCESTORS_OWN, KNOWN, TRAINING_ARGUMENTS, screen
from shared.errors import ConfigError

#: Names and defaults, read from the source of release 4.35.2.
THEIRS: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "golden/training_arguments_4_35.json").read_text(encoding="utf-8")
)
MINIMAL: dict[str, Any] = {"model_name_or_path": "base", "dataset_name": "data"}


def of(fate: str) -> list[str]:
    return [key for key, row in KNOWN.items() if row.fate == fate]


def test_every_key_has_a_row_with_its_default() -> None:
    assert len(THEIRS) == 115
    assert {key: row.default for key, row in TRAINING_ARGUMENTS.items()} == THEIRS


def test_what_is_implemented_has_its_default_but_for_these() -> None:
    """Those that its examples set, and those that suit speech; the page of all keys names them."""
    ours = {
        "output_dir": Path("./output"),
        "do_train": True,
        "learning_rate": 2e-5,
        "adam_beta1": 0.8,
        "adam_beta2": 0.99,
        "adam_epsilon": 1e-9,
        "weight_decay": 0.01,
        "logging_steps": 10,
        "report_to": ["tensorboard"],
        "metric_for_best_model": "mel",
    }
    config = resolve(MINIMAL, origin="it")
    theirs = {key: TRAINING_ARGUMENTS[key].default for key in of("implemented")}
    assert {key: getattr(config, key) for key in theirs} == theirs | ours


def test_fates_agree_with_the_schema() -> None:
    """A key is ours exactly if the table says so; so neither can change without the other."""
    ours = TrainingConfig.model_fields.keys()
    assert set(of("implemented")) <= ours
    assert not ours & {*of("ignored"), *of("refused"), *of("renamed")}
    assert ours & TRAINING_ARGUMENTS.keys() == set(of("implemented"))
    assert {KNOWN[key].note for key in of("renamed")} <= ours
    assert not ANCESTORS_OWN.keys() & TRAINING_ARGUMENTS.keys()


@pytest.mark.parametrize("key", sorted({*of("ignored"), *of("refused")}))
def test_what_is_not_done_says_why(key: str) -> None:
    assert len(KNOWN[key].note.split()) >= 3


@pytest.mark.parametrize("key", of("ignored"))
def test_a_key_that_is_not_needed_is_accepted_with_a_line(key: str) -> None:
    for value in (KNOWN[key].default, True, "anything"):
        screened = screen({key: value})
        assert not screened.values
        assert not screened.problems
        assert [line.startswith(f"{key} is not needed: ") for line in screened.remarks] == [True] * (
            value is not None
        )


@pytest.mark.parametrize("key", of("refused"))
def test_a_refused_key_says_what_to_do_instead_unless_it_asks_for_nothing(key: str) -> None:
    default = KNOWN[key].default
    for harmless in (default, str(default), None):
        assert not screen({key: harmless}).problems
    wanted = not default if isinstance(default, bool) else "something"
    with pytest.raises(ConfigError) as caught:
        resolve(MINIMAL | {key: wanted}, origin="it")
    assert caught.value.problems == (f"{key}: {wanted!r} is not offered: {KNOWN[key].note}",)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fsdp", []), ("fsdp", False), ("deepspeed", ""), ("deepspeed", False), ("debug", []), ("tf32", "false"),
        ("use_ipex", "False"), ("tpu_num_cores", None), ("label_smoothing_factor", 0),
        ("half_precision_backend", "cuda_amp"), ("ddp_backend", "nccl"),
    ],
)  # fmt: skip
def test_other_ways_to_ask_for_nothing(key: str, value: object) -> None:
    assert not screen({key: value}).problems


@pytest.mark.parametrize("key", of("renamed"))
def test_another_name_is_the_same_key(key: str) -> None:
    ours = KNOWN[key].note
    value: Any = {"eval_strategy": "epoch", "use_cpu": True}.get(ours, "3")
    config = resolve(MINIMAL | {key: value}, origin="it")
    assert str(getattr(config, ours)) == str(value)
    assert resolve(MINIMAL | {key: value, ours: value}, origin="it") == config
    other: Any = {"eval_strategy": "no", "use_cpu": False}.get(ours, "4")
    for both in ({key: value, ours: other}, {ours: other, key: value}):
        assert screen(both).problems == [
            f"{key} and {ours} are the same key under two names, and disagree: keep {ours}"
        ]


def test_all_their_defaults_together_are_a_configuration() -> None:
    """As old runs have saved them: every key, most of them at the value that asks for nothing."""
    saved = MINIMAL | THEIRS | {"output_dir": "out", "do_train": True, "debug": [], "fsdp": [], "_n_gpu": 1}
    config = resolve(saved, origin="it")
    for key in of("implemented"):
        if saved[key] is not None and key not in {"output_dir"}:
            assert getattr(config, key) == saved[key], key
