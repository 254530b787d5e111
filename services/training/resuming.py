"""How a run goes on: from which checkpoint, and whether anything is left to do."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from services.training import checkpoints as ckpt
from services.training.base import Origin
from services.training.config import SECRETS, TrainingConfig
from services.training.publishing import deliver
from services.training.ranking import rank_anew
from services.training.sampler import BucketSampler
from services.training.session import Session
from services.training.together import same_failure
from shared.errors import ConfigError, CorruptObjectError, NotFoundError, UserError
from shared.registry import Registry
from shared.runs import TRAINER_FILE, Run
from shared.store import Store, default_store_url, digest_file
from shared.text import FrontEnd

#: A change to one of these makes a checkpoint another run's.
_IDENTITY = (
    "model_name_or_path",
    "config_name",
    "train_from_scratch",
    "model_presets",
    "discriminator_periods",
    "stft_discriminator",
    "vocabulary_additions",
    "sampling_rate",
    "dataset_name",
    "dataset_config_name",
    "train_split_name",
    "speaker_id_column_name",
    "filter_on_speaker_id",
    "override_speaker_embeddings",
    "allow_missing_weights",
    "tokenizer_name",
    "espeak_voice",
    "freeze",
    "optim",
    "seed",
)
#: Keys that say where things are and how the run is told, not what it does; and secrets, which are not stored.
_NEVER_MIND = frozenset(SECRETS) | {
    "output_dir",
    "store",
    "cache_dir",
    "resume_from_checkpoint",
    "overwrite_output_dir",
    "report_to",
}
#: Keys of what is said, kept and measured on the way, of how long it is and of what computes it: with others it is the
#: same training.
_ON_THE_WAY = frozenset(
    {
        "run_name", "alias", "push_to_hub", "hub_private_repo", "max_steps", "num_train_epochs", "do_train",
        "preprocessing_only", "preprocessing_num_workers", "dataloader_num_workers", "dataloader_pin_memory",
        "gradient_checkpointing", "torch_compile", "use_cpu", "ddp_timeout", "logging_strategy", "logging_steps",
        "wandb_project", "metrics_port", "metrics_host", "save_strategy", "save_steps", "save_total_limit", "keep_best",
        "do_eval", "eval_split_name", "max_eval_samples", "per_device_eval_batch_size", "eval_strategy", "eval_steps",
        "max_eval_share", "full_generation_sample_text", "eval_sample_texts", "eval_speakers",
    }
)  # fmt: skip
#: Keys of the stages whose lengths stay those that a run began with, and the stages' names in its plan.
_KEPT = {
    "warm_up_new_modules_steps": "new_modules",
    "reconstruction_stage_steps": "reconstruction",
    "text_stage_steps": "text",
}
_ASIDE = ".aside"

Result = TypeVar("Result")


# -- Finished already ------------------------------------------------------------------------------


def already_finished(config: TrainingConfig, accelerator: Accelerator) -> bool:
    """Whether the output folder holds the finished model of this very run, with nothing left to train.

    What the finished model still lacks is made up for: a version in the store (the store may have been emptied),
    its alias, the copy on the hub.

    Args:
        config: The run's configuration.
        accelerator: All processes ask, and get the main one's answer.

    Raises:
        ConfigError: The folder holds another run's model.
        StoreError, HubUnreachableError, ModelError: The finished model cannot be sent; see `deliver`.
    """
    return _on_main_process(accelerator, lambda: _already_finished(config))


def _already_finished(config: TrainingConfig) -> bool:
    state = ckpt.TrainerState.read(config.output_dir)
    goes_back = _explicit_checkpoint(config) is not None or _starts_over(config)
    if state is None or not state.finished or goes_back:
        return False
    check_same_run(config, config.output_dir)
    if _asks_for_more(config, state):
        print(
            f"{config.output_dir} holds the finished model of {state.global_step} steps: more are asked for."
        )
        return False
    did = deliver(config, _store(config), state, print)
    if not did:
        before = _configuration_of(config.output_dir)
        changed = _changed(config, before, config.model_dump().keys() - _NEVER_MIND)
        but = f" What is set otherwise now changes nothing: {', '.join(changed)}." if changed else ""
        print(
            f"{config.output_dir} holds the finished model of {state.global_step} steps: nothing left to do.{but} "
            "Raise max_steps or num_train_epochs to go on, start over with --overwrite_output_dir, or name another "
            "--output_dir."
        )
    return True


def _asks_for_more(config: TrainingConfig, state: ckpt.TrainerState) -> bool:
    """Whether a configuration wants more joint steps than a finished run has done."""
    done = state.max_steps - state.warm_up_steps
    if config.max_steps >= 0:
        return config.max_steps > done
    per_epoch = state.global_step / state.epoch if state.epoch else 0.0
    return math.ceil(config.num_train_epochs * per_epoch - 1e-6) > done


# -- Going on --------------------------------------------------------------------------------------


def check_store(config: TrainingConfig, accelerator: Accelerator) -> None:
    """Make sure that a run's models can be published, before its data are prepared and anything is trained.

    Args:
        config: The run's configuration.
        accelerator: All processes ask, and the main one looks.

    Raises:
        StoreError: The store cannot be written.
    """
    _on_main_process(
        accelerator, lambda: Registry(_store(config)).check_writable("models", config.published_name)
    )


def find_origin(config: TrainingConfig, accelerator: Accelerator) -> Origin | None:
    """Where a run comes from if it goes on, so that it is not given what its base's alias points to now.

    Every machine has the checkpoint then, which serves where the base cannot be found any more. It takes no lease:
    `resume` does, and looks again.

    Args:
        config: The run's configuration.
        accelerator: All processes ask, and get the main one's answer.

    Returns:
        Nothing for a run that begins, and for one that an older release began, which did not note it.

    Raises:
        ConfigError: The checkpoint that was asked for is not complete, or belongs to another run.
        ModelError: The checkpoint cannot be read.
        UserError: A machine lacks the checkpoint, and so does the store.
        StoreError: The store failed.
    """
    alone = accelerator.num_processes == 1
    found = _on_main_process(accelerator, lambda: _find_origin(config, alone=alone))
    if found is None:
        return None
    origin, fingerprint = found
    if not fingerprint:
        return origin
    folder = config.output_dir / origin.checkpoint.name
    _provide_everywhere(config, accelerator, _store(config), folder, fingerprint)
    return replace(origin, checkpoint=folder)


def _find_origin(config: TrainingConfig, *, alone: bool) -> tuple[Origin, str] | None:
    """It, and what other machines know its checkpoint by: nothing where there are none, or it lies elsewhere."""
    folder = _explicit_checkpoint(config)
    if folder is None and not _starts_over(config):
        folder = _newest_of_disk_and_store(config, Run(_store(config), config.run_id, sequence=0))
    if folder is None:
        return None
    check_same_run(config, folder)
    state = ckpt.TrainerState.read(folder)
    if state is None or not state.base:
        return None
    elsewhere = folder.resolve().parent != config.output_dir.resolve()
    return Origin(state.base, folder), "" if alone or elsewhere else _fingerprint(folder)


def _store(config: TrainingConfig) -> Store:
    return Store.open(config.store or default_store_url())


def resume(session: Session) -> None:
    """Take the run's lease, and go on from its newest complete state, wherever that is.

    The main process chooses, and fetches what is only in the store; the others follow it, on a disk that they
    share or on their own.

    Raises:
        ConfigError: The checkpoint that was asked for is not complete, or belongs to another run.
        ModelError: The checkpoint cannot be read.
        StoreError: The store failed.
    """
    config, accelerator = session.config, session.accelerator
    session.state.max_steps, session.state.warm_up_steps = session.plan.total, session.plan.warm_up
    session.state.reconstruction_steps, session.state.text_steps = (
        session.plan.reconstruction,
        session.plan.text,
    )
    session.state.base = session.base.reference
    session.state.sampler_settings = session.sampler.settings
    held_out = session.state.held_out = session.evaluation.digest()
    chosen = _on_main_process(accelerator, lambda: _begin_to_go_on(session))
    if chosen is None:
        return
    folder = config.output_dir / chosen.name
    if accelerator.num_processes > 1:
        _provide_everywhere(config, accelerator, session.store, folder, chosen.fingerprint)
    _check_same_people_and_symbols(session, folder)
    saved = ckpt.read_state(folder)
    session.generator.load_state_dict(saved["generator"])
    session.discriminator.load_state_dict(saved["discriminator"])
    session.state = ckpt.TrainerState.read(folder) or session.state
    _resume_average(session, saved["ema"])
    if accelerator.scaler is not None and session.state.scaler is not None:
        accelerator.scaler.load_state_dict(session.state.scaler)
    # Where the stages meet is part of the state: with another length of training it would move.
    state, plan = session.state, session.plan
    plan.reconstruction, plan.text = state.reconstruction_steps, state.text_steps
    plan.new_modules = state.warm_up_steps - plan.reconstruction - plan.text
    session.state.max_steps, session.state.finished = session.plan.total, False
    notes = [*_fit_position(state, session.sampler), *_note_held_out(state, held_out)]
    optimizers = saved["optimizers"]
    session.base.resumed_optimizers = optimizers and [laid_out(session, state) for state in optimizers]
    if accelerator.is_main_process:
        print(f"going on from step {session.step} of {session.plan.total}, as saved in {folder}")
        changed = _changed(
            config, _configuration_of(folder), config.model_dump().keys() - _NEVER_MIND - _KEPT.keys()
        )
        if changed:
            notes.append(f"set otherwise from here on: {'; '.join(changed)}")
        kept = _kept_stages(session)
        if kept:
            notes.append(
                f"the run keeps the stages that it began with, as its state is of them: {', '.join(kept)}"
            )
        for note in notes:
            print(note)
        rank_anew(session)


def _fit_position(state: ckpt.TrainerState, sampler: BucketSampler) -> list[str]:
    """Go on with what is left of an epoch whose batches were others when it began; what to say of it.

    Where that cannot be told, the epoch begins anew.
    """
    before, state.sampler_settings = state.sampler_settings, sampler.settings
    begun = state.sampler_batch > 0 or state.sampler_left is not None
    if before is None or before == sampler.settings or not begun:
        return []
    left = sampler.left(before, state.sampler_epoch, state.sampler_batch, state.sampler_left)
    state.sampler_batch, state.sampler_left = 0, left
    changed = ", ".join(key for key, value in sampler.settings.items() if before[key] != value)
    what = (
        "it begins anew" if left is None else f"it goes on with the {len(left)} recordings that it has left"
    )
    return [f"the batches have changed in the midst of an epoch ({changed}): {what}"]


def _note_held_out(state: ckpt.TrainerState, held_out: str | None) -> list[str]:
    """Compare no evaluations over different recordings; what to say of it.

    Args:
        state: Where the run goes on from.
        held_out: Digest of what evaluations are over now; None without any.
    """
    before, state.held_out = state.held_out, held_out or state.held_out
    if before in (None, state.held_out):
        return []
    state.held_out_from = state.global_step + (not state.evaluation_owed)
    note = (
        "evaluations are over other recordings, texts or slices than before: those from step "
        f"{state.held_out_from} on are not compared with the earlier ones"
    )
    return [note]


def _kept_stages(session: Session) -> list[str]:
    """The lengths of stages that the configuration would have otherwise than the run has them."""
    config, plan = session.config, session.plan
    stages = {key: (getattr(config, key), getattr(plan, stage)) for key, stage in _KEPT.items()}
    if not (plan.new_modules or session.base.untrained):
        del stages["warm_up_new_modules_steps"]  # there is nothing new, whatever it says
    return [
        f"{key} {has} (not {asked})"
        for key, (asked, has) in stages.items()
        if asked is not None and asked != has
    ]


def _check_same_people_and_symbols(session: Session, folder: Path) -> None:
    """Refuse to give a speaker's or a symbol's embedding to another, because the data or the base changed.

    Raises:
        ConfigError: The checkpoint's speakers or symbols are not those that the run would have now.
    """
    changed = []
    path = folder / "speakers.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if before != session.base.speakers:
        changed.append(f"speakers: were {_listed(before)}; are {_listed(session.base.speakers)}")
    if FrontEnd.from_folder(folder).symbols != session.base.front_end.symbols:
        changed.append("symbols: the base's vocabulary has changed")
    if changed:
        raise ConfigError(
            f"{folder} cannot be gone on from. Bring the recordings and the base back as they were, or name another "
            f"--output_dir with --model_name_or_path {folder} to start from its model.",
            changed,
        )


def _listed(speakers: dict[str, int]) -> str:
    return ", ".join(f"{name} ({number})" for name, number in speakers.items()) or "none"


def _resume_average(session: Session, saved: dict[str, torch.Tensor]) -> None:
    """The moving average as it was; one that is new begins with the weights as they are."""
    if session.ema is not None:
        weights = saved or session.generator.state_dict()
        for name, value in session.ema.shadow.items():
            value.copy_(weights[name])


def laid_out(session: Session, saved: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state with each tensor in memory as its parameter is.

    Fused optimisers go through both side by side in memory: with channels last for the one and first for
    the other, they would silently mix up the elements.
    """
    networks = {"generator": session.generator, "discriminator": session.discriminator}
    state: dict[int, dict[str, Any]] = {}
    for number, values in saved["state"].items():
        network, _, name = saved["parameters"][number].partition(".")
        parameter = networks[network].get_parameter(name)
        state[number] = {
            key: torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape
            # A copy too: the file's own bytes are mapped, and it may be deleted while training goes on.
            else copy.deepcopy(value)
            for key, value in values.items()
        }
    return {"param_groups": saved["param_groups"], "state": state}


