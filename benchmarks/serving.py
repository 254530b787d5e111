"""How much does serving cost over the bare engine, and who waits for whom?

`python -m benchmarks.serving --store store --voice joe` starts `vits serve` as a process of its own and measures it
over HTTP (raw PCM, streamed) and gRPC, beside the yardstick: the same voice, variant and layout of threads opened in
this process, the same sentences and windows, one after the other. The client's own processor time is taken off
where doors and throughput are compared, for a real client has a machine of its own.

Texts are made to measure with the voice itself, since voices speak at different speeds: 2 s, and 60 s of sentences of
different lengths. The parts, and the minutes that they take on two quiet cores with bf16:

  ready       (1, MMS size 1)   from the start of the process to readiness, cold (an empty cache: the voice is
                                fetched, the layout of threads measured) and warm, median of 3; and whether torch is
                                imported after a text was spoken. The system's cache of files is warm in both
  calls       (1, MMS size 2)   the longest call of each graph, all streams at work: the medians of each shape; and the
                                longest of all calls, which counts though the system may have held it up. For
                                information where the decoder takes more than 10 MB in fp32 (Joe's takes 7)
  first       (1, MMS size 2)   first audio: 2 s, 60 s, 60 s without a mark, 60 s that begin with the longest sentence
  beside      (1, MMS size 1)   a sentence that arrives at some time while a minute is spoken, over it alone: median and
                                worst
  added       (1, MMS size 1)   what each door adds to 2 s of PCM, over the engine's own time for it; and the same with
                                the client's processor time left in, of which some is spent while the server computes
  throughput  (1, MMS size 4)   audio seconds a second of 16 clients that never rest, over those of the bare engine
  memory      (6, MMS size 20)  resident bytes after the first tenth of many requests of random lengths, and after all
  overload    (2, MMS size 2)   requests come ten times as fast as they can be spoken. Each must be spoken as it is
                                alone or be told when to come back, and afterwards nothing may be left of them

fp32 takes two to four times as long. Each part has a server of its own, and its verdict is printed as soon as it is
there; figures without a limit are for information. With ``--results FILE`` a part that was measured is not measured
again: an interrupted run goes on. The exit status is 1 where a limit was missed, but for those that are known to be
missed, which are told as such. Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import math
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from benchmarks.server import Server, ask, begin, serving
from benchmarks.synthesis import SENTENCES
from shared.cache import default_cache
from shared.processor import cpu_model
from shared.registry import Registry
from shared.store import Store
from shared.voice import Plan, SpeechParameters, Voice
from shared.voice.engine import Arrays
from shared.voice.layout import Opening
from shared.voice.selection import PORTABLE, recommended_variant
from shared.voice.spec import VoiceSpec
from vits_client import Client, ClientError, OverloadedError

Figures = dict[str, float]

SHORT_SECONDS, LONG_SECONDS = 2, 60
CLIENTS = 16
#: How much faster than it can speak a server is asked in the overload, and how much of that must come about.
OVERLOAD, OVERLOAD_CAME = 10, 0.9
#: What waits in the overload; more than a server that refuses in time lets wait.
CROWD = 256
#: After a sample, so that what it leaves behind (worker threads that spin, a call for one who has left) is over.
REST_SECONDS = 0.3
#: Rounds of what takes long: whole minutes, and all clients at once.
ROUNDS = 3
#: Load of the machine, of others, above which figures are worth little.
QUIET = 0.3

#: Options that figures depend on.
CONDITIONS = ("voice", "variant", "threads", "times", "requests", "longest", "overload")

#: What each figure may be at most; `Bench.limits` has what of this holds for a voice.
AT_MOST = {
    "ready_warm_seconds": 6.0,
    "torch_imported": 0,
    "slowest_call_seconds": 0.15,
    "slowest_call_seconds_once": 0.15,
    "longest_segment_tokens": 200,
    "first_audio_ratio_60s": 1.3,
    "first_audio_ratio_60s_unpunctuated": 1.3,
    "first_audio_ratio_60s_long_first": 1.3,
    "beside_ratio": 2.0,
    "beside_worst_ratio": 2.0,
    "http_added_seconds": 0.005,
    "grpc_added_seconds": 0.005,
    "memory_ratio": 1.05,
    "overload_broken": 0,
    "overload_wrong": 0,
    "overload_refused_badly": 0,
    "overload_left_in_flight": 0,
    "overload_left_open": 0,
}
#: What is asked, on two cores, only where the decoder takes no more than this in fp32: Joe's 6.8 MB, MMS's size 58.
SMALL_DECODER_BYTES = 10_000_000
OF_SMALL_DECODERS = frozenset({"slowest_call_seconds", "slowest_call_seconds_once"})
#: What each figure must be at least.
AT_LEAST = {
    "throughput_ratio": 0.9,
    "overload_spoken": 1,
    "overload_came": OVERLOAD * OVERLOAD_CAME,
    "overload_right_afterwards": 1,
}
#: Those that are known to be missed, and fail no run: a sentence that fits into a segment is never cut, and all of it
#: is encoded before it is heard (docs/operation.md, "How texts are scheduled").
KNOWN_MISSES = frozenset({"first_audio_ratio_60s_long_first"})


@dataclass(frozen=True)
class Texts:
    """Texts that were made to measure.

    Attributes:
        short: About 2 s.
        minute: About 60 s of sentences of different lengths.
        seconds_a_word: Of speech.
    """

    short: str
    minute: tuple[str, ...]
    seconds_a_word: float

    @property
    def asked(self) -> dict[str, str]:
        """The texts whose first audio is measured."""
        longest = self.minute.index(max(self.minute, key=len))
        return {
            "2s": self.short,
            "60s": " ".join(self.minute),
            "60s_unpunctuated": " ".join(self.minute).replace(".", "").replace(",", ""),
            "60s_long_first": " ".join(self.minute[longest:] + self.minute[:longest]),
        }


@dataclass
class Bench:
    """What is measured.

    Attributes:
        arguments: The command line.
        folder: The voice's, fetched.
        cold_seconds: What the first start of all took.
    """

    arguments: argparse.Namespace
    folder: Path
    cold_seconds: float

    @cached_property
    def voice(self) -> Voice:
        """The yardstick, in the layout that a server of this machine and voice has."""
        opening = Opening(
            variant=self.arguments.variant, threads=self.arguments.threads, memory=default_cache()
        )
        voice = opening(self.folder)
        voice.warm_up()
        return voice

    @cached_property
    def texts(self) -> Texts:
        """Texts for the voice."""
        return made_to_measure(self.voice)

    @cached_property
    def limits(self) -> dict[str, float]:
        """What each figure may be at most, of this voice."""
        decoder = self.folder / VoiceSpec.read(self.folder).variant(PORTABLE).decoder
        small = decoder.stat().st_size <= SMALL_DECODER_BYTES
        return {name: most for name, most in AT_MOST.items() if small or name not in OF_SMALL_DECODERS}

    def server(self, *, max_backlog: int = 600) -> AbstractContextManager[Server]:
        """A server; it refuses nobody unless told to."""
        return serving(self.arguments, max_backlog=max_backlog)


# --- The yardstick -----------------------------------------------------------------------------------------


def planned(voice: Voice, text: str) -> Plan:
    """A text, read as a server reads it for a request that does not ask for timestamps."""
    return voice.plan(text, SpeechParameters(seed=1))


def spoken_seconds(voice: Voice, text: str) -> float:
    """How long a text sounds, pauses left out."""
    plan = planned(voice, text)
    frames = sum(
        int(voice.render(plan, number).durations.sum()) for number in range(len(plan.script.segments))
    )
    return frames * voice.spec.hop_length / voice.sampling_rate


def made_to_measure(voice: Voice) -> Texts:
    """Cut texts to the lengths that are wanted, in this voice."""
    words = " ".join(SENTENCES).replace(".", "").replace(",", "").split()
    count = next(
        (
            n
            for n in range(1, len(words))
            if spoken_seconds(voice, " ".join(words[:n]) + ".") >= SHORT_SECONDS
        ),
        len(words),
    )
    each = [spoken_seconds(voice, sentence) for sentence in SENTENCES]
    minute: list[str] = []
    seconds = 0.0
    for sentence, length in itertools.cycle(zip(SENTENCES, each, strict=True)):
        if seconds >= LONG_SECONDS:
            break
        minute.append(sentence)
        seconds += length
    return Texts(" ".join(words[:count]) + ".", tuple(minute), sum(each) / len(" ".join(SENTENCES).split()))


def speak(voice: Voice, text: str) -> float:
    """Speak a text on the bare engine: audio seconds."""
    plan = planned(voice, text)
    return sum(len(samples) for samples in voice.speak(plan)) / voice.sampling_rate


def engine_seconds(voice: Voice, text: str) -> float:
    """What the bare engine takes for a text, one step after the other; reading the text is left out."""
    plan = planned(voice, text)
    return timed(lambda: list(voice.speak(plan)))


class Stopwatch:
    """An engine whose calls are timed, by graph and shape."""

    def __init__(self, voice: Voice) -> None:
        self.engine = voice.engine
        self.streams = self.engine.streams
        self.seconds: dict[tuple[str, int], list[float]] = {}

    def run(self, graph: str, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Compute and note."""
        length = max(array.shape[-1] for array in inputs.values())
        begun = time.perf_counter()
        outputs = self.engine.run(graph, inputs)
        self.seconds.setdefault((graph, length), []).append(time.perf_counter() - begun)
        return outputs

    def close(self) -> None:
        """The voice closes its engine."""


