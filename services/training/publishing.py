"""Saving a run while it trains: on the disk, in the store, and at its end to the hub.

Training waits only while its state is copied in memory. A thread writes the copy as ``checkpoint-N``, uploads
it, publishes its model and removes what is superfluous. What fails there is told at once:

- the store: training goes on, for the checkpoint is complete on the disk. It is sent with the next one, or
  at the end, and if that fails too, the run fails, with its model safe on the disk;
- anything else (a full disk, a run that another process has taken over, recordings whose speaker has withdrawn
  consent): the next call raises it.
"""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors.torch import save_file

from services.training import checkpoints as ckpt
from services.training.config import SECRETS, TrainingConfig
from services.training.model_card import CARD_FILE, write_model_card
from services.training.ranking import best_of, measured
from services.training.session import Session, command_to_go_on
from services.training.steps import Steps
from services.training.stopping import Stop
from services.training.tracking import Tracker
from shared.consent import refuse_withdrawn
from shared.errors import (
    ConfigError,
    ConsentError,
    HubUnreachableError,
    LeaseLostError,
    ModelError,
    NotFoundError,
    StoreError,
)
from shared.manifests import RESERVED
from shared.modeling import save_model
from shared.modeling.loading import DISCRIMINATOR_FILE
from shared.provenance import Provenance
from shared.registry import Registry
from shared.store import Store, digest_file

#: How many complete checkpoints of a run are kept in the store, for resuming.
_STORED_CHECKPOINTS = 2
#: A save that waits longer than this for the one before it says so, in seconds.
_LONG_WAIT = 1.0
#: How often a save that waits looks whether the run has been told to stop, in seconds.
_LOOK_SECONDS = 0.1


