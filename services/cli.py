"""The one console command, ``vits``.

Each subcommand is one module with ``main(argv) -> exit code``, imported only when it is asked for, so
that each works with its own extra alone and ``vits --help`` is instant.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from shared.errors import (
    DeadlineError,
    EngineError,
    HubUnreachableError,
    MissingExtraError,
    OverloadedError,
    QualityError,
    StoreError,
    UserError,
    VitsError,
    nearest,
)


@dataclass(frozen=True)
class Subcommand:
    """One subcommand: where its ``main`` is, the extra it needs, and its line in ``vits --help``."""

    module: str
    extra: str
    help: str


SUBCOMMANDS: dict[str, Subcommand] = {
    "data": Subcommand(
        "services.data", "train", "record, prepare, review, inspect, clean and share recordings"
    ),
    "convert": Subcommand(
        "services.convert", "export", "turn another project's voice or checkpoint into a model"
    ),
    "train": Subcommand("services.training.cli", "train", "fine-tune a model on one person's recordings"),
    "tune": Subcommand("services.training.tuning.cli", "tune", "find a training's settings"),
    "export": Subcommand("services.export.cli", "export", "turn a trained model into a voice that runs fast"),
    "evaluate": Subcommand("services.evaluate", "judges", "score a voice, a model or recordings"),
    "say": Subcommand("services.say", "serve", "speak one text into a file"),
    "serve": Subcommand("services.synthesis.cli", "serve", "serve voices over HTTP and gRPC"),
    "synthesize": Subcommand(
        "services.bulk.cli", "serve", "speak a table of texts, of any length, into a store"
    ),
    "plan": Subcommand("services.planning.cli", "serve", "say how many pods a load needs, by simulation"),
    "doctor": Subcommand(
        "services.doctor.cli", "", "look at this machine, a store or a configuration; say what to do"
    ),
    "models": Subcommand(
        "services.store_cli", "", "list, promote, copy, verify and delete the models of a store"
    ),
    "voices": Subcommand(
        "services.store_cli", "", "list, promote, copy, verify and delete the voices of a store"
    ),
}

#: No library may report home from any of our commands; they read this when they are imported.
NO_REPORTING = {"BENTOML_DO_NOT_TRACK": "True", "HF_HUB_DISABLE_TELEMETRY": "1", "ORT_DISABLE_TELEMETRY": "1"}

#: What the process answers its shell with; the first class that fits wins.
EXIT_CODES: dict[type[VitsError], int] = {
    HubUnreachableError: 8,  # not 2: a Job is to try again
    UserError: 2,
    QualityError: 3,
    StoreError: 4,
    EngineError: 5,
    OverloadedError: 6,
    DeadlineError: 7,
    VitsError: 1,
}


def usage() -> str:
    """The text of ``vits --help``."""
    width = max(map(len, SUBCOMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {command.help}" for name, command in SUBCOMMANDS.items())
    return (
        "usage: vits SUBCOMMAND [--help] [...]\n\n"
        "Fine-tune VITS and MMS text-to-speech on a few minutes of speech, export it, and serve it.\n\n"
        f"{rows}\n\n"
        "'vits SUBCOMMAND --help' teaches each of them."
    )


def run(name: str, argv: Sequence[str]) -> int:
    """Import one subcommand and run it.

    Raises:
        MissingExtraError: A library that it needs, at once or on its way, is not installed.
    """
    command = SUBCOMMANDS[name]
    try:
        subcommand = cast("Callable[[Sequence[str]], int]", importlib.import_module(command.module).main)
        return subcommand(argv)
    except ModuleNotFoundError as error:
        root = (error.name or "").partition(".")[0]
        if root in {"services", "shared", "monotonic_align"} or not command.extra:
            raise
        raise MissingExtraError(
            f"'vits {name}' needs the package {root!r}, which is not installed. "
            f"Install its extra: pip install 'vits-suite[{command.extra}]'"
        ) from error


def exit_code(error: VitsError) -> int:
    """The exit code that an error ends the process with."""
    return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and translate its errors into an exit code."""
    os.environ.update(NO_REPORTING)
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    try:
        if name not in SUBCOMMANDS:
            raise UserError(
                f"vits has no subcommand {name!r}{nearest(name, list(SUBCOMMANDS))}\n'vits --help' lists them all."
            )
        if name in {"models", "voices"}:
            rest = [name, *rest]
        return run(name, rest)
    except VitsError as error:
        print(f"vits {name}: {error}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        print(f"\nvits {name}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141


if __name__ == "__main__":
    sys.exit(main())