@dataclass(frozen=True)
class _Chosen:
    """A checkpoint in the output folder, for every process to recognise; pickled on its way to the others."""

    name: str
    fingerprint: str


def _begin_to_go_on(session: Session) -> _Chosen | None:
    """On the main process: own the run, and have the checkpoint to go on from in the output folder."""
    session.run = run = Run.acquire(session.store, session.config.run_id)
    folder = _newest_checkpoint(session.config, run)
    if folder is None:
        return None
    alone = session.accelerator.num_processes == 1
    return _Chosen(folder.name, "" if alone else _fingerprint(folder))


def _newest_checkpoint(config: TrainingConfig, run: Run) -> Path | None:
    """The checkpoint to go on from: the one asked for, or the newest of disk and store, or none."""
    asked = _explicit_checkpoint(config)
    if asked is not None:
        check_same_run(config, asked)
        return _go_back(config, run, asked)
    if _starts_over(config):
        _discard_checkpoints(config.output_dir, run)
        return None
    folder = _newest_of_disk_and_store(config, run)
    if folder is not None:
        check_same_run(config, folder)
    return folder


def _newest_of_disk_and_store(config: TrainingConfig, run: Run) -> Path | None:
    """The newest complete checkpoint, on the disk; the store's is fetched if it is newer."""
    local, stored = ckpt.checkpoints(config.output_dir), run.checkpoints()
    folder = local[-1] if local else None
    if stored and (folder is None or (ckpt.checkpoint_step(folder) or 0) < stored[-1]):
        if folder is None:
            _check_alike(config, run, stored[-1])
        folder = _fetch(config, run, stored[-1])
    return folder


