"""The store, and the hub."""

from __future__ import annotations

import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Iterator

from services.doctor.finding import Finding, fail, note, ok
from services.doctor.machine import can_train
from shared.errors import AlreadyExistsError, StoreError, UserError
from shared.store import Store

HUB = "https://huggingface.co"
HUB_SECONDS = 3.0
GO_ON = (
    "go on without it: give a folder as model_name_or_path and dataset_name, convert a voice that you have "
    "('vits convert'), or take models from a store ('vits models list')"
)


def store(url: str) -> Iterator[Finding]:
    """Whether a store answers, and creates an object only if it is absent: everything atomic stands on that."""
    try:
        opened = Store.open(url)
        if opened.root and not opened.root.exists():
            yield ok("store", f"{opened.url} is not there yet; the first write makes it")
            return
        opened.list("aliases")
    except (UserError, StoreError) as error:
        yield fail("store", str(error), "give another with --store or VITS_STORE, or mend what it says")
        return
    yield from _create_if_absent(opened)


def _create_if_absent(opened: Store) -> Iterator[Finding]:
    nonce = secrets.token_hex(8)
    path = f"doctor/{nonce}"
    try:
        opened.create(path, b"first " + nonce.encode())
    except StoreError as error:
        yield note(
            "store",
            f"it can be read and not written: {error}",
            "enough to speak; to train and export, mend that",
        )
        return
    try:
        opened.create(path, b"second " + nonce.encode())
        enforced = False
    except AlreadyExistsError:
        enforced = opened.read(path).startswith(b"first")
    except StoreError as error:
        yield fail("store", f"the second of two writers is not told that it is: {error}", _OTHER)
        return
    finally:
        left = _left_behind(opened, path)
    if enforced:
        yield ok("store", f"{opened.url} can be read and written, and creates only what is absent")
    else:
        yield fail("store", f"{opened.url} lets a second writer overwrite what the first has created", _OTHER)
    if left:
        yield note(
            "store",
            f"nothing can be deleted there: {left}. {path} stays",
            "enough to speak and to export; training deletes superfluous checkpoints, 'gc' and 'delete' need it too",
        )


def _left_behind(opened: Store, path: str) -> str:
    """Delete what was written here; gives the reason where that may not be."""
    try:
        opened.delete(path)
    except StoreError as error:
        return str(error)
    return ""


_OTHER = (
    "two publishers of one version would destroy each other's: use a server that enforces If-None-Match on PUT (AWS, "
    "GCS, Azure, SeaweedFS, current MinIO), or only one writer"
)


def hub() -> Iterator[Finding]:
    """Whether the model hub answers; asked once, and not waited for."""
    if not can_train():
        yield ok("hub", "not needed here: only what trains asks it, and torch is not installed")
        return
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        yield note("hub", "HF_HUB_OFFLINE is set, so it is not asked", GO_ON)
        return
    address = os.environ.get("HF_ENDPOINT", HUB)
    try:
        request = urllib.request.Request(address, method="HEAD")  # noqa: S310 - the user's own, or https
        urllib.request.urlopen(request, timeout=HUB_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError:
        pass  # an answer is an answer
    except (OSError, ValueError) as error:
        yield note("hub", f"{address} cannot be reached ({getattr(error, 'reason', error)})", GO_ON)
        return
    yield ok("hub", f"{address} answers")
