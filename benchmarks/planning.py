"""Does ``vits plan`` foresee what a server does?

`python -m benchmarks.planning --store store --voice joe` measures this machine as `vits plan --measure` does, starts
`vits serve`, and sends it texts that come at random (a Poisson process, open loop: nobody waits for an answer before
the next comes) at some shares of the capacity that the measurement promises. The simulation is given the same texts at
the same times. Both are printed side by side, with the ratio of simulation to server.

A machine is not as fast from one minute to the next, least of all a shared one. So the server's own metrics are asked
how long its calls took, and the simulation is run a second time with all calls longer or shorter by that factor
("paced"). The first tells how far a measurement can be trusted, the second whether the model of the queue is right.

Client and server share the machine, so at high load the client takes a little of what the server has. Let nothing
else run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import threading
import time
import urllib.request
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.serving import Refused, Server, serving
from services.planning.cli import measured
from services.planning.profile import Profile
from services.planning.simulation import Outcome, Settings, Simulation, engine_seconds, works
from services.planning.workload import Load, draw_texts, parse_distribution, plan_texts
from shared.text import FrontEnd
from shared.text.script import Script
from shared.voice.scheduler import Policy

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
    generator = np.random.default_rng(arguments.seed)
    times = Load("constant", rate, arguments.seconds).arrivals(generator).tolist()
    chosen = generator.integers(len(planned), size=len(times)).tolist()
    arrivals = list(zip(times, chosen, strict=True))
    before = busy_seconds(server)
    answers = ask_all(server, [text for text, _ in planned], arrivals)
    busy = busy_seconds(server) - before
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
    said = {"share": share, "requests_per_second": rate, "requests": len(arrivals)}
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


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, serve, simulate."""
    profile = measured(arguments, lambda what, share: None)
    texts = draw_texts(
        parse_distribution(arguments.text_length_distribution), profile.spec.language, arguments.seed
    )
    planned = plan_texts(texts, FrontEnd.from_spec(profile.spec.front_end), profile.spec.language)
    with serving(arguments, max_backlog=MAX_BACKLOG_SECONDS) as server:
        server.ask(planned[0][0])
        return {
            "machine": profile.model_dump(include={"voice", "variant", "machine", "threads", "streams"}),
            "cores": len(os.sched_getaffinity(0)),
            "levels": [compare(server, planned, arguments, profile, share) for share in arguments.shares],
        }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--store", default="store", help="URL of the store (default: %(default)s)")
    made.add_argument("--voice", required=True, help="the voice to measure")
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
        "--door", type=float, default=0.005, help="what HTTP adds, in seconds (default: %(default)s)"
    )
    made.add_argument("--seed", type=int, default=0, help="of the arrivals (default: %(default)s)")
    made.set_defaults(streams=0, measure=True)
    return made


def main() -> None:
    """Measure and print the figures as JSON."""
    print(json.dumps(run(parser().parse_args()), indent=2))


if __name__ == "__main__":
    main()