def _check_alike(config: TrainingConfig, run: Run, step: int) -> None:
    """Refuse to go on, unasked, with a state in the store that another configuration has made.

    Where nothing of the run is on the disk, a new one may only be called like an old one.

    Raises:
        ConfigError: Something that decides is set otherwise than when the state was saved.
        CorruptObjectError: The state does not say how it was set.
    """
    try:
        before = json.loads(run.read_file(step, ckpt.CONFIG_FILE) or "{}")
    except ValueError as error:
        raise CorruptObjectError(
            f"{ckpt.CONFIG_FILE} of checkpoint {step} of the run {run.id!r} in {run.store.url} is damaged: {error}. "
            "Start over with --overwrite_output_dir, or give another --run_name"
        ) from error
    changed = _changed(config, before, config.model_dump().keys() - _NEVER_MIND - _ON_THE_WAY)
    is_another = bool(_changed(config, before, _IDENTITY))
    if not changed or (str(config.resume_from_checkpoint).lower() == "true" and not is_another):
        return
    go_on = "To go on from it with what is set otherwise now, say --resume_from_checkpoint true. "
    raise ConfigError(
        f"{run.store.url} has the state of step {step} of a run that is called {run.id} too, and nothing of it is in "
        f"{config.output_dir}. {'' if is_another else go_on}To begin another run, give another --run_name; to begin "
        "this one anew and remove that state, say --overwrite_output_dir.",
        changed,
    )


