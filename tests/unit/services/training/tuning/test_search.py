"""The search: it finds something better, survives being killed, and two workers share it."""

from __future__ import annotations

import csv
import gc
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import IntegrityError

from services.training import config_sources
from services.training.config import TrainingConfig
from services.training.discriminator import Discriminator
from services.training.steps import Steps
from services.training.tuning import cli, search
from services.training.tuning.options import Options, take_options
from services.training.tuning.space import DEFAULT_SPACE, Choices, Range, read_space
from shared.errors import ConfigError, DivergenceError

MakeConfig = Callable[..., TrainingConfig]

#: Rates from the default, which moves next to nothing in so few steps, to one that does.
SPACE = {"learning_rate": {"low": 2e-5, "high": 1e-2, "log": True}}

#: ``vits tune`` with a small discriminator, which does something when a trial begins its first or second step.
WORKER = """
import os, sys, time
from pathlib import Path
from services import cli
from services.training import discriminator
from services.training.steps import Steps

discriminator._SCALE_CHANNELS, discriminator._PERIOD_CHANNELS = (1, 4, 16, 64, 256), (1, 2, 4, 8, 16)
joint, calls, what, folder = Steps.joint, [], sys.argv[1], Path(sys.argv[2])

def step(steps, seen, number):
    calls.append(number)
    if what == "die" and calls.count(0) == 2:  # in the second trial
        os.kill(os.getpid(), 9)
    if what == "meet" and len(calls) == 1:  # nobody goes on before both have begun
        (folder / f"here-{os.getpid()}").touch()
        until = time.monotonic() + 120
        while len(list(folder.glob("here-*"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
    return joint(steps, seen, number)

Steps.joint = step
sys.exit(cli.main(["tune", *sys.argv[3:]]))
"""


def space_file(folder: Path, content: Any = SPACE) -> Path:
    path = folder / "space.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def study_of(config: TrainingConfig) -> optuna.Study:
    path = config.output_dir / "tune" / "study.db"
    return optuna.load_study(study_name=config.title, storage=f"sqlite:///{path}")


def worker(config: TrainingConfig, tmp_path: Path, what: str, trials: int) -> subprocess.Popen[str]:
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json(), encoding="utf-8")
    arguments = [what, str(tmp_path), "--config", str(path), "--space", str(space_file(tmp_path))]
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, *arguments, "--objective", "mel", "--trials", str(trials)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[5]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(config: TrainingConfig, tmp_path: Path, **options: Any) -> Path:
    folder = config.output_dir / "tune"
    folder.mkdir(parents=True, exist_ok=True)
    given = {"objective": "mel", "space": options.get("space") or space_file(tmp_path), **options}
    return search.search(config, Options.model_validate(given), folder)


# -- What it finds ---------------------------------------------------------------------------------