class Publisher:
    """Saves a run's checkpoints in the background. On any process but the main one it does nothing.

    Use it as a context manager: at the end it waits for what is under way.

    Args:
        session: The run.
        tracker: Told of what is saved.
        stop: Whether the run has been told to stop.
    """

    def __init__(self, session: Session, tracker: Tracker, stop: Stop) -> None:
        self._session = session
        self._tracker = tracker
        self._stop = stop
        self._active = session.accelerator.is_main_process
        self._snapshot: ckpt.Snapshot | None = None
        self._thread: threading.Thread | None = None
        self._written = threading.Event()
        self._failure: Exception | None = None
        self._unsent: StoreError | None = None
        # Nothing is new at the step that the run goes on from.
        resumed = ckpt.is_complete(session.config.output_dir / f"checkpoint-{session.step}")
        self._saved = session.step if resumed else -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._join()

    def save(self, steps: Steps, *, wait: bool = False) -> None:
        """Save the state after the step that was just done.

        It waits for an earlier save that is still under way, and copies the state; the rest happens in the
        background. Told to stop while it waits, it returns without having saved: a stop has no time for what is
        being sent, and ``wait`` saves at once. A step that is saved already is not saved again.

        Args:
            steps: Whose optimisers belong to the state.
            wait: Return only when the checkpoint is on the disk and sent. It is on the disk first, whatever
                is still being sent.

        Raises:
            UserError: An earlier save, or this one with ``wait``, met a full disk.
            LeaseLostError: Another process has taken over the run.
        """
        if not self._active:
            return
        if self._thread and wait:
            self.settle()
        elif self._thread and not self._wait_for_previous():
            return
        self.check()
        if self._session.step > self._saved:
            if not self._session.state.evaluation_owed:  # or else it is ranked once it is made up for
                self._note_best(after=max(self._saved, 0))
            self._saved = self._session.step
            self._snapshot = ckpt.take_snapshot(self._session, steps, self._snapshot)
            if wait:
                seconds = self._write(self._snapshot)
                self._join()
                self._prune(self._snapshot.state)  # not before: what is removed may still be being sent
                self._send(self._snapshot.state, seconds)
            else:
                self._written.clear()
                self._thread = threading.Thread(
                    target=self._write_and_send, args=[self._snapshot], name="saving"
                )
                self._thread.start()
        if wait:
            self._join()
            self.check()

    def rank(self) -> None:
        """Rank the checkpoint that the run goes on from by an evaluation that was still owed there."""
        if self._active:
            self._note_best(after=self._session.step - 1)

    def settle(self) -> None:
        """Wait until what was saved is on the disk, or has failed to come there."""
        if self._thread:
            self._written.wait()

    def check(self) -> None:
        """Raise what went wrong in the background; costs nothing.

        Raises:
            UserError: The disk is full.
            LeaseLostError: Another process has taken over the run.
        """
        if self._failure:
            raise self._failure

    def close(self) -> None:
        """Wait for what is under way.

        Raises:
            StoreError: The newest checkpoint could not be sent; it is complete on the disk.
            UserError: The disk is full.
        """
        self._join()
        self.check()
        if self._unsent:
            raise self._unsent

    def finish(self) -> None:
        """Make the output folder the final model, publish it, move its alias, push it where that is wanted.

        The last step must have been saved. Whatever fails after the model is in its folder can be made up for
        by starting the finished run again.

        Raises:
            StoreError: The store failed.
            ConfigError, HubUnreachableError: The model could not be pushed.
        """
        if not self._active:
            return
        self._join()
        self.check()
        session, config, say = self._session, self._session.config, self._tracker.say
        if self._unsent and self._snapshot:
            self._send(self._snapshot.state)
            self.check()
        _write_final(session, *self._best_folder())
        say(f"the model is complete in {config.output_dir}")
        deliver(config, session.store, session.state, say)
        if self._unsent:
            raise self._unsent

    # -- In the background -------------------------------------------------------------------------

    def _write_and_send(self, snapshot: ckpt.Snapshot) -> None:
        state = snapshot.state
        try:
            seconds = self._write(snapshot)
            self._prune(state)
        except Exception as error:
            self._failure = error
            self._tracker.say(f"step {state.global_step} could not be saved: {error}")
            return
        finally:
            self._written.set()
        self._send(state, seconds)

    @torch.no_grad()
    def _write(self, snapshot: ckpt.Snapshot) -> float:
        """``checkpoint-N`` on the disk; the seconds that it took."""
        begun = time.perf_counter()
        session, output_dir = self._session, self._session.config.output_dir

        def write(folder: Path) -> None:
            ckpt.write_state(snapshot, folder)
            _write_model(session, snapshot, folder)

        try:
            ckpt.write_checkpoint(
                output_dir,
                snapshot.step,
                write,
                needed=snapshot.nbytes,
                command=command_to_go_on(session.config),
            )
        except Exception:
            self._tracker.checkpoint_failed()
            raise
        return time.perf_counter() - begun

    def _prune(self, state: ckpt.TrainerState) -> None:
        """Remove superfluous checkpoints from the disk; none may be being sent."""
        config, base = self._session.config, self._session.base.folder
        spare = {entry["step"] for entry in state.best}
        if base.resolve().parent == config.output_dir.resolve():
            spare.add(ckpt.checkpoint_step(base))  # it stands in for the run's base, which is gone
        ckpt.prune(config.output_dir, config.save_total_limit, spare)

    def _send(self, state: ckpt.TrainerState, seconds: float = 0.0) -> None:
        """The newest checkpoint to the store, as the run's state and as a version of the model.

        Args:
            state: The checkpoint's.
            seconds: What writing it has taken, where it was not sent before.
        """
        begun = time.perf_counter()
        session, run, step = self._session, self._session.run, state.global_step
        assert run is not None  # noqa: S101 - the main process has the lease
        folder = session.config.output_dir / f"checkpoint-{step}"
        try:
            _refuse_if_withdrawn(session.config, session.store, state)
            run.save_checkpoint(step, folder)
            run.prune(_STORED_CHECKPOINTS)
            published = ""
            if step < state.max_steps:  # the last step's model is published as the final one
                version = _publish(
                    session.config,
                    session.store,
                    folder,
                    ckpt.public_files(folder),
                    session.provenance,
                    base=state.base,
                    step=step,
                )
                published = f", published {version}"
                for entry in session.state.best:
                    if entry["step"] == step:
                        entry["version"] = version
        except LeaseLostError as error:
            self._failure = error
            self._tracker.checkpoint_failed()
        except StoreError as error:
            self._unsent = error
            self._tracker.checkpoint_failed()
            self._tracker.say(
                f"step {step}: saved {folder}, but the store failed: {error}. Training goes on; the next "
                "checkpoint, or the end of the run, tries again"
            )
        except Exception as error:
            self._failure = error
            self._tracker.checkpoint_failed()
            self._tracker.say(f"step {step}: saved {folder}, but it cannot be sent: {error}")
            if isinstance(error, ConsentError):
                with suppress(StoreError):
                    run.clear()  # what was on its way when consent was withdrawn
        else:
            self._unsent = None
            self._tracker.checkpoint_saved(step, seconds + time.perf_counter() - begun)
            self._tracker.say(f"step {step}: saved {folder}{published}")

    def _join(self) -> None:
        if self._thread:
            self._thread.join()
            self._thread = None

    def _wait_for_previous(self) -> bool:
        """Whether the save before came to its end ere the run was told to stop."""
        assert self._thread is not None  # noqa: S101 - there is one to wait for
        begun = time.perf_counter()
        while self._thread.is_alive():
            if self._stop.requested:
                return False
            self._thread.join(_LOOK_SECONDS)
        self._join()
        waited = time.perf_counter() - begun
        if waited > _LONG_WAIT:
            self._tracker.say(
                f"waited {waited:.0f} s for the checkpoint before to be sent: a larger save_steps would avoid that"
            )
        return True

    # -- The best ----------------------------------------------------------------------------------

    def _note_best(self, *, after: int) -> None:
        """Rank the step that is saved by its newest evaluation, of those ``after`` the step of the save before."""
        config, state = self._session.config, self._session.state
        first = max(after + 1, self._session.comparable_from(config.metric_for_best_model))
        values = [
            (step, value)
            for step, value in measured(config, state.log_history, first)
            if step <= state.global_step and math.isfinite(value)
        ]
        if values:
            evaluated, value = values[-1]
            entry = {"step": state.global_step, "value": value, "evaluated": evaluated}
            state.best = best_of(config, [*state.best, entry])

    def _best_folder(self) -> tuple[Path, int]:
        """The checkpoint that becomes the final model, and its step.

        Where it is one of the best, its entry in the state is marked ``final``: it may have to be sent later.
        """
        config, state, say = self._session.config, self._session.state, self._tracker.say
        last = config.output_dir / f"checkpoint-{state.global_step}"
        for entry in state.best:
            entry.pop("final", None)  # of a shorter run that this one goes on from
        if not config.load_best_model_at_end:
            return last, state.global_step
        metric = config.metric_for_best_model
        for entry in state.best[:1]:
            folder = config.output_dir / f"checkpoint-{entry['step']}"
            if not ckpt.is_complete(folder) and "version" in entry:
                registry = Registry(self._session.store)
                reference = f"{config.published_name}/{entry['version']}"
                folder = registry.fetch(registry.resolve("models", reference))
            if (folder / "config.json").is_file():
                evaluated = entry.get("evaluated", entry["step"])
                earlier = f", as evaluated at step {evaluated}" if evaluated < entry["step"] else ""
                say(
                    f"the final model is the best checkpoint's, of step {entry['step']}: {metric} "
                    f"{entry['value']:.4g}{earlier}"
                )
                entry["final"] = True
                return folder, entry["step"]
            say(
                f"the best checkpoint, of step {entry['step']}, is no longer there: the final model is the last step's"
            )
            return last, state.global_step
        first = self._session.comparable_from(metric)
        counting = f" from step {first} on" if first else ""
        say(f"no saved step was evaluated by {metric}{counting}: the final model is the last step's")
        return last, state.global_step