def _explicit_checkpoint(config: TrainingConfig) -> Path | None:
    """The checkpoint that ``resume_from_checkpoint`` names.

    Raises:
        ConfigError: It is not a complete one.
    """
    asked = config.resume_from_checkpoint
    if not isinstance(asked, str) or asked.lower() in {"true", "false"}:
        return None
    folder = Path(asked) if Path(asked).is_dir() else config.output_dir / asked
    if folder.resolve() not in ckpt.checkpoints(folder.resolve().parent):
        complete = ", ".join(found.name for found in ckpt.checkpoints(config.output_dir)) or "none"
        raise ConfigError(
            f"resume_from_checkpoint: {asked} is not a complete checkpoint.",
            [f"complete ones in {config.output_dir}: {complete}"],
        )
    return folder.resolve()


def _starts_over(config: TrainingConfig) -> bool:
    """Whether earlier checkpoints are not wanted."""
    go_on = str(config.resume_from_checkpoint).lower()
    return go_on == "false" or (config.overwrite_output_dir and go_on != "true")


def _fetch(config: TrainingConfig, run: Run, step: int) -> Path:
    target = config.output_dir / f"checkpoint-{step}"
    shutil.rmtree(target, ignore_errors=True)
    print(f"fetching the state of step {step} from {run.store.url}")
    with ckpt.room_for(target.name, config.output_dir, run.checkpoint(step).total_bytes):
        run.fetch_checkpoint(step, target)
    return target


