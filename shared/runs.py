"""The resumable state of a training run in the store: one owner at a time, and only complete checkpoints.

::

    runs/<run>/lease/<sequence>.json                         who owns the run; the highest sequence does
    runs/<run>/checkpoints/<step>/<lease sequence>/<files>   the state, as one owner wrote it
    runs/<run>/checkpoints/<step>/manifest.json              written last: the checkpoint exists

Files lie in a folder of their owner's own, so that a trainer that was taken over and does not know it yet
cannot spoil a checkpoint of its successor. Nothing here is ever unpickled: files go in and out as bytes.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from shared.cache import verify
from shared.errors import AlreadyExistsError, CorruptObjectError, LeaseLostError, NotFoundError, UserError
from shared.manifests import (
    Checkpoint,
    Lease,
    check_name,
    model_folder,
    new_nonce,
    now,
    parse,
    problems_of,
    this_writer,
)
from shared.registry import files_to_publish, upload_files
from shared.store import Store

#: The file of a state that says where its run stands; its schema is ``shared/schemas/training_state.json``.
TRAINER_FILE = "trainer_state.json"
#: The file of a state that holds its run's configuration.
CONFIG_FILE = "training_config.json"


@dataclass(frozen=True)
class Run:
    """A run that this process owns, until another acquires it.

    Attributes:
        store: Where it is kept.
        id: Its name.
        sequence: The number of this owner's lease.
    """

    store: Store
    id: str
    sequence: int

    @classmethod
    def acquire(cls, store: Store, run_id: str) -> Run:
        """Take a run over, or begin it. An owner that was there before finds out at its next write.

        Args:
            store: The store.
            run_id: The run's name.

        Raises:
            UserError: The name is malformed.
            StoreError: The store failed.
        """
        check_name(run_id, "run")
        found = (item.path.rpartition("/")[2] for item in store.list(f"runs/{run_id}/lease"))
        leases = [int(file[:10]) for file in found if re.fullmatch(r"[0-9]{10}\.json", file)]
        sequence = max(leases, default=0) + 1
        while True:
            lease = Lease(
                run=run_id, sequence=sequence, nonce=new_nonce(), writer=this_writer(), created=now()
            )
            try:
                store.create(_lease_path(run_id, sequence), lease.to_bytes(), nonce=lease.nonce)
            except AlreadyExistsError:
                sequence += 1
            else:
                return cls(store, run_id, sequence)

    @property
    def prefix(self) -> str:
        """The run's folder in the store."""
        return f"runs/{self.id}"

    def check(self) -> None:
        """Make sure that this process still owns the run: one small request.

        Raises:
            LeaseLostError: Another process has acquired it.
            StoreError: The store failed.
        """
        # Sequences have no gaps, so a newer lease is there exactly if the next one is.
        path = _lease_path(self.id, self.sequence + 1)
        try:
            lease = parse(Lease, self.store.read(path), self.store.address(path))
        except NotFoundError:
            return
        raise LeaseLostError(
            f"the run {self.id!r} in {self.store.url} was taken over by {lease.writer} at "
            f"{lease.created:%Y-%m-%d %H:%M:%S} UTC, so this process stops writing to it. "
            "Let one of the two go on, or give this one another run"
        )

    def save_checkpoint(self, step: int, folder: Path) -> Checkpoint:
        """Save a folder as the state after a step. It becomes visible at the very end, whole.

        A complete checkpoint of the step that is there stays as it is; a half-written one is replaced.

        Args:
            step: The optimiser's step, from 0.
            folder: The state's files. Hidden ones are left out.

        Raises:
            UserError: The folder is missing or empty.
            LeaseLostError: Another process has acquired the run.
            StoreError: The store failed.
        """
        self.check()
        if self.store.exists(self._manifest_path(step)):
            return self.checkpoint(step)
        entries = upload_files(self.store, self._files_prefix(step, self.sequence), files_to_publish(folder))
        self.check()
        checkpoint = Checkpoint(
            run=self.id, step=step, lease=self.sequence, nonce=new_nonce(), created=now(), files=entries
        )
        try:
            self.store.create(self._manifest_path(step), checkpoint.to_bytes(), nonce=checkpoint.nonce)
        except AlreadyExistsError:
            self.check()
            return self.checkpoint(step)
        return checkpoint

    def checkpoints(self) -> list[int]:
        """The steps with a complete checkpoint, in ascending order.

        Raises:
            StoreError: The store failed.
        """
        return sorted(step for step, paths in self._steps().items() if self._manifest_path(step) in paths)

    def checkpoint(self, step: int) -> Checkpoint:
        """What a complete checkpoint consists of.

        Raises:
            NotFoundError: There is no complete checkpoint of the step; the message lists those there are.
            CorruptObjectError: Its manifest is damaged.
            StoreError: The store failed.
        """
        path = self._manifest_path(step)
        try:
            return parse(Checkpoint, self.store.read(path), self.store.address(path))
        except NotFoundError as error:
            known = ", ".join(map(str, self.checkpoints())) or "none"
            raise NotFoundError(
                f"{self.store.url} has no complete checkpoint of step {step} of the run {self.id!r}. "
                f"Complete: {known}"
            ) from error

    def fetch_checkpoint(self, step: int, into: Path) -> None:
        """Copy a checkpoint into a local folder, which appears whole and verified or not at all.

        Args:
            step: The step; see `checkpoints`.
            into: The folder. It must not exist yet, or be empty.

        Raises:
            UserError: The folder is not empty.
            NotFoundError: There is no complete checkpoint of the step; the message lists those there are.
            CorruptObjectError: A file does not match the checkpoint's manifest.
            StoreError: The store failed.
            OSError: The folder cannot be written.
        """
        checkpoint = self.checkpoint(step)
        if into.exists() and (not into.is_dir() or any(into.iterdir())):
            raise UserError(f"{into} is in the way of checkpoint {step}: name a folder that is new or empty")
        into.parent.mkdir(parents=True, exist_ok=True)
        part = into.with_name(f".{into.name}.{secrets.token_hex(8)}.part")
        try:
            for entry in checkpoint.files:
                path = f"{self._files_prefix(step, checkpoint.lease)}/{entry.path}"
                try:
                    digest = self.store.download(path, part / entry.path)
                except NotFoundError as error:
                    raise CorruptObjectError(
                        f"{error}, though checkpoint {step} lists it. Use another checkpoint"
                    ) from error
                verify(entry, digest, self.store.address(path))
            part.replace(into)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def read_file(self, step: int, path: str) -> bytes | None:
        """Read one file of a checkpoint.

        Args:
            step: The step; see `checkpoints`.
            path: The file's path in the checkpoint's folder.

        Returns:
            Its contents; None where the checkpoint has no such file.

        Raises:
            NotFoundError: There is no complete checkpoint of the step, or not any more.
            CorruptObjectError: Its manifest is damaged.
            StoreError: The store failed.
        """
        checkpoint = self.checkpoint(step)
        if path not in {entry.path for entry in checkpoint.files}:
            return None
        return self.store.read(f"{self._files_prefix(step, checkpoint.lease)}/{path}")

    def prune(self, keep: int) -> None:
        """Delete all complete checkpoints but the newest, and half-written ones that are older than those.

        Args:
            keep: How many to keep, at least 1.

        Raises:
            LeaseLostError: Another process has acquired the run.
            StoreError: The store failed.
        """
        if keep < 1:
            raise ValueError("prune keeps at least one checkpoint")
        self.check()
        kept = self.checkpoints()[-keep:]
        for step, paths in self._steps().items():
            if kept and step < kept[0]:
                self._delete(step, paths)

    def clear(self, *, after: int = -1) -> list[int]:
        """Delete every checkpoint, complete or not, of later steps: the run begins at its beginning, or goes back.

        Args:
            after: The last step to keep; by default none is kept.

        Returns:
            The steps whose complete checkpoints were deleted.

        Raises:
            LeaseLostError: Another process has acquired the run.
            StoreError: The store failed.
        """
        self.check()
        later = {step: paths for step, paths in self._steps().items() if step > after}
        for step, paths in later.items():
            self._delete(step, paths)
        return sorted(step for step, paths in later.items() if self._manifest_path(step) in paths)

    def _delete(self, step: int, paths: Sequence[str]) -> None:
        """Delete a checkpoint's objects, the manifest first: what is half deleted does not exist."""
        for path in sorted(paths, key=lambda path: path != self._manifest_path(step)):
            self.store.delete(path)

    def _steps(self) -> dict[int, list[str]]:
        """Every object of every checkpoint, complete or not, by step."""
        steps: dict[int, list[str]] = {}
        for item in self.store.list(f"{self.prefix}/checkpoints"):
            folder = item.path.split("/")[3]
            if re.fullmatch(r"[0-9]{10}", folder):
                steps.setdefault(int(folder), []).append(item.path)
        return steps

    def _manifest_path(self, step: int) -> str:
        return f"{self.prefix}/checkpoints/{step:010d}/manifest.json"

    def _files_prefix(self, step: int, lease: int) -> str:
        return f"{self.prefix}/checkpoints/{step:010d}/{lease:010d}"


