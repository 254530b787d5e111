"""What is going wrong in a run, told while it can still be mended: once each, with what to do about it.

Detectors look at numbers that are at hand anyway, losses when they are logged, evaluations, the clock of the
process; none of them makes a step wait for the device. Each is a rule of thumb with room to its usual values: a run
that nobody needs to look at hears nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch

from services.training.config import SEGMENT_SAMPLES, Stage, TrainingConfig, longest_duration
from shared.wording import counted

if TYPE_CHECKING:
    from services.training.session import Session
    from services.training.tracking import Tracker

#: Everything that can be found, as the metric and the report call it.
FINDINGS = (
    "small_dataset", "data_starvation", "discriminator_dominance", "generator_dominance", "collapse",
    "learning_rate", "standstill", "alignment", "divergence", "out_of_memory",
)  # fmt: skip

#: Logged values that a detector looks at together: one alone is noise.
_WINDOW = 5
#: The least number of recordings that fine-tuning is known to work with.
_FEW = 80
#: Share of a run's time that may be spent waiting for data, and the share of its time that an accelerator which is
#: not starved computes.
_WAITING, _BUSY = 0.3, 0.8
#: Steps that a look at the clock takes in, at least.
_CLOCKED = 20
#: The share of what an evaluation's losses were that they differ by where a model has changed at all; and evaluations,
#: steps and the share of a stage's steps before it can be said that it has not.
_STILL, _LOOKS, _STEPS, _SHARE = 0.001, 4, 200, 0.1
#: What an evaluation logs of which some part is what a stage teaches.
_TAUGHT = frozenset({"eval_mel", "eval_kl", "eval_duration"})
#: The key that is a stage's learning rate.
_RATES: dict[Stage, str] = {
    "new_modules": "new_modules_learning_rate",
    "reconstruction": "reconstruction_stage_learning_rate",
    "text": "text_stage_learning_rate",
    "joint": "learning_rate",
}


@dataclass(frozen=True)
class Finding:
    """Something to look at.

    Attributes:
        name: One of :data:`FINDINGS`.
        step: Where it was noticed.
        what: What was seen, with the figures.
        remedy: What to do, the likeliest first.
    """

    name: str
    step: int
    what: str
    remedy: str


# -- Detectors -------------------------------------------------------------------------------------


def small_dataset(recordings: int, minutes: float) -> tuple[str, str] | None:
    """Too few recordings to learn a voice from."""
    if recordings >= _FEW:
        return None
    return (
        (
            f"{counted(recordings, 'training recording')}, {minutes:.1f} min: fewer than the {_FEW} to 150 that a "
            "voice usually takes"
        ),
        (
            "record more; or expect the base's voice to shine through, keep the epochs few, and set "
            "early_stopping_patience"
        ),
    )


class Starvation:
    """Whether steps wait for their batches.

    Args:
        workers: ``dataloader_num_workers``.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._windows: deque[float] = deque(maxlen=2)
        self._steps, self._waited, self._seconds = 0, 0.0, 0.0

    def look(self, steps: int, waited: float, seconds: float, busy: float | None) -> tuple[str, str] | None:
        """Take in what some steps took.

        Args:
            steps: How many.
            waited: Seconds of it that went by waiting for batches.
            seconds: All of it.
            busy: Share of its time that the accelerator computes, where there is one and it says so.
        """
        self._steps, self._waited, self._seconds = (
            self._steps + steps,
            self._waited + waited,
            self._seconds + seconds,
        )
        if self._steps < _CLOCKED:
            return None
        self._windows.append(self._waited / max(self._seconds, 1e-9))
        self._steps, self._waited, self._seconds = 0, 0.0, 0.0
        full = len(self._windows) == self._windows.maxlen
        if not full or min(self._windows) < _WAITING or (busy is not None and busy >= _BUSY):
            return None
        computes = "" if busy is None else f", and the accelerator computes {busy:.0%} of its time"
        more = "4" if self._workers == 0 else str(2 * self._workers)
        return (
            f"{self._windows[-1]:.0%} of a step is spent waiting for its data{computes}",
            (
                f"set dataloader_num_workers {more} (now {self._workers}), put $VITS_CACHE on a local SSD, and keep "
                "other programs off the processor"
            ),
        )