def _go_back(config: TrainingConfig, run: Run, asked: Path) -> Path:
    """Make a named checkpoint the newest of its run: a later start must not take what came after it.

    On the disk later checkpoints are renamed, and beside one from elsewhere all, as they may be another run's; in the
    store later ones are deleted.
    """
    step = ckpt.checkpoint_step(asked)
    assert step is not None  # noqa: S101 - it is a complete checkpoint
    (config.output_dir / TRAINER_FILE).unlink(missing_ok=True)  # it may call the run finished
    here = config.output_dir / asked.name
    comes_from_elsewhere = here.resolve() != asked
    going = f"going on from {asked} at" if comes_from_elsewhere else "going back to"
    for folder in ckpt.checkpoints(config.output_dir):
        found = ckpt.checkpoint_step(folder) or 0
        if found > step or comes_from_elsewhere:
            aside = folder.with_name(folder.name + _ASIDE)
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            print(f"{going} step {step}: {folder} is now {aside.name}, which nothing needs any more")
    for deleted in run.clear(after=step - 1 if comes_from_elsewhere else step):
        print(f"{going} step {step}: the state of step {deleted} is removed from {run.store.url}")
    if comes_from_elsewhere:
        ckpt.write_checkpoint(
            config.output_dir, step, lambda folder: _copy(asked, folder), needed=_size(asked)
        )
    return here


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True, copy_function=shutil.copyfile)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _discard_checkpoints(output_dir: Path, run: Run) -> None:
    """Make a run begin at its beginning: nothing on the disk or in the store is left to go on from."""
    (output_dir / TRAINER_FILE).unlink(missing_ok=True)  # it would call the new run finished
    stale = ckpt.checkpoints(output_dir)
    for folder in stale:
        shutil.rmtree(folder)
    removed = {
        str(output_dir): [folder.name for folder in stale],
        run.store.url: [f"the state of step {step}" for step in run.clear()],
    }
    told = "; ".join(f"{', '.join(names)} from {place}" for place, names in removed.items() if names)
    if told:
        print(f"starting over: removed {told}")


