"""Shards on a Ray cluster: Ray Data moves them to workers, each of which speaks as the local engine does.

What a worker has written stays, whatever becomes of it: Ray may run a shard twice, and the second run finds the audio
of the first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cached_property
from itertools import islice
from typing import Any

from services.bulk.job import Job, Shard
from services.bulk.rows import BadRow, Row
from services.bulk.worker import Record, Worker
from shared import errors
from shared.errors import EngineError, MissingExtraError, UserError, VitsError

#: Shards that are handed to Ray together; those of one such wave are in the driver's memory.
WAVE = 512
#: Threads of a worker where nobody says: several workers of few threads do more than one of many.
THREADS = 2


class RayWorker:
    """A worker as Ray Data wants it: made once, then called with batches of shards as JSON.

    Its errors are answers, too: of those that are raised Ray tells by its workers' tracebacks, and of one that is
    raised while it is made only that it died. So it opens its voice when it is first called.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = Job(**job)

    @cached_property
    def _worker(self) -> Worker:
        return Worker(self._job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Speak them; gives each shard's records as JSON, or what went wrong."""
        return {"records": [json.dumps(self._spoken(text)) for text in batch["shard"]]}

    def _spoken(self, text: str) -> list[Record] | dict[str, str]:
        try:
            return self._worker.speak(unpacked(self._job, text))
        except VitsError as error:
            return {"error": type(error).__name__, "message": str(error)}


def packed(shard: Shard) -> str:
    """A shard as JSON."""
    return json.dumps([[isinstance(row, Row), asdict(row)] for row in shard.rows])


def unpacked(job: Job, text: str) -> Shard:
    """The shard that `packed` took."""
    return Shard(job, tuple(Row(**row) if good else BadRow(**row) for good, row in json.loads(text)))


def speak(job: Job, pending: Iterable[Shard], *, workers: int, address: str) -> Iterator[list[Record]]:
    """Speak shards on a cluster.

    Args:
        job: What is spoken. Its stores have to be reachable from every node.
        pending: The shards.
        workers: Most workers; as many as the cluster has room for where 0.
        address: Of the cluster; empty for what RAY_ADDRESS says, or a cluster of this machine alone.

    Yields:
        The records of each shard, in any order.

    Raises:
        MissingExtraError: Ray is not installed.
        UserError: The cluster cannot be reached, or has no room for one worker.
        VitsError: What a worker has raised.
        EngineError: The cluster failed.
    """
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"--engine ray needs the package {error.name!r}, which is not installed. "
            "Install the extra: pip install 'vits-suite[ray]'"
        ) from error
    # A cluster of this machine alone needs no page to look at it.
    alone = {} if address or os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
    try:
        ray.init(
            address=address or None,
            ignore_reinit_error=True,
            log_to_driver=False,
            logging_level="warning",
            **alone,
        )
    except Exception as error:  # Ray's own are of many kinds, and of none
        reason = str(error).partition("\n")[0]
        where = f"answers at {address}" if address else "answers at $RAY_ADDRESS or can be started here"
        raise UserError(f"no Ray cluster {where}: {reason}") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    threads = job.threads or THREADS
    room = int(ray.cluster_resources().get("CPU", 0)) // threads
    if not room:
        raise UserError(f"the Ray cluster has fewer than {threads} CPUs: give fewer --threads")
    shards = iter(pending)
    facts = asdict(job) | {"threads": threads}
    while wave := [{"shard": packed(shard)} for shard in islice(shards, WAVE)]:
        most = min(workers or room, room, len(wave))
        spoken = ray.data.from_items(wave, override_num_blocks=len(wave)).map_batches(
            RayWorker,
            fn_constructor_args=(facts,),
            batch_size=1,
            num_cpus=threads,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
        )
        try:
            for row in spoken.iter_rows():
                yield _records(row["records"])
        except ray.exceptions.RayTaskError:  # raised by no worker on purpose: its traceback is needed
            raise
        except ray.exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise EngineError(
                f"the Ray cluster failed: {reason}. What has been spoken is kept, and the same command goes on"
            ) from error


def _records(answer: str) -> list[Record]:
    """A shard's records, of a worker's answer.

    Raises:
        VitsError: The worker's own, by its words.
    """
    said = json.loads(answer)
    if isinstance(said, dict):
        kind: type[VitsError] = getattr(errors, said["error"])
        raise kind.__new__(kind, said["message"])  # whatever else it is made of, they are in its message
    records: list[Record] = said
    return records
