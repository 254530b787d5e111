"""The search: short runs of a configuration, each with other settings, judged by a measure of held-out recordings.

Optuna proposes the settings (TPE; Bergstra et al., 2011) and ends runs that lag behind the median of the others at
the same step. The study lies in a database, SQLite beside the trials unless told otherwise: the same command goes
on with it after whatever has ended it, and a second one at the same time is a second worker.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from accelerate import Accelerator
from optuna.exceptions import ExperimentalWarning, StorageInternalError, TrialPruned
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError, SQLAlchemyError

from services.training.config import SECRETS, TrainingConfig, resolve
from services.training.diagnosis import is_out_of_memory
from services.training.loop import Course, Unsaved
from services.training.session import begin, precision
from services.training.steps import key_to_seed
from services.training.stopping import Stop
from services.training.tracking import Tracker
from services.training.tuning import page
from services.training.tuning.options import Options
from services.training.tuning.space import Space, read_space
from shared.errors import ConfigError, DivergenceError, ProblemsError
from shared.wording import counted

#: How often a worker says that it lives, and how long it may be silent before its trial is given to another, in
#: seconds. On its own machine a dead one is noticed at once.
HEARTBEAT, GRACE = 15, 60
#: Trials before one may be ended early, and before proposals are more than chance.
_STARTUP_TRIALS = 5
#: Seconds that another worker has to make the tables of a new database.
_TABLES = 1.0
#: What decides how comparable trials are: a study is one configuration's.
_INDIFFERENT = frozenset(SECRETS) | {
    "output_dir", "store", "cache_dir", "report_to", "metrics_port", "metrics_host", "logging_steps", "ddp_timeout",
    "overwrite_output_dir", "dataloader_num_workers", "dataloader_pin_memory", "preprocessing_num_workers",
}  # fmt: skip
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)
#: What a trial that is the configuration itself is marked with, which process runs it, and why it failed.
_DEFAULT, _WORKER, _FAILURE = "default", "worker", "failure"


def search(config: TrainingConfig, options: Options, folder: Path) -> Path:
    """Search, or go on searching, until the study has its trials.

    Args:
        config: What is tuned. Its steps are those of every trial.
        options: Those of the search.
        folder: Where trials and results go; it exists.

    Returns:
        ``best.json``: the best settings, as a layer to go over the configuration.

    Raises:
        UserError: Configuration, space, database or data cannot be used, or every trial has failed.
    """
    if not config.do_train or config.evaluation_interval(1) is None or not config.do_eval:
        raise ConfigError(
            "vits tune cannot judge without evaluations:", ["set do_eval and no eval_strategy 'no'"]
        )
    space = read_space(options.space, config)
    study = _open(config, options, space, folder)
    _Worker(config, options, space, folder, study).run()
    return folder / "best.json"


class _Worker:
    """One process of a study."""

    def __init__(
        self,
        config: TrainingConfig,
        options: Options,
        space: Space,
        folder: Path,
        study: optuna.Study,
    ) -> None:
        self.config, self.options, self.space = config, options, space
        self.folder, self.study = folder, study

    def run(self) -> None:
        """Trials, one after the other, until the study or the time is over.

        Raises:
            UserError: The configuration itself cannot be tried, or every trial has failed.
        """
        before = len(_finished(self.study))
        if before:
            print(f"going on with study {self.study.study_name}: {counted(before, 'trial')} done")
        begun = time.perf_counter()
        while len(_finished(self.study)) < self.options.trials:
            if self.options.minutes and time.perf_counter() - begun > 60 * self.options.minutes:
                print(f"{self.options.minutes:g} minutes are over; the same command goes on")
                break
            with _quiet():
                self._revive()
                # A failed trial's networks hang on its traceback, in the way of the next one's.
                self.study.optimize(self._trial, n_trials=1, gc_after_trial=True)
            self.write()
        self.write()
        best, finished = _best(self.study), _finished(self.study)
        if best is not None:
            print(f"the best of {counted(len(finished), 'trial')} is {best.number}: {self._told(best)}")
            print(f"it is in {self.folder / 'best.json'}: give that to 'vits train' as a further --config")
        elif finished:
            first = finished[0]
            raise ConfigError(
                f"No trial has come to its end, of {counted(len(finished), 'trial')}; "
                f"{self.folder / 'trials.csv'} says why:",
                [f"trial {first.number}: {first.user_attrs.get(_FAILURE, 'it ended early')}"],
            )

    def _revive(self) -> None:
        """Have the configuration itself tried, and trials of workers that have died on this machine tried again.

        Workers that share the folder look one after the other, or two would each have the same tried.
        """
        with (self.folder / "study.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._revive_alone()

    def _revive_alone(self) -> None:
        for trial in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if _is_dead(str(trial.user_attrs.get(_WORKER, ""))):
                with contextlib.suppress(ValueError, optuna.exceptions.UpdateFinishedTrialError):
                    self.study.tell(trial.number, state=TrialState.FAIL)
                    RetryHeartbeatStaleTrialCallback()(self.study, trial)
                    print(f"trial {trial.number} was left by a worker that is gone: it is tried again")
        if not any(
            trial.user_attrs.get(_DEFAULT) and trial.state != TrialState.FAIL
            for trial in self.study.get_trials(deepcopy=False)
        ):
            self.study.enqueue_trial(self.space.default, user_attrs={_DEFAULT: True})

    def _trial(self, trial: optuna.Trial) -> float:
        """One short run; its measure at the end.

        Raises:
            TrialPruned: It lags behind, or it has failed by what it tried.
            UserError: It has failed by what all trials have in common.
        """
        trial.set_user_attr(_WORKER, f"{socket.gethostname()}:{os.getpid()}")
        # Of the trial's number: neither a resumed search nor a second worker repeats what was drawn.
        seed = key_to_seed(self.config.seed, trial.number) % 2**32
        self.study.sampler = TPESampler(n_startup_trials=_STARTUP_TRIALS, seed=seed)
        values = self.space.suggest(trial)
        is_default = bool(trial.user_attrs.get(_DEFAULT))
        print(
            f"trial {trial.number}{' (the configuration itself)' if is_default else ''}: {_settings(values)}"
        )
        figures: list[float] = []

        def heed(step: int, measured: Mapping[str, float]) -> None:
            figures.append(measured[self.options.objective])
            if step:  # before the first step all are alike
                trial.report(figures[-1], step)
                if self.options.prune and not is_default and trial.should_prune():
                    raise TrialPruned(f"step {step}")

        try:
            run(self._config_of(trial, values), heed)
        except (ConfigError, DivergenceError) as error:  # as bad as can be, and no reason to stop searching
            if not figures and (is_default or isinstance(error, DivergenceError)):
                raise  # nothing has been tried yet
            reason = _reason(error)
            trial.set_user_attr(_FAILURE, reason)
            print(f"trial {trial.number} failed: {reason}")
            raise TrialPruned from error  # Optuna neither counts what it calls failed nor learns from it
        except TrialPruned:
            print(f"trial {trial.number} ended early: {self.options.objective} {figures[-1]:.4g}")
            raise
        print(f"trial {trial.number}: {self.options.objective} {figures[-1]:.4g}")
        return figures[-1]

    def _config_of(self, trial: optuna.Trial, values: dict[str, Any]) -> TrainingConfig:
        """What a trial trains with.

        Raises:
            ConfigError: Its values contradict each other.
        """
        own = {
            "output_dir": self.folder / "trials" / f"{trial.number:04d}",
            "report_to": [],
            "metrics_port": None,
            "save_strategy": "no",
            "load_best_model_at_end": False,
            "keep_best": 0,
        }
        return resolve(self.config.model_dump() | values | own, origin=f"Trial {trial.number}")

    def write(self) -> None:
        """The trials as CSV and as a page, and the best settings as a layer."""
        trials = self.study.get_trials(deepcopy=False)
        best = _best(self.study)
        rows = [
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                self.options.objective: trial.value if trial.state == TrialState.COMPLETE else None,
                "is_default": bool(trial.user_attrs.get(_DEFAULT)),
                "seconds": trial.duration.total_seconds() if trial.duration else None,
                **{key: trial.params.get(key) for key in self.space.keys},
                "failure": trial.user_attrs.get(_FAILURE),
            }
            for trial in trials
            if trial.state.is_finished()
        ]
        if not rows:
            return
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        _write(self.folder / "trials.csv", table.getvalue())
        if best is not None:
            layer = {"_comment": f"Over {self.config.project_name}: {self._told(best)}.", **best.params}
            _write(self.folder / "best.json", json.dumps(layer, indent=4, ensure_ascii=False) + "\n")
        marks = (_DEFAULT, _FAILURE)
        _write(
            self.folder / "report.html",
            page.search_page(self.config, self.options.objective, self.space, trials, best, *marks),
        )

    def _told(self, best: FrozenTrial) -> str:
        """A trial's figure, and what that is against the configuration's own."""
        own = [
            trial.value for trial in _complete(self.study) if trial.user_attrs.get(_DEFAULT) and trial.value
        ]
        told = f"{self.options.objective} {best.value:.4g} after {_steps(self.config)}"
        if best.user_attrs.get(_DEFAULT):
            return f"{told}; nothing was better than the configuration itself"
        return f"{told}, {min(own):.4g} with the configuration itself" if own else told


def run(config: TrainingConfig, heed: Any) -> None:
    """A training that is only looked at: no checkpoint, nothing in the store, no log but the folder's report.

    Args:
        config: Its configuration.
        heed: Told each evaluation's step and figures; what it raises ends the run.
    """
    config.output_dir.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(mixed_precision=precision(config), cpu=config.use_cpu)
    with contextlib.redirect_stdout(io.StringIO()):  # the same lines for every trial
        session = begin(config, accelerator)
    tracker = Tracker(
        config.output_dir / "runs",
        enabled=False,
        tensorboard=False,
        total_steps=session.plan.total,
        first_step=0,
    )
    with tracker:
        Course(session, tracker, Unsaved(), Stop(), heed).run()


# -- The study -------------------------------------------------------------------------------------


def _storage(url: str) -> RDBStorage:
    """The database, its tables made if they are not there. Several workers on one file wait for each other."""
    return RDBStorage(
        url,
        engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {},
        heartbeat_interval=HEARTBEAT,
        grace_period=GRACE,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
    )


def _open(config: TrainingConfig, options: Options, space: Space, folder: Path) -> optuna.Study:
    """The study, a new one or the one that is there.

    Raises:
        ConfigError: The database cannot be used, or its study is another configuration's.
    """
    url = options.storage or f"sqlite:///{(folder / 'study.db').resolve()}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with _quiet():
            try:
                storage = _storage(url)
            except (
                IntegrityError,
                OperationalError,
            ):  # another worker may just have been making the same tables
                time.sleep(_TABLES)
                storage = _storage(url)
            study = optuna.create_study(
                storage=storage,
                study_name=options.study or config.title,
                load_if_exists=True,
                direction="minimize",
                pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS, interval_steps=1),
            )
    except (ArgumentError, SQLAlchemyError, StorageInternalError, ImportError) as error:
        told = str(error).partition("\n")[0]
        raise ConfigError(
            "storage: the database cannot be used:",
            [f"{told}: give an address such as sqlite:///study.db or postgresql+psycopg2://host/name"],
        ) from error
    identity = json.dumps(
        config.model_dump(mode="json", exclude=set(_INDIFFERENT))
        | {"the objective": options.objective, "the search space": space.described()},
        sort_keys=True,
    )
    known = study.user_attrs.get("identity")
    if known is None:
        study.set_user_attr("identity", identity)
        return study
    # A key that is newer than the study had its default there.
    old, new = _defaults() | json.loads(known), json.loads(identity)
    if old != new:
        raise ConfigError(
            f"Study {study.study_name} is of another configuration, so that its trials cannot be compared with these. "
            "Give another --output_dir, or another --study.",
            [
                f"{key}: was {old.get(key)!r}, is {new.get(key)!r}"
                for key in old | new
                if old.get(key) != new.get(key)
            ],
        )
    return study


def _defaults() -> dict[str, Any]:
    """What every key that decides is where it is left out, as JSON has it."""
    left_out = TrainingConfig.model_construct(model_name_or_path="")
    values: dict[str, Any] = left_out.model_dump(mode="json", exclude=set(_INDIFFERENT))
    return values


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=_DONE)


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def _best(study: optuna.Study) -> FrozenTrial | None:
    complete = _complete(study)
    return min(complete, key=lambda trial: (trial.value, trial.number)) if complete else None


def _is_dead(worker: str) -> bool:
    """Whether a worker of this machine no longer runs; of another machine nobody knows."""
    host, _, process = worker.rpartition(":")
    if host != socket.gethostname() or not process.isdigit():
        return False
    if int(process) == os.getpid():
        return True  # this process runs one trial at a time, and none now
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _reason(error: ProblemsError) -> str:
    """Why a trial failed, in a line. What to do where there is no room is for runs: a search tries something else."""
    if error.__cause__ is not None and is_out_of_memory(error.__cause__):
        return error.summary.partition(".")[0]
    return "; ".join(error.problems) or error.summary


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
    )


def _steps(config: TrainingConfig) -> str:
    return (
        counted(config.max_steps, "step") if config.max_steps >= 0 else f"{config.num_train_epochs:g} epochs"
    )


def _write(path: Path, text: str) -> None:
    """At once or not at all, also with two workers at it."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's heartbeat has been experimental for years."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