class Dominance:
    """Whether one of the two networks has won.

    Of each discriminator network the least-squares losses are, per network: 0.5 and 0.25 where it cannot tell real
    from generated; 0 and 1 where it always can; and 1 and 0 where it takes what is generated for real.

    Args:
        networks: Networks of the discriminator.
    """

    def __init__(self, networks: int) -> None:
        self._networks = networks
        self._values: deque[tuple[float, float]] = deque(maxlen=_WINDOW)

    def look(self, values: Mapping[str, float]) -> tuple[str, str, str] | None:
        """Take in a step's losses; which of the findings it is, what, and what to do."""
        if not {"discriminator", "generator"} <= values.keys():
            return None
        self._values.append((values["discriminator"] / self._networks, values["generator"] / self._networks))
        if len(self._values) < _WINDOW:
            return None
        judge, forger = (median(side) for side in zip(*self._values, strict=True))
        told = f"discriminator loss {judge:.2g} and adversarial loss {forger:.2g} per network"
        if judge < 0.05 and forger > 0.8:
            return (
                "discriminator_dominance",
                f"the discriminator always tells generated from real ({told}): the generator learns nothing from it",
                (
                    "lower discriminator_learning_rate to a half, or give the generator a start with "
                    "frozen_discriminator_steps; weight_disc changes little under AdamW"
                ),
            )
        if forger < 0.1 and judge > 0.6:
            return (
                "generator_dominance",
                f"the discriminator takes generated speech for real ({told}): its praise is worth nothing",
                "raise discriminator_learning_rate, or see that the base's discriminator fits its generator",
            )
        return None


class Descent:
    """Whether a loss that should fall is going the wrong way: lost again, or never found.

    It is the mel loss, or in the text stage, which decodes nothing, the divergence. That is estimated by one sample and
    may be near to nothing: so it has to rise by more, and by some nats.

    Args:
        key: The key that is the learning rate.
        rate: What it is.
    """

    def __init__(self, key: str, rate: float) -> None:
        reads = key == _RATES["text"]
        self._loss, self._called = ("kl", "the divergence") if reads else ("mel", "the mel loss")
        self._lost, self._rise, self._least = (3.0, 2.0, 5.0) if reads else (1.5, 1.2, 0.0)
        self._or = "" if reads else ", or raise weight_mel"
        self._lower = f"lower {key}, such as to {rate / 5:.1g} (now {rate:.2g})"
        self._gently = self._lower
        if key == _RATES["joint"]:  # which alone the finder looks for, and a warm-up leads up to
            self._lower += "; 'vits tune lr' finds one"
            self._gently = f"{self._lower}; or set warmup_ratio 0.05"
        self._values: deque[float] = deque(maxlen=_WINDOW)
        self._first = self._best = math.inf
        self._seen = 0

    def look(self, values: Mapping[str, float]) -> tuple[str, str, str] | None:
        """Take in a step's losses; which of the findings it is, what, and what to do."""
        if self._loss not in values:
            return None
        self._values.append(values[self._loss])
        self._seen += 1
        if len(self._values) < _WINDOW:
            return None
        now = median(self._values)
        if math.isinf(self._first):
            self._first = now
        self._best = min(self._best, now)
        lost = now > max(self._lost * self._best, self._best + self._least)
        if self._best < 0.9 * self._first and lost:
            return (
                "collapse",
                f"{self._called} was down to {self._best:.3g} and is back at {now:.3g}: the model has lost what it had",
                f"go back to a checkpoint before that with resume_from_checkpoint; {self._lower}{self._or}",
            )
        risen = now > max(self._rise * self._first, self._first + self._least)
        if self._seen >= 2 * _WINDOW and self._best > 0.98 * self._first and risen:
            return (
                "learning_rate",
                f"{self._called} has only risen, from {self._first:.3g} to {now:.3g}: the learning rate is too high",
                self._gently,
            )
        return None