# -- Models ----------------------------------------------------------------------------------------


def _write_model(session: Session, snapshot: ckpt.Snapshot, folder: Path) -> None:
    """The loadable model with everything that belongs to it, of the moving average where there is one."""
    generator = snapshot.generator
    average = {
        name.removeprefix("ema."): value
        for name, value in snapshot.tensors.items()
        if name.startswith("ema.")
    }
    if average:  # the copy's own weights are written by now
        generator.load_state_dict({**generator.state_dict(), **average})
    generator.config.untrained_modules = list(snapshot.untrained)
    save_model(generator, folder, companions=session.base.folder)
    (folder / CARD_FILE).unlink(missing_ok=True)  # the base's, which tells of another model and its licence
    session.base.front_end.save(folder)
    save_file(snapshot.discriminator.folded_state_dict(), folder / DISCRIMINATOR_FILE)
    session.provenance.write(folder)
    if session.base.speakers:
        (folder / "speakers.json").write_text(json.dumps(session.base.speakers, indent=2), encoding="utf-8")
    else:
        (folder / "speakers.json").unlink(missing_ok=True)  # the base's, of whom the embeddings are no longer
    _write_config(session.config, folder)


def _write_config(config: TrainingConfig, folder: Path) -> None:
    """The resolved configuration, without secrets."""
    (folder / ckpt.CONFIG_FILE).write_text(
        config.model_dump_json(indent=2, exclude=set(SECRETS)) + "\n", encoding="utf-8"
    )


