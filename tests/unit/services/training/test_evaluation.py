"""What a model is worth on held-out recordings."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from services.training import config as configuration
from services.training import evaluation
from services.training.artefacts import read_index
from services.training.config import TrainingConfig
from services.training.dataset import Batch, HeldOut
from services.training.session import Session, begin
from services.training.steps import widest
from services.training.stopping import Stop
from services.training.tracking import Tracker
from shared.errors import ConfigError
from shared.modeling import synthesize
from shared.text import FrontEnd
from tests.conftest import write_small_model

MakeSession = Callable[..., Session]


class Recorder(Tracker):
    """A tracker that remembers what it is told."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, enabled=True, tensorboard=False, total_steps=9, first_step=0)
        self.told: list[tuple[str, str]] = []

    def figure(self, step: int, name: str, figure: Any, *, title: str = "") -> None:
        self.told.append((name, title))

    def audio(self, step: int, name: str, samples: Any, sampling_rate: int, *, title: str = "") -> None:
        assert len(samples)
        self.told.append((name, title))


@pytest.fixture
def make_session(
    small_discriminator: None,
    make_config: Callable[..., TrainingConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> MakeSession:
    """A run that has begun, and evaluates on its training recordings unless told otherwise."""
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))

    def make(**changes: Any) -> Session:
        settings = {"do_eval": True, "eval_split_name": "train", "per_device_eval_batch_size": 3} | changes
        return begin(make_config(**settings), Accelerator(cpu=True))

    return make


@pytest.fixture
def tracker(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path / "runs")


# -- Held-out losses -------------------------------------------------------------------------------