# --- Taking samples ----------------------------------------------------------------------------------------


def in_turns(samples: Mapping[str, Callable[[], float]], times: int) -> dict[str, list[float]]:
    """Several samples, taken in turns, so that what else happens falls on all alike; the first turn does not count."""
    taken: dict[str, list[float]] = {name: [] for name in samples}
    for turn in range(times + 1):
        for name, sample in samples.items():
            time.sleep(REST_SECONDS)
            value = sample()
            if turn:
                taken[name].append(value)
    return taken


def medians(samples: Mapping[str, Callable[[], float]], times: int) -> dict[str, float]:
    """The median of each of several samples, taken in turns."""
    return {name: statistics.median(values) for name, values in in_turns(samples, times).items()}


@contextmanager
def crowd(size: int) -> Iterator[ThreadPoolExecutor]:
    """Threads. What has not begun when the block is left is given up, so that an interrupt does not wait for it."""
    pool = ThreadPoolExecutor(size)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def without_own(call: Callable[[], object], *, cores: int = 1) -> float:
    """The same, this process's own processor time taken off, as shared by so many cores."""
    used = time.process_time()
    elapsed = timed(call)
    return elapsed - (time.process_time() - used) / cores


# --- The parts ---------------------------------------------------------------------------------------------


def ready(bench: Bench) -> Figures:
    """How long starts take."""
    seconds = []
    for _ in range(3):
        with bench.server() as server:
            seconds.append(server.ready_seconds)
            server.ask(bench.texts.short)
            torch = server.imports_torch()
    return {
        "ready_cold_seconds": bench.cold_seconds,
        "ready_warm_seconds": statistics.median(seconds),
        "torch_imported": torch,
    }


