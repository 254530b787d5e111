"""Configurations: the ancestor's files as they are, and every mistake in one message."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services import cli as vits
from services.training import config as config_module
from services.training.config import METRICS, MODULES, SECRETS, TrainingConfig, resolve, slug
from services.training.config_sources import load
from services.training.hf_arguments import ANCESTORS_OWN, KNOWN, TRAINING_ARGUMENTS
from services.training.sampler import BucketSampler
from services.training.session import _plan
from shared.errors import ConfigError
from shared.manifests import check_name

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
    config, _ = load([path], {})
    for key, value in values.items():
        if key in KNOWN and KNOWN[key].fate == "ignored":
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


@pytest.mark.parametrize("changes", [{}, *RECOMMENDED])
def test_the_spanish_guide_runs_on_recordings_of_its_form(
    changes: dict[str, Any],
    tmp_path: Path,
    spanish_model: Path,
    recordings_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Up to the first step: its splits, its column of speakers, and the one speaker it keeps."""
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))
    dataset = tmp_path / "dataset"
    shutil.copytree(recordings_folder, dataset)
    table = dataset / "metadata.csv"
    text = (
        table.read_text(encoding="utf-8").replace("speaker", "speaker_id").replace(",test,", ",validation,")
    )
    table.write_text(text.replace(",ana", ",0").replace(",luis", ",1"), encoding="utf-8")
    guide, layer = tmp_path / "finetune_spanish.json", tmp_path / "layer.json"
    guide.write_text(json.dumps(SPANISH_GUIDE), encoding="utf-8")
    layer.write_text(json.dumps(changes), encoding="utf-8")
    places = {"dataset_name": dataset, "model_name_or_path": spanish_model, "output_dir": tmp_path / "output"}
    overrides = [word for key, value in places.items() for word in (f"--{key}", str(value))]
    assert vits.main(["train", str(guide), str(layer), *overrides, "--preprocessing_only"]) == 0
    told = capsys.readouterr()
    assert "training: 4 recordings" in told.out
    assert "evaluation: 1 recording," in told.out
    assert "is no name that the hub accepts" in told.err


def test_the_ancestors_defaults_are_ours() -> None:
    """Of all arguments that are its own; those of ``transformers`` are in test_hf_arguments.py."""
    expected = {
        "config_name": None,
        "tokenizer_name": None,
        "feature_extractor_name": None,
        "cache_dir": None,
        "token": None,
        "model_revision": "main",
        "override_speaker_embeddings": False,
        "override_vocabulary_embeddings": False,
        "project_name": "vits_finetuning",
        "dataset_config_name": None,
        "overwrite_cache": False,
        "preprocessing_num_workers": None,
        "max_train_samples": None,
        "max_eval_samples": None,
        "speaker_id_column_name": None,
        "filter_on_speaker_id": None,
        "preprocessing_only": False,
        "do_lower_case": False,
        "do_normalize": False,
        "full_generation_sample_text": None,  # a sentence there, as the page of all keys says
        "uroman_path": None,
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
    assert expected.keys() == ANCESTORS.keys() - TRAINING_ARGUMENTS.keys()
    config = resolve(MINIMAL, origin="it")
    ignored = {key: row.default for key, row in ANCESTORS_OWN.items()}
    assert {key: ignored.get(key, getattr(config, key, None)) for key in expected} == expected


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
    batches = [
        BucketSampler([50] * 64, batch_size=4, seed=0, world=world).batches_per_epoch for world in (1, 2, 4)
    ]
    plans = [_plan(config, count, has_new_modules=False) for count in batches]
    assert [plan.per_epoch for plan in plans] == [8, 4, 2]
    warm = config.model_copy(update={"max_steps": 10})
    assert _plan(warm, 16, has_new_modules=True).warm_up == 3
    assert _plan(warm, 16, has_new_modules=False).warm_up == 0
    reading = warm.model_copy(update={"text_stage_steps": 5})
    for new, first in ((True, 3), (False, 0)):
        plan = _plan(reading, 16, has_new_modules=new)
        assert (plan.new_modules, plan.text, plan.warm_up, plan.total) == (first, 5, first + 5, first + 15)
    repeating = reading.model_copy(update={"reconstruction_stage_steps": 4})
    assert _plan(repeating, 16, has_new_modules=True).warm_up == 9
    repeating = repeating.model_copy(update={"warm_up_new_modules_steps": 3})
    assert _plan(repeating, 16, has_new_modules=True).stages() == {
        "new_modules": range(3),
        "reconstruction": range(3, 7),
        "text": range(7, 12),
        "joint": range(12, 22),
    }


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
        "tpu_num_cores": 8,
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
    assert "tpu_num_cores: 8 is not offered" in told
    assert len(found) == len(set(found)) == 12


def test_a_wrong_dataset_name_is_not_also_missing() -> None:
    assert len(problems({"model_name_or_path": "base", "dataset_name": 5})) == 1


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket/voz",
        "file:///data/voz",
        "https://huggingface.co/datasets/ana/voz",
        "s3:/bucket/voz",
        "gs:voz",
    ],
)
def test_an_address_is_no_folder(address: str) -> None:
    """As a path it would be a folder ``s3:`` of this machine; what the store is for goes to the store."""
    keys = list(config_module._LOCAL)
    found = problems({**dict.fromkeys(keys, address), "learning_rate": "fast", "fp16": True, "bf16": True})
    assert sorted(problem.partition(":")[0] for problem in found if address in problem) == sorted(keys)
    assert len(found) == len(keys) + 2
    assert "give its address as store, or $VITS_STORE" in problems(MINIMAL | {"output_dir": address})[0]
    assert "mounted or copied to" in problems(MINIMAL | {"dataset_name": address})[0]
    assert resolve(MINIMAL | {"store": "s3://bucket/voz"}, origin="it").store == "s3://bucket/voz"


