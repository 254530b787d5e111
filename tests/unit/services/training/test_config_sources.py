"""Files, the command line and the environment: what wins, what is told, and what is kept to itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.training import config_sources
from services.training.config import SECRETS, TrainingConfig, resolve
from services.training.config_sources import load, read_json, read_overrides
from shared.errors import ConfigError
from shared.runs import CONFIG_FILE

MINIMAL: dict[str, Any] = {"model_name_or_path": "base", "dataset_name": "data"}


@pytest.fixture(autouse=True)
def _no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in SECRETS.values():
        monkeypatch.delenv(variable, raising=False)


def remarks(**values: Any) -> list[str]:
    return load([], MINIMAL | values)[1]


def without_effect(**values: Any) -> list[str]:
    return [told for told in remarks(**values) if "no effect: " in told]


# -- Files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{,}", "is not JSON"),
        ("[1]", "one JSON object"),
        ("\xff", "is not JSON"),
        ('{"seed": 1, "seed": 2}', r"gives keys twice:\n  - seed: keep one"),
        ('{"seed": 1,, "fp16": true}', "is not JSON"),
    ],
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


def test_comments_and_trailing_commas_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(
        """\
// For a machine with many cores.
{
    "_comment": "keys like this one are comments",
    "// another": 1, "_comment": "and may stand there more than once",
    "preprocessing_num_workers": 8,  // Increase based on CPU cores
    "store": "s3://bucket/a//b", // not in "strings"
    "full_generation_sample_text": "He said \\"//\\", then [1,] and {,}",
    "report_to": ["tensorboard", "wandb", ],
}
""",
        encoding="utf-8",
    )
    assert read_json(path) == {
        "preprocessing_num_workers": 8,
        "store": "s3://bucket/a//b",
        "full_generation_sample_text": 'He said "//", then [1,] and {,}',
        "report_to": ["tensorboard", "wandb"],
    }


def test_a_mistake_after_a_comment_keeps_its_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{\n  // one\n  "seed": 1,\n  "fp16" true\n}', encoding="utf-8")
    with pytest.raises(ConfigError, match="line 4"):
        read_json(path)


def test_later_files_go_over_earlier_ones_and_the_command_line_over_all(tmp_path: Path) -> None:
    layers: list[dict[str, Any]] = [
        MINIMAL | {"seed": 1, "learning_rate": 1e-4, "eval_steps": 50, "do_eval": True},
        {"seed": 2, "max_eval_samples": 5},
        {"seed": 3, "eval_steps": None},
    ]
    paths = [tmp_path / f"{number}.json" for number in range(len(layers))]
    for path, layer in zip(paths, layers, strict=True):
        path.write_text(json.dumps(layer), encoding="utf-8")
    config, _ = load(paths, {"do_eval": "false"})
    assert (config.seed, config.learning_rate, config.max_eval_samples) == (3, 1e-4, 5)
    assert (config.eval_steps, config.do_eval) == (None, False)
    with pytest.raises(ConfigError, match=r"0\.json with .*1\.json with the command line cannot be used"):
        load(paths[:2], {"seed": "x"})


def test_what_is_wrong_on_the_command_line_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MINIMAL | {"lerning_rate": 1, "fp16": "x"}), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load([path], {"dataset_nam": "d", "seed": "x", "profil": True}, options=["profile"])
    told = caught.value.problems
    assert "unknown key 'dataset_nam' on the command line, did you mean 'dataset_name'?" in told
    assert "unknown key 'profil' on the command line, did you mean 'profile'?" in told
    assert "unknown key 'lerning_rate', did you mean 'learning_rate'?" in told
    assert any(line.startswith("seed on the command line: 'x' will not do") for line in told)
    assert any(line.startswith("fp16: 'x' will not do") for line in told)
    with pytest.raises(ConfigError, match="json cannot be used"):
        load([path], {})


# -- The command line ------------------------------------------------------------------------------


def test_overrides_in_every_form() -> None:
    arguments = [
        "--learning_rate", "1e-4", "--seed=7", "--do_eval", "--max-steps", "-1", "--eval_steps", "None",
        "--save_total_limit=None", "--full_generation_sample_text=a=b --c", "--bf16",
    ]  # fmt: skip
    paths, values = read_overrides(arguments)
    assert not paths
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
    config, _ = load([], MINIMAL | values)
    assert (config.learning_rate, config.seed, config.max_steps, config.bf16) == (1e-4, 7, -1, True)
    assert config.eval_steps is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.json", "b.json", "--seed", "1"],
        ["--config", "a.json", "--config", "b.json", "--seed", "1"],
        ["--seed", "1", "--config=a.json", "--config=b.json"],
        ["a.json", "--seed", "1", "--config", "b.json"],
    ],
)
def test_files_in_every_form(arguments: list[str]) -> None:
    """The ancestor's one file stands first, as here."""
    assert read_overrides(arguments) == ([Path("a.json"), Path("b.json")], {"seed": "1"})