def calls(bench: Bench) -> Figures:
    """How long single calls of the engine take, in a layout's worst case: all of its streams at work."""
    voice = bench.voice
    texts = list(bench.texts.asked.values())
    watch = Stopwatch(voice)
    voice.engine, plain = watch, voice.engine
    try:
        with crowd(watch.streams) as pool:
            list(pool.map(partial(speak, voice), texts))  # compiles what is not compiled yet
            watch.seconds.clear()
            for _ in range(ROUNDS):
                list(pool.map(partial(speak, voice), texts))
    finally:
        voice.engine = plain
    figures: Figures = {
        "streams": watch.streams,
        "slowest_call_seconds_once": max(itertools.chain(*watch.seconds.values())),
    }
    for graph in ("encoder", "flow", "decoder"):
        slowest = {
            length: statistics.median(seconds)
            for (name, length), seconds in watch.seconds.items()
            if name == graph
        }
        length = max(slowest, key=lambda shape: slowest[shape])
        figures |= {f"slowest_{graph}_seconds": slowest[length], f"slowest_{graph}_length": length}
    plans = [planned(voice, text) for text in texts]
    tokens = [len(segment.tokens.ids) for plan in plans for segment in plan.script.segments]
    worst = max(figures[f"slowest_{graph}_seconds"] for graph in ("encoder", "flow", "decoder"))
    return figures | {"slowest_call_seconds": worst, "longest_segment_tokens": max(tokens)}