def standstill(
    evaluations: Sequence[Mapping[str, float]], least: float, key: str, rate: float
) -> tuple[str, str] | None:
    """Whether steps change next to nothing.

    Of one model evaluations are the same to the last digits, and AdamW moves weights by the rate whatever the gradient:
    so what is measured moves, up or down, unless the rate is too small for that. A model that has learnt all there is
    to learn moves, too; a step's own losses are too noisy to tell.

    Args:
        evaluations: The stage's until now, as they are logged.
        least: Steps that they have to span.
        key: The key that is the learning rate.
        rate: What it is.
    """
    if len(evaluations) < _LOOKS or evaluations[-1]["step"] - evaluations[0]["step"] < least:
        return None
    begun = evaluations[0]
    for name in _TAUGHT:
        if any(abs(one[name] - begun[name]) > _STILL * abs(begun[name]) for one in evaluations):
            return None
    steps = evaluations[-1]["step"] - begun["step"]
    finder = "; 'vits tune lr' finds one" if key == _RATES["joint"] else ""
    return (
        (
            f"in {steps:.0f} steps no loss of an evaluation has changed by {_STILL:.1%}: training does next to nothing"
        ),
        f"raise {key}, such as to {10 * rate:.1g} (now {rate:.2g}){finder}",
    )


class Sharpening:
    """Whether alignments become sharp.

    While a model does not know its text, the alignment search gives nearly all frames to one token, which fits
    everything a little, and one frame to each of the others. So what is looked at is the share of frames that the
    longest token of a recording has.
    """

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=3)

    def look(self, values: Mapping[str, float]) -> tuple[str, str] | None:
        """Take in an evaluation."""
        if "longest_token" not in values:
            return None
        self._values.append(values["longest_token"])
        if len(self._values) < 3 or min(self._values) < 0.4 or self._values[-1] < 0.9 * self._values[0]:
            return None
        return (
            (
                f"alignments do not become sharp: one token takes {self._values[-1]:.0%} of a recording, evaluation "
                "after evaluation"
            ),
            (
                "look at the alignments in report.html; see with 'vits data inspect' that transcripts belong to their "
                "recordings and that the model knows their letters; begin with short recordings (curriculum length) "
                "and set alignment_noise 0.01"
            ),
        )


# -- Together --------------------------------------------------------------------------------------


class Diagnosis:
    """All detectors of a run. What they find goes to the console, to the metrics, and into the report.

    Args:
        session: The run; its state remembers what was told, so that a resumed run does not repeat it.
        tracker: Told.
    """

    def __init__(self, session: Session, tracker: Tracker) -> None:
        self._session, self._tracker = session, tracker
        self._starvation = Starvation(session.config.dataloader_num_workers)
        self._steps, self._waited, self._seconds = 0, 0.0, 0.0
        for known in session.state.findings:
            tracker.metrics.finding.labels(known["name"]).set(1)
        found = small_dataset(len(session.train), 60 * session.train.hours)
        if found:
            self._tell("small_dataset", *found)
        self.begin_stage("joint")

    def begin_stage(self, stage: Stage) -> None:
        """Losses begin anew."""
        key = _RATES[stage]
        self._dominance = Dominance(len(self._session.discriminator.discriminators))
        self._descent = Descent(key, getattr(self._session.config, key))
        self._sharpening = Sharpening()
        self._stage = stage

    def waited(self, seconds: float) -> None:
        """A batch was waited for."""
        self._waited += seconds

    def stepped(self, seconds: float) -> None:
        """A step is done, and took so long, its batches included and evaluations and saves not."""
        self._steps, self._seconds = self._steps + 1, self._seconds + seconds

    def logged(self, values: Mapping[str, float]) -> None:
        """A step's losses are at hand."""
        for found in (self._dominance.look(values), self._descent.look(values)):
            if found:
                self._tell(*found)
        starved = self._starvation.look(self._steps, self._waited, self._seconds, self._busy())
        if starved:
            self._tell("data_starvation", *starved)
        self._tracker.waiting(self._session.step, self._waited / max(self._seconds, 1e-9))
        self._steps, self._waited, self._seconds = 0, 0.0, 0.0

    def evaluated(self, values: Mapping[str, float]) -> None:
        """An evaluation's figures are at hand."""
        sharp = self._stage != "reconstruction"  # which learns nothing of texts
        found = self._sharpening.look(values) if sharp else None
        if found:
            self._tell("alignment", *found)
        still = self._standstill()
        if still:
            self._tell("standstill", *still)

    def _standstill(self) -> tuple[str, str] | None:
        """Of the stage since its beginning, whichever run that was in."""
        session, key = self._session, _RATES[self._stage]
        span, ema = session.plan.span(self._stage), session.ema
        least = max(_STEPS, _SHARE * len(span), 1 / (1 - ema.decay) if ema else 0)  # averages lag behind
        history = session.state.log_history
        evaluations = [entry for entry in history if entry.keys() >= _TAUGHT and entry["step"] >= span.start]
        return standstill(evaluations, least, key, getattr(session.config, key))

    def failed(self, name: str, error: Exception) -> None:
        """The run ends by an error that says itself what to do."""
        what, _, remedy = str(error).partition("\n")
        self._tell(name, what, remedy, aloud=False)

    def _busy(self) -> float | None:
        """Share of its time that the GPU computes; asks the driver, not the device's queue."""
        if self._session.accelerator.device.type != "cuda":
            return None
        try:
            return torch.cuda.utilization() / 100
        except Exception:  # of a vendor's library: they share no base, and no run is to end by one
            return None

    def _tell(self, name: str, what: str, remedy: str, *, aloud: bool = True) -> None:
        told = self._session.state.findings
        if any(finding["name"] == name for finding in told):
            return
        finding = Finding(name, self._session.step, what, remedy)
        told.append(asdict(finding))
        self._tracker.metrics.finding.labels(name).set(1)
        if aloud:
            self._tracker.say(f"look: {what}. What to do: {remedy}")


