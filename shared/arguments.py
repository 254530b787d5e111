"""The command line of every subcommand that has options of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.addresses import why_no_path
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
            unknown = _unknown(args, known)
            if unknown:
                self.error("; ".join(f"unknown option {one}{nearest(one, known)}" for one in unknown))
        return super().parse_known_args(args, namespace)


def _on_this_machine(text: str) -> Path:
    if why := why_no_path(text):
        raise argparse.ArgumentTypeError(why)
    return Path(text)


def _unknown(args: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names of the long options in a command line that no known one begins with.

    An argument that holds a space is a text to argparse. Here it is an option with such a value if its name is like
    that of a known one.
    """
    before = args[: args.index("--")] if "--" in args else args
    words = [one.lstrip("-") for one in known]
    unknown = []
    for argument in before:
        name = argument.partition("=")[0]
        if not name.startswith("--") or any(one.startswith(name) for one in known):
            continue
        if " " not in argument or (" " not in name and nearest(name.lstrip("-"), words)):
            unknown.append(name)
    return list(dict.fromkeys(unknown))