def first(bench: Bench) -> Figures:
    """First audio of short and long texts. Whoever has heard it hangs up."""
    asked = bench.texts.asked

    def first_audio(server: Server, text: str) -> float:
        with closing(server.connect()) as connection:
            begun = time.perf_counter()
            answer = begin(connection, text)
            if answer.status != HTTPStatus.OK or not answer.read1(1 << 16):
                raise RuntimeError(f"the server answered {answer.status}")
            return time.perf_counter() - begun

    with bench.server() as server:
        samples = {name: partial(first_audio, server, text) for name, text in asked.items()}
        seconds = medians(samples, bench.arguments.times)
    return {
        **{f"audio_seconds_{name}": spoken_seconds(bench.voice, text) for name, text in asked.items()},
        **{f"first_audio_{name}": seconds[name] for name in asked},
        **{f"first_audio_ratio_{name}": seconds[name] / seconds["2s"] for name in asked if name != "2s"},
    }


def beside(bench: Bench) -> Figures:
    """A sentence that arrives while a minute is spoken, at a time that is drawn."""
    minute, sentence = bench.texts.asked["60s"], SENTENCES[1]
    chosen = random.Random(0)  # noqa: S311
    firsts: list[float] = []

    def behind(server: Server, longest_wait: float) -> float:
        heard = threading.Event()

        def listen(answer: http.client.HTTPResponse) -> None:
            while answer.read1(1 << 16) and not heard.is_set():
                pass

        with closing(server.connect()) as connection:
            listening = threading.Thread(target=listen, args=(begin(connection, minute),))
            listening.start()
            time.sleep(chosen.uniform(0, longest_wait))
            early, seconds, _ = server.ask(sentence)
            firsts.append(early)
            alone = not listening.is_alive()
            heard.set()
            listening.join()
        if alone:
            raise RuntimeError("the minute was over before the sentence was: nothing was measured")
        return seconds

    with bench.server() as server:
        server.ask(minute)
        whole = server.ask(minute)[1]
        taken = in_turns(
            {"alone": lambda: server.ask(sentence)[1], "behind": lambda: behind(server, whole / 4)},
            bench.arguments.times,
        )
    alone, behind_it = (statistics.median(taken[name]) for name in ("alone", "behind"))
    return {
        "alone_seconds": alone,
        "beside_seconds": behind_it,
        "beside_first_audio_seconds": statistics.median(firsts),
        "beside_ratio": behind_it / alone,
        "beside_worst_ratio": max(taken["behind"]) / alone,
    }


def added(bench: Bench) -> Figures:
    """What the doors add to the engine's time for a short text; connections are kept, as clients do."""
    voice, text = bench.voice, bench.texts.short
    with (
        bench.server() as server,
        closing(server.connect()) as connection,
        Client(f"grpc://{server.grpc_address}") as client,
    ):

        def over_grpc() -> None:
            with client.stream(text, seed=1) as stream:
                for _ in stream:
                    pass

        seconds = medians(
            {
                "engine": lambda: engine_seconds(voice, text),
                "reading": lambda: timed(lambda: planned(voice, text)),
                "http": lambda: without_own(lambda: ask(connection, text)),
                "grpc": lambda: without_own(over_grpc),
                "http_whole": lambda: timed(lambda: ask(connection, text)),
                "grpc_whole": lambda: timed(over_grpc),
            },
            bench.arguments.times,
        )
    return {
        "engine_seconds": seconds["engine"],
        "reading_seconds": seconds["reading"],
        **{f"{door}_added_seconds": seconds[door] - seconds["engine"] for door in ("http", "grpc")},
        **{
            f"{door}_added_seconds_with_client": seconds[f"{door}_whole"] - seconds["engine"]
            for door in ("http", "grpc")
        },
    }


