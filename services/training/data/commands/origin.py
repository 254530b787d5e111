"""Whose voice, under which licence, from where: asked for, so that it can travel with what is made of it."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from services.training.data.card import DatasetCard
from shared.errors import ConfigError
from shared.provenance import UNKNOWN_LICENCE

#: What each is asked with, on a terminal.
_QUESTIONS = {
    "licence": "Licence of the recordings (SPDX, such as CC-BY-4.0; 'private' for none): ",
    "source": "Where they come from (who recorded whom, where, when): ",
    "consent": "How the speaker agreed to their voice being cloned (such as 'signed form of 2026-11-02'): ",
}


def add_origin(parser: argparse.ArgumentParser) -> None:
    """The arguments that say where recordings come from."""
    group = parser.add_argument_group(
        "where they come from",
        "Goes into dataset.json, and from there into every model, voice and model card that is made of them. What is "
        "left out is asked for on a terminal.",
    )
    group.add_argument("--licence", help="of the recordings, such as CC-BY-4.0, or 'private'")
    # A dest of its own: in some commands the positional argument is called source.
    group.add_argument("--source", dest="origin", metavar="TEXT", help="who recorded whom, where and when")
    group.add_argument("--consent", help="how the speaker agreed to their voice being cloned")
    group.add_argument("--attribution", help="the sentence that the licence wants to travel with them")


def settled(options: argparse.Namespace, known: DatasetCard, *, required: bool) -> DatasetCard:
    """A card with what the options say over what is known, and the rest asked for where somebody can answer.

    Args:
        options: Of the command.
        known: What is known already.
        required: Whether what is still missing is an error, or only warned of.

    Raises:
        ConfigError: Something that is required is missing and nobody can be asked.
    """
    answers = {
        "licence": options.licence or ("" if known.licence == UNKNOWN_LICENCE else known.licence),
        "source": options.origin or "; ".join(known.sources),
        "consent": options.consent or known.consent,
    }
    open_ = [name for name, answer in answers.items() if not answer]
    if open_ and sys.stdin.isatty() and sys.stderr.isatty():
        for name in open_:
            print(_QUESTIONS[name], end="", file=sys.stderr, flush=True)
            answers[name] = sys.stdin.readline().strip()
        open_ = [name for name, answer in answers.items() if not answer]
    if open_ and required:
        raise ConfigError(
            "Say where the recordings come from, because every voice that is made of them has to:",
            [f"--{name}: {_QUESTIONS[name].rstrip(': ')}" for name in open_],
        )
    if open_:
        print(
            f"Note: {' and '.join(open_)} of the recordings {'is' if len(open_) == 1 else 'are'} not known; "
            f"{', '.join(f'--{name}' for name in open_)} would say it to everybody who gets a voice made of them",
            file=sys.stderr,
        )
    # What was only joined for showing stays the list that it was.
    sources = (
        (options.origin,) if options.origin else known.sources or tuple(filter(None, (answers["source"],)))
    )
    return replace(
        known,
        licence=answers["licence"] or UNKNOWN_LICENCE,
        sources=sources,
        consent=answers["consent"],
        attribution=options.attribution or known.attribution,
    )