def _write_final(session: Session, source: Path, step: int) -> None:
    """Make the output folder a finished model, from that of a step's checkpoint."""
    output_dir, state = session.config.output_dir, session.state
    final = output_dir / "final.partial"
    shutil.rmtree(final, ignore_errors=True)
    names = [
        name for name in ckpt.public_files(source) if name not in RESERVED
    ]  # of a version in a local store
    needed = sum((source / name).stat().st_size for name in names)
    with ckpt.room_for("the final model", output_dir, needed, command_to_go_on(session.config)):
        final.mkdir()
        for name in names:
            shutil.copyfile(source / name, final / name)
        _write_config(session.config, final)
        write_model_card(session, final, step)
    files = sorted(final.iterdir())
    state.final_files = {file.name: digest_file(file).sha256 for file in files}
    state.final_version = state.pushed_to = None
    for file in files:
        file.replace(output_dir / file.name)
    final.rmdir()
    state.finished = True
    state.write(output_dir)  # last: it says that the folder is a finished model


def deliver(
    config: TrainingConfig, store: Store, state: ckpt.TrainerState, say: Callable[[str], None]
) -> bool:
    """Bring a finished model wherever it still has to go: into the store, and to the hub.

    Args:
        config: The run's configuration.
        store: The store.
        state: The finished run's state; it is written again with every step that is done.
        say: Told what is done.

    Returns:
        Whether there was anything to do.

    Raises:
        ModelError: The model has to be sent, and the output folder no longer holds it.
        ConsentError: The model has to be sent, and a speaker has withdrawn consent to what it is made of.
        StoreError: The store failed; the model is safe in the output folder.
        ConfigError: The hub can have no such name; the model is safe in the output folder.
        HubUnreachableError: The hub failed; the model is safe in the output folder.
    """
    sent = _deliver_to_store(config, store, state, say)
    if config.push_to_hub and state.pushed_to != config.hub_model_id:
        _push_to_hub(config, state, say)
        return True
    return sent


def _deliver_to_store(
    config: TrainingConfig, store: Store, state: ckpt.TrainerState, say: Callable[[str], None]
) -> bool:
    registry, name = Registry(store), config.published_name
    lost = state.final_version is not None and state.final_version not in registry.versions("models", name)
    if state.final_version is None or lost:
        if lost:
            refuse_withdrawn(store, versions=[f"models/{name}/{state.final_version}"])
            say(f"{store.url} no longer has {name}/{state.final_version}: publishing it again")
        _check_final(config.output_dir, state)
        state.final_version = _publish(
            config,
            store,
            config.output_dir,
            state.final_files,
            Provenance.read(config.output_dir),
            base=state.base,
            step=_final_step(state),
        )
        state.write(config.output_dir)
    elif _was_moved_to(registry, name, config.alias, state.final_version):
        return False
    if lost and _points_somewhere(registry, name, config.alias):
        say(f"{name}@{config.alias} has moved on to another version meanwhile, and stays there")
    else:
        before = registry.aliases("models", name).get(config.alias)
        registry.move_alias("models", name, config.alias, state.final_version)
        instead = f", where {before} was" if before not in (None, state.final_version) else ""
        say(
            f"{config.output_dir} is in {store.url} as {name}@{config.alias} ({state.final_version}{instead})"
        )
        return True
    say(f"{config.output_dir} is in {store.url} as {name} ({state.final_version})")
    return True


