"""What a dataset says of itself: whose voice, under which licence, from where.

``dataset.json`` in a folder of recordings carries it; training copies it into the model's manifest, so that
an attribution that a licence asks for is never lost on the way.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from shared.errors import DataError

CARD_NAME = "dataset.json"


@dataclass(frozen=True)
class DatasetCard:
    """The contents of ``dataset.json``.

    Attributes:
        name: Short name, such as ``asterisk-es``.
        licence: SPDX identifier of the recordings' licence.
        sources: Where the recordings came from.
        attribution: The sentence that must travel with them, and with what is made of them.
        language: BCP 47 tag.
        fingerprint: SHA-256 of what the folder was made from; tells two editions apart.
        files: How many recordings the folder holds when it is complete.
        consent: How the speaker agreed to their voice being used.
    """

    name: str
    licence: str
    sources: tuple[str, ...] = ()
    attribution: str = ""
    language: str = ""
    fingerprint: str = ""
    files: int = 0
    consent: str = ""

    def write(self, folder: Path) -> None:
        """Write it into a dataset folder."""
        text = json.dumps({"schema_version": 1, **asdict(self)}, ensure_ascii=False, indent=2)
        (folder / CARD_NAME).write_text(text + "\n", encoding="utf-8")


def read_card(folder: Path) -> DatasetCard | None:
    """Read a dataset folder's card; None when it has none.

    Raises:
        DataError: The card is there and cannot be read.
    """
    path = folder / CARD_NAME
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return DatasetCard(
            name=str(found["name"]),
            licence=str(found["licence"]),
            sources=tuple(str(source) for source in found.get("sources", ())),
            attribution=str(found.get("attribution", "")),
            language=str(found.get("language", "")),
            fingerprint=str(found.get("fingerprint", "")),
            files=int(found.get("files", 0)),
            consent=str(found.get("consent", "")),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} cannot be read", [f"{error!r}: write the keys name and licence, or remove the file"]
        ) from error