def test_it_finds_something_better_than_the_default_within_its_budget(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(max_steps=8, eval_steps=8)
    best = run(config, tmp_path, trials=4)
    study = study_of(config)
    finished = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    assert len(finished) == 4
    own = [trial for trial in finished if trial.user_attrs.get("default")]
    assert [trial.number for trial in own] == [0]
    assert own[0].params == {"learning_rate": config.learning_rate}
    assert own[0].value is not None
    assert study.best_value < 0.99 * own[0].value
    # What it found is a layer over the configuration.
    layer = config_sources.read_json(best)
    assert layer == study.best_params
    base = tmp_path / "base.json"
    base.write_text(config.model_dump_json(), encoding="utf-8")
    tuned, _ = config_sources.load([base, best], {})
    assert tuned == config.model_copy(update=study.best_params)


def test_the_default_space_is_searched_beyond_the_trials_that_are_chance(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key of it that no training takes, or a value, would end the search; each trial trains as it was told to."""
    trained: list[TrainingConfig] = []
    train = search.run

    def watched(config: TrainingConfig, heed: Any) -> None:
        trained.append(config)
        train(config, heed)

    monkeypatch.setattr(search, "run", watched)
    config = make_config(max_steps=1, eval_steps=1)
    best = run(config, tmp_path, space=None, objective=take_options({}).objective, trials=7)
    trials = study_of(config).get_trials()
    assert [trial.state in search._DONE for trial in trials] == [True] * 7
    space = read_space(None, config)
    for trial, one in zip(trials, trained, strict=True):
        assert trial.params == {key: getattr(one, key) for key in DEFAULT_SPACE}
        for key, values in space.keys.items():
            within = values.values if isinstance(values, Choices) else (values.low, values.high)
            assert min(within) <= trial.params[key] <= max(within), key
    assert config_sources.read_json(best).keys() == DEFAULT_SPACE.keys()


def test_proposals_come_near_to_what_was_good(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the default space, where a rate of 3e-5 and a large weight_mel are best; chance alone stays away."""

    def train(config: TrainingConfig, heed: Callable[[int, dict[str, float]], None]) -> None:
        distance = abs(math.log(config.learning_rate / 3e-5)) + (45 - config.weight_mel) / 20
        heed(0, {"mel": 9.0})
        heed(1, {"mel": distance})

    monkeypatch.setattr(search, "run", train)
    run(make_config(), tmp_path, space=None, trials=40, prune=False)
    figures = [trial.value or 0.0 for trial in study_of(make_config()).get_trials()]
    assert statistics.mean(figures[-15:]) < 0.6 * statistics.mean(figures[1 : search._STARTUP_TRIALS + 10])


def test_nothing_is_published_and_no_model_is_kept(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(max_steps=1, eval_steps=1)
    run(config, tmp_path, trials=2)
    assert not list((tmp_path / "store").rglob("*.json"))
    assert not list(config.output_dir.rglob("*.safetensors"))


def test_the_page_and_the_table_tell_every_trial(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(max_steps=1, eval_steps=1)
    run(config, tmp_path, trials=3, space=space_file(tmp_path, SPACE | {"weight_mel": [25, 45]}))
    with (config.output_dir / "tune" / "trials.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["is_default"] == "True"
    assert float(rows[0]["learning_rate"]) == config.learning_rate
    page = (config.output_dir / "tune" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3  # trial by trial, and each key
    assert "0 (the configuration)" in page
    assert "http" not in page.replace("http://www.w3.org", "")  # nothing is fetched


def test_a_trial_that_diverges_is_the_worst_and_does_not_end_the_search(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(max_steps=2, eval_steps=2)

    def diverge(config: TrainingConfig, heed: Callable[[int, dict[str, float]], None]) -> None:
        heed(0, {"mel": 3.0})
        if config.learning_rate > 2e-5:
            raise DivergenceError("Training has diverged", ["mel is nan"])
        heed(2, {"mel": 2.0})

    monkeypatch.setattr(search, "run", diverge)
    best = run(config, tmp_path, trials=3)
    assert config_sources.read_json(best) == {"learning_rate": 2e-5}


def test_a_trial_whose_weights_become_nan_does_not_end_the_search(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one: nothing is logged before the next step has nothing to align."""
    config = make_config(max_steps=3, eval_steps=3, logging_steps=100)
    joint = Steps.joint

    def spoil(steps: Steps, seen: Any, step: int) -> Any:
        if step == 1 and steps.config.learning_rate > 2e-5:
            next(steps.generator.text_encoder.parameters()).data.fill_(float("nan"))
        return joint(steps, seen, step)

    monkeypatch.setattr(Steps, "joint", spoil)
    best = run(config, tmp_path, trials=2)
    assert config_sources.read_json(best) == {"learning_rate": 2e-5}
    assert study_of(config).trials[1].state == TrialState.PRUNED


def test_a_trial_that_finds_no_room_does_not_end_the_search(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one, of which the table and the page say why."""
    config = make_config(max_steps=2, eval_steps=2)
    joint = Steps.joint

    def grow(steps: Steps, seen: Any, step: int) -> Any:
        if steps.config.learning_rate > 2e-5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return joint(steps, seen, step)

    monkeypatch.setattr(Steps, "joint", grow)
    best = run(config, tmp_path, trials=2)
    assert config_sources.read_json(best) == {"learning_rate": 2e-5}
    assert study_of(config).trials[1].state == TrialState.PRUNED
    with (best.parent / "trials.csv").open(encoding="utf-8") as file:
        told = [row["failure"] for row in csv.DictReader(file)]
    assert told == ["", "There was no room in memory at step 0"]
    assert f"failed: {told[1]}" in (best.parent / "report.html").read_text(encoding="utf-8")


def test_a_trial_whose_networks_find_no_room_does_not_end_the_search(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on their way to the device either, before the trial's first step; the configuration's own do end it."""
    move = Discriminator.to

    def grow(network: Discriminator, device: torch.device) -> Discriminator:
        if len(network.discriminators) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return move(network, device)

    monkeypatch.setattr(Discriminator, "to", grow)
    changes = {"max_steps": 2, "eval_steps": 2}
    best = run(
        make_config(**changes),
        tmp_path,
        trials=4,
        space=space_file(tmp_path, {"stft_discriminator": [False, True]}),
    )
    with (best.parent / "trials.csv").open(encoding="utf-8") as file:
        told = {row["stft_discriminator"]: row["failure"] for row in csv.DictReader(file)}
    assert told == {"False": "", "True": "There was no room in memory for the networks, before any step"}
    own = make_config(**changes, stft_discriminator=True, output_dir=str(tmp_path / "own"))
    with pytest.raises(ConfigError, match="no room in memory for the networks") as raised:
        run(own, tmp_path, trials=2)
    assert any("--stft_discriminator false" in problem for problem in raised.value.problems)


def test_a_trial_whose_values_contradict_each_other_does_not_end_the_search(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the two is right alone, as the space is read, and with the other one wrong."""
    monkeypatch.setattr(search, "run", lambda config, heed: [heed(0, {"mel": 2.0}), heed(12, {"mel": 1.0})])
    space = space_file(tmp_path, {"discriminator_start_step": [0, 6], "frozen_discriminator_steps": [0, 8]})
    run(make_config(), tmp_path, trials=12, space=space)
    found = set()
    for trial in study_of(make_config()).get_trials():
        wrong = all(trial.params.values())
        found.add(wrong)
        assert trial.state == (TrialState.PRUNED if wrong else TrialState.COMPLETE)
        assert ("would never learn" in trial.user_attrs.get("failure", "")) == wrong
    assert found == {True, False}


def no_room(config: TrainingConfig, heed: Callable[[int, dict[str, float]], None]) -> None:
    """A trial that does not fit."""
    heed(0, {"mel": 3.0})
    missing = torch.OutOfMemoryError("CUDA out of memory")
    raise ConfigError("There was no room in memory at step 0. Try:", ["1. --fp16 true"]) from missing


def test_where_every_trial_has_failed_that_is_said_with_the_first_reason(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration itself, too, which a smaller batch might have made fit."""
    monkeypatch.setattr(search, "run", no_room)
    with pytest.raises(ConfigError, match="No trial has come to its end, of 3 trials") as raised:
        run(make_config(), tmp_path, trials=3)
    assert raised.value.problems == ("trial 0: There was no room in memory at step 0",)
    assert (tmp_path / "output/tune/trials.csv").read_text(encoding="utf-8").count("no room in memory") == 3
    assert not (tmp_path / "output/tune/best.json").exists()


def test_what_a_failed_trial_held_is_gone_before_the_next_one(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[Any]] = []

    def hold(config: TrainingConfig, heed: Callable[[int, dict[str, float]], None]) -> None:
        assert [reference() for reference in held] == [None] * len(held)
        networks = torch.nn.Linear(1, 1)
        held.append(weakref.ref(networks))
        no_room(config, heed)

    monkeypatch.setattr(search, "run", hold)
    gc.disable()  # or it is gone when chance has it
    try:
        with pytest.raises(ConfigError, match="No trial"):
            run(make_config(), tmp_path, trials=3)
    finally:
        gc.enable()
    assert len(held) == 3


def test_a_configuration_that_is_wrong_itself_ends_the_search_at_once(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[TrainingConfig] = []

    def refuse(config: TrainingConfig, heed: Any) -> None:
        tried.append(config)
        raise ConfigError(
            "frozen_discriminator_steps needs a base with a discriminator:", ["this one has none"]
        )

    monkeypatch.setattr(search, "run", refuse)
    with pytest.raises(ConfigError, match="needs a base"):
        run(make_config(), tmp_path, trials=3)
    assert len(tried) == 1


def test_a_trial_that_lags_behind_is_ended_early_and_the_configuration_itself_never(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(max_steps=3, eval_steps=1)
    steps: dict[float, int] = {}

    def lag(config: TrainingConfig, heed: Callable[[int, dict[str, float]], None]) -> None:
        rank = len(steps)  # each is worse than those before it
        for step in range(4):
            steps[config.learning_rate] = step
            heed(step, {"mel": 5.0 + rank - step / 10})

    monkeypatch.setattr(search, "run", lag)
    run(config, tmp_path, trials=8)
    states = [trial.state for trial in study_of(config).get_trials()]
    assert states[0] == TrialState.COMPLETE
    assert TrialState.PRUNED in states
    assert 1 in steps.values()  # where there is first something to compare
    run(
        make_config(max_steps=3, eval_steps=1, output_dir=str(tmp_path / "other")),
        tmp_path,
        trials=8,
        prune=False,
    )
    others = study_of(make_config(output_dir=str(tmp_path / "other"))).get_trials()
    assert {trial.state for trial in others} == {TrialState.COMPLETE}


# -- Killed, and shared ----------------------------------------------------------------------------


def test_a_killed_search_goes_on_and_tries_again_what_was_under_way(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(max_steps=1, eval_steps=1)
    process = worker(config, tmp_path, "die", trials=3)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, said
    before = study_of(config).get_trials()
    assert [trial.state for trial in before] == [TrialState.COMPLETE, TrialState.RUNNING]
    run(config, tmp_path, trials=3)
    assert "trial 1 was left by a worker that is gone: it is tried again" in capsys.readouterr().out
    after = study_of(config).get_trials()
    assert after[0].value == before[0].value  # what was done stays done
    assert after[1].state == TrialState.FAIL
    assert [trial.state for trial in after[2:]] == [TrialState.COMPLETE] * 2
    assert after[2].params == before[1].params
    assert len({trial.params["learning_rate"] for trial in after[2:]}) == 2  # no draw is repeated
    assert (config.output_dir / "tune" / "best.json").is_file()


def test_another_worker_makes_the_tables_at_the_same_moment(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them is told that a row or a table is there already, which it was not when it looked."""
    make, faults = RDBStorage, [IntegrityError("insert", None, Exception("UNIQUE constraint failed"))]

    def contested(*arguments: Any, **options: Any) -> Any:
        if faults:
            raise faults.pop()
        return make(*arguments, **options)

    monkeypatch.setattr(search, "RDBStorage", contested)
    monkeypatch.setattr(search, "_TABLES", 0.0)
    run(make_config(max_steps=1, eval_steps=1), tmp_path, trials=1)
    assert not faults


def test_two_workers_share_one_study(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(max_steps=1, eval_steps=1)
    both = [worker(config, tmp_path, "meet", trials=4) for _ in range(2)]
    for process in both:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    trials = study_of(config).get_trials()
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert 4 <= len(trials) <= 5  # one may have been under way when the fourth ended
    workers = {trial.user_attrs["worker"] for trial in trials}
    assert workers == {f"{os.uname().nodename}:{process.pid}" for process in both}
    began = dict.fromkeys(workers, math.inf)
    ended = dict(began)
    for trial in trials:
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
        one = trial.user_attrs["worker"]
        began[one] = min(began[one], trial.datetime_start.timestamp())
        ended[one] = min(ended[one], trial.datetime_complete.timestamp())
    assert max(began.values()) < min(ended.values())  # at once, not one after the other
    rates = [trial.params["learning_rate"] for trial in trials]
    assert len(set(rates)) == len(rates)
    with (config.output_dir / "tune" / "trials.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(trials)


def test_a_study_is_one_configurations(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "run", lambda config, heed: [heed(0, {"mel": 1.0}), heed(1, {"mel": 1.0})])
    run(make_config(), tmp_path, trials=1)
    with pytest.raises(ConfigError, match="another configuration") as raised:
        run(make_config(max_steps=99), tmp_path, trials=2)
    assert raised.value.problems == ("max_steps: was 12, is 99",)


def test_a_study_from_before_a_key_goes_on_while_the_key_has_its_default(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "run", lambda config, heed: [heed(0, {"mel": 1.0}), heed(1, {"mel": 1.0})])
    run(make_config(), tmp_path, trials=1)
    study = study_of(make_config())
    older = json.loads(study.user_attrs["identity"])
    del older["segment_size"], older["ema_decay"]
    study.set_user_attr("identity", json.dumps(older))
    run(make_config(), tmp_path, trials=2)
    assert len(study_of(make_config()).trials) == 2
    with pytest.raises(ConfigError, match="another configuration") as raised:
        run(make_config(segment_size=16384), tmp_path, trials=3)
    assert raised.value.problems == ("segment_size: was 8192, is 16384",)


def test_a_database_that_is_not_there_is_a_clear_error(make_config: MakeConfig, tmp_path: Path) -> None:
    for storage in ("nonsense", f"sqlite:///{tmp_path}/no/such/folder/study.db"):
        with pytest.raises(ConfigError, match="the database cannot be used"):
            run(make_config(), tmp_path, trials=1, storage=storage)


# -- The space -------------------------------------------------------------------------------------


def test_the_default_space_is_the_analysis_documents(make_config: MakeConfig) -> None:
    space = read_space(None, make_config())
    assert space.keys["learning_rate"] == Range(1e-6, 1e-4, log=True)
    assert space.keys["weight_mel"] == Choices((25.0, 35.0, 45.0))
    assert space.keys["weight_kl"] == Range(1.0, 2.0)
    assert space.keys["weight_disc"] == Range(2.0, 4.0)
    assert space.keys["warmup_ratio"] == Choices((0.0, 0.01, 0.05))
    assert "warmup_ratio" not in read_space(None, make_config(warmup_steps=3)).keys
    assert space.default.keys() == DEFAULT_SPACE.keys()


def test_the_configuration_itself_is_always_in_the_space(make_config: MakeConfig, tmp_path: Path) -> None:
    given = {
        "weight_mel": [25],
        "learning_rate": {"low": 1e-6, "high": 1e-5},
        "discriminator_learning_rate": {"low": 1e-6, "high": 1e-5},
    }
    space = read_space(space_file(tmp_path, given), make_config())
    assert space.keys["weight_mel"] == Choices((25, 35.0))
    assert space.keys["learning_rate"] == Range(1e-6, 2e-5)
    assert space.default["discriminator_learning_rate"] == 2e-5  # which it stands for


def test_everything_that_is_wrong_with_a_space_is_said_at_once(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    wrong = {
        "learning_rat": [1],
        "seed": [1, 2],
        "weight_mel": [-1, 2],
        "weight_kl": {"low": 2, "high": 1},
        "adam_beta1": 0.5,
        "ema_decay": {"low": 0.9, "high": 0.99},
        "weight_gen": [],
    }
    with pytest.raises(ConfigError) as raised:
        read_space(space_file(tmp_path, wrong), make_config())
    said = "\n".join(raised.value.problems)
    assert len(raised.value.problems) == len(wrong)
    assert "learning_rat cannot be searched, did you mean 'learning_rate'?" in said
    assert "seed cannot be searched" in said
    assert "weight_mel: -1 will not do" in said
    assert "weight_kl: {'low': 2, 'high': 1} is no range" in said
    assert "ema_decay: give the configuration" in said


def test_without_evaluations_there_is_nothing_to_judge_by(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot judge without evaluations"):
        run(make_config(do_eval=False, eval_steps=None), tmp_path)


# -- The command -----------------------------------------------------------------------------------


def test_own_options_are_told_from_the_configurations_keys() -> None:
    overrides: dict[str, Any] = {"trials": "7", "learning_rate": "1e-4", "prune": "false", "memory": "8gb"}
    options = take_options(overrides)
    assert overrides == {"learning_rate": "1e-4"}
    assert (options.trials, options.prune, options.memory_bytes) == (7, False, 8 * 2**30)


def test_no_option_hides_a_key_of_the_configuration() -> None:
    assert not Options.model_fields.keys() & TrainingConfig.model_fields.keys()


def test_all_wrong_options_are_said_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        take_options({"trials": "0", "objective": "generator", "memory": "lots"})
    assert [problem.partition(":")[0] for problem in raised.value.problems] == [
        "--trials",
        "--objective",
        "--memory",
    ]


def test_torchrun_is_not_how_workers_are_started(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    path.write_text(make_config().model_dump_json(), encoding="utf-8")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="vits tune runs on one process"):
        cli.main(["--config", str(path)])