def _refuse_if_withdrawn(config: TrainingConfig, store: Store, state: ckpt.TrainerState) -> None:
    """Not even the state of a run is sent whose recordings or base a speaker has withdrawn."""
    refuse_withdrawn(store, dataset=str(config.dataset_name), versions={f"models/{state.base}"})


def _final_step(state: ckpt.TrainerState) -> int:
    """The step that a finished run's model is of: the best one's, where that was taken, and else the last."""
    return next((entry["step"] for entry in state.best if entry.get("final")), state.global_step)


def _check_final(output_dir: Path, state: ckpt.TrainerState) -> None:
    """Make sure that the finished model's files are what the run wrote."""
    wrong = [
        name
        for name, sha256 in state.final_files.items()
        if not (output_dir / name).is_file() or digest_file(output_dir / name).sha256 != sha256
    ]
    if wrong or not state.final_files:
        raise ModelError(
            f"{output_dir} no longer holds the model that its run has written ({', '.join(wrong) or 'no files'}), so "
            "it is not published. Put its files back, or start over with --overwrite_output_dir."
        )


def _was_moved_to(registry: Registry, name: str, alias: str, version: str) -> bool:
    """Whether an alias has ever pointed to a version; somebody may have moved it on."""
    try:
        return any(move.version == version for move in registry.history("models", name, alias))
    except NotFoundError:
        return False


def _points_somewhere(registry: Registry, name: str, alias: str) -> bool:
    """Whether an alias points to a version that exists."""
    return registry.aliases("models", name).get(alias) in registry.versions("models", name)


def _publish(
    config: TrainingConfig,
    store: Store,
    folder: Path,
    files: Collection[str],
    provenance: Provenance,
    *,
    base: str | None,
    step: int,
) -> str:
    """Publish files of a folder as a version of the model; its id."""
    version = Registry(store).publish(
        "models",
        config.published_name,
        folder,
        licence=provenance.licence,
        sources=list(provenance.sources),
        consent=provenance.consent,
        lineage={
            "base": base or config.model_name_or_path,
            "dataset": str(config.dataset_name),
            "run": config.run_id,
            "step": step,
        },
        only=files,
    )
    return version.id


def _push_to_hub(config: TrainingConfig, state: ckpt.TrainerState, say: Callable[[str], None]) -> None:
    """Upload the final model to the Hugging Face hub.

    Raises:
        ConfigError: Nothing there could have this name; the model is safe where it is.
        HubUnreachableError: It could not be reached; the model is safe where it is.
    """
    api = HfApi(token=config.hub_token or config.token)
    try:
        repository = api.create_repo(str(config.hub_model_id), private=config.hub_private_repo, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=config.output_dir,
            allow_patterns=list(state.final_files),
        )
    except HFValidationError as error:
        raise ConfigError(
            f"The model is complete in {config.output_dir} and in the store, but was not pushed to the hub: "
            f"{config.hub_model_id!r} cannot be a name there.",
            [
                f"give {command_to_go_on(config)} once more, with --hub_model_id my-name/my-voice",
                f"and with --model_name {config.published_name}, for so it is called in the store",
            ],
        ) from error
    except (OSError, HfHubHTTPError) as error:
        raise HubUnreachableError(
            f"The model is complete in {config.output_dir} and in the store, but could not be pushed to the hub as "
            f"{config.hub_model_id}: {error}. To try it once more, give {command_to_go_on(config)} again"
        ) from error
    state.pushed_to = config.hub_model_id
    state.write(config.output_dir)
    say(f"pushed to the hub as {repository.repo_id}")
