"""Does ``vits plan`` foresee what a server does?

`python -m benchmarks.planning --store store --voice joe` measures this machine as `vits plan --measure` does, starts
`vits serve`, and sends it texts that come at random (a Poisson process, open loop: nobody waits for an answer before
the next comes) at some shares of the capacity that the measurement promises. The simulation is given the same texts at
the same times. Both are printed side by side, with the ratio of simulation to server.

A machine is not as fast from one minute to the next, least of all a shared one. So the server's own metrics are asked
how long its calls took, and the simulation is run a second time with all calls longer or shorter by that factor
("paced"). The first tells how far a measurement can be trusted, the second whether the model of the queue is right.

`--sleeping FILE` takes a saved profile, and sends the same requests to the server's own runtime with an engine that
sleeps as long as the profile says and computes nothing. Threads, locks and scheduling are real, and what else the
machine does matters little: it shows whether the simulation queues as the runtime does, where no machine is quiet.

Client and server share the machine, so at high load the client takes a little of what the server has. Let nothing
else run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from benchmarks.server import Refused, Server, serving
from services.planning.cli import measured
from services.planning.profile import Profile
from services.planning.simulation import Outcome, Settings, Simulation, TextWork, engine_seconds, works
from services.planning.workload import Load, draw_texts, parse_distribution, plan_texts
from shared.errors import OverloadedError
from shared.metrics import Metrics
from shared.text import FrontEnd
from shared.text.script import Script
from shared.voice import Plan, Utterance
from shared.voice.latents import Latents
from shared.voice.runtime import Piece, Runtime
from shared.voice.scheduler import Policy
from shared.voice.windows import Window, plan_windows

#: Requests that come so soon are not counted: pods and queues are still empty.
WARM_UP_SECONDS = 5.0
MAX_BACKLOG_SECONDS = 10


@dataclass
class Answered:
    """What became of one request at the server; times are seconds, infinity where it was refused."""

    first: float = math.inf
    total: float = math.inf
    size: int = 0


def ask_all(server: Server, texts: list[str], arrivals: list[tuple[float, int]]) -> list[Answered]:
    """Send each text at its time, whatever has been answered by then."""
    answers = [Answered() for _ in arrivals]

    def ask(answer: Answered, text: str, seed: int) -> None:
        try:
            answer.first, answer.total, answer.size = server.ask(text, seed)
        except Refused:
            return

    threads = []
    begun = time.monotonic()
    for seed, (answer, (at, number)) in enumerate(zip(answers, arrivals, strict=True)):
        time.sleep(max(0.0, begun + at - time.monotonic()))
        threads.append(threading.Thread(target=ask, args=(answer, texts[number], seed)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return answers


def busy_seconds(server: Server) -> float:
    """What the server's engines have taken so far, by its metrics."""
    with urllib.request.urlopen(f"http://{server.address}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    sums = re.findall(r"^vits_(?:encoder|decoder_call)_seconds_sum\S* (\S+)$", text, re.MULTILINE)
    return sum(map(float, sums))


def paced(profile: Profile, factor: float) -> Profile:
    """The same machine with all calls longer by a factor."""
    constant, by_token, by_frame = profile.render_seconds
    return profile.model_copy(
        update={
            "render_seconds": (constant * factor, by_token * factor, by_frame * factor),
            "decode_seconds": {width: value * factor for width, value in profile.decode_seconds.items()},
        }
    )


def percentile(values: list[float], percent: float) -> float:
    """Of those that are finite."""
    return float(np.percentile([value for value in values if math.isfinite(value)], percent))


def simulate(
    planned: list[tuple[str, Script]],
    profile: Profile,
    arrivals: list[tuple[float, int]],
    arguments: argparse.Namespace,
) -> tuple[Outcome, Outcome]:
    """The same arrivals on a simulated pod: those that count, and all."""
    costs = works(planned, profile, arguments.seed)
    policy = Policy(max_backlog_seconds=MAX_BACKLOG_SECONDS)
    settings = Settings(pods=1, policy=policy, door_seconds=arguments.door)
    counted = Simulation(costs, profile, settings).run(arrivals, warm_up=WARM_UP_SECONDS)
    return counted, Simulation(costs, profile, settings).run(arrivals)


def draw_arrivals(rate: float, texts: int, arguments: argparse.Namespace) -> list[tuple[float, int]]:
    """When requests come, and the number of each one's text."""
    generator = np.random.default_rng(arguments.seed)
    times = Load("constant", rate, arguments.seconds).arrivals(generator).tolist()
    return list(zip(times, generator.integers(texts, size=len(times)).tolist(), strict=True))


def compare(
    server: Server,
    planned: list[tuple[str, Script]],
    arguments: argparse.Namespace,
    profile: Profile,
    share: float,
) -> dict[str, Any]:
    """One level of load, at the server and in the simulation."""
    costs = works(planned, profile, arguments.seed)
    rate = share * profile.streams * len(costs) / sum(engine_seconds(cost, profile) for cost in costs)
    arrivals = draw_arrivals(rate, len(planned), arguments)
    before = busy_seconds(server)
    answers = ask_all(server, [text for text, _ in planned], arrivals)
    busy = busy_seconds(server) - before
    return compared(planned, profile, arrivals, answers, busy, arguments) | {"share": share}


def compared(
    planned: list[tuple[str, Script]],
    profile: Profile,
    arrivals: list[tuple[float, int]],
    answers: list[Answered],
    busy: float,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """What became of the requests, and what the simulation says of them."""
    times = [at for at, _ in arrivals]
    counted = [answer for answer, at in zip(answers, times, strict=True) if at >= WARM_UP_SECONDS]
    ended = max(at + answer.total for answer, at in zip(answers, times, strict=True) if answer.size)
    served = {
        "audio seconds a second": sum(answer.size for answer in answers)
        / 2
        / profile.spec.sampling_rate
        / ended,
        "first audio p50": percentile([answer.first for answer in counted], 50),
        "first audio p95": percentile([answer.first for answer in counted], 95),
        "total p50": percentile([answer.total for answer in counted], 50),
        "total p95": percentile([answer.total for answer in counted], 95),
        "refused": sum(not answer.size for answer in counted) / len(counted),
    }
    simulated, whole = simulate(planned, profile, arrivals, arguments)
    factor = busy / whole.busy_seconds
    again, all_again = simulate(planned, paced(profile, factor), arrivals, arguments)
    rows = {
        name: {"served": value, "simulated": first, "ratio": ratio(first, value), "paced": second}
        | {"paced_ratio": ratio(second, value)}
        for (name, value), first, second in zip(
            served.items(), figures(simulated, whole), figures(again, all_again), strict=True
        )
    }
    said = {"requests": len(arrivals), "requests_per_second": len(arrivals) / arguments.seconds}
    return said | {"utilisation": busy / profile.streams / ended, "pace": factor, **rows}


def figures(counted: Outcome, whole: Outcome) -> list[float]:
    """What is compared, in the order in which the server's figures are listed."""
    return [
        whole.throughput,
        counted.percentile("first_audio", 50),
        counted.percentile("first_audio", 95),
        counted.percentile("total", 50),
        counted.percentile("total", 95),
        counted.refused,
    ]


def ratio(simulated: float, served: float) -> float | None:
    """Simulation over server; none where the server's is 0."""
    return simulated / served if served else None


class Sleeper:
    """A voice that takes its time and computes nothing: silence of the right length, after the right while."""

    def __init__(self, profile: Profile, costs: list[TextWork]) -> None:
        self.spec = profile.spec
        self.busy = 0.0
        self._profile = profile
        self._costs = costs
        self._draws = np.random.default_rng(0)

    def _sleep(self, seconds: float, spread: list[float]) -> None:
        begun = time.perf_counter()
        time.sleep(seconds * float(self._draws.choice(spread)))
        self.busy += time.perf_counter() - begun

    def render(self, plan: Plan, number: int) -> Utterance:
        """The segment's windows; the plan's seed is the number of its text."""
        segment = self._costs[plan.seed].segments[number]
        said = plan.script.segments[number]
        self._sleep(segment.render_seconds, self._profile.render_spread)
        seconds = sum(window.audio_seconds for window in segment.windows)
        frames = round(seconds * self.spec.sampling_rate / self.spec.hop_length)
        latents_DF = np.zeros((self.spec.latent_channels, frames), dtype=np.float32)
        durations = np.zeros(len(said.tokens.ids), dtype=np.int64)
        windows = plan_windows(frames, self.spec.decoder)
        pause = said.pause_samples(self.spec.sampling_rate)
        return Utterance(said.tokens, durations, Latents.known(latents_DF), windows, 0, plan.seed, pause)

    def decode_windows(self, windows: list[tuple[Utterance, Window]]) -> list[NDArray[np.float32]]:
        """Silence."""
        self._sleep(self._profile.decode(windows[0][1].width), self._profile.decode_spread)
        hop = self.spec.hop_length
        return [np.zeros((window.last - window.first) * hop, dtype=np.float32) for _, window in windows]


class Reader:
    """Takes what is heard at once, and notes when."""

    def __init__(self, runtime: Runtime, answer: Answered, sampling_rate: int) -> None:
        self.request = 0
        self._runtime = runtime
        self._answer = answer
        self._sampling_rate = sampling_rate
        self._begun = time.monotonic()

    def heard(self, piece: Piece) -> None:
        """Some audio."""
        self._answer.first = min(self._answer.first, time.monotonic() - self._begun)
        self._answer.size += 2 * len(piece.samples)
        self._runtime.take(self.request, len(piece.samples) / self._sampling_rate)

    def ended(self, error: Exception | None) -> None:
        """All of it."""
        self._answer.total = time.monotonic() - self._begun


def sleep_through(arguments: argparse.Namespace) -> dict[str, Any]:
    """The levels on the runtime alone, with an engine that sleeps."""
    profile = Profile.read(arguments.sleeping).model_copy(update={"planning_seconds_per_character": 0.0})
    arguments.door = 0.0
    texts = draw_texts(
        parse_distribution(arguments.text_length_distribution), profile.spec.language, arguments.seed
    )
    planned = plan_texts(texts, FrontEnd.from_spec(profile.spec.front_end), profile.spec.language)
    costs = works(planned, profile, arguments.seed)
    levels = []
    for share in arguments.shares:
        rate = share * profile.streams * len(costs) / sum(engine_seconds(cost, profile) for cost in costs)
        arrivals = draw_arrivals(rate, len(planned), arguments)
        answers, sleeper = [Answered() for _ in arrivals], Sleeper(profile, costs)
        policy = Policy(streams=profile.streams, max_backlog_seconds=MAX_BACKLOG_SECONDS)
        runtime = Runtime(policy, Metrics(CollectorRegistry()))
        begun = time.monotonic()
        for answer, (at, number) in zip(answers, arrivals, strict=True):
            time.sleep(max(0.0, begun + at - time.monotonic()))
            text, script = planned[number]
            plan = Plan(script, 0, number, profile.spec.defaults.speaking_rate, 0.0, 0.0)
            try:
                reader = Reader(runtime, answer, profile.spec.sampling_rate)
                reader.request = runtime.admit("voice", len(text))
                runtime.begin(reader.request, sleeper, "voice", plan, reader, lambda: None)
            except OverloadedError:
                continue
        while len(runtime):
            time.sleep(0.05)
        runtime.close()
        levels.append(
            compared(planned, profile, arrivals, answers, sleeper.busy, arguments) | {"share": share}
        )
        print(json.dumps(levels[-1]), file=sys.stderr)
    return {"engine": "sleeps", "levels": levels}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, serve, simulate."""
    profile = measured(arguments, lambda what, share: None)
    texts = draw_texts(
        parse_distribution(arguments.text_length_distribution), profile.spec.language, arguments.seed
    )
    planned = plan_texts(texts, FrontEnd.from_spec(profile.spec.front_end), profile.spec.language)
    levels = []
    with serving(arguments, max_backlog=MAX_BACKLOG_SECONDS) as server:
        server.ask(planned[0][0])
        for share in arguments.shares:
            levels.append(compare(server, planned, arguments, profile, share))
            print(json.dumps(levels[-1]), file=sys.stderr)
    machine = profile.model_dump(include={"voice", "variant", "machine", "threads", "streams"})
    return {"machine": machine, "cores": len(os.sched_getaffinity(0)), "levels": levels}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--store", default="store", help="URL of the store (default: %(default)s)")
    made.add_argument("--voice", default="", help="the voice to measure (default: the newest)")
    made.add_argument("--variant", default="fp32", help="its precision (default: %(default)s)")
    made.add_argument("--threads", type=int, default=0, help="threads of the server (default: every CPU)")
    made.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=[0.5, 0.8],
        help="levels of load, as shares of the capacity",
    )
    made.add_argument("--seconds", type=float, default=60, help="of each level (default: %(default)s)")
    made.add_argument(
        "--text-length-distribution", default="lognormal:100,0.6", help="(default: %(default)s)"
    )
    made.add_argument(
        "--sleeping", type=Path, metavar="FILE", help="a profile, for an engine that only sleeps"
    )
    made.add_argument(
        "--door", type=float, default=0.005, help="what HTTP adds, in seconds (default: %(default)s)"
    )
    made.add_argument("--seed", type=int, default=0, help="of the arrivals (default: %(default)s)")
    made.set_defaults(streams=0, measure=True)
    return made


def main() -> None:
    """Measure and print the figures as JSON."""
    arguments = parser().parse_args()
    print(json.dumps(sleep_through(arguments) if arguments.sleeping else run(arguments), indent=2))


if __name__ == "__main__":
    main()
