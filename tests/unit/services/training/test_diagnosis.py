"""What a run says of itself: each detector hears what it is for, and a healthy run hears nothing."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pynvml
import pytest
import torch
from torch import Tensor

from services.training import checkpoints as ckpt
from services.training import diagnosis, evaluation, loop
from services.training.checkpoints import TrainerState
from services.training.config import MODULES, Stage, TrainingConfig
from services.training.config_sources import read_overrides
from services.training.diagnosis import (
    FINDINGS,
    Descent,
    Diagnosis,
    Dominance,
    Sharpening,
    Size,
    Starvation,
    evaluation_remedies,
    remedies,
    small_dataset,
    standstill,
)
from services.training.steps import Steps
from shared.errors import ConfigError, DataError, DivergenceError

MakeConfig = Callable[..., TrainingConfig]
NETWORKS = 6


@pytest.fixture(autouse=True)
def surroundings(small_discriminator: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))


def noisy(values: Iterable[float], seed: int = 0) -> Iterator[float]:
    """With the noise that logged losses have, a tenth of them."""
    noise = np.random.default_rng(seed)
    return (float(value * (1 + 0.1 * noise.standard_normal())) for value in values)


def first(found: Iterable[Any]) -> Any:
    return next((one for one in found if one), None)


# -- Which of the two networks wins ----------------------------------------------------------------


def dominance(judge: Iterable[float], forger: Iterable[float]) -> Any:
    """What is found in losses per network."""
    detector = Dominance(NETWORKS)
    return first(
        detector.look({"discriminator": NETWORKS * one, "generator": NETWORKS * other})
        for one, other in zip(judge, forger, strict=True)
    )


def test_a_discriminator_that_always_knows_is_heard() -> None:
    falling = [0.5 * 0.8**at for at in range(20)]
    found = dominance(noisy(falling), noisy([min(1.0, 0.4 + 0.1 * at) for at in range(20)], 1))
    assert found[0] == "discriminator_dominance"
    assert "lower discriminator_learning_rate" in found[2]


def test_a_discriminator_that_is_taken_in_is_heard() -> None:
    found = dominance(noisy([0.9] * 10), noisy([0.03] * 10, 1))
    assert found[0] == "generator_dominance"


@pytest.mark.parametrize(
    ("judge", "forger"),
    [
        (0.4, 0.4),  # VITS as it trains
        (0.5, 0.25),  # it cannot tell
        (1.0, 1.0),  # fresh: it answers 0 to everything
        (0.25, 0.6),  # the upper hand
    ],
)
def test_a_fair_game_is_not(judge: float, forger: float) -> None:
    assert dominance(noisy([judge] * 60), noisy([forger] * 60, 1)) is None


def test_one_bad_step_is_not() -> None:
    judge = [0.4] * 30
    judge[7] = judge[19] = 0.001
    forger = [0.4] * 30
    forger[7] = forger[19] = 1.0
    assert dominance(judge, forger) is None


def test_a_discriminator_that_does_not_learn_is_not_judged() -> None:
    detector = Dominance(NETWORKS)
    assert first(detector.look({"generator": 6.0, "mel": 1.0}) for _ in range(20)) is None


# -- Where the mel loss goes -----------------------------------------------------------------------


def descent(mel: Iterable[float]) -> Any:
    detector = Descent("learning_rate", 2e-4)
    return first(detector.look({"mel": value}) for value in mel)


def test_a_model_that_loses_what_it_had_is_heard() -> None:
    good = [1.0 * 0.95**at + 0.4 for at in range(30)]
    found = descent(noisy([*good, *([2.0] * 10)]))
    assert found[0] == "collapse"
    assert "resume_from_checkpoint" in found[2]


def test_a_loss_that_only_rises_is_a_learning_rate_too_high() -> None:
    found = descent(noisy([0.7 + 0.05 * at for at in range(30)]))
    assert found[0] == "learning_rate"
    assert "lower learning_rate, such as to 4e-05 (now 0.0002)" in found[2]


def test_the_rate_to_lower_is_the_stages_own(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the stages before joint training ``learning_rate`` has no effect, nor has what the finder suggests for it."""

    def rising(steps: Steps, seen: Any, step: int, _: Any) -> dict[str, Tensor]:
        return {"mel": torch.tensor(0.7 + 0.05 * step), "gradient_norm_generator": torch.tensor(1.0)}

    monkeypatch.setattr(Steps, "alone", rising)
    loop.train(make_config(reconstruction_stage_steps=12, max_steps=1, logging_steps=1, report_to=[]))
    said = next(
        line for line in capsys.readouterr().out.splitlines() if "the mel loss has only risen" in line
    )
    assert said.endswith(
        "What to do: lower reconstruction_stage_learning_rate, such as to 0.0002 (now 0.001)"
    )
    first_stage = Descent("new_modules_learning_rate", 5e-4)
    found = first(first_stage.look({"mel": value}) for value in [1.0] * 5 + [0.5] * 5 + [2.0] * 5)
    assert (
        "; lower new_modules_learning_rate, such as to 0.0001 (now 0.0005), or raise weight_mel" in found[2]
    )


