"""``vits train --profile``: where the time of a step goes, by the parts of the model that one can change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from services.training.checkpoints import TrainerState
from services.training.config import Stage, TrainingConfig
from services.training.loop import Course, Unsaved
from services.training.session import Plan, Session, begin, precision
from services.training.stopping import Stop
from services.training.tracking import Tracker
from shared.folders import check_writable, writing
from shared.wording import counted

#: Ranges of the trace that name a part; the loop and the steps open some of them themselves.
PREFIX = "vits:"
#: A run's stages, as traces and as tables call them.
_STAGES: dict[Stage, str] = {
    "new_modules": "first stage",
    "reconstruction": "reconstruction stage",
    "text": "text stage",
    "joint": "joint training",
}
#: Steps before the profile, which fill caches and make the optimisers' state.
_UNMEASURED = 2
#: What is in no part's range.
_REST = "everything else"
#: An operation of autograd's that carries out the gradient of one of the forward's.
_BACKWARD = "autograd::engine::evaluate_function: "


@dataclass
class Part:
    """Where some of the time goes, in milliseconds a step.

    Attributes:
        forward: On the host, in the forward pass or outside of both.
        backward: On the host, in the backward pass.
        device: On the accelerator, in both.
    """

    forward: float = 0.0
    backward: float = 0.0
    device: float = 0.0


def run(config: TrainingConfig, steps: int) -> Path:
    """Profile so many steps of each stage that a configuration has, from its beginning, and stop: nothing is saved.

    Args:
        config: The run's.
        steps: How many.

    Returns:
        The folder with ``profile.txt`` and, for chrome://tracing or Perfetto, each stage's ``trace-STAGE.json``.

    Raises:
        UserError: Configuration or data cannot be used, or the folder not be written.
    """
    config = config.model_copy(update={"do_eval": False, "eval_strategy": "no", "report_to": ["tensorboard"]})
    folder, remedy = config.output_dir / "profile", "give another --output_dir"
    with writing(folder, remedy):
        folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder, remedy)
    session = begin(config, Accelerator(mixed_precision=precision(config), cpu=config.use_cpu))
    tracker = Tracker(
        folder, enabled=True, tensorboard=True, total_steps=_UNMEASURED + steps, first_step=0, config=None
    )
    tables = []
    with tracker, _named(session):
        for stage in session.plan.stages():
            tracker.say(f"{_STAGES[stage]}: {counted(steps, 'step')}, after {_UNMEASURED} that do not count")
            profiler = _profiled(session, tracker, stage, steps)
            profiler.export_chrome_trace(str(folder / f"trace-{stage}.json"))
            tables.append(f"{_STAGES[stage]}, {table(parts(profiler.events(), steps), steps)}")
    text = "\n\n".join(tables)
    (folder / "profile.txt").write_text(text + "\n", encoding="utf-8")
    print(text)
    print(
        f"traces, for chrome://tracing or ui.perfetto.dev, are {folder / 'trace-*.json'}; nothing was saved"
    )
    return folder


def _profiled(session: Session, tracker: Tracker, stage: Stage, steps: int) -> profile:
    """The profile of so many steps of one stage, as if the run had no other."""
    session.state = TrainerState()
    _limit(session.plan, stage, _UNMEASURED)
    Course(session, tracker, Unsaved(), Stop()).run()
    _limit(session.plan, stage, _UNMEASURED + steps)
    activities = [ProfilerActivity.CPU]
    if session.accelerator.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    profiler = profile(activities=activities)
    with profiler:
        Course(session, tracker, Unsaved(), Stop()).run()
    return profiler


def _limit(plan: Plan, stage: Stage, steps: int) -> None:
    """Make of a plan one of so many steps of one stage."""
    for each in _STAGES:
        setattr(plan, each, steps if each == stage else 0)


# -- Names -----------------------------------------------------------------------------------------


@contextmanager
def _named(session: Session) -> Iterator[None]:
    """Let the model's parts open a range of their name while they compute."""
    generator = session.generator
    modules: dict[str, list[nn.Module]] = {
        "text encoder": [generator.text_encoder],
        "flow": [generator.flow],
        "decoder": [generator.decoder],
        "discriminators": list(session.discriminator.discriminators),
    }
    with ExitStack() as stack:
        for name, named in modules.items():
            for module in named:
                stack.enter_context(_ranged(module, name))
        for name, method in (("posterior encoder", "posterior"), ("duration predictor", "duration_loss")):
            setattr(generator, method, record_function(PREFIX + name)(getattr(generator, method)))
            stack.callback(delattr, generator, method)
        yield


@contextmanager
def _ranged(module: nn.Module, name: str) -> Iterator[None]:
    """A range around a module's forward."""
    opened: list[record_function] = []

    def enter(*_: object) -> None:
        opened.append(record_function(PREFIX + name))
        opened[-1].__enter__()

    def leave(*_: object) -> None:
        opened.pop().__exit__(None, None, None)

    handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# -- Accounts --------------------------------------------------------------------------------------


def parts(events: Any, steps: int) -> dict[str, Part]:
    """Every part's share of what a profiler has seen.

    An operation belongs to the innermost range that it ran in. The gradient of an operation belongs to the same part as
    the operation, which autograd's sequence numbers tell.

    Args:
        events: The profiler's.
        steps: Steps that it has seen.
    """
    events = list(events)
    made: dict[tuple[int, int], str] = {}
    for event in events:
        if event.sequence_nr >= 0 and not event.name.startswith(_BACKWARD):
            part = _range_of(event)
            if part is not None:  # of several with one number, the last has made the node of the graph
                made[event.thread, event.sequence_nr] = part
    account: dict[str, Part] = {}
    for event in events:
        part, backward = _part_of(event, made)
        entry = account.setdefault(part, Part())
        milliseconds = event.self_cpu_time_total / 1000 / steps
        if backward:
            entry.backward += milliseconds
        else:
            entry.forward += milliseconds
        entry.device += getattr(event, "self_device_time_total", 0.0) / 1000 / steps
    return account


def _range_of(event: Any) -> str | None:
    """The innermost named range around an event."""
    while event is not None:
        if event.name.startswith(PREFIX):
            return str(event.name.removeprefix(PREFIX))
        event = event.cpu_parent
    return None


def _part_of(event: Any, made: dict[tuple[int, int], str]) -> tuple[str, bool]:
    """An event's part, and whether it is of the backward pass."""
    while event is not None:
        if event.name.startswith(_BACKWARD):
            return made.get((event.fwd_thread, event.sequence_nr), _REST), True
        if event.name.startswith(PREFIX):
            return str(event.name.removeprefix(PREFIX)), False
        event = event.cpu_parent
    return _REST, False


def table(account: dict[str, Part], steps: int) -> str:
    """The account as lines of text, the largest part first."""
    whole = sum(part.forward + part.backward for part in account.values())
    device = sum(part.device for part in account.values())
    head = f"{'part':<20}{'forward':>10}{'backward':>10}{'share':>8}" + (f"{'device':>10}" if device else "")
    lines = [f"milliseconds a step on the host, mean of {steps} steps:", head]
    order: Callable[[tuple[str, Part]], float] = lambda item: -(item[1].forward + item[1].backward)  # noqa: E731
    for name, part in sorted(account.items(), key=order):
        share = (part.forward + part.backward) / whole if whole else 0.0
        line = f"{name:<20}{part.forward:>10.1f}{part.backward:>10.1f}{share:>8.1%}"
        lines.append(line + (f"{part.device:>10.1f}" if device else ""))
    lines.append(f"{'all of it':<20}{whole:>28.1f}")
    return "\n".join(lines)