def throughput(bench: Bench) -> Figures:
    """Audio that 16 clients get, and that the bare engine makes, of the same texts."""
    voice, sentences = bench.voice, bench.texts.minute
    texts = [" ".join(sentences[: 1 + number % 4]) for number in range(CLIENTS * 3)]
    cores = len(os.sched_getaffinity(0))
    with bench.server() as server, crowd(voice.engine.streams) as streams, crowd(CLIENTS) as clients:
        audio = sum(streams.map(partial(speak, voice), texts))
        seconds = medians(
            {
                "bare": lambda: timed(lambda: list(streams.map(partial(speak, voice), texts))),
                "served": lambda: without_own(lambda: list(clients.map(server.ask, texts)), cores=cores),
            },
            ROUNDS,
        )
    return {
        "streams": voice.engine.streams,
        **{f"{name}_audio_seconds_a_second": audio / taken for name, taken in seconds.items()},
        "throughput_ratio": seconds["bare"] / seconds["served"],
    }


def memory(bench: Bench) -> Figures:
    """Resident bytes after a tenth of so many requests of random lengths, and after all; through both doors."""
    chosen = random.Random(0)  # noqa: S311
    words = " ".join(SENTENCES).split()
    most = max(2.0, bench.arguments.longest / bench.texts.seconds_a_word)
    requests = bench.arguments.requests
    marks: list[int] = []
    with bench.server() as server, Client(f"grpc://{server.grpc_address}") as client, crowd(CLIENTS) as pool:

        def one(number: int, text: str) -> None:
            if number % 2:
                client.speak(text, seed=number, audio_format="pcm")
            else:
                server.ask(text, number)

        for tenth in range(10):
            numbers = range(requests * tenth // 10, requests * (tenth + 1) // 10)
            lengths = [round(math.exp(chosen.uniform(0, math.log(most)))) for _ in numbers]
            list(pool.map(one, numbers, [" ".join(chosen.choices(words, k=length)) for length in lengths]))
            time.sleep(1)
            marks.append(server.resident_bytes())
            say(f"  after {numbers.stop} requests: {marks[-1] / 1e6:.0f} MB")
    return {
        **{f"memory_{requests * (n + 1) // 10}": mark for n, mark in enumerate(marks)},
        "memory_ratio": marks[-1] / marks[0],
    }


def overload(bench: Bench) -> Figures:
    """Ask ten times as fast as the server can speak, through both doors, and see what becomes of everybody."""
    sentences = bench.texts.minute
    texts = [" ".join(sentences[:count]) for count in (1, 2, 3)]
    with bench.server(max_backlog=5) as server, Client(f"grpc://{server.grpc_address}") as client:
        expected = {text: spoken(server, client, 0, text)[1] for text in texts}
        spoken(server, client, 1, texts[0])
        with crowd(2) as pool:  # so few that none is refused
            gap = timed(lambda: list(pool.map(server.ask, texts * 4))) / len(texts * 4) / OVERLOAD
        files, resident = server.open_files(), server.resident_bytes()

        def one(number: int) -> str:
            text = texts[number % len(texts)]
            outcome, audio = spoken(server, client, number, text)
            return "wrong" if outcome == "spoken" and audio != expected[text] else outcome

        came, outcomes = flood(one, gap, bench.arguments.overload)
        left = what_is_left(server, files)
        figures = left | {
            "overload_resident_ratio": server.resident_bytes() / resident,
            "overload_right_afterwards": all(
                spoken(server, client, door, text)[1] == audio
                for text, audio in expected.items()
                for door in (0, 1)
            ),
        }
    known = ("spoken", "refused", "refused_badly", "wrong")
    for outcome, count in outcomes.items():
        if outcome not in known:
            say(f"  {count} times {outcome}")
    return {
        "overload_came": came * OVERLOAD,
        "overload_requests": outcomes.total(),
        **{f"overload_{outcome}": outcomes[outcome] for outcome in known},
        "overload_broken": sum(count for outcome, count in outcomes.items() if outcome not in known),
        **figures,
    }


def spoken(server: Server, client: Client, number: int, text: str) -> tuple[str, bytes]:
    """Ask through one door or the other: what became of it, and the PCM."""
    try:
        if number % 2:
            return "spoken", client.speak(text, seed=1, audio_format="pcm").audio
        with closing(server.connect()) as connection:
            answer = ask(connection, text)
    except OverloadedError as error:
        return "refused" if error.retry_after_seconds else "refused_badly", b""
    except (OSError, http.client.HTTPException, ClientError) as error:
        return f"broken: {type(error).__name__}: {error}", b""
    if answer.status == HTTPStatus.OK:
        return "spoken", answer.content
    told = answer.status == HTTPStatus.TOO_MANY_REQUESTS and answer.retry_after
    return "refused" if told else "refused_badly", b""


def flood(one: Callable[[int], str], gap: float, seconds: float) -> tuple[float, Counter[str]]:
    """Ask once every so many seconds, whatever was answered: the share that came in time, and the outcomes."""
    waiting: list[Future[str]] = []
    with crowd(CROWD) as pool:
        begun = time.monotonic()
        while (now := time.monotonic() - begun) < seconds:
            if now >= gap * len(waiting):
                waiting.append(pool.submit(one, len(waiting)))
            else:
                time.sleep(gap * len(waiting) - now)
        # What still waits for a thread of ours never came.
        came = sum(future.running() or future.done() for future in waiting)
        outcomes = Counter(future.result() for future in waiting)
    return came / (seconds / gap), outcomes


def what_is_left(server: Server, files: int) -> Figures:
    """What is in flight and open when all were answered, after a while to close connections in."""
    for _ in range(30):
        left = server.metric("vits_requests_in_flight"), max(0, server.open_files() - files)
        if not any(left):
            break
        time.sleep(0.5)
    return {"overload_left_in_flight": left[0], "overload_left_open": left[1]}


PARTS: dict[str, Callable[[Bench], Figures]] = {
    "ready": ready,
    "calls": calls,
    "first": first,
    "beside": beside,
    "added": added,
    "throughput": throughput,
    "memory": memory,
    "overload": overload,
}


# --- Verdicts ----------------------------------------------------------------------------------------------


def say(line: str) -> None:
    """Tell how it goes, at once."""
    print(line, file=sys.stderr, flush=True)


def missed(name: str, value: float, most: Mapping[str, float]) -> bool:
    """Whether a figure is not what it must be."""
    return value > most.get(name, math.inf) or value < AT_LEAST.get(name, -math.inf)


def tell(part: str, figures: Figures, most: Mapping[str, float]) -> None:
    """Print a part's figures with their verdicts."""
    print(part)
    for name, value in figures.items():
        limits = [f"at most {most[name]:g}"] if name in most else []
        limits += [f"at least {AT_LEAST[name]:g}"] if name in AT_LEAST else []
        outcome = (
            "met" if not missed(name, value, most) else "KNOWN MISS" if name in KNOWN_MISSES else "MISSED"
        )
        verdict = f"{outcome}: {limits[0]}" if limits else ""
        print(f"  {name:40} {value:>14.6g}  {verdict}".rstrip(), flush=True)


class Overtime(Exception):  # noqa: N818 - no `OSError`, as `TimeoutError` is: those are what a server may do
    """A part takes too long."""


@contextmanager
def at_most(minutes: float) -> Iterator[None]:
    """End a part that takes too long.

    Raises:
        Overtime: It did.
    """

    def over(_: int, frame: FrameType | None) -> NoReturn:
        raise Overtime(f"not done after {minutes:g} minutes (--limit)")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, minutes * 60)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Results:
    """What was measured, in a file that a later run goes on from.

    Attributes:
        path: The file; None keeps nothing.
        conditions: Under which it is measured.
    """

    path: Path | None
    conditions: dict[str, Any]

    def __post_init__(self) -> None:
        """Read what is there."""
        self.parts: dict[str, Figures] = {}
        if self.path and self.path.exists():
            content = json.loads(self.path.read_text())
            if content["conditions"] != self.conditions:
                raise SystemExit(
                    f"{self.path} was measured under other conditions; give another file.\n"
                    f"There: {content['conditions']}\nHere:  {self.conditions}"
                )
            self.parts = content["parts"]

    def add(self, part: str, figures: Figures) -> None:
        """Keep a part."""
        self.parts[part] = figures
        if self.path:
            partial_file = self.path.with_suffix(".partial")
            partial_file.write_text(
                json.dumps({"conditions": self.conditions, "parts": self.parts}, indent=2)
            )
            partial_file.replace(self.path)