def test_an_evaluation_says_all_that_a_best_checkpoint_can_be_chosen_by(
    make_session: MakeSession, tracker: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    """finetune-hf-vits, defect 5: it measures no duration loss, and nothing that is heard."""
    session = make_session()
    values = evaluation.run(session, tracker)
    assert set(values) == {*configuration.METRICS, "longest_token"}
    assert all(np.isfinite(value) and value > 0 for name, value in values.items() if name != "duration")
    assert session.state.log_history[-1]["eval_mel_distance"] == values["mel_distance"]
    assert "of the run so far" in capsys.readouterr().out


def test_the_same_weights_give_the_same_figures_whatever_was_drawn_before(
    make_session: MakeSession, tracker: Recorder
) -> None:
    """finetune-hf-vits, defect 5: its slices are drawn, so two evaluations of one model differ."""
    session = make_session()
    found = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        np.random.seed(disturbance)
        found.append(evaluation.run(session, tracker))
    assert found[0] == found[1]


def test_an_evaluation_draws_nothing_that_training_would_have_drawn(
    make_session: MakeSession, tracker: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """finetune-hf-vits, defect 5: its evaluation consumes training's randomness."""
    session = make_session(full_generation_sample_text="hola")

    def careless(*arguments: Any, **options: Any) -> Any:
        torch.rand(1)
        return synthesize(*arguments, **options)

    monkeypatch.setattr(evaluation, "synthesize", careless)
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state()
    evaluation.run(session, tracker)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.random() == np.random.RandomState(3).random_sample()


@pytest.mark.parametrize("size", [1, 8])
def test_losses_are_means_over_the_set_however_it_is_batched(make_session: MakeSession, size: int) -> None:
    """finetune-hf-vits, defect 5: it sums its losses over batches, and never divides."""
    expected = evaluation.held_out_losses(make_session())
    found = evaluation.held_out_losses(make_session(per_device_eval_batch_size=size))
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "change",
    [{"max_eval_samples": 2}, {"segment_size": 4096}, {"do_normalize": True}, {"eval_split_name": "test"}],
)
def test_what_an_evaluation_is_over_is_known_by_its_digest(
    make_session: MakeSession, change: dict[str, Any]
) -> None:
    """And not by how it is batched; without recordings there is none."""
    whole = make_session().evaluation.digest()
    assert whole == make_session(per_device_eval_batch_size=1).evaluation.digest()
    assert make_session(**change).evaluation.digest() not in (whole, None)
    assert HeldOut(None, 1).digest() is None


@pytest.mark.parametrize(("step", "judged"), [(0, False), (2, False), (3, True)])
def test_before_there_is_a_discriminator_it_is_no_part_of_the_loss(
    make_session: MakeSession, step: int, judged: bool
) -> None:
    session = make_session(discriminator_start_step=2)
    session.state.global_step = step
    losses, config = evaluation.held_out_losses(session), session.config
    own = config.weight_mel * losses["mel"] + config.weight_kl * losses["kl"] + losses["duration"]
    opinion = losses["generator"] + losses["feature_maps"]
    assert losses["loss"] == pytest.approx(own + judged * opinion)
    assert opinion > 0.1


def test_slices_are_as_long_as_those_of_training(make_session: MakeSession) -> None:
    session = make_session(segment_size=4096)
    decoded: list[int] = []
    session.generator.decoder.register_forward_pre_hook(lambda _, given: decoded.append(given[0].shape[2]))
    evaluation.held_out_losses(session)
    assert {frames * session.settings.hop_length for frames in decoded} == {4096}


class Doubles(TorchDispatchMode):
    """Remembers what computes in float64."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.dtype == torch.float64:
            self.seen.append(str(function))
        return made


def test_a_device_without_float64_is_asked_for_none(
    make_session: MakeSession, tracker: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apple's GPUs refuse it. Slices are chosen by the host, which has it, so they are the same ones."""
    session = make_session(max_eval_samples=3)
    starts = evaluation.slice_starts(next(iter(session.evaluation)), 32)
    monkeypatch.setattr(evaluation, "slice_starts", lambda batch, width: starts)
    with Doubles() as usual:
        expected = evaluation.run(session, tracker)
    monkeypatch.setattr(evaluation, "widest", lambda device: widest(torch.device("mps")))
    with Doubles() as without:
        found = evaluation.run(session, tracker)
    assert usual.seen
    assert not without.seen
    assert found == pytest.approx(expected, rel=1e-5)


def test_recordings_twice_over_give_the_same_losses(make_session: MakeSession) -> None:
    """finetune-hf-vits, defect 5, by its consequence: the losses grew with the set."""
    session = make_session()
    expected = evaluation.held_out_losses(session)
    session.evaluation.batches *= 2
    assert evaluation.held_out_losses(session) == pytest.approx(expected, rel=1e-6)


def test_the_total_is_what_the_generator_minimises(make_session: MakeSession) -> None:
    session = make_session(weight_mel=2, weight_kl=3, weight_duration=5, weight_gen=7, weight_fmaps=11)
    values = evaluation.held_out_losses(session)
    weights = {"mel": 2, "kl": 3, "duration": 5, "generator": 7, "feature_maps": 11}
    assert values["loss"] == pytest.approx(sum(weight * values[name] for name, weight in weights.items()))


def test_an_alike_discriminator_earns_what_the_formulas_say(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of ½ everywhere: each network adds ½ to the discriminator's loss and ¼ to the generator's."""
    session = make_session()

    def judge(waveform: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        score = torch.full((len(waveform), 5), 0.5)
        return [(score, [score])] * 6

    monkeypatch.setattr(session.discriminator, "forward", judge)
    values = evaluation.held_out_losses(session)
    assert values["discriminator"] == pytest.approx(6 * 0.5)
    assert values["generator"] == pytest.approx(6 * 0.25)
    assert values["feature_maps"] == 0


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_gradients_are_as_before(
    make_session: MakeSession, tracker: Recorder, training: bool
) -> None:
    session = make_session()
    session.generator.train(training)
    session.discriminator.train()
    session.generator.flow.train(not training)
    networks = (session.generator, session.discriminator)
    before = [module.training for network in networks for module in network.modules()]
    evaluation.run(session, tracker)
    assert [module.training for network in networks for module in network.modules()] == before
    assert all(parameter.grad is None for network in networks for parameter in network.parameters())


def test_dropout_is_off(make_session: MakeSession) -> None:
    """Were it on, two evaluations in training mode would differ from one in evaluation mode."""
    session = make_session()
    session.generator.train(False)
    expected = evaluation.run(session, Recorder(session.config.output_dir))
    session.generator.train()
    assert evaluation.run(session, Recorder(session.config.output_dir)) == expected


def batch_of(frames: list[int], indices: list[int]) -> Batch:
    empty = torch.zeros(len(frames), 1)
    return Batch(
        ids=("",) * len(frames), index=torch.tensor(indices), input_ids=empty, token_lengths=empty,
        padded_waveform=empty, frame_lengths=torch.tensor(frames), speaker_id=empty,
    )  # fmt: skip


def test_slices_are_fixed_lie_inside_and_are_spread_over_the_recordings() -> None:
    """finetune-hf-vits, defects 5 and 6."""
    count, frames, width = 200, 132, 32
    starts = evaluation.slice_starts(batch_of([frames] * count, list(range(count))), width)
    assert int(starts.min()) >= 0
    assert int(starts.max()) <= frames - width
    quarters = np.histogram(starts.numpy(), bins=4, range=(0, frames - width))[0]
    assert quarters.min() > 0.8 * count / 4
    moved = evaluation.slice_starts(batch_of([frames], [7]), width)
    assert moved.tolist() == [starts[7].item()]  # of the recording alone, not of its batch
    assert evaluation.slice_starts(batch_of([1, 31, 32, 33], [0, 1, 2, 3]), width).tolist()[:3] == [0, 0, 0]


# -- Several processes -----------------------------------------------------------------------------


class OneOfTwo:
    """Stands in for the accelerator of one of two processes; what it would sum over both is kept."""

    def __init__(self, rank: int, other: list[Tensor]) -> None:
        self.process_index, self.num_processes = rank, 2
        self.is_main_process, self.device = rank == 0, torch.device("cpu")
        self.mixed_precision = "no"
        self.other, self.sent = iter(other), list[Tensor]()

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        self.sent.append(tensor.clone())
        total = tensor + next(self.other, torch.zeros_like(tensor))
        return total / 2 if reduction == "mean" else total

    def wait_for_everyone(self) -> None:
        pass


def test_processes_share_the_recordings_and_agree_on_the_figures(
    make_session: MakeSession, tmp_path: Path
) -> None:
    """finetune-hf-vits, defect 23: its main process evaluates alone, through a wrapper that waits for the others."""
    session = make_session()
    expected = evaluation.run(session, Recorder(tmp_path))
    ranks = [OneOfTwo(1, []), OneOfTwo(0, [])]
    ranks[1].other = iter(ranks[0].sent)
    found = []
    for rank in ranks:
        session.accelerator = cast("Accelerator", rank)
        found.append(evaluation.run(session, Recorder(tmp_path / str(rank.process_index))))
    assert len(ranks[0].sent) == len(ranks[1].sent) == 4  # each joins every sum that the other joins
    counts = [sent[0][:, 1] for sent in (ranks[0].sent, ranks[1].sent)]
    assert all(bool((count > 0).all()) for count in counts)
    assert int((counts[0] + counts[1])[-1]) == 8  # each recording once
    assert found[1] == pytest.approx(expected, rel=1e-6)


def test_an_evaluation_ends_on_all_processes_where_one_is_told_to_stop(
    make_session: MakeSession, tmp_path: Path
) -> None:
    session = make_session()
    told, other = OneOfTwo(1, []), OneOfTwo(0, [])
    other.other = iter(told.sent)
    for rank, stop in ((told, Stop(requested=True)), (other, Stop())):
        session.accelerator = cast("Accelerator", rank)
        with pytest.raises(evaluation.Abandoned):
            evaluation.run(session, Recorder(tmp_path / str(rank.process_index)), stop=stop)
    assert not told.sent[0].any()  # it did nothing more
    assert session.state.log_history == []


# -- Speech and pictures ---------------------------------------------------------------------------


def test_an_evaluation_draws_two_pictures_and_speaks_each_sentence_once(
    make_session: MakeSession, tracker: Recorder
) -> None:
    """finetune-hf-vits, defect 17: a full generation for every batch, and up to 150 pictures."""
    session = make_session(
        full_generation_sample_text="la casa",
        eval_sample_texts=["el niño", "hola"],
        per_device_eval_batch_size=1,
    )
    assert len(session.evaluation) == 8
    evaluation.run(session, tracker)
    names = [name for name, _ in tracker.told]
    assert sorted(names) == [
        "alignments", "full_generation_sample0", "full_generation_sample1", "full_generation_sample2",
        "held_out", "held_out_recording", "spectrogram",
    ]  # fmt: skip
    tracker.told.clear()
    evaluation.run(session, tracker)
    assert "held_out_recording" not in [name for name, _ in tracker.told]  # it stays what it was


@pytest.mark.parametrize(("trained", "called"), [(8, "trained on too"), (0, "held out")])
def test_pictures_and_sound_say_whether_their_recording_was_trained_on(
    make_session: MakeSession, tracker: Recorder, trained: int, called: str
) -> None:
    session = make_session()
    del session.train.examples[trained:]
    evaluation.run(session, tracker)
    titles = {title.partition(":")[0] for _, title in tracker.told}
    assert titles == {called}


@pytest.mark.parametrize(
    ("trained", "asked", "speak"),
    [
        (range(6), [], ["ann", "bob", "cat", "dan"]),
        ([5], [], ["fay"]),
        ([5, 2], [], ["cat", "fay"]),
        ([5], ["eve", "ann"], ["eve", "ann"]),
    ],
)
def test_sample_sentences_are_spoken_by_the_speakers_that_are_trained_or_asked_for(
    make_session: MakeSession,
    tracker: Recorder,
    tmp_path: Path,
    trained: Sequence[int],
    asked: list[str],
    speak: list[str],
) -> None:
    """A base may know many more, of whom nothing is learnt."""
    model = write_small_model(tmp_path / "many", num_speakers=6)
    session = make_session(model_name_or_path=str(model), full_generation_sample_text="hola")
    session.base.speakers = {"fay": 5, "ann": 0, "bob": 1, "cat": 2, "dan": 3, "eve": 4}
    session.config = session.config.model_copy(update={"eval_speakers": asked})
    session.train.examples = [
        replace(example, speaker_id=number) for example in session.train.examples for number in trained
    ]
    evaluation.run(session, tracker)
    spoken = [title for name, title in tracker.told if name.startswith("full_generation_sample")]
    assert spoken == [f"hola ({name})" for name in speak]


def test_a_speaker_whom_the_model_does_not_know_cannot_be_asked_for(
    make_session: MakeSession, tmp_path: Path
) -> None:
    model = write_small_model(tmp_path / "many", num_speakers=6)
    (model / "speakers.json").write_text(json.dumps({"ann": 0, "bob": 1}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"'anne', did you mean 'ann'\?[\s\S]*its speakers: ann, bob, 2"):
        make_session(
            model_name_or_path=str(model), full_generation_sample_text="hola", eval_speakers=["anne"]
        )


def test_the_sample_sentence_is_lower_cased_like_every_text(
    make_session: MakeSession, tracker: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """finetune-hf-vits, defect 14."""
    session = make_session(full_generation_sample_text="MAÑANA", do_lower_case=True)
    read: list[str] = []
    real = FrontEnd.tokenize

    def tokenize(front_end: FrontEnd, text: str) -> Any:
        read.append(text)
        return real(front_end, text)

    monkeypatch.setattr(FrontEnd, "tokenize", tokenize)
    evaluation.run(session, tracker)
    assert read == ["mañana"]


def test_a_sentence_that_cannot_be_spoken_is_told_and_passed_over(
    make_session: MakeSession, tracker: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    session = make_session(full_generation_sample_text="漢字", eval_sample_texts=["hola"])
    evaluation.run(session, tracker)
    assert "'漢字' cannot be spoken" in capsys.readouterr().out
    assert [title for name, title in tracker.told if name.startswith("full")] == ["hola"]


def test_without_held_out_recordings_the_sentences_are_still_spoken(
    make_session: MakeSession, tracker: Recorder
) -> None:
    session = make_session(do_eval=False, full_generation_sample_text="hola")
    assert evaluation.run(session, tracker) == {}
    assert [name for name, _ in tracker.told] == ["full_generation_sample0"]
    assert not any("eval_mel" in entry for entry in session.state.log_history)


def test_averaged_weights_are_what_is_evaluated(make_session: MakeSession, tracker: Recorder) -> None:
    session = make_session(ema_decay=0.5)
    assert session.ema is not None
    expected = evaluation.run(session, tracker)
    with torch.no_grad():
        for parameter in session.generator.parameters():
            parameter.mul_(0.5)
    before = [parameter.clone() for parameter in session.generator.parameters()]
    assert evaluation.run(session, tracker) == expected
    assert all(map(torch.equal, before, session.generator.parameters()))
    session.ema = None
    assert evaluation.run(session, tracker) != expected


def test_pictures_and_sound_are_kept_for_the_report(make_session: MakeSession) -> None:
    session = make_session(full_generation_sample_text="hola")
    with Tracker.of(session) as tracker:
        evaluation.run(session, tracker)
    folder = session.config.output_dir / "runs" / "artefacts"
    found = read_index(folder)
    assert {item.name for item in found} == {
        "alignments",
        "spectrogram",
        "held_out",
        "held_out_recording",
        "full_generation_sample0",
    }
    assert all((folder / item.file).stat().st_size > 100 for item in found)


def test_an_evaluation_alone_leaves_what_a_training_left(make_session: MakeSession) -> None:
    session = make_session(full_generation_sample_text="hola")
    with Tracker.of(session) as tracker:
        evaluation.run(session, tracker)
    output = session.config.output_dir
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert output / "report.html" in before
    session = make_session(full_generation_sample_text="adiós", do_train=False)
    with Tracker.of(session) as tracker:
        evaluation.run(session, tracker)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(read_index(output / "evaluation" / "artefacts")) == 5


# -- Distance --------------------------------------------------------------------------------------


def slowly(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The recurrence as it is written: for every cell, the cheapest of its three predecessors."""
    best: dict[tuple[int, int], tuple[float, int]] = {(-1, -1): (0.0, 0)}
    for i, j in itertools.product(range(one.shape[1]), range(other.shape[1])):
        ways = [best[at] for at in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if at in best]
        total, length = min(ways, key=lambda way: way[0])
        best[i, j] = total + float(np.abs(one[:, i].astype(float) - other[:, j]).mean()), length + 1
    total, length = best[one.shape[1] - 1, other.shape[1] - 1]
    return total / length


@pytest.mark.parametrize(("frames", "others"), [(1, 1), (1, 5), (7, 3), (6, 6), (12, 17)])
def test_the_distance_is_that_of_the_plain_recurrence(frames: int, others: int) -> None:
    noise = np.random.default_rng(frames)
    one, other = (noise.standard_normal((80, size)).astype(np.float32) for size in (frames, others))
    assert evaluation.aligned_distance(one, other) == pytest.approx(slowly(one, other))


def test_the_distance_ignores_tempo_and_nothing_else() -> None:
    mel = np.random.default_rng(0).standard_normal((80, 30)).astype(np.float32)
    assert evaluation.aligned_distance(mel, mel) == 0
    assert evaluation.aligned_distance(mel, np.repeat(mel, 2, axis=1)) == 0
    assert evaluation.aligned_distance(mel, mel + 0.25) == pytest.approx(0.25, rel=0.01)
    assert evaluation.aligned_distance(mel, mel[:, ::-1]) > 0.5


# -- When ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "due"),
    [
        ({}, [5, 10]),  # once an epoch
        ({"eval_steps": 3}, [3, 6, 9]),
        ({"eval_strategy": "steps", "eval_steps": 4}, [4, 8]),
        ({"eval_strategy": "epoch"}, [5, 10]),
        ({"eval_strategy": "no"}, []),
    ],
)
def test_evaluation_comes_when_it_was_asked_for(
    make_config: Callable[..., TrainingConfig], changes: dict[str, Any], due: list[int]
) -> None:
    """finetune-hf-vits, defect 16: without eval_steps it evaluates at every step."""
    schedule = evaluation.Schedule(make_config(**changes), per_epoch=5)
    assert [step for step in range(1, 11) if schedule.due(step)] == due


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("cost", [0.5, 10.0, 60.0])
def test_evaluations_stay_within_their_share_of_the_run(
    make_config: Callable[..., TrainingConfig], share: float, cost: float
) -> None:
    """A made-up run: a step takes a second, an evaluation ``cost``; the first two are not its to choose."""
    schedule = evaluation.Schedule(make_config(eval_steps=10, max_eval_share=share), per_epoch=100)
    clock = spent = cost
    lines = [schedule.spent(0, cost, clock)]
    evaluations = 0
    for step in range(1, 20001):
        clock += 1
        if schedule.due(step):
            clock, spent, evaluations = clock + cost, spent + cost, evaluations + 1
            lines.append(schedule.spent(step, cost, clock))
            if evaluations > 1:
                assert spent / clock <= share + 1e-9
    assert evaluations >= 3
    if cost / (10 + cost) >= share:
        assert spent / clock == pytest.approx(share, rel=0.2)
        assert any(line and "max_eval_share" in line for line in lines)
    else:
        assert evaluations == pytest.approx(2000, abs=2)


def test_without_a_share_evaluations_are_never_put_off(make_config: Callable[..., TrainingConfig]) -> None:
    schedule = evaluation.Schedule(make_config(eval_steps=10), per_epoch=100)
    for step in (0, 10, 20):
        assert schedule.spent(step, 1000.0, 1000.0 + step) is None
        assert schedule.due(step + 10)


def test_a_run_puts_off_its_next_evaluation(
    make_session: MakeSession, tracker: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    session = make_session(eval_steps=1, max_eval_share=0.01)
    schedule = evaluation.Schedule(session.config, per_epoch=5)
    for step in range(2):
        session.state.global_step = step
        evaluation.run(session, tracker, schedule)
    assert not schedule.due(2)
    assert "the next one is at step" in capsys.readouterr().out
    assert session.state.evaluation_seconds == pytest.approx(tracker.evaluation_seconds)
