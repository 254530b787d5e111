"""``vits plan``: how many pods a load needs, and what an hour of audio costs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from services.planning.autoscaler import Scaling
from shared.arguments import Parser
from shared.errors import QualityError, UserError
from shared.folders import check_writable
from shared.store import default_store_url

if TYPE_CHECKING:
    from services.planning.profile import Profile

EPILOG = """\
what it does:
  1. measures this machine for a voice (about 12 s, remembered), or reads what --save-profile wrote on another one
  2. cuts example texts as the server does, and draws requests that come at random
  3. plays them to pods that run the server's own scheduler and its rule of admission, on a simulated clock
  4. looks for the fewest pods that meet the target at the peak, then lets the autoscaler follow the load
Nothing is served, and no cluster is asked.

examples:
  vits plan --requests-per-second 5 --target-first-audio 0.3
      the newest voice of ./store on this machine, texts of about a hundred characters
  vits plan --requests-per-second 40 --text-length-distribution file:texts.txt --target-first-audio 0.3 \\
      --load daily --pod-price 0.08 --plot plan.html
      texts of your own, a day's wave, what an hour of audio costs, and a page to look at
  vits plan --measure --voice joe@production --threads 4 --save-profile pod.json
      measure on the machine that pods will run on, with the cores that a pod will have
  vits plan --profile pod.json --requests-per-second 2000 --target-first-audio 0.5
      and plan anywhere
  vits plan --profile pod.json --requests-per-second 40 --target-first-audio 0.3 --load daily --max-pods 20
      would the manifests' maxReplicas be enough? If not, it says how many are

text lengths, in characters:
  fixed:120   uniform:20-400   lognormal:120,0.6 (median and sigma)   file:texts.txt (one text a line)

exit codes: 0 the target can be met; 3 it cannot, and the reason is told. docs/scaling.md explains the figures.
"""

SHAPES = ("constant", "ramp", "daily")

#: How often a line tells of progress where there is no screen.
LINE_SECONDS = 10.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(
        prog="vits plan",
        description="How many pods does a load need? Simulates the server's scheduler and the autoscaler above it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    load = made.add_argument_group("load")
    load.add_argument("--requests-per-second", type=positive, metavar="N", help="at the peak")
    load.add_argument(
        "--text-length-distribution",
        metavar="DISTRIBUTION",
        default="lognormal:100,0.6",
        help="see below (default: %(default)s)",
    )
    load.add_argument(
        "--load",
        choices=SHAPES,
        default="constant",
        help="constant, ramp (up from a tenth) or daily (a wave between a tenth and the peak) (default: %(default)s)",
    )
    load.add_argument(
        "--duration",
        type=positive,
        metavar="SECONDS",
        help="of the load under the autoscaler (default: 600, 1800 or 86400)",
    )
    target = made.add_argument_group("target")
    target.add_argument(
        "--target-first-audio", type=positive, metavar="SECONDS", help="from request to sound"
    )
    target.add_argument(
        "--percentile",
        type=int,
        choices=(50, 95, 99),
        default=95,
        help="of requests, for which it holds (default: %(default)s)",
    )
    target.add_argument(
        "--target-refused",
        type=share,
        metavar="SHARE",
        default=0.005,
        help="share of requests that may be refused (default: %(default)s)",
    )
    machine = made.add_argument_group("machine")
    machine.add_argument(
        "--voice", metavar="NAME", default="", help="name, name@alias or name/version (default: the newest)"
    )
    machine.add_argument("--store", metavar="URL", help="where it is (default: $VITS_STORE, or ./store)")
    machine.add_argument(
        "--variant", default="auto", help="its precision (default: what its export recommends)"
    )
    machine.add_argument("--threads", type=count, default=0, help="cores of a pod (default: this machine's)")
    machine.add_argument("--streams", type=count, default=0, help="computations at once (default: the best)")
    machine.add_argument(
        "--profile", type=Path, metavar="FILE", help="a measurement that was saved; needs no voice"
    )
    machine.add_argument("--measure", action="store_true", help="measure anew, even if it is remembered")
    machine.add_argument("--save-profile", type=Path, metavar="FILE", help="save the measurement")
    pods = made.add_argument_group("pods")
    pods.add_argument("--pods", type=count, metavar="N", help="judge this number, and look for no other")
    pods.add_argument(
        "--pod-price", type=positive, metavar="PRICE", help="of an hour of a pod, in any currency"
    )
    pods.add_argument(
        "--max-backlog",
        type=positive,
        metavar="SECONDS",
        default=10.0,
        help="admission, as of 'vits serve' (default: %(default)s)",
    )
    pods.add_argument(
        "--balancing",
        choices=("random", "round-robin", "least-requests"),
        default="random",
        help="how a request finds its pod; a Service chooses at random (default: %(default)s)",
    )
    pods.add_argument(
        "--door",
        type=positive,
        metavar="SECONDS",
        default=0.005,
        help="what HTTP adds to a request (default: %(default)s)",
    )
    pods.add_argument("--seed", type=count, default=0, help="of what is drawn (default: %(default)s)")
    _add_autoscaler(made)
    out = made.add_argument_group("output")
    out.add_argument("--json", action="store_true", help="print JSON instead of a table")
    out.add_argument(
        "--plot", type=Path, metavar="FILE", help="write a page (.html) or a picture (.png, .svg)"
    )
    return made


#: The autoscaler's options: each sets the field of `Scaling` that it names.
AUTOSCALER = {
    "--target-backlog": ("target", "backlog seconds for each pod that it aims at"),
    "--min-pods": ("least", "fewest pods"),
    "--tolerance": ("tolerance", "share by which backlog may differ from the target"),
    "--sync": ("sync_seconds", "how often it decides, in seconds"),
    "--scale-up-window": ("up_window_seconds", "stabilisation before it grows, in seconds"),
    "--scale-down-window": ("down_window_seconds", "stabilisation before it shrinks, in seconds"),
    "--scale-up-percent": ("up_percent", "growth at most in a period, in percent of the pods, or…"),
    "--scale-up-pods": ("up_pods", "…by so many pods, whichever is more"),
    "--scale-up-period": ("up_period_seconds", "that period, in seconds"),
    "--scale-down-percent": ("down_percent", "shrinkage at most in a period, in percent of the pods, or…"),
    "--scale-down-pods": ("down_pods", "…by so many pods, whichever is more"),
    "--scale-down-period": ("down_period_seconds", "that period, in seconds"),
}


def _add_autoscaler(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group(
        "autoscaler",
        "a HorizontalPodAutoscaler on vits_backlog_seconds, by default that of deploy/kubernetes",
    )
    group.add_argument("--no-autoscaler", action="store_true", help="leave it out")
    group.add_argument(
        "--pod-start",
        type=number,
        metavar="SECONDS",
        default=30.0,
        help="from the decision for a pod until it is ready (default: %(default)s)",
    )
    group.add_argument(
        "--metric-delay",
        type=number,
        metavar="SECONDS",
        default=15.0,
        help="age of the metrics that it sees (default: %(default)s)",
    )
    group.add_argument(
        "--max-pods",
        dest="most",
        type=count,
        metavar="N",
        help="most pods. Fewer than the peak needs, and texts are refused there, which is told (default: "
        f"{Scaling.most}, as in deploy/kubernetes, or twice what the peak needs where that is more)",
    )
    defaults = {field.name: field.default for field in fields(Scaling)}
    for option, (name, text) in AUTOSCALER.items():
        default = defaults[name]
        kind: Callable[[str], float] = count if isinstance(default, int) else number
        group.add_argument(
            option, dest=name, type=kind, metavar="N", default=default, help=f"{text} (default: %(default)s)"
        )


def number(text: str) -> float:
    """A finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def positive(text: str) -> float:
    """A number above 0."""
    if not (value := number(text)):
        raise argparse.ArgumentTypeError("it must be above 0")
    return value