def run(bench: Bench, results: Results) -> bool:
    """Measure what is not measured yet; whether all of it is as it must be, or is known not to be."""
    well = True
    for part in bench.arguments.only:
        if part not in results.parts:
            say(f"measuring {part}")
            try:
                with at_most(bench.arguments.limit):
                    results.add(part, PARTS[part](bench))
            except Exception as error:  # whatever it is, the other parts are measured
                print(f"{part}\n  NOT MEASURED: {type(error).__name__}: {error}", flush=True)
                well = False
                continue
        tell(part, results.parts[part], bench.limits)
        misses = {name for name, value in results.parts[part].items() if missed(name, value, bench.limits)}
        well = well and misses <= KNOWN_MISSES
    return well


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--store", default="store", help="URL of the store (default: %(default)s)")
    add("--voice", required=True, help="the voice to measure")
    add("--variant", default="", help="its precision (default: what 'auto' opens the voice with here)")
    add("--threads", type=int, default=0, help="threads of the server (default: every CPU)")
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="measure these parts")
    add("--results", type=Path, metavar="FILE", help="keep what was measured, and go on from what is kept")
    add("--limit", type=float, default=120, metavar="MINUTES", help="of one part (default: %(default)s)")
    add("--times", type=int, default=15, help="samples of each median (default: %(default)s)")
    add("--requests", type=int, default=5000, help="in 'memory' (default: %(default)s)")
    add(
        "--longest",
        type=float,
        default=10,
        metavar="SECONDS",
        help="texts of 'memory' are up to about so long, short ones more often (default: %(default)s)",
    )
    add("--overload", type=float, default=60, metavar="SECONDS", help="its length (default: %(default)s)")
    return made


def main() -> int:
    """Measure, and print the figures of each part as they come."""
    arguments = parser().parse_args()
    if os.getloadavg()[0] > QUIET:
        say(f"others are at work here (load {os.getloadavg()[0]:.1f}): the figures will be worth little")
    store = Store.open(arguments.store)
    with tempfile.TemporaryDirectory() as scratch:
        # The servers' cache is empty at first, and theirs alone.
        os.environ["VITS_CACHE"] = str(Path(scratch) / "servers")
        registry = Registry(store, cache=Path(scratch) / "own")
        version = registry.resolve("voices", arguments.voice)
        folder = registry.fetch(version)
        arguments.voice = version.reference
        arguments.variant = arguments.variant or recommended_variant(VoiceSpec.read(folder))
        conditions = {name: getattr(arguments, name) for name in CONDITIONS}
        conditions |= {"machine": cpu_model(), "cores": len(os.sched_getaffinity(0))}
        results = Results(arguments.results, conditions)
        print(json.dumps(conditions), flush=True)
        with serving(arguments) as server:
            cold_seconds = server.ready_seconds
        return 0 if run(Bench(arguments, folder, cold_seconds), results) else 1


if __name__ == "__main__":
    sys.exit(main())
