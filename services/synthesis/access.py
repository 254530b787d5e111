"""Who may speak, and how much: tokens, quotas of audio seconds, and the longest audio of one request.

A token is 256 random bits that the server draws itself, so its SHA-256 can be kept as it is: a slow hash such as
scrypt protects what people choose, by making guesses dear; nobody guesses 256 bits, and a slow hash would only
make every request dear. The file of tokens holds names, hashes and quotas::

    {"tokens": [{"name": "web", "sha256": "5e88…", "audio_seconds_per_hour": 3600}]}

It is read again when it changes, so a token can be made or taken back without a restart.

A quota is a bucket that fills evenly over the hour and is full at the start. What was spoken is taken out as it is
made; the bucket may go below zero, and then nothing new begins until it has filled up again. It is counted in
this process: a deployment of three pods lets through three times as much.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import os
import re
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import AccessError, ConfigError, QuotaError, RequestError

logger = logging.getLogger("vits.access")

#: What our tokens begin with, so that one that leaked is recognised.
PREFIX = "vits_"

HOUR = 3600.0

_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Token:
    """A line of the file of tokens.

    Attributes:
        name: Whose it is, for logs and metrics.
        sha256: The token's hash, in hexadecimal.
        audio_seconds_per_hour: Its quota; None for no limit.
    """

    name: str
    sha256: str
    audio_seconds_per_hour: float | None = None


class Caller:
    """One who may speak.

    Attributes:
        name: Of the token; empty where none is needed.
    """

    def __init__(
        self, name: str = "", *, audio_seconds_per_hour: float | None = None, clock: Callable[[], float]
    ) -> None:
        self.name = name
        self._quota = audio_seconds_per_hour
        self._clock = clock
        self._lock = threading.Lock()
        self._left = audio_seconds_per_hour or 0.0
        self._counted = clock()

    def charge(self, audio_seconds: float) -> None:
        """Count audio that was made for the caller."""
        if self._quota is not None:
            with self._lock:
                self._fill(self._quota)
                self._left -= audio_seconds

    def check_quota(self) -> None:
        """Refuse a caller that has used up its quota.

        Raises:
            QuotaError: It says when there will be some again.
        """
        if self._quota is None:
            return
        with self._lock:
            self._fill(self._quota)
            if self._left > 0:
                return
            # A second's worth, so that whoever comes back then is let in.
            wait = max(1.0, -self._left * HOUR / self._quota + 1.0)
        raise QuotaError(
            f"The quota of {self._quota:g} seconds of audio an hour is used up. Try again in {wait:.0f} s",
            retry_after_seconds=wait,
        )

    def _fill(self, quota: float) -> None:
        now = self._clock()
        self._left = min(quota, self._left + (now - self._counted) * quota / HOUR)
        self._counted = now


class Access:
    """Tells callers by their tokens.

    Args:
        path: The file of tokens; None lets everybody in.
        max_audio_seconds: The longest audio of one request.
        clock: Seconds, never backwards.

    Raises:
        ConfigError: The file cannot be used.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        max_audio_seconds: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_audio_seconds = max_audio_seconds
        self._path = path
        self._clock = clock
        self._everybody = Caller(clock=clock)
        self._callers: dict[Token, Caller] = {}
        self._read_at: tuple[int, int] | None = None
        if path:
            self._read(path)

    @property
    def needs_token(self) -> bool:
        """Whether callers need a token."""
        return self._path is not None

    def check(self, header: str | None, *, speaking: bool = True) -> Caller:
        """Tell who is calling.

        Args:
            header: The value of ``Authorization`` (HTTP) or ``authorization`` (gRPC): ``Bearer <token>``.
            speaking: Whether audio is asked for, so that the quota counts.

        Raises:
            AccessError: There is no token, or it is not one of ours.
            QuotaError: Its quota is used up.
        """
        if self._path is None:
            return self._everybody
        self._read_again(self._path)
        scheme, _, token = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise AccessError("A token is needed here: send it as 'Authorization: Bearer <token>'")
        digest = token_hash(token.strip())
        # All are compared, each in constant time, so that the time taken tells nothing.
        found = [known for known in self._callers if hmac.compare_digest(known.sha256, digest)]
        if not found:
            raise AccessError("The token is not valid here: ask whoever runs this server for one")
        caller = self._callers[found[0]]
        if speaking:
            caller.check_quota()
        return caller

    def _read_again(self, path: Path) -> None:
        try:
            if self._stamp(path) != self._read_at:
                self._read(path)
        except (ConfigError, OSError) as error:
            logger.error("the file of tokens changed and cannot be used; the old ones stay: %s", error)
            self._read_at = None

    def _read(self, path: Path) -> None:
        stamp = self._stamp(path) if path.exists() else None
        known = self._callers
        # A caller whose line is unchanged keeps what it has used.
        self._callers = {
            token: known.get(token)
            or Caller(token.name, audio_seconds_per_hour=token.audio_seconds_per_hour, clock=self._clock)
            for token in read_tokens(path)
        }
        self._read_at = stamp

    @staticmethod
    def _stamp(path: Path) -> tuple[int, int]:
        status = path.stat()
        return status.st_mtime_ns, status.st_size