# -- Out of memory ---------------------------------------------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no room. A kernel that kills the process leaves no error to look at."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "out of memory")
    )


@dataclass(frozen=True)
class Size:
    """What a batch holds, padding included."""

    recordings: int
    frames: int
    """Of each recording."""

    @property
    def area(self) -> int:
        """All of its frames."""
        return self.recordings * self.frames


def largest(sizes: Iterable[Size]) -> Size:
    """The one with the most frames."""
    return max(sizes, key=lambda size: size.area)


def remedies(config: TrainingConfig, tried: Size, fitted: Size | None, *, frame_seconds: float) -> list[str]:
    """What to do about a batch that found no room, in the order in which to try it.

    Args:
        config: The run's.
        tried: The batch that did not fit.
        fitted: The largest one that did, if any has.
        frame_seconds: Seconds of a frame.
    """
    already = "it is on already"
    half = already if config.fp16 or config.bf16 else "--fp16 true, or --bf16 true on processors"
    again = already if config.gradient_checkpointing else "--gradient_checkpointing true"
    precision, recomputing, held_out = (
        f"half precision: {half}",
        f"activations computed twice: {again}",
        f"fewer held-out recordings: {_fewer_held_out(config)}",
    )
    if tried.recordings == 1:  # there is no smaller batch
        shorter = _shorter(config, tried, fitted, frame_seconds)
        told = [precision, recomputing, *_shorter_slices(config), shorter, held_out, *_fewer_judges(config)]
        return [f"{number}. {line}" for number, line in enumerate(told, start=1)]
    smaller, more = _smaller(config, tried, fitted)
    told = [precision, smaller, recomputing, more, *_shorter_slices(config), held_out]
    return [
        *(f"{number}. {line}" for number, line in enumerate(told, start=1)),
        "'vits tune batch' measures what fits; --max_duration_in_seconds leaves the longest recordings out",
    ]


