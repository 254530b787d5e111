"""Writing a run's models: into its folder, into the store, and to the hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import save_file
from torch.optim import Optimizer

from services.training import checkpoints as ckpt
from services.training.config import SECRETS, TrainingConfig
from services.training.session import Session
from services.training.tracking import Tracker
from shared.errors import HubUnreachableError
from shared.modeling import save_model
from shared.modeling.loading import DISCRIMINATOR_FILE
from shared.registry import Registry

#: How many complete checkpoints of a run are kept in the store, for resuming.
_STORED_CHECKPOINTS = 2


def _write_model(session: Session, folder: Path) -> None:
    """The loadable model with everything that belongs to it."""
    still_new = session.base.untrained if session.step < session.plan.warm_up else ()
    session.generator.config.untrained_modules = list(still_new)
    save_model(session.generator, folder, companions=session.base.folder)
    session.base.front_end.save(folder)
    save_file(session.discriminator.folded_state_dict(), folder / DISCRIMINATOR_FILE)
    session.provenance.write(folder)
    if session.base.speakers:
        (folder / "speakers.json").write_text(json.dumps(session.base.speakers, indent=2), encoding="utf-8")
    (folder / ckpt.CONFIG_FILE).write_text(
        session.config.model_dump_json(indent=2, exclude=set(SECRETS)) + "\n", encoding="utf-8"
    )


def save_checkpoint(session: Session, tracker: Tracker, optimizers: Sequence[Optimizer]) -> None:
    """Write ``checkpoint-N``, save it as the run's state, and publish its model."""
    if session.accelerator.is_main_process:
        config, run = session.config, session.run
        assert run is not None  # noqa: S101 - the main process has the lease
        run.check()

        def write(folder: Path) -> None:
            _write_model(session, folder)
            state = {
                "generator": session.generator.state_dict(),
                "discriminator": session.discriminator.state_dict(),
                # At the very end of a stage its optimisers are done with.
                "optimizers": None
                if session.step == session.plan.warm_up
                else [optimizer.state_dict() for optimizer in optimizers],
            }
            torch.save(state, folder / ckpt.STATE_FILE)
            session.state.write(folder)

        folder = ckpt.write_checkpoint(config.output_dir, session.step, write)
        ckpt.prune(config.output_dir, config.save_total_limit)
        run.save_checkpoint(session.step, folder)
        run.prune(_STORED_CHECKPOINTS)
        version = _publish(session, folder)
        tracker.say(f"step {session.step}: saved {folder}, published {version}")
    session.accelerator.wait_for_everyone()


def _publish(session: Session, folder: Path) -> str:
    """Publish a model folder, without the run's private files; its version."""
    config = session.config
    public = config.output_dir / ".publish.partial"
    shutil.rmtree(public, ignore_errors=True)
    ckpt.copy_public_files(folder, public)
    version = Registry(session.store).publish(
        "models",
        config.published_name,
        public,
        licence=session.provenance.licence,
        sources=list(session.provenance.sources),
        consent=session.provenance.consent,
        lineage={
            "base": config.model_name_or_path,
            "dataset": str(config.dataset_name),
            "run": config.run_id,
            "step": session.step,
        },
    )
    shutil.rmtree(public)
    return version.id


def finish(session: Session, tracker: Tracker) -> None:
    """Write the final model into the output folder, publish it, and move its alias."""
    if not session.accelerator.is_main_process:
        return
    config = session.config
    if session.run:
        session.run.check()
    final = config.output_dir / "final.partial"
    shutil.rmtree(final, ignore_errors=True)
    _write_model(session, final)
    version = _publish(session, final)
    for file in sorted(final.iterdir()):
        file.replace(config.output_dir / file.name)
    final.rmdir()
    Registry(session.store).move_alias("models", config.published_name, config.alias, version)
    session.state.finished = True
    session.state.write(config.output_dir)  # last: it says that the folder is a finished model
    tracker.say(
        f"done: the model is in {config.output_dir}, and in {session.store.url} as "
        f"{config.published_name}@{config.alias} ({version})"
    )
    if config.push_to_hub:
        _push_to_hub(config, tracker)


def _push_to_hub(config: TrainingConfig, tracker: Tracker) -> None:
    """Upload the final model to the Hugging Face hub.

    Raises:
        HubUnreachableError: It could not be reached; the model is safe where it is.
    """
    api = HfApi(token=config.hub_token or config.token)
    try:
        repository = api.create_repo(str(config.hub_model_id), private=config.hub_private_repo, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=config.output_dir,
            ignore_patterns=["checkpoint-*", "runs/*", "*.partial", ckpt.TRAINER_FILE],
        )
    except (OSError, HfHubHTTPError) as error:
        raise HubUnreachableError(
            f"The model is complete in {config.output_dir} and in the store, but could not be pushed to the hub as "
            f"{config.hub_model_id}: {error}"
        ) from error
    tracker.say(f"pushed to the hub as {repository.repo_id}")
