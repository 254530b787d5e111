"""Stages and schedules: what learns when, noise on alignments, annealing; all functions of the step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from services.training import loop
from services.training.config import MODULES, TrainingConfig, resolve
from services.training.config_sources import load
from services.training.dataset import Examples
from services.training.loop import build_steps, freeze
from services.training.session import Session, begin, check_strategy
from services.training.steps import Seen, Steps, new_discriminator
from services.training.stopping import Stop
from services.training.tracking import Tracker
from shared.errors import ConfigError

MakeConfig = Callable[..., TrainingConfig]


@pytest.fixture(autouse=True)
def surroundings(small_discriminator: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def judged_model(spanish_model: Path, tmp_path: Path) -> Path:
    """The small model with a discriminator."""
    folder = tmp_path / "judged"
    shutil.copytree(spanish_model, folder)
    save_file(new_discriminator(3).folded_state_dict(), folder / "discriminator.safetensors")
    return folder


def begun(config: TrainingConfig) -> Session:
    config.output_dir.mkdir(exist_ok=True)
    return begin(config, Accelerator(cpu=True))


def seen(examples: Examples, *indices: int) -> Seen:
    return Seen.of(examples.collate([examples[index] for index in indices]), examples.settings)


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def moved(before: dict[str, Tensor], network: nn.Module) -> set[str]:
    return {
        name.partition(".")[0]
        for name, value in weights(network).items()
        if not torch.equal(before[name], value)
    }


# -- The discriminator stands still at first -------------------------------------------------------


def test_the_discriminator_judges_before_it_learns(make_config: MakeConfig, judged_model: Path) -> None:
    session = begun(make_config(model_name_or_path=str(judged_model), frozen_discriminator_steps=2))
    steps = build_steps(session)
    part = seen(session.train, 0, 1)
    for step, learns in enumerate((False, False, True)):
        generator, judge = weights(session.generator), weights(session.discriminator)
        losses = steps.joint([part], step)
        assert bool(moved(judge, session.discriminator)) == learns
        assert moved(generator, session.generator)
        assert float(losses["generator"]) > 0  # it judges all along
        assert ("discriminator" in losses) == learns


def test_the_generator_learns_alone_before_there_is_a_discriminator(
    make_config: MakeConfig, judged_model: Path
) -> None:
    """Nobody judges at first; then somebody who stands still; then somebody who learns."""
    session = begun(
        make_config(
            model_name_or_path=str(judged_model), discriminator_start_step=2, frozen_discriminator_steps=1
        )
    )
    steps = build_steps(session)
    part = seen(session.train, 0, 1)
    for step, (judges, learns) in enumerate([(False, False), (False, False), (True, False), (True, True)]):
        generator, judge = weights(session.generator), weights(session.discriminator)
        losses = steps.joint([part], step)
        assert moved(generator, session.generator) == set(MODULES)
        assert bool(moved(judge, session.discriminator)) == learns
        assert ("generator" in losses) == ("feature_maps" in losses) == judges
        assert ("discriminator" in losses) == learns
        assert {"mel", "kl", "duration"} <= losses.keys()


def test_without_a_discriminator_a_step_is_as_if_it_weighed_nothing(
    make_trainee: Callable[..., Any], small_examples: Examples
) -> None:
    """The same gradient as in a step whose adversarial and feature-matching losses count for nothing."""
    batches = [seen(small_examples, 0, 1), seen(small_examples, 2, 3)]
    ends = []
    for changes in ({"discriminator_start_step": 1}, {"weight_gen": 0.0, "weight_fmaps": 0.0}):
        trainee = make_trainee(**changes)
        trainee.steps.joint(batches, 0)
        ends.append(weights(trainee.generator))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("parts", [1, 2])
def test_while_it_stands_still_a_step_is_the_generators_own(
    make_trainee: Callable[..., Any], small_examples: Examples, parts: int
) -> None:
    """The same gradient as in a step in which the discriminator learns at a rate of 0."""
    batches = [seen(small_examples, 0, 1), seen(small_examples, 2, 3)][:parts]
    ends = []
    for frozen in (0, 5):
        trainee = make_trainee(frozen_discriminator_steps=frozen)
        for group in trainee.steps.optimizers[1].param_groups:
            group["lr"] = 0.0
        trainee.steps.joint(batches, 0)
        ends.append(weights(trainee.generator))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-5, atol=1e-7)


def test_a_random_discriminator_has_nothing_to_teach(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="needs a base with a discriminator"):
        begun(make_config(frozen_discriminator_steps=2))


# -- Modules that learn for a while ----------------------------------------------------------------


def test_modules_learn_when_their_schedule_says_so(make_config: MakeConfig) -> None:
    session = begun(
        make_config(
            freeze_schedule={"decoder": [0, 2], "text_encoder": [1, 3]}, freeze=["flow"], learning_rate=1e-3
        )
    )
    steps = build_steps(session)
    part, frozen = seen(session.train, 0, 1), None
    still: list[set[str]] = []
    for step in range(4):
        frozen = freeze(session, frozen)
        assert session.generator.decoder.training == (step >= 2)
        before = weights(session.generator)
        steps.joint([part], step)
        still.append(
            {"decoder", "text_encoder", "flow", "posterior_encoder"} - moved(before, session.generator)
        )
        session.state.global_step += 1
    assert still == [
        {"decoder", "flow"},
        {"decoder", "text_encoder", "flow"},
        {"text_encoder", "flow"},
        {"flow"},
    ]


def test_the_text_alone_can_learn(make_config: MakeConfig) -> None:
    """With decoder and posterior encoder frozen no gradient reaches the waveform."""
    session = begun(make_config(freeze=["decoder", "posterior_encoder"], learning_rate=1e-3))
    steps = build_steps(session)
    before = weights(session.generator)
    steps.joint([seen(session.train, 0, 1)], 0)
    assert moved(before, session.generator) == {"text_encoder", "flow", "duration_predictor"}


# -- Noise on alignments ---------------------------------------------------------------------------


def test_noise_on_alignments_fades_and_is_keyed_by_step_and_recording(
    make_trainee: Callable[..., Any], small_examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Tensor] = []

    def keep(scores: Tensor, tokens: Tensor, frames: Tensor) -> Tensor:
        assert (tokens.dtype, frames.dtype) == (torch.int32, torch.int32)
        heard.append(scores)
        return torch.zeros(scores.shape[0], scores.shape[2], dtype=torch.int32)

    monkeypatch.setattr("services.training.steps.align", keep)
    steps = make_trainee(alignment_noise=0.1, alignment_noise_steps=100).steps
    part = seen(small_examples, 0, 1)
    lengths = part.batch.token_lengths, part.batch.frame_lengths
    scores = torch.randn(2, part.spectrogram.shape[2], part.batch.input_ids.shape[1]) * 7 - 100

    def noise(step: int, part: Seen = part, scores: Tensor = scores) -> Tensor:
        steps._aligner(part, step)(scores, part.batch.token_lengths, part.batch.frame_lengths)
        return heard.pop() - scores

    frames, tokens = int(lengths[1][0]), int(lengths[0][0])
    first = noise(0)[0, :frames, :tokens]
    deviation = scores[0, :frames, :tokens].std(correction=0)
    assert float(first.std() / deviation) == pytest.approx(0.1, rel=0.1)
    assert torch.equal(noise(0), noise(0))
    assert not torch.equal(noise(0), noise(1))
    half = noise(50)[0, :frames, :tokens]
    assert float(half.std() / deviation) == pytest.approx(0.05, rel=0.1)
    assert steps._aligner(part, 100) == part.align  # faded: the search itself
    alone = seen(small_examples, 0)
    torch.testing.assert_close(noise(0, alone, scores[:1, :frames, :tokens])[0], first, rtol=1e-4, atol=1e-4)


def test_without_noise_the_search_is_called_as_it_is(
    make_trainee: Callable[..., Any], small_examples: Examples
) -> None:
    part = seen(small_examples, 0)
    assert make_trainee().steps._aligner(part, 0) == part.align


# -- Annealing -------------------------------------------------------------------------------------


def test_the_weight_of_the_divergence_rises_over_its_steps(make_trainee: Callable[..., Any]) -> None:
    losses = {"kl": torch.tensor(2.0)}
    steps = make_trainee(kl_annealing_steps=4, weight_kl=1.5).steps
    assert [float(steps._weighted(losses, step)) for step in (0, 1, 3, 9)] == [0.75, 1.5, 3.0, 3.0]
    steps.first_step = 10  # after a first stage
    assert float(steps._weighted(losses, 10)) == 0.75
    assert float(make_trainee(weight_kl=1.5).steps._weighted(losses, 0)) == 3.0


def test_the_stages_before_joint_training_know_neither_noise_nor_annealing(
    make_trainee: Callable[..., Any], small_examples: Examples
) -> None:
    steps = make_trainee(kl_annealing_steps=4, weight_kl=1.5, alignment_noise=0.5).steps
    steps.stage = "text"
    assert float(steps._weighted({"kl": torch.tensor(2.0)}, 0)) == 3.0
    part = seen(small_examples, 0)
    assert steps._aligner(part, 0) == part.align


# -- A curriculum ----------------------------------------------------------------------------------


def test_a_curriculum_begins_with_joint_training(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text stage ends within an epoch, and sees all recordings."""
    session = begun(
        make_config(
            text_stage_steps=3, curriculum="length", curriculum_epochs=1, curriculum_start=0.5,
            per_device_train_batch_size=2, max_steps=6,
        )
    )  # fmt: skip
    steps: list[set[int]] = []

    def note(_: Steps, parts: list[Seen], step: int) -> dict[str, Tensor]:
        steps.append({index for part in parts for index in part.host.index.tolist()})
        return {"mel": torch.tensor(1.0), "gradient_norm_generator": torch.tensor(1.0)}

    monkeypatch.setattr(Steps, "take", note)
    tracker = Tracker(
        session.config.output_dir, enabled=False, tensorboard=False, total_steps=9, first_step=0
    )
    with tracker:
        loop.Course(session, tracker, loop.Unsaved(), Stop()).run()
    frames = [session.train.frames(example) for example in session.train.examples]
    shortest = set(sorted(range(8), key=frames.__getitem__)[:4])
    assert len(set.union(*steps[:3])) == 6
    assert set.union(*steps[3:7]) == shortest
    state = session.state
    assert (state.curriculum_epoch, state.sampler_epoch, state.sampler_batch) == (1, 2, 2)


