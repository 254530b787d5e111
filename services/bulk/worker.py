"""A worker speaks shards: on the server's own runtime, with as many texts in flight as keep every stream busy."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from services.bulk.job import Job, Shard, create, to_lines
from services.bulk.rows import BadRow, Row
from shared.audio import Samples, read_audio
from shared.audio_encoding import encode, next_rate
from shared.cache import default_cache
from shared.errors import NotFoundError, RequestError, TextError
from shared.metrics import Metrics
from shared.registry import Registry
from shared.store import Store
from shared.voice import Plan, SpeechParameters, Voice
from shared.voice.layout import Opening
from shared.voice.runtime import Piece, Runtime
from shared.voice.scheduler import Policy

#: Texts in flight for each stream, so that no stream ever waits for the next text.
IN_FLIGHT = 4
#: Texts that are packed and written at the same time.
WRITERS = 4

Record = dict[str, Any]


class _Reader:
    """Collects what is heard of one text."""

    def __init__(self, done: Callable[[list[Samples], Exception | None], None]) -> None:
        self._pieces: list[Samples] = []
        self._done = done

    def heard(self, piece: Piece) -> None:
        self._pieces.append(piece.samples)

    def ended(self, error: Exception | None) -> None:
        self._done(self._pieces, error)


class Worker:
    """Speaks shards of one job, in this process. Close it.

    Args:
        job: What is spoken.

    Raises:
        VitsError: The voice cannot be found or opened, or a store cannot be reached.
    """

    def __init__(self, job: Job) -> None:
        from prometheus_client import CollectorRegistry

        self._job = job
        self._output = Store.open(job.output)
        registry = Registry(Store.open(job.store))
        opened: list[int] = []
        opening = Opening(
            variant=job.variant,
            threads=job.threads,
            streams=job.streams,
            max_call_seconds=float("inf"),  # nobody waits for a first window
            tell=opened.append,
            memory=default_cache() / "bulk",
        )
        self._voice: Voice = opening(registry.fetch(registry.resolve("voices", job.voice)))
        self._voice.warm_up()
        policy = Policy(
            streams=opened[0],
            max_backlog_seconds=float("inf"),
            max_bulk_backlog_seconds=float("inf"),
            buffer_seconds=float("inf"),
        )
        self._runtime = Runtime(policy, Metrics(CollectorRegistry()))
        self._room = threading.Semaphore(IN_FLIGHT * opened[0])
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="writer")

    def close(self) -> None:
        """Stop; what is being computed is waited for."""
        self._runtime.close()
        self._writers.shutdown(cancel_futures=True)
        self._voice.close()

    def speak(self, shard: Shard, tell: Callable[[Record], None] = lambda record: None) -> list[Record]:
        """Speak what is missing of a shard, and write down what became of it.

        Args:
            shard: The rows.
            tell: Called with each row's record as soon as it is known.

        Returns:
            A record for each row. A row that cannot be spoken has an ``error``.

        Raises:
            EngineError: The computation failed.
            StoreError: The output cannot be written.
        """
        records: list[Record | None] = [None] * len(shard.rows)
        arrived: queue.SimpleQueue[tuple[int, Record | Exception]] = queue.SimpleQueue()
        #: Rows that say the same thing in the same way have one file, made once.
        first: dict[str, int] = {}
        doubles: list[tuple[int, int]] = []
        waiting = 0
        for index, row in enumerate(shard.rows):
            if isinstance(row, BadRow):
                records[index] = _bad(row)
                tell(_bad(row))
                continue
            address = self._job.address(row)
            if address in first:
                doubles.append((index, first[address]))
                continue
            first[address] = index
            self._begin(row, lambda record, index=index: arrived.put((index, record)))  # type: ignore[misc]
            waiting += 1
            while not arrived.empty():
                waiting -= self._note(records, arrived, tell)
        while waiting:
            waiting -= self._note(records, arrived, tell)
        for index, other in doubles:
            row, same = shard.rows[index], records[other]
            records[index] = {**(same or {}), "id": row.id, "row": row.number, "made": False}
            tell(records[index] or {})
        done = [record for record in records if record is not None]
        kept = [{name: value for name, value in record.items() if name != "made"} for record in done]
        create(self._output, shard.path, to_lines(kept))
        return done

    @staticmethod
    def _note(
        records: list[Record | None],
        arrived: queue.SimpleQueue[tuple[int, Record | Exception]],
        tell: Callable[[Record], None],
    ) -> int:
        index, record = arrived.get()
        if isinstance(record, Exception):
            raise record
        records[index] = record
        tell(record)
        return 1

    def _begin(self, row: Row, done: Callable[[Record | Exception], None]) -> None:
        """Take a row in hand, when there is room."""
        self._room.acquire()
        looking = self._writers.submit(self._look, row, done)
        looking.add_done_callback(lambda future: self._looked(future, done))

    def _looked(self, future: Future[None], done: Callable[[Record | Exception], None]) -> None:
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self._end(error if isinstance(error, Exception) else RuntimeError(str(error)), done)

    def _end(self, record: Record | Exception, done: Callable[[Record | Exception], None]) -> None:
        self._room.release()
        done(record)

    def _look(self, row: Row, done: Callable[[Record | Exception], None]) -> None:
        """On a writer's thread: what is there need not be spoken; what cannot be is told."""
        path = self._job.audio_path(row)
        try:
            data = self._output.read(path)
        except NotFoundError:
            pass
        else:
            self._end(self._record(row, path, data, self._seconds(data), made=False), done)
            return
        try:
            plan = self._plan(row)
        except (TextError, RequestError) as error:
            self._end(_bad(BadRow(row.number, row.id, str(error))), done)
            return
        request = self._runtime.admit(self._job.voice, len(row.text), priority="bulk")

        def ended(pieces: list[Samples], error: Exception | None) -> None:
            if error:
                self._end(error, done)
                return
            writing = self._writers.submit(self._write, row, path, pieces, done)
            writing.add_done_callback(lambda future: self._looked(future, done))

        self._runtime.begin(request, self._voice, self._job.voice, plan, _Reader(ended), lambda: None)

    def _plan(self, row: Row) -> Plan:
        parameters = SpeechParameters(
            speaker=row.speaker,
            seed=self._job.seed(row),
            speaking_rate=row.speaking_rate,
            noise_scale=row.noise_scale,
            noise_scale_duration=row.noise_scale_duration,
        )
        return self._voice.plan(row.text, parameters, language=row.language)

    def _write(
        self, row: Row, path: str, pieces: list[Samples], done: Callable[[Record | Exception], None]
    ) -> None:
        samples = np.concatenate(pieces)
        data = encode(self._job.format, samples, self._voice.sampling_rate, self._job.sampling_rate)
        made = create(self._output, path, data)
        if made:
            seconds = len(samples) / self._voice.sampling_rate
            self._end(self._record(row, path, data, seconds, made=True), done)
        else:  # another run was first, and what it wrote counts
            data = self._output.read(path)
            self._end(self._record(row, path, data, self._seconds(data), made=False), done)

    def _seconds(self, data: bytes) -> float:
        """Length of what lies in the output."""
        if self._job.format == "pcm":
            return len(data) / 2 / self._sampling_rate
        return read_audio(data, format="aac" if self._job.format == "aac" else None).duration_seconds

    @property
    def _sampling_rate(self) -> int:
        """Of the files."""
        return self._job.sampling_rate or next_rate(self._job.format, self._voice.sampling_rate)

    def _record(self, row: Row, path: str, data: bytes, seconds: float, *, made: bool) -> Record:
        return {
            "row": row.number,
            "id": row.id,
            "text": row.text,
            "audio": path,
            "sha256": hashlib.sha256(data).hexdigest(),
            "seconds": round(seconds, 4),
            "sampling_rate": self._sampling_rate,
            "speaker": row.speaker,
            "speaking_rate": row.speaking_rate,
            "seed": self._job.seed(row),
            "made": made,
        }


def _bad(row: BadRow) -> Record:
    return {"row": row.number, "id": row.id, "error": row.reason}