class _State(BaseModel):
    """What is read here of ``TRAINER_FILE``."""

    base: str | None = None
    global_step: int = 0
    max_steps: int = 0


class _Configuration(BaseModel):
    """What is read here of ``CONFIG_FILE``."""

    dataset_name: str | None = None


_Contents = TypeVar("_Contents", _State, _Configuration)


@dataclass(frozen=True)
class RunOrigin:
    """What a run is made of, as far as its newest state says.

    Attributes:
        base: The folder in the store of the version that it began from, which may be gone by now; None if that is in
            no store.
        dataset: Its recordings, as lineages name them.
    """

    base: str | None
    dataset: str | None


def origins(store: Store) -> dict[str, RunOrigin]:
    """What the runs are made of that have left anything in the store, by run.

    Raises:
        CorruptObjectError: A run's state cannot be read.
        StoreError: The store failed.
    """
    return {
        run.id: RunOrigin(
            base=model_folder(_newest(run, TRAINER_FILE, _State).base),
            dataset=_newest(run, CONFIG_FILE, _Configuration).dataset_name,
        )
        for run in _runs(store)
    }


def bases_of_unfinished(store: Store) -> dict[str, str]:
    """What unfinished runs began from, by run: the folders in the store of versions, which may be gone by now.

    Left out are runs that have saved nothing yet, and those that began from something that is in no store.

    Raises:
        CorruptObjectError: A run's state cannot be read, so that it is not known what it needs.
        StoreError: The store failed.
    """
    found = {}
    for run in _runs(store):
        state = _newest(run, TRAINER_FILE, _State)
        base = model_folder(state.base)
        if base and state.global_step < state.max_steps:
            found[run.id] = base
    return found