def test_stray_words_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        read_overrides(["--seed", "1", "two", "--report_to", "wandb", "tensorboard", "--config"])
    assert len(caught.value.problems) == 3
    assert "'tensorboard' belongs to no key" in caught.value.problems[1]
    assert "--config has no file" in caught.value.problems[2]


# -- Secrets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "variable"), SECRETS.items())
def test_secrets_come_from_the_environment(key: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "from-outside")
    config, told = load([], MINIMAL)
    assert getattr(config, key) == "from-outside"
    assert not told
    assert getattr(load([], MINIMAL | {key: "given"})[0], key) == "given"


def test_a_given_secret_wins_under_either_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_TOKEN", "from-outside")
    for key in ("hub_token", "push_to_hub_token"):
        config, _ = load([], MINIMAL | {key: "given"})
        assert {config.hub_token} == {"given"}


def test_nothing_but_secrets_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEED", "LEARNING_RATE", "OUTPUT_DIR", "MODEL_NAME", "STORE", "REPORT_TO", "ALIAS"):
        monkeypatch.setenv(name, "9")
        monkeypatch.setenv(name.lower(), "9")
    assert load([], MINIMAL)[0] == load([], MINIMAL)[0].model_copy(
        update={"seed": 42, "learning_rate": 2e-5, "output_dir": Path("./output"), "alias": "latest"}
    )


@pytest.mark.parametrize("key", ["token", "hub_token", "push_to_hub_token"])
def test_a_secret_in_a_file_is_used_with_a_warning_that_does_not_show_it(key: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MINIMAL | {key: "hf_secret"}), encoding="utf-8")
    config, told = load([path], {})
    assert "hf_secret" in {config.token, config.hub_token}
    assert len(told) == 1
    assert "environment" in told[0]
    assert "hf_secret" not in told[0] + repr(config)


# -- Remarks ---------------------------------------------------------------------------------------


def test_a_configuration_that_is_simply_right_is_not_remarked_upon() -> None:
    assert not remarks(fp16=True, report_to=["wandb"], wandb_project="voices", keep_best=1, do_eval=True)


def test_a_key_that_is_not_needed_gets_one_line_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MINIMAL | {"uroman_path": "/opt/uroman"}), encoding="utf-8")
    _, told = load([path], {"disable_tqdm": "true"})
    assert told == [
        "uroman_path is not needed: uroman runs inside the process, without Perl",
        "disable_tqdm is not needed: progress is shown on a terminal and logged as lines elsewhere",
    ]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"optim": "adamw_hf"}, "optim adamw_hf is read as adamw_torch"),
        ({"weight_disc": 2}, "weight_disc 2 has next to no effect"),
        ({"weight_disc": 2}, "Set discriminator_learning_rate instead"),
        ({"keep_best": 3, "do_eval": True, "save_total_limit": 2}, "keep_best adds up to 3 more"),
        (
            {"push_to_hub": True, "hub_model_id": "vits-spanish-{speaker-name}"},
            "is no name that the hub accepts",
        ),
    ],
)
def test_what_does_nothing_or_not_what_one_might_think_is_told(values: dict[str, Any], told: str) -> None:
    found = remarks(**values)
    assert len(found) == 1
    assert told in found[0]


@pytest.mark.parametrize(
    "values",
    [
        {"weight_disc": 3}, {"weight_disc": 1}, {"weight_disc": 0}, {"weight_disc": 2, "optim": "sgd"},
        {"do_normalize": True}, {"loudness": -23}, {"loudness": -23, "do_normalize": False},
    ],
)  # fmt: skip
def test_what_does_what_it_says_is_not_remarked_upon(values: dict[str, Any]) -> None:
    assert not remarks(**values)