def share(text: str) -> float:
    """A number from 0 to 1."""
    if (value := number(text)) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return value


def count(text: str) -> int:
    """A whole number, 0 or more."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is measured.

    Raises:
        UserError: Something cannot be.
    """
    planned = arguments.requests_per_second is not None and arguments.target_first_audio is not None
    if not planned and not (arguments.measure or arguments.save_profile):
        raise UserError(
            "give --requests-per-second and --target-first-audio, or --measure to measure this machine only"
        )
    if arguments.profile and (arguments.voice or arguments.measure or arguments.threads or arguments.streams):
        raise UserError(
            "--profile is a finished measurement: leave --voice, --threads, --streams and --measure out, "
            "or leave out --profile"
        )
    if arguments.pods == 0:
        raise UserError("--pods is 0; give 1 or more")
    if arguments.least < 1:
        raise UserError(
            "--min-pods is 0; give 1 or more: backlog is reported by pods, so that none is reported where there are "
            "none"
        )
    if arguments.most is not None and arguments.most < arguments.least:
        raise UserError(
            f"--min-pods is {arguments.least} and --max-pods {arguments.most}; give no more than the second"
        )
    for option in ("--target-backlog", "--sync"):
        if not getattr(arguments, AUTOSCALER[option][0]):
            raise UserError(f"{option} is 0; it must be above 0")
    if arguments.save_profile:
        check_writable(arguments.save_profile.parent, "give another --save-profile")
    if arguments.plot:
        from services.planning.report import check_plot

        check_plot(arguments.plot)