class SpeakingLike(Protocol):
    """What is counted of an order that is being spoken."""

    sampling_rate: int

    def __aiter__(self) -> AsyncIterator[NDArray[np.float32]]:
        """float32 ``[S]`` each."""


async def metered(
    speaking: SpeakingLike, caller: Caller, max_audio_seconds: float
) -> AsyncIterator[NDArray[np.float32]]:
    """The samples of an order, charged to its caller as they are made.

    Raises:
        RequestError: The audio is longer than one request may have.
    """
    made = 0.0
    async for samples in speaking:
        seconds = len(samples) / speaking.sampling_rate
        made += seconds
        caller.charge(seconds)
        if made > max_audio_seconds:
            raise audio_too_long(max_audio_seconds)
        yield samples


def audio_too_long(max_audio_seconds: float, predicted: float | None = None) -> RequestError:
    """What is said of audio that is longer than one request may have, or will be."""
    found = "longer than" if predicted is None else f"about {predicted:.0f} s long, and longer than"
    return RequestError(
        f"The audio is {found} the {max_audio_seconds:g} s that one request may have: send the text in parts",
        param="text",
    )


def token_hash(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def read_tokens(path: Path) -> list[Token]:
    """Read a file of tokens.

    Raises:
        ConfigError: Lists everything that is wrong with it.
    """
    summary = f"The file of tokens {path} cannot be used:"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            summary, [f"it cannot be read as JSON ({error}); 'vits serve --new-token NAME' makes one"]
        ) from error
    lines = content.get("tokens") if isinstance(content, dict) else None
    if not isinstance(lines, list):
        raise ConfigError(summary, ['it must be an object with a list called "tokens"'])
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        problems += [f"token {number}: {problem}" for problem in _problems_of(line)]
    names = [line["name"] for line in lines if isinstance(line, dict) and "name" in line]
    problems += [
        f"two tokens are called {name!r}" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    if problems:
        raise ConfigError(summary, problems)
    return [Token(**line) for line in lines]


def _problems_of(line: Any) -> list[str]:
    if not isinstance(line, dict):
        return ["is not an object"]
    problems = []
    if not isinstance(line.get("name"), str) or not line["name"]:
        problems.append("name must be a text")
    if not isinstance(line.get("sha256"), str) or not _HASH.fullmatch(line["sha256"]):
        problems.append("sha256 must be 64 hexadecimal digits in lower case")
    quota = line.get("audio_seconds_per_hour")
    number = isinstance(quota, int | float) and not isinstance(quota, bool)
    if quota is not None and not (number and math.isfinite(quota) and quota > 0):
        problems.append("audio_seconds_per_hour must be a number above 0, or not be there")
    unknown = set(line) - {"name", "sha256", "audio_seconds_per_hour"}
    problems += [f"there is no field {name!r}" for name in sorted(unknown)]
    return problems


def add_token(path: Path, name: str, *, audio_seconds_per_hour: float | None = None) -> str:
    """Make a token, and write its hash into a file of tokens, which is made if need be.

    Returns:
        The token. It is nowhere kept.

    Raises:
        ConfigError: The file cannot be used, or has a token of that name.
    """
    tokens = read_tokens(path) if path.exists() else []
    if any(token.name == name for token in tokens):
        raise ConfigError(
            f"The file of tokens {path} cannot be used:",
            [f"it has a token called {name!r} already; take its line out first, or give another name"],
        )
    token = PREFIX + secrets.token_urlsafe(32)
    tokens.append(Token(name, token_hash(token), audio_seconds_per_hour))
    lines = [{key: value for key, value in vars(token).items() if value is not None} for token in tokens]
    whole = path.with_name(f".{path.name}.{os.getpid()}")
    whole.touch(mode=0o600)
    whole.write_text(json.dumps({"tokens": lines}, indent=2) + "\n", encoding="utf-8")
    whole.replace(path)
    return token