@pytest.mark.parametrize(
    "mel",
    [
        [1.5 * 0.97**at + 0.3 for at in range(100)],  # learning
        [0.35] * 100,  # a base that knows it all
        [*(1.0 * 0.9**at + 0.4 for at in range(40)), *([0.5] * 40)],  # harder recordings join
    ],
    ids=["learning", "flat", "curriculum"],
)
def test_a_loss_that_does_what_it_should_is_not_heard(mel: list[float]) -> None:
    for seed in range(5):
        assert descent(noisy(mel, seed)) is None


def test_a_real_run_at_a_rate_far_too_high_hears_so(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """It rises from one by which the decoder learns to one by which it clips for good; the rest stands still, since
    what is no number would end the run before.
    """
    config = make_config(
        max_steps=32,
        logging_steps=1,
        learning_rate=2.0,
        warmup_steps=30,
        discriminator_learning_rate=1e-5,
        freeze=[name for name in MODULES if name != "decoder"],
        save_steps=99,
        report_to=[],
    )
    state = TrainerState.read(loop.train(config))
    assert state is not None
    assert [finding["name"] for finding in state.findings] == ["small_dataset", "collapse"]
    assert "the model has lost what it had" in state.findings[1]["what"]
    assert "lower learning_rate, such as to 0.4 (now 2)" in capsys.readouterr().out


# -- Where the divergence goes in a text stage -----------------------------------------------------


def reading(divergence: Iterable[float]) -> Any:
    detector = Descent("text_stage_learning_rate", 5e-4)
    return first(detector.look({"kl": value, "duration": 1.0}) for value in divergence)


def test_a_divergence_that_comes_back_is_heard() -> None:
    good = [40 * 0.8**at + 5 for at in range(30)]
    found = reading(noisy([*good, *([30.0] * 10)]))
    assert found[0] == "collapse"
    assert re.match(r"the divergence was down to 4\.\d+ and is back at ", found[1])
    assert found[2] == (
        "go back to a checkpoint before that with resume_from_checkpoint; lower text_stage_learning_rate, such as to "
        "0.0001 (now 0.0005)"
    )


def test_a_divergence_that_only_rises_is_a_learning_rate_too_high() -> None:
    found = reading(noisy([4.0 * 1.2**at for at in range(30)]))
    assert found[0] == "learning_rate"
    assert found[1].startswith("the divergence has only risen, from ")
    assert found[2] == "lower text_stage_learning_rate, such as to 0.0001 (now 0.0005)"


@pytest.mark.parametrize(
    "divergence",
    [
        [
            242.0,
            47.0,
            29.8,
            20.9,
            14.9,
            13.2,
            13.4,
            11.7,
            10.9,
            11.0,
            *([10.2] * 8),
            *([8.0] * 30),
        ],  # as a real one
        [1.2] * 100,  # a base that reads them already
        [*([2.0] * 4), *([3.5] * 10), *(1 + 2.5 * 0.9**at for at in range(60))],  # the first steps' stumble
        [0.5, -0.2, 0.4, -0.1] * 25,  # one sample may be less than nothing
    ],
    ids=["learning", "flat", "stumbling", "low"],
)
def test_a_divergence_that_does_what_it_should_is_not_heard(divergence: list[float]) -> None:
    """With five times the noise that the real one's has."""
    for seed in range(5):
        noise = zip(divergence, noisy(divergence, seed), strict=True)
        assert reading(value + 3 * (other - value) for value, other in noise) is None


@pytest.mark.parametrize(("rises", "told"), [(True, ["learning_rate"]), (False, [])])
def test_a_text_stage_is_looked_at(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, rises: bool, told: list[str]
) -> None:
    """It has no mel loss, and so was not."""
    alone = Steps.alone

    def step(steps: Steps, seen: Any, number: int, losses_of: Any) -> dict[str, Tensor]:
        losses = alone(steps, seen, number, losses_of)
        return losses | {"kl": losses["kl"] * 1.3**number} if rises else losses

    monkeypatch.setattr(Steps, "alone", step)
    config = make_config(text_stage_steps=14, max_steps=1, logging_steps=1, report_to=[])
    state = TrainerState.read(loop.train(config))
    assert state is not None
    assert [finding["name"] for finding in state.findings][1:] == told


# -- Whether anything changes ----------------------------------------------------------------------


def evaluations(steps: Iterable[int], **losses: Callable[[int], float]) -> list[dict[str, float]]:
    """Evaluations whose losses stand still, but for those that are given as a function of the step."""
    still = {"mel": 0.8, "kl": 2.0, "duration": 1.5}
    return [
        {"step": step}
        | {f"eval_{name}": losses[name](step) if name in losses else value for name, value in still.items()}
        for step in steps
    ]


def test_a_run_that_changes_nothing_is_heard() -> None:
    found = standstill(
        evaluations(range(0, 400, 100), mel=lambda step: 0.8 - step * 1e-6), 300, "learning_rate", 2e-8
    )
    assert found == (
        "in 300 steps no loss of an evaluation has changed by 0.1%: training does next to nothing",
        "raise learning_rate, such as to 2e-07 (now 2e-08); 'vits tune lr' finds one",
    )
    still = standstill(evaluations(range(0, 400, 100)), 300, "text_stage_learning_rate", 5e-9)
    assert still is not None
    assert still[1] == "raise text_stage_learning_rate, such as to 5e-08 (now 5e-09)"


@pytest.mark.parametrize(
    "history",
    [
        evaluations(range(0, 400, 100), mel=lambda step: 0.8 - step * 1e-5),  # slowly, but it learns
        evaluations(
            range(0, 400, 100), kl=lambda step: 2 + step * 1e-4
        ),  # the wrong way, for another detector
        evaluations(range(0, 400, 100), duration=lambda step: 1.5 - step * 1e-4),  # all else is frozen
        evaluations(range(0, 2000, 100), mel=lambda step: 0.8 - min(step, 100) * 1e-4),  # all is learnt
        evaluations(range(0, 290, 10)),  # too early to say
        evaluations((0, 400, 800)),  # too few
        [],
    ],
    ids=["slow", "worse", "duration", "learnt", "early", "few", "none"],
)
def test_a_run_that_changes_something_is_not(history: list[dict[str, float]]) -> None:
    assert standstill(history, 300, "learning_rate", 2e-5) is None


@pytest.mark.parametrize(
    ("stages", "rates", "told"),
    [
        ({"max_steps": 8}, {"learning_rate": 1e-12}, "raise learning_rate, such as to 1e-11 (now 1e-12)"),
        ({"max_steps": 8}, {}, None),
        (
            {"text_stage_steps": 8, "max_steps": 1},
            {"text_stage_learning_rate": 1e-12},
            "raise text_stage_learning_rate, such as to 1e-11 (now 1e-12)",
        ),
        ({"text_stage_steps": 8, "max_steps": 1}, {}, None),
        ({"reconstruction_stage_steps": 8, "max_steps": 1}, {}, None),
    ],
    ids=["joint", "joint learns", "text", "text learns", "reconstruction learns"],
)
def test_a_real_run_at_a_rate_far_too_low_hears_so(
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    stages: dict[str, int],
    rates: dict[str, float],
    told: str | None,
) -> None:
    monkeypatch.setattr(diagnosis, "_STEPS", 6)
    config = make_config(**stages | rates, do_eval=True, eval_steps=2, save_steps=99, report_to=[])
    state = TrainerState.read(loop.train(config))
    assert state is not None
    found = [finding["remedy"] for finding in state.findings if finding["name"] == "standstill"]
    assert [remedy.partition(";")[0] for remedy in found] == ([told] if told else [])


@pytest.mark.parametrize(
    ("stages", "decay", "heard"),
    [
        ({}, None, True),
        ({"text": 100}, None, True),  # of 300 steps it has the last 200
        ({"text": 101}, None, False),
        ({"joint": 3000}, None, True),
        ({"joint": 3001}, None, False),  # its first tenth is not over
        ({}, 0.996, True),  # an average of 250 steps
        ({}, 0.999, False),
    ],
)
def test_a_stage_is_given_time_to_change_something(
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    stages: dict[str, int],
    decay: float | None,
    heard: bool,
) -> None:
    from accelerate import Accelerator

    from services.training.session import Plan, begin

    config = make_config(report_to=[], ema_decay=decay)
    config.output_dir.mkdir()
    session = begin(config, Accelerator(cpu=True))
    session.plan = Plan(**{"joint": 1000, "per_epoch": 1} | stages)
    session.state.log_history = evaluations(range(0, 301, 50))
    told = Told(session, monkeypatch)
    Diagnosis(session, told.tracker).evaluated({})
    assert any("training does next to nothing" in line for line in told.lines) == heard


# -- Alignments ------------------------------------------------------------------------------------


def sharpening(shares: Iterable[float]) -> Any:
    detector = Sharpening()
    return first(detector.look({"longest_token": share}) for share in shares)


def test_alignments_that_stay_blurred_are_heard() -> None:
    found = sharpening([0.7, 0.68, 0.69])
    assert "one token takes 69% of a recording" in found[0]
    assert "alignment_noise" in found[1]


@pytest.mark.parametrize("shares", [[0.8, 0.7, 0.55, 0.4], [0.12] * 9, [0.7, 0.2, 0.15], [0.9, 0.8]])
def test_alignments_that_become_or_are_sharp_are_not(shares: list[float]) -> None:
    assert sharpening(shares) is None


@pytest.mark.parametrize(("stage", "heard"), [("reconstruction", False), ("text", True), ("joint", True)])
def test_alignments_are_not_asked_for_before_texts_are_learnt(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, stage: Stage, heard: bool
) -> None:
    """What the reconstruction stage was told to mend could not be mended there, and was told of no later stage."""
    from accelerate import Accelerator

    from services.training.session import begin

    config = make_config(report_to=[])
    config.output_dir.mkdir()
    session = begin(config, Accelerator(cpu=True))
    told = Told(session, monkeypatch)
    found = Diagnosis(session, told.tracker)
    found.begin_stage(stage)
    for _ in range(4):
        found.evaluated({"longest_token": 0.7})
    assert any("alignments do not become sharp" in line for line in told.lines) == heard


def test_the_share_of_the_longest_token_is_what_the_search_gave_it(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A likelihood that says nothing gives nearly every frame to one token; the diagonal gives each its share."""
    from accelerate import Accelerator

    from services.training.session import begin

    config = make_config(do_eval=True)
    config.output_dir.mkdir()
    session = begin(config, Accelerator(cpu=True))
    assert 0 < evaluation.held_out_losses(session)["longest_token"] <= 1

    def all_to_one(scores: Tensor, tokens: Tensor, frames: Tensor) -> Tensor:
        durations = torch.ones(scores.shape[0], scores.shape[2], dtype=torch.int32)
        durations *= torch.arange(scores.shape[2]) < tokens[:, None]
        durations[:, 0] += (frames - tokens).int()
        return durations

    def evenly(scores: Tensor, tokens: Tensor, frames: Tensor) -> Tensor:
        durations = all_to_one(scores, tokens, tokens)
        return durations * (frames // tokens)[:, None].int()

    monkeypatch.setattr("services.training.steps.align", all_to_one)
    blurred = evaluation.held_out_losses(session)["longest_token"]
    monkeypatch.setattr("services.training.steps.align", evenly)
    assert blurred > 0.5 > 0.2 > evaluation.held_out_losses(session)["longest_token"]


# -- Data ------------------------------------------------------------------------------------------


def starvation(waited: float, *, busy: float | None = None, windows: int = 4) -> Any:
    detector = Starvation(workers=0)
    return first(detector.look(10, waited, 1.0, busy) for _ in range(2 * windows))


def test_steps_that_wait_for_data_are_heard() -> None:
    found = starvation(0.5)
    assert found[0].startswith("50% of a step is spent waiting for its data")
    assert "dataloader_num_workers 4 (now 0)" in found[1]
    assert "computes 40% of its time" in starvation(0.5, busy=0.4)[0]


def test_steps_that_hardly_wait_are_not() -> None:
    assert starvation(0.1) is None
    assert starvation(0.5, busy=0.95) is None  # it waits while the accelerator has work
    detector = Starvation(workers=0)  # the first steps fill caches
    assert first(detector.look(10, share, 1.0, None) for share in (0.9, 0.9, 0.05, 0.05, 0.05)) is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (40, ["50% of a step is spent waiting for its data, and the accelerator computes 40% of its time"]),
        (95, []),
        (pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED), ["50% of a step is spent waiting for its data"]),
        (ModuleNotFoundError("pynvml"), ["50% of a step is spent waiting for its data"]),
    ],
    ids=["idle", "busy", "silent", "unknown"],
)
def test_a_gpu_is_asked_how_busy_it_is_and_need_not_answer(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, answer: int | Exception, said: list[str]
) -> None:
    """An error of NVML is no RuntimeError: as in a partition of a GPU, it ended the run at its first log."""
    from accelerate import Accelerator

    from services.training.session import begin

    def utilization() -> int:
        if isinstance(answer, Exception):
            raise answer
        return answer

    config = make_config(report_to=[])
    config.output_dir.mkdir()
    session = begin(config, Accelerator(cpu=True))
    told = Told(session, monkeypatch)
    monkeypatch.setattr(session, "accelerator", SimpleNamespace(device=torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    found = Diagnosis(session, told.tracker)
    for step in range(1, 41):
        found.waited(0.5)
        found.stepped(1.0)
        if step % 20 == 0:
            found.logged({"mel": 1.0})
    starved = [line for line in told.lines if "waiting for its data" in line]
    assert [line.removeprefix("look: ").partition(". What to do")[0] for line in starved] == said


def test_few_recordings_are_heard() -> None:
    assert small_dataset(80, 5.0) is None
    found = small_dataset(79, 5.0)
    assert found is not None
    assert "79 training recordings, 5.0 min" in found[0]


def test_a_real_run_that_waits_for_its_data_hears_so(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clock is the test's own: steps take no time, and each batch is waited for."""
    clock = {"now": 0.0}
    monkeypatch.setattr("services.training.loop.time.perf_counter", lambda: clock["now"])

    def slowly(session: Any) -> Iterator[Any]:
        for batch in batches(session):
            clock["now"] += 0.6
            yield batch

    def step(steps: Any, seen: Any, number: int) -> dict[str, Tensor]:
        clock["now"] += 0.4
        return {"mel": torch.tensor(1.0), "gradient_norm_generator": torch.tensor(1.0)}

    batches = loop.batches
    monkeypatch.setattr(loop, "batches", slowly)
    monkeypatch.setattr(Steps, "joint", step)
    loop.train(make_config(max_steps=41, logging_steps=10, save_steps=15, report_to=[]))
    said = capsys.readouterr().out
    assert said.count("60% of a step is spent waiting for its data") == 1  # told once, whatever came between


# -- Together --------------------------------------------------------------------------------------


class Told:
    """What a run's diagnosis says, in the tracker's place."""

    def __init__(self, session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from services.training.tracking import Tracker

        self.tracker = Tracker.of(session)
        self.lines: list[str] = []
        monkeypatch.setattr(self.tracker, "say", self.lines.append)

    def metric(self, name: str) -> float | None:
        return self.tracker.metrics.registry.get_sample_value("vits_training_finding", {"name": name})


def test_a_finding_is_told_once_and_is_in_the_report_and_the_metrics(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator

    from services.training import report
    from services.training.session import begin

    config = make_config(report_to=[])
    config.output_dir.mkdir()
    session = begin(config, Accelerator(cpu=True))
    told = Told(session, monkeypatch)
    found = Diagnosis(session, told.tracker)
    for _ in range(9):
        found.evaluated({"longest_token": 0.9})
    assert [line.partition(":")[0] for line in told.lines] == ["look", "look"]
    assert [finding["name"] for finding in session.state.findings] == ["small_dataset", "alignment"]
    assert told.metric("alignment") == told.metric("small_dataset") == 1
    page = report.write(session).read_text(encoding="utf-8")
    assert "What to look at" in page
    assert "alignments do not become sharp" in page
    # A run that goes on knows what was told, and says it to the metrics again.
    again = Told(session, monkeypatch)
    Diagnosis(session, again.tracker)
    assert again.lines == []
    assert again.metric("alignment") == 1


def test_a_healthy_run_hears_nothing(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real one, but for its number of recordings and its clock; as long as every detector needs to speak."""
    clock = {"now": 0.0}
    kept: list[Diagnosis] = []
    batches, joint = loop.batches, Steps.joint

    def soon(session: Any) -> Iterator[Any]:
        for batch in batches(session):
            clock["now"] += 0.1
            yield batch

    def step(steps: Steps, seen: Any, number: int) -> dict[str, Tensor]:
        clock["now"] += 0.9
        return joint(steps, seen, number)

    class Kept(Diagnosis):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            kept.append(self)

    monkeypatch.setattr(diagnosis, "_FEW", 8)
    monkeypatch.setattr("services.training.loop.time.perf_counter", lambda: clock["now"])
    monkeypatch.setattr(loop, "batches", soon)
    monkeypatch.setattr(Steps, "joint", step)
    monkeypatch.setattr(loop, "Diagnosis", Kept)
    config = make_config(
        max_steps=42,
        logging_steps=1,
        learning_rate=1e-3,
        do_eval=True,
        eval_steps=14,
        save_steps=99,
        ema_decay=0.9,
    )
    state = TrainerState.read(loop.train(config))
    assert state is not None
    assert state.findings == []
    (found,) = kept
    assert len(found._starvation._windows) == 2
    assert len(found._sharpening._values) == 3
    assert len(found._dominance._values) == diagnosis._WINDOW
    assert found._descent._seen >= 2 * diagnosis._WINDOW
    assert "look: " not in capsys.readouterr().out
    assert "What to look at" not in (config.output_dir / "report.html").read_text()


def test_looking_never_makes_a_step_wait_for_the_device(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values are fetched from the device where they are logged, and by no detector."""
    fetched: list[int] = []
    looking: list[str] = []
    read = loop.read_losses

    def note(session: Any, losses: Mapping[str, Tensor]) -> dict[str, float]:
        fetched.append(session.step)
        return read(session, losses)

    def watched(name: str) -> Callable[..., None]:
        method = getattr(Diagnosis, name)

        def look(*arguments: Any) -> None:
            looking.append(name)
            with pytest.MonkeyPatch.context() as patch:
                for way in ("item", "tolist", "cpu", "__float__", "__bool__", "__int__"):
                    patch.setattr(Tensor, way, lambda *_: pytest.fail("a detector waited"))
                method(*arguments)

        return look

    monkeypatch.setattr(loop, "read_losses", note)
    for name in ("waited", "logged", "evaluated", "stepped"):
        monkeypatch.setattr(Diagnosis, name, watched(name))
    loop.train(
        make_config(max_steps=7, logging_steps=3, save_steps=99, do_eval=True, eval_steps=7, report_to=[])
    )
    assert fetched == [1, 3, 6, 7]
    assert looking.count("waited") == 7
    assert looking.count("logged") == 4


def test_every_finding_can_be_found() -> None:
    source = Path(diagnosis.__file__).read_text() + Path(loop.__file__).read_text()
    for name in FINDINGS:
        assert source.count(f'"{name}"') >= 2, name


# -- What ends a run -------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_is_in_the_report(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(max_steps=2, report_to=[])
    nothing = {"mel": torch.tensor(float("nan")), "gradient_norm_generator": torch.tensor(1.0)}
    monkeypatch.setattr(Steps, "joint", lambda *_: nothing)
    with pytest.raises(DivergenceError):
        loop.train(config)
    assert "Training has diverged at step 1" in (config.output_dir / "report.html").read_text()


def test_a_fault_of_the_data_is_no_divergence(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(max_steps=2, report_to=[])
    told: list[str] = []
    monkeypatch.setattr(Diagnosis, "failed", lambda _, name, error: told.append(name))

    def spoiled(*_: object) -> None:
        raise DataError("The cache is spoiled", ["clip01"])

    monkeypatch.setattr(Steps, "joint", spoiled)
    with pytest.raises(DataError, match="spoiled"):
        loop.train(config)
    assert told == []


@pytest.mark.parametrize("kind", ["accelerator", "host"])
def test_out_of_memory_says_what_to_do_in_order(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The host's is a real one. A checkpoint that is still being written counts."""
    write_state = ckpt.write_state

    def take_long(*arguments: Any) -> None:
        time.sleep(0.5)
        write_state(*arguments)

    monkeypatch.setattr(ckpt, "write_state", take_long)
    config = make_config(
        max_steps=6,
        save_steps=2,
        per_device_train_batch_size=4,
        do_eval=True,
        eval_steps=99,  # there is one before the first step
        max_eval_samples=2,
        report_to=[],
    )
    joint = Steps.joint

    def grow(steps: Steps, seen: Any, step: int) -> Mapping[str, Tensor]:
        if step < 3:
            return joint(steps, seen, step)
        if kind == "accelerator":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return {"mel": torch.empty(2**60)}

    monkeypatch.setattr(Steps, "joint", grow)
    with pytest.raises(ConfigError) as raised:
        loop.train(config)
    assert "no room in memory at step 3" in str(raised.value)
    assert "goes on from checkpoint-2" in str(raised.value)
    problems = raised.value.problems
    order = [
        "half precision",
        "smaller batches",
        "activations computed twice",
        "the same step",
        "fewer held-out",
    ]
    assert [
        problem[3:].partition(":")[0].partition(" in more")[0].partition(" recordings")[0]
        for problem in problems[:5]
    ] == order
    assert "--per_device_train_batch_size 2 (this one had 4)" in problems[1]
    assert "--gradient_accumulation_steps 2 with batches of 2" in problems[3]
    assert "There was no room in memory" in (config.output_dir / "report.html").read_text()


@pytest.mark.parametrize("step", [0, 2])
def test_an_evaluation_without_room_is_not_blamed_on_the_batches(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    held_out = evaluation.held_out_losses

    def grow(session: Any, *_: Any) -> dict[str, float]:
        if session.step == step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return held_out(session)

    monkeypatch.setattr(evaluation, "held_out_losses", grow)
    config = make_config(
        max_steps=2,
        do_eval=True,
        eval_steps=2,
        per_device_eval_batch_size=4,
        max_eval_samples=2,
        report_to=[],
    )
    with pytest.raises(ConfigError) as raised:
        loop.train(config)
    assert f"no room in memory for the evaluation at step {step}." in str(raised.value)
    assert [problem[3:].partition(":")[0].partition(",")[0] for problem in raised.value.problems] == [
        "smaller batches",
        "shorter recordings",
        "fewer held-out recordings",
        "shorter sentences to speak",
        "no evaluations at all",
    ]
    assert "--per_device_eval_batch_size 2 (now 4)" in raised.value.problems[0]
    assert "--max_eval_samples 1 (now 2)" in raised.value.problems[2]
    assert "train_batch_size" not in str(raised.value)
    assert "There was no room in memory for the evaluation" in (config.output_dir / "report.html").read_text()
    alone = evaluation_remedies(make_config(per_device_eval_batch_size=1))
    assert alone[0] == "1. shorter recordings: --max_duration_in_seconds 10 (now 20), of both splits"


def test_a_run_that_only_evaluates_says_so_too(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grow(*_: Any) -> dict[str, float]:
        raise MemoryError

    monkeypatch.setattr(evaluation, "held_out_losses", grow)
    with pytest.raises(ConfigError, match=r"no room in memory for the evaluation\. In the order") as raised:
        loop.train(make_config(do_train=False, do_eval=True))
    assert "per_device_eval_batch_size 4 (now 8)" in raised.value.problems[0]
    assert "no evaluations at all" not in str(raised.value)


def test_what_is_said_to_end_all_evaluations_leaves_nothing_to_be_spoken(make_config: MakeConfig) -> None:
    """Sample sentences are spoken without do_eval too, which took the room that there was not."""
    for eval_steps in (None, 2):
        *_, last = evaluation_remedies(make_config(do_eval=True, eval_steps=eval_steps))
        _, told = read_overrides(last.partition(": ")[2].split())
        config = make_config(**{"do_eval": True, "eval_steps": eval_steps} | told)
        assert evaluation.Schedule(config, per_epoch=5).interval is None


def test_slices_longer_than_usual_are_named_where_there_is_no_room(make_config: MakeConfig) -> None:
    for tried in (Size(16, 1000), Size(1, 1000)):
        usual = remedies(make_config(), tried, None, frame_seconds=0.016)
        longer = remedies(make_config(segment_size=16384), tried, None, frame_seconds=0.016)
        assert not any("segment_size" in line for line in usual)
        assert any("--segment_size 8192 (now 16384)" in line for line in longer)
        assert len(longer) == len(usual) + 1


def test_another_error_stays_itself(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Steps, "joint", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        loop.train(make_config(max_steps=1, report_to=[]))


def test_sizes_that_would_fit_are_those_that_did(make_config: MakeConfig) -> None:
    config = make_config(per_device_train_batch_size=16, gradient_accumulation_steps=2, fp16=True)
    told = remedies(config, Size(16, 1000), Size(16, 400), frame_seconds=0.016)
    assert told[0].endswith("it is on already")
    assert (
        "--per_device_train_batch_size 6 (this one had 16)" in told[1]
    )  # 6 × 1000 frames, where 6400 went through
    assert "--max_frames_per_batch 6400 (this one had 16000; so much went through)" in told[1]
    assert "--gradient_accumulation_steps 6 with batches of 6" in told[3]  # 36 recordings, for 32 before
    untried = remedies(config, Size(16, 1000), None, frame_seconds=0.016)
    assert "--per_device_train_batch_size 8" in untried[1]
    assert "--max_frames_per_batch 8000 (this one had 16000; so much is half of it)" in untried[1]


@pytest.mark.parametrize(("fitted", "seconds"), [(None, "8 "), (Size(2, 600), "9.6 "), (Size(3, 1000), "8 ")])
def test_where_a_batch_has_one_recording_no_smaller_one_is_suggested(
    make_config: MakeConfig, fitted: Size | None, seconds: str
) -> None:
    """Neither is what would come to the same: a budget of frames, or more batches a step."""
    told = remedies(make_config(), Size(1, 1000), fitted, frame_seconds=0.016)
    assert [line.partition(":")[0] for line in told] == [
        "1. half precision",
        "2. activations computed twice",
        "3. shorter recordings",
        "4. fewer held-out recordings",
        "5. fewer judges, in a new run",
    ]
    assert f"--max_duration_in_seconds {seconds}(this one has 16 s)" in told[2]
    small = make_config(discriminator_periods=[2, 3], gradient_checkpointing=True)
    assert not any("judges" in line for line in remedies(small, Size(1, 1000), fitted, frame_seconds=0.016))
