"""Configurations: the ancestor's files as they are, and every mistake in one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.training.config import (
    IGNORED,
    SECRETS,
    TrainingConfig,
    load,
    read_json,
    read_overrides,
    resolve,
    slug,
)
from services.training.session import _plan
from shared.errors import ConfigError

REPOSITORY = Path(__file__).parents[4]
MINIMAL: dict[str, Any] = {"model_name_or_path": "base", "dataset_name": "data"}

#: The analysis document's own example of a configuration.
EXAMPLE: dict[str, Any] = json.loads("""
{
    "project_name": "vits_spanish_training",
    "push_to_hub": true,
    "hub_model_id": "my-spanish-tts-model",
    "overwrite_output_dir": true,
    "output_dir": "./output/spanish_model",

    "dataset_name": "your/spanish-dataset",
    "dataset_config_name": "default",
    "audio_column_name": "audio",
    "text_column_name": "text",
    "train_split_name": "train",
    "eval_split_name": "test",

    "model_name_or_path": "ylacombe/mms-tts-spa-train",

    "do_train": true,
    "num_train_epochs": 200,
    "per_device_train_batch_size": 16,
    "learning_rate": 2e-5,
    "adam_beta1": 0.8,
    "adam_beta2": 0.99,

    "weight_disc": 3,
    "weight_gen": 1,
    "weight_kl": 1.5,
    "weight_duration": 1,
    "weight_mel": 35,
    "weight_fmaps": 1,

    "fp16": true
}
""")

#: Its guide to training Spanish.
SPANISH_GUIDE: dict[str, Any] = json.loads("""
{
    "project_name": "spanish_tts_finetuning",
    "push_to_hub": true,
    "hub_model_id": "vits-spanish-{speaker-name}",
    "overwrite_output_dir": true,
    "output_dir": "./output/spanish_tts",
    "report_to": ["tensorboard"],

    "dataset_name": "your-username/spanish-tts-dataset",
    "dataset_config_name": "default",
    "audio_column_name": "audio",
    "text_column_name": "text",
    "train_split_name": "train",
    "eval_split_name": "validation",

    "speaker_id_column_name": "speaker_id",
    "override_speaker_embeddings": true,
    "filter_on_speaker_id": 0,

    "max_duration_in_seconds": 20,
    "min_duration_in_seconds": 1.0,
    "max_tokens_length": 500,
    "do_lower_case": false,
    "full_generation_sample_text": "Buenos días, este es un ejemplo de síntesis de voz en español.",

    "model_name_or_path": "ylacombe/mms-tts-spa-train",

    "preprocessing_num_workers": 4,

    "do_train": true,
    "num_train_epochs": 200,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": false,
    "per_device_train_batch_size": 16,
    "learning_rate": 2e-5,
    "adam_beta1": 0.8,
    "adam_beta2": 0.99,
    "warmup_ratio": 0.01,
    "group_by_length": false,
    "do_step_schedule_per_epoch": true,
    "lr_decay": 0.999875,

    "do_eval": true,
    "eval_steps": 50,
    "per_device_eval_batch_size": 16,
    "max_eval_samples": 25,

    "weight_disc": 3,
    "weight_fmaps": 1,
    "weight_gen": 1,
    "weight_kl": 1.5,
    "weight_duration": 1,
    "weight_mel": 35,

    "fp16": true,
    "seed": 456,
    "save_steps": 500,
    "save_total_limit": 5,
    "logging_steps": 10
}
""")

#: Its "Recommended Configurations", each of which changes a few keys of another.
RECOMMENDED: list[dict[str, Any]] = [
    {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "gradient_checkpointing": True,
        "fp16": True,
        "max_eval_samples": 5,
    },
    {
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "fp16": True,
        "max_eval_samples": 25,
    },
    {
        "per_device_train_batch_size": 32,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "fp16": True,
        "num_train_epochs": 50,
        "eval_steps": 200,
    },
    {
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 200,
        "learning_rate": 2e-5,
        "eval_steps": 50,
        "save_steps": 100,
        "fp16": True,
    },
]

#: Every argument of the ancestor with a value that its parser accepts, and what its examples set.
ANCESTORS: dict[str, Any] = {
    "config_name": None,
    "tokenizer_name": None,
    "feature_extractor_name": None,
    "cache_dir": "./cache",
    "token": None,
    "model_revision": "main",
    "override_speaker_embeddings": True,
    "override_vocabulary_embeddings": False,
    "project_name": "mms_finetuning",
    "dataset_config_name": None,
    "overwrite_cache": False,
    "preprocessing_num_workers": 4,
    "max_train_samples": 100,
    "max_eval_samples": 25,
    "audio_column_name": "audio",
    "text_column_name": "text",
    "speaker_id_column_name": "speaker_id",
    "filter_on_speaker_id": 5223,
    "max_tokens_length": 500,
    "max_duration_in_seconds": 20,
    "min_duration_in_seconds": 1.0,
    "preprocessing_only": False,
    "train_split_name": "train",
    "eval_split_name": "train",
    "do_lower_case": False,
    "do_normalize": False,
    "full_generation_sample_text": "Hola",
    "uroman_path": "/opt/uroman",
    "do_step_schedule_per_epoch": True,
    "lr_decay": 0.999875,
    "weight_duration": 1,
    "weight_kl": 1.5,
    "weight_mel": 35,
    "weight_disc": 3,
    "weight_gen": 1,
    "weight_fmaps": 1,
    "num_train_epochs": 200,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "learning_rate": 2e-5,
    "adam_beta1": 0.8,
    "adam_beta2": 0.99,
    "warmup_ratio": 0.01,
    "group_by_length": False,
    "do_train": True,
    "do_eval": True,
    "eval_steps": 50,
    "save_steps": 500,
    "save_total_limit": 2,
    "logging_steps": 10,
    "report_to": "tensorboard",
    "fp16": True,
    "seed": 456,
    "push_to_hub": False,
    "hub_model_id": "someone/some-voice",
    "overwrite_output_dir": True,
    "output_dir": "./tmp/vits_finetuned",
    "resume_from_checkpoint": None,
    "dataloader_num_workers": 4,
}


def problems(values: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        resolve(values, origin="it")
    return caught.value.problems


# -- Old configurations ----------------------------------------------------------------------------


@pytest.mark.parametrize("values", [EXAMPLE, SPANISH_GUIDE, MINIMAL | ANCESTORS])
def test_the_ancestors_configurations_mean_what_they_say(values: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    config = load(path, {})
    for key, value in values.items():
        if key in IGNORED:
            assert not hasattr(config, key)
        elif key == "report_to":
            assert config.report_to == ["tensorboard"]
        elif key == "output_dir":
            assert config.output_dir == Path(value)
        else:
            assert getattr(config, key) == value, key


@pytest.mark.parametrize("changes", RECOMMENDED)
def test_the_recommended_changes_are_accepted(changes: dict[str, Any]) -> None:
    config = resolve(SPANISH_GUIDE | changes, origin="it")
    assert {key: getattr(config, key) for key in changes} == changes


def test_the_ancestors_defaults_are_ours() -> None:
    config = resolve(MINIMAL, origin="it")
    expected = {
        "project_name": "vits_finetuning",
        "model_revision": "main",
        "audio_column_name": "audio",
        "text_column_name": "text",
        "max_tokens_length": 450,
        "max_duration_in_seconds": 20.0,
        "min_duration_in_seconds": 0.0,
        "train_split_name": "train",
        "eval_split_name": "test",
        "do_step_schedule_per_epoch": True,
        "lr_decay": 0.999875,
        "weight_duration": 1,
        "weight_kl": 1.5,
        "weight_mel": 35,
        "weight_disc": 3,
        "weight_gen": 1,
        "weight_fmaps": 1,
    }
    assert {key: getattr(config, key) for key in expected} == expected


@pytest.mark.parametrize("name", ["demo.json", "spa.json"])
def test_our_own_configurations_load(name: str) -> None:
    config = load(REPOSITORY / "configs" / name, {})
    assert config.do_train
    assert not config.push_to_hub


def test_the_spanish_run_is_the_guides() -> None:
    """``configs/spa.json`` differs in what a real run on the real corpus has to change."""
    ours = read_json(REPOSITORY / "configs" / "spa.json")
    differing = {key for key in ours.keys() | SPANISH_GUIDE if ours.get(key) != SPANISH_GUIDE.get(key)}
    assert differing == {
        "push_to_hub", "hub_model_id", "overwrite_output_dir", "output_dir", "dataset_name", "dataset_config_name",
        "speaker_id_column_name", "override_speaker_embeddings", "filter_on_speaker_id",
    }  # fmt: skip
    assert ours["dataset_name"] == "./data/asterisk-es"
    assert ours["output_dir"] == "./output/spa"


@pytest.mark.parametrize("given", [450, 450.0, "450", "450.0"])
def test_whole_numbers_may_be_written_as_floats(given: object) -> None:
    """finetune-hf-vits, defect 10: max_tokens_length, typed as a float, crashes from the command line."""
    config = resolve(MINIMAL | {"max_tokens_length": given}, origin="it")
    assert config.max_tokens_length == 450
    assert isinstance(config.max_tokens_length, int)


def test_an_epoch_is_the_same_on_several_processes() -> None:
    """finetune-hf-vits, defect 24."""
    config = resolve(
        MINIMAL | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, origin="it"
    )
    assert [_plan(config, 64, processes, False).per_epoch for processes in (1, 2, 4)] == [8, 4, 2]
    warm = config.model_copy(update={"max_steps": 10})
    assert _plan(warm, 64, 1, True).warm_up == 3
    assert _plan(warm, 64, 1, False).warm_up == 0


# -- Mistakes --------------------------------------------------------------------------------------


def test_everything_wrong_is_said_at_once() -> None:
    wrong = {
        "learning_rte": 1e-4,
        "learning_rate": "fast",
        "per_device_train_batch_size": 0,
        "warmup_ratio": 2,
        "max_tokens_length": 450.5,
        "report_to": "mlflow",
        "fp16": True,
        "bf16": True,
        "min_duration_in_seconds": 30,
        "push_to_hub": True,
    }
    found = problems(wrong)
    told = "\n".join(found)
    assert "unknown key 'learning_rte', did you mean 'learning_rate'?" in told
    for key in ("learning_rate: 'fast'", "per_device_train_batch_size: 0", "warmup_ratio: 2"):
        assert key in told
    assert "max_tokens_length: 450.5" in told
    assert "report_to: 'mlflow'" in told
    assert "model_name_or_path is missing" in told
    assert "dataset_name is missing" in told
    # What is wrong between keys is said too, though single ones are wrong already.
    assert "fp16 and bf16 are both true" in told
    assert "min_duration_in_seconds 30" in told
    assert "push_to_hub needs hub_model_id" in told
    assert len(found) == len(set(found)) == 11


def test_a_wrong_dataset_name_is_not_also_missing() -> None:
    assert len(problems({"model_name_or_path": "base", "dataset_name": 5})) == 1


def test_a_run_that_does_nothing_is_refused() -> None:
    assert "nothing to do" in problems(MINIMAL | {"do_train": False})[0]
    assert resolve(MINIMAL | {"do_train": False, "do_eval": True}, origin="it").do_eval
    assert resolve(MINIMAL | {"max_eval_samples": 3}, origin="it").max_eval_samples == 3


@pytest.mark.parametrize("key", sorted(SECRETS))
def test_a_secret_is_never_shown(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(MINIMAL | {key: 31415926}, origin="it")
    assert "31415926" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "31415926" not in repr(resolve(MINIMAL | {key: "31415926"}, origin="it"))


def test_a_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "from-outside")
    tokens = [load(None, values).token for values in (MINIMAL, MINIMAL | {"token": "given"})]
    assert tokens == ["from-outside", "given"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("{,}", "is not JSON"), ("[1]", "one JSON object"), ("\xff", "is not JSON")],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_names_its_likeliest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "spa.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"did you mean 'spa\.json'"):
        read_json(tmp_path / "spaa.json")


# -- The command line ------------------------------------------------------------------------------


def test_overrides_in_every_form() -> None:
    arguments = [
        "--learning_rate", "1e-4", "--seed=7", "--do_eval", "--max-steps", "-1", "--eval_steps", "None",
        "--save_total_limit=None", "--full_generation_sample_text=a=b --c", "--bf16",
    ]  # fmt: skip
    values = read_overrides(arguments)
    assert values == {
        "learning_rate": "1e-4",
        "seed": "7",
        "do_eval": True,
        "max_steps": "-1",
        "eval_steps": None,
        "save_total_limit": None,
        "full_generation_sample_text": "a=b --c",
        "bf16": True,
    }
    config = load(None, MINIMAL | values)
    assert (config.learning_rate, config.seed, config.max_steps, config.bf16) == (1e-4, 7, -1, True)
    assert config.eval_steps is None


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MINIMAL | {"seed": 1, "do_eval": True}), encoding="utf-8")
    config = load(path, read_overrides(["--seed", "2", "--do_eval", "false"]))
    assert (config.seed, config.do_eval) == (2, False)


def test_stray_words_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        read_overrides(["one", "--seed", "1", "two"])
    assert len(caught.value.problems) == 2


# -- Names -----------------------------------------------------------------------------------------


def test_names_in_the_store() -> None:
    assert slug("vits-spanish-{speaker-name}") == "vits-spanish-speaker-name"
    config = resolve(SPANISH_GUIDE, origin="it")
    assert config.published_name == "vits-spanish-speaker-name"
    assert config.run_id == "vits-spanish-speaker-name-spanish-tts"
    assert resolve(MINIMAL | {"model_name": "ana"}, origin="it").published_name == "ana"
    assert isinstance(config, TrainingConfig)
