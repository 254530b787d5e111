"""Every error that the suite raises on purpose.

::

    VitsError
    ├── UserError                  the caller can mend it: the message says what, where and what to do
    │   ├── ProblemsError          carries everything that is wrong at once
    │   │   ├── ConfigError        a configuration
    │   │   ├── DataError          a dataset, with every bad row
    │   │   └── DivergenceError    a training whose losses are no longer numbers
    │   ├── TextError              a text that cannot be spoken
    │   ├── RequestError           a request that is not of the published form
    │   ├── SlowReaderError        a client that does not read what it asked for
    │   ├── AccessError            no token, or one that is not valid
    │   ├── NotFoundError          no such model, voice, version or alias
    │   ├── ConsentError           made of what a speaker has withdrawn consent for
    │   ├── HubUnreachableError    a model hub could not be reached
    │   ├── MissingExtraError      an optional dependency is not installed
    │   └── ModelError             a model folder or file that cannot be used
    ├── StoreError                 the object store failed or answered nonsense
    │   ├── AlreadyExistsError     a conditional write lost the race
    │   ├── CorruptObjectError     bytes that do not match their manifest
    │   └── LeaseLostError         another process has taken over the run
    ├── QualityError               a measured result is below its bar, so its subject is not published
    ├── EngineError                an inference engine failed
    ├── OverloadedError            admission refused: come back later
    │   ├── QuotaError             the caller has used up its own quota
    │   └── StoppingError          the server is about to stop: another one may be there already
    └── DeadlineError              the caller's own deadline passed before it could be answered

Each transport (command line, HTTP, gRPC) translates the tree once, in one table of its own; a class
without a row in one of them fails the tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any


class VitsError(Exception):
    """Base of every error that the suite raises on purpose."""


class UserError(VitsError):
    """Something that the caller can mend. The message says what was wrong, where, and what to do."""


class ProblemsError(UserError):
    """A user's error that reports everything wrong at once, one problem a line.

    Attributes:
        problems: One sentence for each thing that is wrong.
    """

    def __init__(self, summary: str, problems: Iterable[str]) -> None:
        self.summary = summary
        self.problems: tuple[str, ...] = tuple(problems)
        super().__init__("\n".join([summary, *(f"  - {problem}" for problem in self.problems)]))

    def __reduce__(self) -> tuple[Any, ...]:
        """How it comes out of another process."""
        return type(self), (self.summary, self.problems)


class ConfigError(ProblemsError):
    """A configuration that cannot be used, with all its problems."""


class DataError(ProblemsError):
    """A dataset that cannot be used, with every bad row."""


class DivergenceError(ProblemsError):
    """A training whose losses are no longer numbers, with all of those."""


class TextError(UserError):
    """A text that cannot be spoken by the voice that was asked for."""


class RequestError(UserError):
    """A request that is not of the published form.

    Attributes:
        param: The field at fault, where one is.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        self.param = param
        super().__init__(message)


class SlowReaderError(UserError):
    """A client that has read nothing for too long of what it asked for."""


class AccessError(UserError):
    """A caller without a token, or with one that is not valid."""


class NotFoundError(UserError):
    """No such model, voice, version or alias."""


class ConsentError(UserError):
    """Made of recordings whose speaker has withdrawn consent, so that it must not be published."""


class HubUnreachableError(UserError):
    """A model hub could not be reached, and nothing local stands in for it."""


class MissingExtraError(UserError):
    """An optional dependency is not installed."""


class ModelError(UserError):
    """A model folder or file that cannot be used."""


class StoreError(VitsError):
    """The object store failed or answered something that makes no sense."""


class AlreadyExistsError(StoreError):
    """A create-if-absent write found the object there already."""


class CorruptObjectError(StoreError):
    """Bytes that do not match the manifest that lists them."""


class LeaseLostError(StoreError):
    """Another process has taken over the run that this one was writing."""


class QualityError(VitsError):
    """A measured result is below its bar, so its subject is not published."""


class EngineError(VitsError):
    """An inference engine failed."""


class OverloadedError(VitsError):
    """Admission refused: the backlog is longer than its limit.

    Attributes:
        retry_after_seconds: When the backlog is predicted to have drained.
    """

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(message)


class QuotaError(OverloadedError):
    """A caller has used up its own quota; others may have some left."""


class StoppingError(OverloadedError):
    """The server is about to stop and takes nothing more; another one may be there already."""


class DeadlineError(VitsError):
    """The deadline that a caller set passed before it could be answered."""


def nearest(word: str, known: Sequence[str]) -> str:
    """Say which known word a misspelt one is nearest to: ``", did you mean 'x'?"``, or nothing."""
    matches = get_close_matches(word, known, n=1)
    return f", did you mean {matches[0]!r}?" if matches else ""


def nearest_beside(path: Path) -> str:
    """The same for a path that is not there, of what lies in its folder."""
    try:
        names = [one.name for one in path.parent.iterdir() if not one.name.startswith(".")]
    except OSError:
        return ""
    matches = get_close_matches(path.name, names, n=1)
    return f", did you mean '{path.with_name(matches[0])}'?" if matches else ""
