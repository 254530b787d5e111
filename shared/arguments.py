"""The command line of every subcommand that has options of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.errors import nearest


class Parser(argparse.ArgumentParser):
    """argparse's parser, which answers an option that it does not know with the nearest that it does.

    Such an option is named before anything else, since it may be the reason for what else is wrong: a misspelt one that
    is required is missing as well. Parsers of commands below a command are of this class too.

    A `Path` is one of this machine: an address such as ``s3://…`` is an error.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("type", Path, _on_this_machine)

    def parse_known_args(  # type: ignore[override]  # mypy finds no overload of argparse's that is this one
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """See ``argparse``; options that are not known are an error."""
        args = list(sys.argv[1:] if args is None else args)
        if self._subparsers is None:  # or else they may be those of a command below
            known = list(self._option_string_actions)
            unknown = [
                option for option in _options(args) if not any(one.startswith(option) for one in known)
            ]
            if unknown:
                self.error("; ".join(f"unknown option {one}{nearest(one, known)}" for one in unknown))
        return super().parse_known_args(args, namespace)


def _on_this_machine(text: str) -> Path:
    """A path. Of an address it would be a folder ``s3:`` here."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is an address; give a path on this machine")
    return Path(text)


def _options(args: Sequence[str]) -> list[str]:
    """The long options in a command line, without their values; argparse takes none that holds a space for one."""
    before = args[: args.index("--")] if "--" in args else args
    names = [argument.partition("=")[0] for argument in before if argument.startswith("--")]
    return [name for name in dict.fromkeys(names) if " " not in name]
