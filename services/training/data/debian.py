"""Files out of Debian packages, without root and without installing anything."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import UserError

#: A package index is some tens of megabytes; a stalled mirror must not stall us for ever.
APT_TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Package:
    """A package as it was when its contents were reviewed.

    Attributes:
        name: Its Debian name.
        version: The version that was reviewed.
        sha256: Of Debian's own ``.deb``. Ubuntu builds the same source anew, with another.
    """

    name: str
    version: str
    sha256: str


def unpack(
    packages: Sequence[Package], work: Path, *, downloaded: Sequence[Path] = ()
) -> tuple[Path, list[str]]:
    """Get packages, from apt or from ``.deb`` files at hand, and unpack them all into one tree.

    Args:
        packages: What to get.
        work: An empty folder to work in.
        downloaded: Folders that hold the ``.deb`` files, or such files; empty to ask apt.

    Returns:
        The tree's root, and a remark for each package that is not byte for byte the reviewed one.

    Raises:
        UserError: No apt or dpkg here, no such package, or a file that is no package.
    """
    work = work.resolve()  # the programs below run in it, where a relative path would mean another place
    tree = work / "tree"
    remarks: list[str] = []
    _need("dpkg-deb", "it comes with Debian and Ubuntu; elsewhere install the package 'dpkg'")
    debs = _find(packages, downloaded) if downloaded else _download(packages, work)
    for package, deb in zip(packages, debs, strict=True):
        if hashlib.sha256(deb.read_bytes()).hexdigest() != package.sha256:
            remarks.append(f"{deb.name} is not Debian's {package.name} {package.version}")
        result = _run(["dpkg-deb", "-x", str(deb.resolve()), str(tree)], work)
        if result.returncode != 0:
            raise UserError(f"{deb} cannot be unpacked: download it again ({result.stderr.strip()})")
    return tree, remarks


def _find(packages: Sequence[Package], places: Sequence[Path]) -> list[Path]:
    """The packages among files and folders that the user named."""
    files = [
        file for place in places for file in ([place] if place.is_file() else sorted(place.glob("*.deb")))
    ]
    found = {
        package.name: [f for f in files if f.name.startswith(f"{package.name}_")] for package in packages
    }
    missing = [f"{name}_*.deb" for name, candidates in found.items() if not candidates]
    if missing:
        raise UserError(
            f"no {' and no '.join(missing)} in {', '.join(map(str, places))}: download them with "
            f"'apt-get download {' '.join(found)}' on a Debian or Ubuntu machine, or from https://packages.debian.org"
        )
    return [candidates[-1] for candidates in found.values()]


def _download(packages: Sequence[Package], work: Path) -> list[Path]:
    """Ask apt for the packages; with package lists of our own when the machine has none."""
    names = [package.name for package in packages]
    _need(
        "apt-get",
        f"on a Debian or Ubuntu machine run 'apt-get download {' '.join(names)}' "
        "and give the folder with the two files: --from FOLDER",
    )
    folder = work / "packages"
    folder.mkdir()
    # Root would otherwise download as the user _apt, who may not write here.
    options = ["-q", "-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else ["-q"]
    first = _run(["apt-get", *options, "download", *names], folder)
    if first.returncode != 0:
        own = _own_lists(work)
        update = _run(["apt-get", *options, *own, "update"], folder)
        second = _run(["apt-get", *options, *own, "download", *names], folder)
        if second.returncode != 0:
            said = "\n".join(
                text.strip() for text in (first.stderr, update.stderr, second.stderr) if text.strip()
            )
            raise UserError(
                f"apt-get could not download {' and '.join(names)}. On Ubuntu, enable 'universe'; "
                f"without a network, fetch the files elsewhere and give their folder: --from FOLDER.\n"
                f"apt-get said:\n{said}"
            )
    return _find(packages, [folder])


def _own_lists(work: Path) -> list[str]:
    """Options that make apt keep its package lists in ``work``, so that updating them needs no root."""
    state, cache = work / "apt-state", work / "apt-cache"
    (state / "lists" / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    return ["-o", f"Dir::State={state}", "-o", f"Dir::Cache={cache}", "-o", "Acquire::Languages=none"]


def _need(program: str, remedy: str) -> None:
    if shutil.which(program) is None:
        raise UserError(f"the program {program!r} is not here: {remedy}")


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(  # noqa: S603 - the programs and their arguments are ours
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False,
            timeout=APT_TIMEOUT_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"'{' '.join(command)}' did not end within {APT_TIMEOUT_SECONDS} s: check the network"
        ) from error
