"""An inspection in words, for the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from statistics import median

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.training.data.inspection import RARE_RECORDINGS, Inspection, Measured
from shared.wording import counted

#: More suspects than this are counted, not listed.
MAX_LISTED = 40


def print_report(inspection: Inspection, console: Console) -> None:
    """Print all of it: splits, spreads, characters, suspects, and the rows that cannot be used.

    The console should wrap softly, since a sentence that is broken by hand cannot be searched for.
    """
    measured = inspection.measured
    hours = sum(one.seconds for one in measured) / 3600
    console.print(
        f"[bold]{escape(inspection.source)}[/bold]: {counted(len(measured), 'recording')}, "
        f"{hours:.2f} hours ({hours * 60:.1f} minutes), {_rates(measured)}"
    )
    if measured:
        console.print(_split_table(measured))
        console.print(_spread_table(measured))
    _print_characters(inspection, console)
    _print_suspects(inspection, console)
    if inspection.problems:
        console.print(f"\n[bold red]{counted(len(inspection.problems), 'row')} cannot be used[/bold red]")
        _print_list(inspection.problems, console)


def _rates(measured: Iterable[Measured]) -> str:
    """The speakers, where the dataset names them."""
    speakers = sorted({one.recording.speaker for one in measured if one.recording.speaker is not None})
    if not speakers:
        return "speakers not read"
    return f"{counted(len(speakers), 'speaker')} ({escape(', '.join(speakers[:8]))})"


def _split_table(measured: Sequence[Measured]) -> Table:
    table = Table("split", title="Splits", title_justify="left", box=None, pad_edge=False)
    for heading in ("recordings", "minutes", "share"):
        table.add_column(heading, justify="right")
    total = sum(one.seconds for one in measured)
    for split in dict.fromkeys(one.split for one in measured):
        inside = [one.seconds for one in measured if one.split == split]
        table.add_row(
            split, str(len(inside)), f"{sum(inside) / 60:.1f}", f"{100 * sum(inside) / total:.0f} %"
        )
    return table


def _spread_table(measured: Sequence[Measured]) -> Table:
    table = Table("spread", title="\nSpread", title_justify="left", box=None, pad_edge=False)
    for heading in ("least", "5 %", "median", "95 %", "most"):
        table.add_column(heading, justify="right")
    rows: list[tuple[str, Callable[[Measured], float]]] = [
        ("length (s)", lambda one: one.seconds),
        ("speech loudness (dBFS)", lambda one: one.loudness_dbfs),
        ("peak (of full scale)", lambda one: one.peak),
        ("silence before (s)", lambda one: one.leading_seconds),
        ("silence after (s)", lambda one: one.trailing_seconds),
        ("letters", lambda one: float(one.letters)),
        ("speaking rate (letters/s)", lambda one: one.speaking_rate),
    ]
    for name, of in rows:
        values = sorted(map(of, measured))
        low, high = values[round(0.05 * (len(values) - 1))], values[round(0.95 * (len(values) - 1))]
        table.add_row(name, *(f"{value:.2f}" for value in (values[0], low, median(values), high, values[-1])))
    return table


def _print_characters(inspection: Inspection, console: Console) -> None:
    """The characters the model lacks, or, without a model, all of them and the rare ones."""
    if inspection.unknown is not None:
        console.print("\n[bold]Characters or phonemes outside the model's vocabulary[/bold]")
        lacking = inspection.unknown.most_common()
        console.print("  none" if not lacking else "", end="\n" if not lacking else "")
        _print_list(
            [f"{_shown(c)} in {counted(count, 'recording')}: left unspoken" for c, count in lacking], console
        )
        return
    seen = inspection.characters
    console.print(
        f"\n[bold]{counted(len(seen), 'character')}[/bold] (--model DIR says which of them a model lacks)"
    )
    console.print("  " + escape("".join(sorted(c for c in seen if not c.isspace()))), soft_wrap=True)
    rare = [f"{_shown(c)} in {n}" for c, n in sorted(seen.items()) if n <= RARE_RECORDINGS]
    if rare:
        console.print(f"  rare, and so hardly learnt: {escape(', '.join(rare))}", soft_wrap=True)


def _shown(character: str) -> str:
    """A character so that it can be seen and looked up."""
    return f"{character!r} {unicodedata.name(character, 'unnamed') if len(character) == 1 else ''}".strip()


def _print_suspects(inspection: Inspection, console: Console) -> None:
    if not inspection.suspects:
        console.print("\n[bold green]No suspect rows[/bold green]")
        return
    console.print(f"\n[bold]{counted(len(inspection.suspects), 'suspect row')}[/bold]")
    _print_list([f"{one.row} ({one.id}) {one.reason}" for one in inspection.suspects], console)


def print_advice(advice: Sequence[str], console: Console) -> None:
    """Print what to do next; a command stands on a line of its own, to be copied."""
    console.print("\n[bold]Advice[/bold]")
    for line in advice:
        console.print(f"  - {escape(line)}", soft_wrap=True)


def _print_list(lines: Sequence[str], console: Console) -> None:
    for line in lines[:MAX_LISTED]:
        console.print(f"  - {escape(line)}", soft_wrap=True)
    if len(lines) > MAX_LISTED:
        console.print(f"  … and {len(lines) - MAX_LISTED} more")