def _configuration_of(folder: Path) -> dict[str, Any]:
    """With what a folder was written; nothing where it does not say."""
    path = folder / ckpt.CONFIG_FILE
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _changed(config: TrainingConfig, before: Mapping[str, Any], keys: Collection[str]) -> list[str]:
    """What is set otherwise than before, of these keys: a line each."""
    now = config.model_dump(mode="json")
    return [
        f"{key}: was {before[key]!r}, is {now[key]!r}"
        for key in now
        if key in keys and key in before and before[key] != now[key]
    ]


def check_same_run(config: TrainingConfig, folder: Path) -> None:
    """Refuse to go on with another run's checkpoint.

    Raises:
        ConfigError: Base, architecture, data or seed have changed since it was written.
    """
    changed = _changed(config, _configuration_of(folder), _IDENTITY)
    if changed:
        raise ConfigError(
            f"{folder} belongs to a run of another configuration. Name another --output_dir (with "
            "--model_name_or_path, a new run can start from this one's model), or start over with "
            "--overwrite_output_dir.",
            changed,
        )


# -- Several processes -----------------------------------------------------------------------------


def _on_main_process(accelerator: Accelerator, work: Callable[[], Result]) -> Result:
    """Do something on the main process alone; every process gets its result, or stops as it does."""
    outcome: list[Any] = [None, None]  # what came of it; or what to raise, and why
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except Exception as error:
            failure, outcome[1] = error, (same_failure(error), str(error))
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        kind, why = outcome[1]
        raise kind(f"stopped, as the main process did: {why}")
    result: Result = outcome[0]
    return result


def _fingerprint(folder: Path) -> str:
    """What tells a checkpoint from another of the same step; empty where there is none."""
    return digest_file(folder / ckpt.STATE_FILE).sha256 if ckpt.is_complete(folder) else ""


def _provide_everywhere(
    config: TrainingConfig, accelerator: Accelerator, store: Store, folder: Path, fingerprint: str
) -> None:
    """Have the main process's checkpoint on every process's disk, or stop on all of them."""
    failure: Exception | None = None
    # The main process's: this one's output folder may lie elsewhere.
    (run_id,) = broadcast_object_list([config.run_id])
    with accelerator.local_main_process_first():
        try:
            _provide(config, store, run_id, folder, fingerprint)
        except Exception as error:
            failure = error
    failures = [one for one in gather_object([failure and (same_failure(failure), str(failure))]) if one]
    if failure is not None:
        raise failure
    if failures:
        kind, why = failures[0]
        raise kind(f"stopped, as another process did: {why}")


def _provide(config: TrainingConfig, store: Store, run_id: str, folder: Path, fingerprint: str) -> None:
    """Have the main process's checkpoint on this process's disk; its machine's first process fetches it.

    Raises:
        UserError: It is neither on this disk nor in the store.
    """
    if _fingerprint(folder) == fingerprint:
        return
    step = ckpt.checkpoint_step(folder) or 0
    try:
        reader = Run(store, run_id, sequence=0)  # reads only; the main process has the lease
        _fetch(config, reader, step)
    except NotFoundError as error:
        raise UserError(
            f"the main process goes on from {folder}, which is neither on this machine's disk nor in "
            f"{store.url}: put output_dir on a disk that all machines share, or copy the folder here"
        ) from error
    if _fingerprint(folder) != fingerprint:
        raise UserError(
            f"{folder} in {store.url} is not the one that the main process goes on from: put output_dir on "
            "a disk that all machines share, or copy the folder here"
        )