def test_a_run_that_does_nothing_is_refused() -> None:
    """finetune-hf-vits, defect 20: do_eval alone is impossible, and max_eval_samples without do_eval crashes."""
    assert "nothing to do" in problems(MINIMAL | {"do_train": False})[0]
    assert resolve(MINIMAL | {"do_train": False, "do_eval": True}, origin="it").do_eval
    assert resolve(MINIMAL | {"max_eval_samples": 3}, origin="it").max_eval_samples == 3


@pytest.mark.parametrize("key", sorted(SECRETS))
def test_a_secret_is_never_shown(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(MINIMAL | {key: 31415926}, origin="it")
    assert "31415926" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "31415926" not in repr(resolve(MINIMAL | {key: "31415926"}, origin="it"))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"fp16": True, "bf16": True}, "choose one"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end needs evaluations"),
        ({"keep_best": 2}, "keep_best needs evaluations"),
        ({"keep_best": 2, "do_eval": True, "eval_strategy": "no"}, "keep_best needs evaluations"),
        ({"load_best_model_at_end": True, "do_eval": True, "save_strategy": "no"}, "drop save_strategy 'no'"),
        ({"freeze": list(MODULES)}, "nothing could learn"),
        ({"freeze": "decoder", "train_from_scratch": True}, "as random as"),
        ({"text_stage_steps": 9, "train_from_scratch": True}, "needs a posterior encoder that knows speech"),
        (
            {"reconstruction_stage_steps": 9, "freeze": "posterior_encoder,decoder"},
            "reconstruction_stage_steps has nothing to teach",
        ),
        (
            {"text_stage_steps": 9, "freeze": "text_encoder,flow,duration_predictor"},
            "text_stage_steps has nothing to teach",
        ),
        ({"metric_for_best_model": "eval_mell"}, "did you mean 'mel'?"),
        ({"do_eval": True, "keep_best": 1, "greater_is_better": True}, "of which less is better"),
        ({"max_frames_per_batch": 1000}, "is 1250 frames or more: raise the one or lower the other to 16"),
        ({"eval_strategy": "steps"}, "eval_strategy 'steps' needs eval_steps"),
        ({"eval_strategy": "epoch", "do_eval": False}, "contradicts do_eval false"),
        ({"eval_strategy": "no", "evaluation_strategy": "epoch"}, "the same key under two names"),
        ({"eval_steps": 0.1}, "give a number of steps"),
        ({"model_presets": "small-encoder"}, "set train_from_scratch, or allow_missing_weights"),
        ({"sampling_rate": 22050}, "sampling_rate needs train_from_scratch"),
        ({"max_steps": 100, "warmup_steps": 200}, "warmup_steps 200 is beyond max_steps 100"),
        ({"max_steps": 0}, "max_steps: 0 will not do: give -1 to train for num_train_epochs"),
        ({"max_steps": "0"}, "max_steps: '0' will not do: give -1 to train for num_train_epochs"),
        ({"max_steps": -2}, "max_steps: -2 will not do"),
        ({"discriminator_periods": "2,3,2"}, "names a period twice"),
        ({"discriminator_periods": "none"}, "discriminator_periods: 'none' will not do"),
        ({"filter_on_speaker_id": 3}, "filter_on_speaker_id 3 needs speaker_id_column_name"),
        ({"weight_mel": [25, 35, 45]}, "weight_mel: [25, 35, 45] will not do: input should be a valid number"),
        ({"loudness": 3}, "loudness: 3 will not do"),
        ({"vocabulary_additions": [""]}, "vocabulary_additions: [''] will not do"),
        ({"lr_scheduler_type": "polynomial"}, "'linear', 'cosine', 'constant' or 'constant_with_warmup'"),
        ({"evaluation_stratgy": "no"}, "did you mean 'evaluation_strategy'?"),
    ],
)  # fmt: skip
def test_a_contradiction_is_explained(values: dict[str, Any], told: str) -> None:
    found = problems(MINIMAL | values)
    assert len(found) == 1
    assert told in found[0]


