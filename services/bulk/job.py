"""What is spoken and where it goes: addresses by content, shards, and the manifest.

::

    <output>/audio/<2 hex>/<62 hex>.flac     a text's audio, at the address that its content has
    <output>/shards/<64 hex>.jsonl           what became of some hundreds of rows, written when all of them are done
    <output>/manifest.jsonl                  all rows that were spoken, in the table's order
    <output>/bad_rows.jsonl                  those that could not be, with reasons
    <output>/summary.json                    voice, licence, counts; written last

An address is the hash of all that decides the samples: voice version, variant, text, parameters, format. Everything is
created only if it is absent, so two runs cannot write one thing twice, a killed run is gone on with, and a finished one
finds nothing to do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from services.bulk.rows import BadRow, Row
from shared.audio_encoding import FORMATS
from shared.errors import AlreadyExistsError
from shared.store import Store
from shared.voice.noise import SEED_LIMIT

MANIFEST_FILE, BAD_ROWS_FILE, SUMMARY_FILE = "manifest.jsonl", "bad_rows.jsonl", "summary.json"
#: Part of every address: another way to make samples of the same parameters is another address.
SCHEMA = 1


@dataclass(frozen=True)
class Job:
    """What every worker has to know. Can be sent to another machine.

    Attributes:
        store: URL of the store that holds the voice.
        output: URL of where the results go.
        voice: name/version.
        variant: Which of the voice's variants.
        format: Of the audio files.
        sampling_rate: Of the audio files, in Hz; the voice's own, or the format's next, where None.
        threads: Threads of a worker; every CPU where 0.
        streams: Computations at once in a worker; measured where 0.
    """

    store: str
    output: str
    voice: str
    variant: str
    format: str
    sampling_rate: int | None = None
    threads: int = 0
    streams: int = 0

    def address(self, row: Row) -> str:
        """The SHA-256, 64 hex digits, of everything that decides a row's audio."""
        said: dict[str, Any] = asdict(row)
        del said["number"], said["id"]
        said |= {
            "schema": SCHEMA,
            "voice": self.voice,
            "variant": self.variant,
            "format": self.format,
            "sampling_rate": self.sampling_rate,
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def seed(self, row: Row) -> int:
        """A row's seed: its own, or one that follows from its address."""
        return row.seed if row.seed is not None else int(self.address(row)[:16], 16) % SEED_LIMIT

    def audio_path(self, row: Row) -> str:
        """Where a row's audio is."""
        address = self.address(row)
        return f"audio/{address[:2]}/{address[2:]}.{FORMATS[self.format].extension}"


@dataclass(frozen=True)
class Shard:
    """Some rows that are done together.

    Attributes:
        job: What they are part of.
        rows: In the table's order.
    """

    job: Job
    rows: Sequence[Row | BadRow]

    @cached_property
    def key(self) -> str:
        """The hash of its rows: their ids and addresses."""
        said = [
            [row.id, row.reason if isinstance(row, BadRow) else self.job.address(row), row.number]
            for row in self.rows
        ]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    @property
    def path(self) -> str:
        """Where what became of it is written."""
        return f"shards/{self.key}.jsonl"


def shards(job: Job, rows: Iterable[Row | BadRow], size: int) -> Iterator[Shard]:
    """Rows in order, so many together; the second row of an id is a bad one."""
    seen: set[int] = set()
    held: list[Row | BadRow] = []
    for row in rows:
        # Eight bytes for an id: there may be millions of them.
        key = int.from_bytes(hashlib.blake2b(row.id.encode(), digest_size=8).digest(), "big")
        twice = key in seen
        seen.add(key)
        held.append(BadRow(row.number, row.id, "has an id that an earlier row has") if twice else row)
        if len(held) == size:
            yield Shard(job, tuple(held))
            held = []
    if held:
        yield Shard(job, tuple(held))


def create(store: Store, path: str, data: bytes) -> bool:
    """Create an object; False if it is there already."""
    try:
        store.create(path, data)
    except AlreadyExistsError:
        return False
    return True


def to_lines(records: Iterable[dict[str, Any]]) -> bytes:
    """JSON Lines."""
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def from_lines(data: bytes) -> list[dict[str, Any]]:
    """What `to_lines` wrote."""
    return [json.loads(line) for line in data.splitlines()]