@pytest.mark.parametrize(
    ("values", "told", "mended"),
    [
        ({"eval_steps": 50, "max_eval_share": 0.1}, "eval_steps, max_eval_share have no effect", {"do_eval": True}),
        ({"max_eval_samples": 5}, "max_eval_samples has no effect: do_eval is false; set it true", {"do_eval": True}),
        ({"eval_split_name": "dev", "per_device_eval_batch_size": 2}, "do_eval is false", {"do_eval": True}),
        ({"eval_speakers": "ana", "do_eval": True}, "there is no text to speak", {"eval_sample_texts": "Hola"}),
        (
            {"eval_strategy": "no", "eval_steps": 50, "do_eval": True, "eval_sample_texts": "Hola"},
            "eval_steps, eval_sample_texts have no effect: eval_strategy is no",
            {"eval_strategy": None},
        ),
        (
            {"eval_strategy": "no", "do_eval": False, "max_eval_samples": 5},
            "leave it out, and set do_eval true",
            {"eval_strategy": None, "do_eval": True},
        ),
        (
            {"eval_strategy": "epoch", "eval_steps": 50},
            "eval_steps has no effect: eval_strategy is epoch; set it to steps",
            {"eval_strategy": "steps"},
        ),
        ({"do_eval": True, "metric_for_best_model": "kl"}, "nothing asks which is best", {"keep_best": 1}),
        ({"metric_for_best_model": "kl"}, "patience, with do_eval true", {"keep_best": 1, "do_eval": True}),
        (
            {"do_eval": True, "greater_is_better": False},
            "greater_is_better has no effect",
            {"load_best_model_at_end": True},
        ),
        (
            {"do_eval": True, "metric_for_best_model": "mel"},
            "metric_for_best_model has no effect",
            {"early_stopping_patience": 5},
        ),
        ({"save_strategy": "epoch", "save_steps": 500}, "save_strategy is epoch", {"save_strategy": "steps"}),
        ({"logging_strategy": "no", "logging_steps": 10}, "logging_strategy is no", {"logging_strategy": "steps"}),
        (
            {"do_step_schedule_per_epoch": False, "lr_decay": 0.99},
            "lr_decay has no effect",
            {"do_step_schedule_per_epoch": True},
        ),
        (
            {"lr_scheduler_type": "cosine"},
            "lr_scheduler_type has no effect: do_step_schedule_per_epoch is true",
            {"do_step_schedule_per_epoch": False},
        ),
        (
            {"optim": "sgd", "adam_beta1": 0.8, "adam_beta2": 0.99, "adam_epsilon": 1e-9},
            "adam_beta1, adam_beta2, adam_epsilon have no effect: optim is sgd",
            {"optim": "adamw_torch"},
        ),
        ({"augment_probability": 0.5}, "nothing is varied", {"augment_speed": 0.05}),
        (
            {"do_normalize": True, "loudness": -23},
            "do_normalize has no effect: every recording is brought to loudness -23",
            {"loudness": None},
        ),
        ({"wandb_project": "voices"}, "report_to has no wandb", {"report_to": "wandb"}),
        ({"hub_private_repo": True}, "push_to_hub is false", {"push_to_hub": True, "hub_model_id": "ana/voz"}),
        (
            {"curriculum_epochs": 2, "curriculum_start": 0.5},
            "curriculum_epochs, curriculum_start have no effect: there is no curriculum; set curriculum length",
            {"curriculum": "length"},
        ),
        ({"alignment_noise_steps": 9}, "there is no alignment_noise", {"alignment_noise": 0.01}),
        (
            {"early_stopping_min_delta": 0.1, "early_stopping_smoothing": 0.5},
            "there is no early_stopping_patience",
            {"early_stopping_patience": 5, "do_eval": True},
        ),
        (
            {"reconstruction_stage_learning_rate": 1e-3, "reconstruction_stage_weight_kl": 1e-3},
            "there is no reconstruction_stage_steps",
            {"reconstruction_stage_steps": 900},
        ),
        ({"text_stage_learning_rate": 1e-4}, "there is no text_stage_steps", {"text_stage_steps": 900}),
        ({"metrics_host": "10.0.0.1"}, "there is no metrics_port", {"metrics_port": 9100}),
    ],
)  # fmt: skip
def test_a_key_without_effect_is_told_until_what_it_needs_is_set(
    values: dict[str, Any], told: str, mended: dict[str, Any]
) -> None:
    found = without_effect(**values)
    assert len(found) == 1
    assert told in found[0]
    assert not without_effect(**values | mended)


def test_any_free_port_is_a_port() -> None:
    assert not without_effect(metrics_port=0, metrics_host="0.0.0.0")  # noqa: S104 - nobody listens


def test_every_key_that_can_be_without_effect_is_one() -> None:
    for row in config_sources._IDLE:
        assert set(row.keys) <= TrainingConfig.model_fields.keys()


def test_evaluations_that_only_speak_come_when_they_are_told_to() -> None:
    assert not remarks(eval_steps=50, max_eval_share=0.1, full_generation_sample_text="Hola.")


def test_what_nobody_chose_is_not_remarked_upon(tmp_path: Path) -> None:
    """Neither a default, nor what a run's stored configuration has because it has everything."""
    assert not remarks(optim="sgd", do_step_schedule_per_epoch=False, save_strategy="epoch")
    stored, layer = tmp_path / CONFIG_FILE, tmp_path / "layer.json"
    config = resolve(MINIMAL | {"save_strategy": "epoch", "optim": "sgd"}, origin="it")
    stored.write_text(config.model_dump_json(exclude=set(SECRETS)), encoding="utf-8")
    layer.write_text('{"save_steps": 500}', encoding="utf-8")
    assert not load([stored], {})[1]
    chosen = ["save_steps has no effect: save_strategy is epoch; set it to steps"]
    assert load([stored, layer], {})[1] == chosen
    assert load([stored], {"save_steps": "500"})[1] == chosen
    assert not load([layer, stored], {})[1]


def test_a_placeholder_is_nobodys_business_unless_it_is_pushed() -> None:
    assert not remarks(hub_model_id="vits-spanish-{speaker-name}")
    for name in ("my-spanish-tts-model", "someone/vits_spanish.2"):
        assert not remarks(hub_model_id=name, push_to_hub=True)