# -- All of it, resumed ----------------------------------------------------------------------------


def test_everything_that_changes_with_the_step_goes_on_as_if_never_stopped(
    make_config: MakeConfig, judged_model: Path, tmp_path: Path
) -> None:
    """Byte for byte, from the middle of each schedule."""
    settings: dict[str, Any] = {
        "model_name_or_path": str(judged_model),
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 2,
        "curriculum": "difficulty",
        "curriculum_epochs": 1,
        "curriculum_start": 0.5,
        "text_stage_steps": 3,
        "max_steps": 6,
        "discriminator_start_step": 1,
        "frozen_discriminator_steps": 2,
        "freeze_schedule": {"decoder": [1, 4], "flow": [0, 2]},
        "alignment_noise": 0.5,
        "alignment_noise_steps": 5,
        "kl_annealing_steps": 5,
        "stft_discriminator": True,
        "save_steps": 5,
    }
    whole = loop.train(make_config(**settings, output_dir=str(tmp_path / "whole")))
    resumed = loop.train(make_config(**settings, resume_from_checkpoint=str(whole / "checkpoint-5")))
    ours, theirs = (
        load_file(folder / "checkpoint-9" / "training_state.safetensors") for folder in (resumed, whole)
    )
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# -- What contradicts itself -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"curriculum": "length", "num_train_epochs": 3}, "would never see all recordings"),
        ({"frozen_discriminator_steps": 9, "max_steps": 9}, "the discriminator would never learn"),
        (
            {"frozen_discriminator_steps": 4, "discriminator_start_step": 5, "max_steps": 9},
            "from discriminator_start_step 5 on",
        ),
        ({"frozen_discriminator_steps": 9, "train_from_scratch": True}, "drop one of them"),
        (
            {"freeze": ["flow"], "freeze_schedule": {"flow": [0, 3]}},
            "flow is in freeze, which is for the whole run",
        ),
        ({"freeze_schedule": {"flow": [3, 3]}}, "is not from one step to a later one"),
        ({"freeze_schedule": {"flaw": [0, 3]}}, "freeze_schedule"),
        ({"freeze_schedule": {"flow": [0, 3]}, "train_from_scratch": True}, "choose one"),
        (
            {
                "freeze": ["text_encoder", "duration_predictor", "posterior_encoder", "decoder"],
                "freeze_schedule": {"flow": [5, 9]},
            },
            "leave nothing to learn at step 5",
        ),
    ],
)
def test_a_contradiction_is_explained(make_config: MakeConfig, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config(**changes)


@pytest.mark.parametrize(
    ("changes", "fits", "said"),
    [
        (
            {"curriculum": "length", "curriculum_epochs": 2, "max_steps": 8},
            {"max_steps": 9},
            "the 2 epochs that the 8",
        ),
        (
            {"frozen_discriminator_steps": 8, "num_train_epochs": 2},
            {"num_train_epochs": 2.1},
            "do not end before the 8 steps",
        ),
    ],
    ids=["curriculum", "discriminator"],
)
def test_what_needs_the_number_of_recordings_is_held_against_them(
    make_config: MakeConfig, judged_model: Path, changes: dict[str, Any], fits: dict[str, Any], said: str
) -> None:
    """Steps, where epochs are given, and epochs, where steps are: eight recordings, four batches an epoch."""
    settings = {"model_name_or_path": str(judged_model), "per_device_train_batch_size": 2, **changes}
    with pytest.raises(ConfigError, match=said):
        loop.train(make_config(**settings))
    check_strategy(begun(make_config(**settings | fits)))


def test_the_command_line_takes_a_schedule_as_json(make_config: MakeConfig) -> None:
    assert make_config(freeze_schedule='{"decoder": [0, 500]}').freeze_schedule == {"decoder": (0, 500)}
    assert make_config(freeze_schedule="none").freeze_schedule == {}


def test_keys_that_only_say_how_are_told_to_do_nothing_alone(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_name_or_path": "base", "dataset_name": "data"}')
    _, remarks = load([path], {"curriculum_start": "0.5", "alignment_noise_steps": "9"})
    assert remarks == [
        "curriculum_start has no effect: there is no curriculum; set curriculum length",
        "alignment_noise_steps has no effect: there is no alignment_noise; set alignment_noise 0.01",
    ]


def test_nothing_of_this_is_on_unless_asked_for() -> None:
    config = resolve({"model_name_or_path": "base", "dataset_name": "data"}, origin="the test")
    assert config.curriculum is None
    assert config.early_stopping_patience is None
    assert config.discriminator_start_step == config.frozen_discriminator_steps == 0
    assert config.alignment_noise == config.kl_annealing_steps == 0
    assert config.freeze_schedule == {}
    assert not config.stft_discriminator