def evaluation_remedies(config: TrainingConfig) -> list[str]:
    """What to do about an evaluation that found no room, in the order in which to try it.

    It holds whole recordings, in float32 and one batch at a time, so neither the training's batches nor its
    precision change what it takes.
    """
    batch, length = config.per_device_eval_batch_size, config.max_duration_in_seconds
    smaller = (
        f"smaller batches, which change no figure: --per_device_eval_batch_size {batch // 2} (now {batch})"
    )
    told = [
        *([smaller] if batch > 1 else []),
        f"shorter recordings: {_no_longer(config, length / 2)} (now {length:g}), of both splits",
        f"fewer held-out recordings, if long ones are not the first: {_fewer_held_out(config)}",
        "shorter sentences to speak: full_generation_sample_text and eval_sample_texts are spoken in one piece",
    ]
    if config.do_train:  # without do_eval the sentences would still be spoken
        needing = {
            "load_best_model_at_end": "false",
            "keep_best": "0",
            "early_stopping_patience": "null",
        }
        unset = "".join(f" --{key} {value}" for key, value in needing.items() if getattr(config, key))
        told.append(f"no evaluations at all: --eval_strategy no{unset}")
    return [f"{number}. {line}" for number, line in enumerate(told, start=1)]


def network_remedies(config: TrainingConfig) -> list[str]:
    """What to do where the networks alone find no room, in the order in which to try it.

    Neither batches nor precision change what they take: weights are kept in float32.
    """
    told = [
        "end what else is in that memory, such as another run",
        *([] if config.ema_decay is None else ["no averaged weights: --ema_decay null"]),
        *(["no judges of spectrograms: --stft_discriminator false"] if config.stft_discriminator else []),
        *_fewer_judges(config),
        "a smaller base, as --model_name_or_path; 'vits doctor' estimates what one takes",
    ]
    return [f"{number}. {line}" for number, line in enumerate(told, start=1)]


def _fewer_held_out(config: TrainingConfig) -> str:
    now = config.max_eval_samples
    if now is None:
        return "--max_eval_samples 5"
    return f"--max_eval_samples {min(5, max(1, now // 2))} (now {now})"


def _no_longer(config: TrainingConfig, seconds: float) -> str:
    """What leaves longer recordings out, whatever is left out for being short."""
    unset = " --min_duration_in_seconds 0" if seconds <= config.min_duration_in_seconds else ""
    return f"--max_duration_in_seconds {seconds:g}{unset}"


def _smaller(config: TrainingConfig, tried: Size, fitted: Size | None) -> tuple[str, str]:
    """Batches that would fit, and how to take the same step in more of them."""
    half = tried.recordings // 2
    batch = min(half, max(1, fitted.area // tried.frames)) if fitted else half
    whole = config.per_device_train_batch_size * config.gradient_accumulation_steps
    accumulation = math.ceil(whole / batch)
    budget = fitted.area if fitted and fitted.area < tried.area else tried.area // 2
    known = "went through" if fitted and fitted.area < tried.area else "is half of it"
    frames = max(budget, tried.frames)
    longest = longest_duration(frames)  # a budget has room for the longest recording, or is refused
    shorter = f" {_no_longer(config, longest)}" if longest < config.max_duration_in_seconds else ""
    smaller = (
        f"smaller batches: --per_device_train_batch_size {batch} (this one had {tried.recordings}), or "
        f"--max_frames_per_batch {frames}{shorter} (this one had {tried.area}; so much {known})"
    )
    more = (
        f"the same step in more batches: --gradient_accumulation_steps {accumulation} with batches of {batch}"
    )
    return smaller, more


def _shorter(config: TrainingConfig, tried: Size, fitted: Size | None, frame_seconds: float) -> str:
    """A length of recordings that would fit."""
    frames = fitted.frames if fitted and fitted.frames < tried.frames else tried.frames // 2
    seconds = math.floor(10 * frames * frame_seconds) / 10
    return (
        f"shorter recordings: {_no_longer(config, max(seconds, 0.1))} (this one has "
        f"{tried.frames * frame_seconds:.3g} s); 'vits data prepare' cuts long ones up"
    )


def _shorter_slices(config: TrainingConfig) -> list[str]:
    """Slices of the usual length, where they are longer: decoder and discriminators take memory in proportion."""
    if config.segment_size <= SEGMENT_SAMPLES:
        return []
    return [f"shorter slices to decode: --segment_size {SEGMENT_SAMPLES} (now {config.segment_size})"]


def _fewer_judges(config: TrainingConfig) -> list[str]:
    """A smaller discriminator, where it is not small already."""
    few = len(config.discriminator_periods) <= 3
    return [] if few else ["fewer judges, in a new run: --discriminator_periods 2,3,5"]