def main(argv: Sequence[str]) -> int:
    """Plan.

    Raises:
        QualityError: No number of pods meets the target.
    """
    arguments = parser().parse_args(argv)
    check(arguments)
    # What computes is imported after the arguments are right, so that --help is quick.
    from services.planning.answer import Question, Target
    from services.planning.profile import Profile
    from services.planning.report import print_report, to_json, write_plot
    from services.planning.simulation import Settings, works
    from services.planning.workload import DURATIONS, Load, Shape, draw_texts, parse_distribution, plan_texts
    from shared.text import FrontEnd
    from shared.voice.scheduler import Policy

    assert get_args(Shape) == SHAPES  # noqa: S101 - written twice so that --help imports little
    distribution = parse_distribution(arguments.text_length_distribution)
    with shown() as progress:
        profile = Profile.read(arguments.profile) if arguments.profile else measured(arguments, progress)
        if arguments.save_profile:
            profile.write(arguments.save_profile)
        if arguments.requests_per_second is None:
            print(profile.model_dump_json(indent=2, exclude={"spec"}))
            return 0
        progress("cutting texts", 0.0)
        language = profile.spec.language
        texts = draw_texts(distribution, language, arguments.seed)
        planned = plan_texts(texts, FrontEnd.from_spec(profile.spec.front_end), language)
        question = Question(
            works(planned, profile, arguments.seed),
            profile,
            Load(
                arguments.load,
                arguments.requests_per_second,
                arguments.duration or DURATIONS[arguments.load],
            ),
            Target(arguments.target_first_audio, arguments.percentile, arguments.target_refused),
            Settings(
                pods=1,
                policy=Policy(max_backlog_seconds=arguments.max_backlog),
                balancing=arguments.balancing,
                door_seconds=arguments.door,
                pod_start_seconds=arguments.pod_start,
                metric_delay_seconds=arguments.metric_delay,
                seed=arguments.seed,
            ),
            scaling=None if arguments.no_autoscaler else autoscaler(arguments),
            roomy=arguments.most is None,
            pod_price=arguments.pod_price,
            fixed=arguments.pods,
        )
        answer = question.answer(progress)
    if arguments.plot:
        write_plot(question, answer, arguments.plot)
    if arguments.json:
        print(json.dumps(to_json(question, answer), indent=2, ensure_ascii=False))
    else:
        print_report(question, answer)
    if answer.why and not arguments.pods:
        raise QualityError("the target cannot be met: " + answer.why)
    return 0


def autoscaler(arguments: argparse.Namespace) -> Scaling:
    """The autoscaler that was asked for; without ``--max-pods`` its most are a start (`Question.roomy`)."""
    given = {name: getattr(arguments, name) for name, _ in AUTOSCALER.values()}
    return Scaling(**given, most=arguments.most or max(Scaling.most, arguments.least))


def measured(arguments: argparse.Namespace, progress: Callable[[str, float], None]) -> Profile:
    """The profile of a voice on this machine: what is remembered of it, or a new measurement.

    The voice is opened as the server opens it, with the streams that were best here.

    Raises:
        VitsError: There is no such voice, or it cannot speak here.
    """
    from services.planning.profile import Profile, measure, remembered_path
    from shared.cache import default_cache
    from shared.registry import Registry, default_voice
    from shared.store import Store
    from shared.voice import VoiceSpec
    from shared.voice.layout import Opening
    from shared.voice.selection import recommended_variant

    registry = Registry(Store.open(arguments.store or default_store_url()))
    version = registry.resolve("voices", arguments.voice or default_voice(registry))
    folder = registry.fetch(version)
    spec = VoiceSpec.read(folder)
    variant = recommended_variant(spec) if arguments.variant == "auto" else arguments.variant
    threads = arguments.threads or len(os.sched_getaffinity(0))
    remembered = remembered_path(folder, variant, threads, arguments.streams)
    if remembered.is_file() and not arguments.measure:
        with suppress(UserError):  # of an older version
            return Profile.read(remembered)
    opening = Opening(variant=variant, threads=threads, streams=arguments.streams, memory=default_cache())
    voice = opening(folder)
    try:
        profile = measure(
            voice,
            reference=version.reference,
            variant=variant,
            threads=threads,
            progress=lambda done: progress("measuring this machine", done),
        )
    finally:
        voice.close()
    with suppress(UserError):  # a cache that is full or read-only costs a measurement, no more
        profile.write(remembered)
    return profile


@contextmanager
def shown() -> Iterator[Callable[[str, float], None]]:
    """A bar with the time that remains of each piece of work; a line now and then where there is no screen."""
    if not sys.stderr.isatty():
        yield lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("", total=1.0)
        piece = ""

        def move(what: str, share: float) -> None:
            nonlocal piece
            if what != piece:
                bars.reset(bar)
                piece = what
            bars.update(bar, description=what, completed=share)

        yield move


def lines() -> Callable[[str, float], None]:
    """Tells of progress by a line on standard error every `LINE_SECONDS`."""
    begun = told = time.monotonic()
    piece = ""

    def line(what: str, share: float) -> None:
        nonlocal begun, told, piece
        now = time.monotonic()
        if what != piece:
            piece, begun = what, now
        if share and now - told >= LINE_SECONDS:
            told = now
            left = (now - begun) * (1 - share) / share
            print(f"{what}: {share:.0%}, {left:.0f} s left", file=sys.stderr)

    return line