@pytest.mark.parametrize(
    "values",
    [
        {"load_best_model_at_end": True, "do_eval": True, "keep_best": 3, "greater_is_better": False},
        {"freeze": list(MODULES)[1:]},
        {"max_frames_per_batch": 1250},
        {"do_eval": True, "eval_strategy": "no"},
        {"do_eval": True, "eval_strategy": "no", "eval_steps": 50},
        {"do_eval": True, "eval_strategy": "epoch", "eval_steps": 50},
        {"eval_strategy": "no", "evaluation_strategy": "no"},
        {"model_presets": ["small-encoder", "light-decoder"], "allow_missing_weights": True},
        {"model_presets": ["light-decoder"], "train_from_scratch": True, "sampling_rate": 22050},
        {"max_steps": 100, "warmup_steps": 100},
        {"max_steps": -1},
        {"max_steps": 1},
        {"warmup_steps": 100},
        {"discriminator_periods": [2, 3, 5]},
        {"filter_on_speaker_id": "ana", "speaker_id_column_name": "who"},
    ],
)
def test_what_only_looks_like_a_contradiction_is_accepted(values: dict[str, Any]) -> None:
    config = resolve(MINIMAL | values, origin="it")
    ours = {key: value for key, value in values.items() if key in TrainingConfig.model_fields}
    assert {key: getattr(config, key) for key in ours} == ours


@pytest.mark.parametrize("frames", [30, 1249, 1799, 2001])
def test_a_budget_of_frames_has_room_for_the_length_that_its_refusal_advises(frames: int) -> None:
    (told,) = problems(MINIMAL | {"max_frames_per_batch": frames, "max_duration_in_seconds": 40})
    advised = told.rpartition(" ")[2]
    config = resolve(
        MINIMAL | {"max_frames_per_batch": frames, "max_duration_in_seconds": advised}, origin="it"
    )
    assert frames / 62.5 - 0.01 < config.max_duration_in_seconds <= frames / 62.5


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["no", "steps", "[", "0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*TrainingConfig.model_fields, *KNOWN]) | st.text(max_size=6), _JSON, max_size=4
    )
)
def test_any_json_is_a_configuration_or_a_list_of_problems(values: dict[str, Any]) -> None:
    try:
        config = resolve(MINIMAL | values, origin="it")
    except ConfigError as error:
        problems = error.problems
    else:
        assert resolve(json.loads(config.model_dump_json()), origin="it") == config
        return
    assert problems
    assert all(problems)


# -- Meanings --------------------------------------------------------------------------------------


def test_evaluation_comes_once_an_epoch_when_nothing_is_said() -> None:
    """finetune-hf-vits, defect 16: without eval_steps it evaluates at every step, and logging_steps is ignored."""

    def intervals(**values: Any) -> tuple[int | None, ...]:
        config = resolve(MINIMAL | values, origin="it")
        return config.evaluation_interval(70), config.save_interval(70), config.logging_interval(70)

    assert intervals() == (70, 500, 10)
    assert intervals(eval_steps=50, save_steps=100, logging_steps=5) == (50, 100, 5)
    assert intervals(eval_strategy="steps", eval_steps=50) == (50, 500, 10)
    every_epoch = {"eval_strategy": "epoch", "save_strategy": "epoch", "logging_strategy": "epoch"}
    assert intervals(**every_epoch) == (70, 70, 70)
    never = {"evaluation_strategy": "no", "save_strategy": "no", "logging_strategy": "no"}
    assert intervals(**never) == (None, None, None)


def test_a_strategy_is_a_wish_to_evaluate() -> None:
    for strategy, expected in (("epoch", True), ("no", False)):
        assert resolve(MINIMAL | {"evaluation_strategy": strategy}, origin="it").do_eval is expected


