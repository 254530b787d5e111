"""Where a model or a dataset comes from, and what may be done with it.

It travels as ``provenance.json`` beside the files, from data and base model to the trained model, and
from there into every manifest.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.errors import ModelError

PROVENANCE_FILE = "provenance.json"
UNKNOWN_LICENCE = "unknown"


class Provenance(BaseModel):
    """Licence, sources and the speaker's consent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    licence: str = UNKNOWN_LICENCE
    """An SPDX expression where one fits, or a sentence; several sources are joined by ``AND``."""
    sources: tuple[str, ...] = ()
    """What it was made from, with the attribution that a licence asks for."""
    consent: str | None = None
    """How the speaker agreed to their voice being used, where that is known."""

    def joined(self, other: Provenance) -> Provenance:
        """What is made from both: all licences, all sources, and every consent."""
        licences = list(dict.fromkeys([*self.licence.split(" AND "), *other.licence.split(" AND ")]))
        known = [licence for licence in licences if licence != UNKNOWN_LICENCE]
        consents = list(dict.fromkeys(filter(None, [self.consent, other.consent])))
        return Provenance(
            licence=" AND ".join(known + [UNKNOWN_LICENCE] * (len(known) < len(licences))),
            sources=tuple(dict.fromkeys([*self.sources, *other.sources])),
            consent="; ".join(consents) or None,
        )

    def write(self, folder: Path) -> None:
        """Write ``provenance.json`` into a folder."""
        (folder / PROVENANCE_FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Provenance:
        """Read a folder's ``provenance.json``; unknown where it has none.

        Raises:
            ModelError: The file is there and is not of this form.
        """
        path = folder / PROVENANCE_FILE
        if not path.is_file():
            return cls()
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            raise ModelError(f"{path} is not a provenance file: {error}") from error