def _runs(store: Store) -> list[Run]:
    """All runs, only to be read."""
    ids = {item.path.split("/")[1] for item in store.list("runs")}
    return [Run(store, run_id, sequence=0) for run_id in sorted(ids)]


def _newest(run: Run, file: str, form: type[_Contents]) -> _Contents:
    """A file of the state that a run saved last; nothing where it has none."""
    while steps := run.checkpoints():
        try:
            return _contents(run, steps[-1], file, form)
        except NotFoundError as error:
            # Saves and prunes go on meanwhile, and these take the manifest first: then there is a newer one.
            if run.store.exists(run._manifest_path(steps[-1])):
                raise CorruptObjectError(
                    f"{error}, though checkpoint {steps[-1]} of the run {run.id!r} lists it. Remove this state, with "
                    "its manifest first"
                ) from error
    return form()


def _contents(run: Run, step: int, file: str, form: type[_Contents]) -> _Contents:
    found = run.read_file(step, file)
    try:
        return form() if found is None else form.model_validate_json(found)
    except ValidationError as error:
        path = f"{run._files_prefix(step, run.checkpoint(step).lease)}/{file}"
        raise CorruptObjectError(
            f"{run.store.address(path)} is damaged: {problems_of(error)}. Remove this state, with its manifest first"
        ) from error


def _lease_path(run_id: str, sequence: int) -> str:
    return f"runs/{run_id}/lease/{sequence:010d}.json"
