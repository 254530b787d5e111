"""What cleaning found, as one HTML page with players that needs nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from services.training.data.activity import Span
from services.training.data.cleaning import DROP, KEEP, TRIM, Decision, Limits, counts
from services.training.data.writing import REPORT_REMEDY, replace_file
from shared.errors import UserError
from shared.folders import writing
from shared.pages import sound_uri, template

#: Recordings that can be listened to: those to be left out first, then what is doubtful.
PLAYERS = 60
_REMEDY = "pip install 'vits-suite[train]', or --no-page"


def write_page(
    decisions: Sequence[Decision],
    path: Path,
    *,
    source: str,
    problems: Sequence[str],
    missing: Mapping[str, str],
    limits: Limits,
    table: Path,
    next_command: str,
    players: int = PLAYERS,
) -> None:
    """Write the page.

    Args:
        decisions: All of them.
        path: Where.
        source: The dataset.
        problems: Rows that cannot be used at all.
        missing: Judges that are not here, and why.
        limits: What the decisions were made by.
        table: The decisions as CSV.
        next_command: What to type when they are right.
        players: So many recordings can be listened to.

    Raises:
        MissingExtraError: jinja2 is not installed.
        UserError: It cannot be written there.
    """
    looked_at = sorted((d for d in decisions if d.reasons), key=_order)
    text = template(Path(__file__).with_name("clean_report.html"), _REMEDY).render(
        decisions=decisions, source=source, problems=problems, missing=missing, limits=vars(limits),
        table=table, next_command=next_command, counts=counts(decisions), shown=looked_at[:players],
        looked_at=len(looked_at), actions=Counter(d.action for d in decisions), names=(KEEP, TRIM, DROP),
        minutes={name: _minutes(decisions, name) for name in (KEEP, TRIM, DROP)}, player=_player,
        cut=_cut,
    )  # fmt: skip
    with writing(path.parent, REPORT_REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode())


def _order(decision: Decision) -> tuple[int, int, float]:
    """What goes, then what is doubtful, then what is merely trimmed."""
    doubtful = any(not reason.startswith("silence:") for reason in decision.reasons)
    return (decision.action != DROP, not doubtful, -(decision.examined.cer or 0.0))


def _minutes(decisions: Sequence[Decision], action: str) -> float:
    """What is left of the recordings of one kind; of those left out, how long they were."""
    return (
        sum(
            d.examined.seconds if d.action == DROP else d.end - d.start
            for d in decisions
            if d.action == action
        )
        / 60
    )


def _cut(decision: Decision) -> Span | None:
    """Where the ends are that are cut, as shares of the recording, for the bar under its player."""
    seconds = decision.examined.seconds
    return (decision.start / seconds, decision.end / seconds) if decision.action == TRIM and seconds else None


def _player(decision: Decision) -> str | None:
    """The recording as it is, as an address that holds it; None where it cannot be read."""
    try:
        audio = decision.examined.recording.audio()
    except UserError:
        return None
    return sound_uri(audio.samples, audio.sampling_rate)