@pytest.mark.parametrize(
    ("given", "metric"),
    [
        (None, "mel"), ("mel", "mel"), ("eval_loss", "loss"), ("loss", "loss"), ("eval_mel", "mel"),
        ("val_loss_fmaps", "feature_maps"), ("eval_loss_disc", "discriminator"), ("val_loss_gen", "generator"),
        ("eval_mel_distance", "mel_distance"), *((name, name) for name in METRICS),
    ],
)  # fmt: skip
def test_measures_have_the_names_that_evaluations_log(given: str | None, metric: str) -> None:
    assert resolve(MINIMAL | {"metric_for_best_model": given}, origin="it").metric_for_best_model == metric


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_hf", "adamw_torch_fused", "paged_adamw_8bit"])
def test_every_adamw_is_pytorchs(name: str) -> None:
    assert resolve(MINIMAL | {"optim": name}, origin="it").optim == "adamw_torch"


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("report_to", "none", []),
        ("report_to", ["none"], []),
        ("report_to", "tensorboard,wandb", ["tensorboard", "wandb"]),
        ("report_to", ["all"], ["all"]),
        ("report_to", None, ["tensorboard"]),
        ("freeze", "text_encoder,flow", ["text_encoder", "flow"]),
        ("discriminator_periods", "[2, 3]", [2, 3]),
        ("eval_sample_texts", "Hola, Ana.", ["Hola, Ana."]),
        ("eval_speakers", "Ana, 2", ["Ana", "2"]),
        ("eval_speakers", "[2, 3]", ["2", "3"]),
        ("eval_speakers", [2, "Ana"], ["2", "Ana"]),
        ("eval_speakers", 2, ["2"]),
        ("eval_sample_texts", '["Hola, Ana.", "Adiós."]', ["Hola, Ana.", "Adiós."]),
        ("vocabulary_additions", ",", [","]),
        ("vocabulary_additions", [",", "ñ"], [",", "ñ"]),
    ],
)
def test_lists_in_every_form(key: str, given: object, expected: list[object]) -> None:
    assert getattr(resolve(MINIMAL | {key: given}, origin="it"), key) == expected


def test_no_key_is_silently_without_effect() -> None:
    """Every key is read where training happens, or decides something in the schema itself.

    A model's configuration, or that of an accelerator or a dataset, is none of ours.
    """
    package = Path(config_module.__file__).parent
    trainer = [path for path in package.rglob("*.py") if not path.name.startswith(("config", "hf_arguments"))]
    others = package / "convert"
    text = "\n".join(path.read_text(encoding="utf-8") for path in trainer if others not in path.parents)
    read = set(re.findall(r"(?:(?<![.\w])|\b_?session\.|\bself\.)config\.(\w+)", text))
    assert "spectrogram_bins" not in read  # of model.config
    read |= set(re.findall(r"\bself\.(\w+)", Path(config_module.__file__).read_text(encoding="utf-8")))
    assert TrainingConfig.model_fields.keys() - read == set()


def test_null_is_the_same_as_left_out() -> None:
    assert resolve(
        MINIMAL | dict.fromkeys(TrainingConfig.model_fields.keys() - MINIMAL), origin="it"
    ) == resolve(MINIMAL, origin="it")


# -- Names -----------------------------------------------------------------------------------------


def test_folders_of_one_name_in_two_places_are_two_runs(tmp_path: Path) -> None:
    """They would take each other's state and name at the store, and at Weights & Biases be one."""
    one, other, again = (
        resolve(MINIMAL | {"output_dir": str(folder)}, origin="it")
        for folder in (
            tmp_path / "one" / "out",
            tmp_path / "other" / "out",
            tmp_path / "other" / ".." / "one" / "out",
        )
    )
    assert one.run_id != other.run_id
    assert one.run_id == again.run_id
    assert one.title == other.title


def test_names_in_the_store() -> None:
    assert slug("vits-spanish-{speaker-name}") == "vits-spanish-speaker-name"
    config = resolve(SPANISH_GUIDE, origin="it")
    assert config.published_name == "vits-spanish-speaker-name"
    assert config.title == "vits-spanish-speaker-name-spanish-tts"
    assert config.run_id.startswith(f"{config.title}-")
    check_name(resolve(MINIMAL | {"model_name": "a" * 96}, origin="it").run_id)
    named = resolve(SPANISH_GUIDE | {"run_name": "mine"}, origin="it")
    assert (named.title, named.run_id) == ("mine", "mine")
    assert resolve(MINIMAL | {"model_name": "ana"}, origin="it").published_name == "ana"
    assert isinstance(config, TrainingConfig)
