"""Defects of `finetune-hf-vits` that no one part of ours could bring back alone; `docs/ancestor-defects.md` has all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from monotonic_align import search
from services.cli import NO_REPORTING
from services.training import discriminator as judges
from services.training import loop
from services.training.config import resolve
from services.training.dataset import Batch
from services.training.loop import build_steps, set_learning_rates
from services.training.session import Session, begin
from services.training.steps import Seen, align
from shared.errors import ModelError
from shared.modeling import load_model
from shared.modeling.speakers import add_speakers

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small_discriminator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A discriminator of the same shape with a hundredth of the channels."""
    monkeypatch.setattr(judges, "_SCALE_CHANNELS", (1, 4, 16, 64, 256))
    monkeypatch.setattr(judges, "_PERIOD_CHANNELS", (1, 2, 4, 8, 16))


@pytest.fixture
def session(
    spanish_model: Path, recordings_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Session:
    return make_session(spanish_model, recordings_folder, tmp_path, monkeypatch)


def make_session(
    model: Path, recordings: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> Session:
    """A run, begun."""
    monkeypatch.setenv("VITS_CACHE", str(folder / "cache"))
    values = {
        "model_name_or_path": str(model),
        "dataset_name": str(recordings),
        "output_dir": str(folder / "output"),
        "store": f"file://{folder / 'store'}",
        **changes,
    }
    return begin(resolve(values, origin="the test"), Accelerator(cpu=True))


def a_batch(session: Session) -> Seen:
    return Seen.of(session.train.collate([session.train[0], session.train[1]]), session.settings)


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


# --- 3: what the discriminator's pace is set by ----------------------------------------------------


def test_the_discriminators_pace_has_a_knob_that_turns(
    spanish_model: Path, recordings_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clipped and divided by its own size, a gradient forgets its weight; a learning rate it does not forget."""

    def moved(**changes: Any) -> dict[str, Tensor]:
        session = make_session(
            spanish_model, recordings_folder, tmp_path, monkeypatch, weight_decay=0, **changes
        )
        steps = build_steps(session)
        set_learning_rates(session, steps)
        before = weights(session.discriminator)
        steps.joint([a_batch(session)], 0)
        return {name: value - before[name] for name, value in weights(session.discriminator).items()}

    plain = moved(discriminator_learning_rate=1e-4)
    quicker = moved(discriminator_learning_rate=4e-4)
    weighted = moved(discriminator_learning_rate=1e-4, weight_disc=12)
    length = {name: float(value.norm()) for name, value in plain.items()}
    for name, value in quicker.items():
        assert float(value.norm()) == pytest.approx(4 * length[name], rel=0.01), name
    # Why the other knob is not enough: four times the weight, and the same step.
    for name, value in weighted.items():
        assert float(value.norm()) == pytest.approx(length[name], rel=0.01), name


# --- 21: batches for a GPU -------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_batches_for_a_gpu_wait_in_pinned_memory(
    session: Session, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """It copies from pageable memory, and waits for each copy. Without a GPU there is nothing to pin for."""
    asked: list[bool] = []

    def loader(*_: Any, pin_memory: bool, **__: Any) -> list[Batch]:
        asked.append(pin_memory)
        return [a_batch(session).batch]

    monkeypatch.setattr(loop, "DataLoader", loader)
    elsewhere = SimpleNamespace(device=torch.device(device), process_index=0, num_processes=1)
    monkeypatch.setattr(session, "accelerator", elsewhere)
    next(iter(loop.batches(session)))
    assert asked == [device == "cuda"]


# --- 22: the alignment's way -----------------------------------------------------------------------


def test_a_step_never_builds_a_dense_path(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its paths are matrices of frames by tokens, carried to the device; durations are all that is needed."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a dense path was built")

    monkeypatch.setattr(search, "_dense_path", refuse)
    steps = build_steps(session)
    assert steps.joint([a_batch(session)], 0)["duration"].isfinite()


# --- 26: what is installed, and what it reports ----------------------------------------------------


def required(found: Distribution, extras: set[str]) -> set[str]:
    """Names of what a distribution needs, itself and with some of its extras."""
    names = set()
    for line in found.requires or []:
        name = re.split(r"[\s;<>=!~\[(]", line, maxsplit=1)[0]
        wanted = re.findall(r"""extra\s*==\s*['"]([^'"]+)['"]""", line)
        if not wanted or extras & set(wanted):
            names.add(name.lower().replace("_", "-"))
    return names


def test_everything_that_training_needs_is_pinned() -> None:
    """Its requirements name no version, and it no longer imports with current ones."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if "==" in line)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated = project["dependencies"] + project["optional-dependencies"]["train"]
    names = {re.split(r"[<>=\[]", line)[0].lower() for line in stated}
    assert {"torch", "transformers", "accelerate"} <= names
    for line in stated:
        assert re.search(r">=|==", line), f"{line}: no version is too old for it?"
    needed = names | {other for name in names for other in required(distribution(name), set())}
    installed = {name for name in needed if _version(name)}
    assert installed - pins.keys() == set()


def _version(name: str) -> str | None:
    try:
        return distribution(name).version
    except ModuleNotFoundError:
        return None  # for another platform or an older Python


def test_training_reports_home_to_nobody() -> None:
    """It sends what it was told to its authors, unless it is told not to."""
    assert NO_REPORTING["HF_HUB_DISABLE_TELEMETRY"] == "1"
    program = (
        "import sys; from services import cli; cli.main([]); "
        "import huggingface_hub.constants as hub; sys.exit(not hub.HF_HUB_DISABLE_TELEMETRY)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in NO_REPORTING}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    sources = [*(ROOT / "services").rglob("*.py"), *(ROOT / "shared").rglob("*.py")]
    assert not [path for path in sources if "send_example_telemetry" in path.read_text(encoding="utf-8")]


# --- 27: lengths that have to agree ----------------------------------------------------------------


@pytest.mark.parametrize("speakers", [(1,), (2,), (4,), (3, 1), ()])
def test_as_many_speakers_as_texts(spanish_model: Path, speakers: tuple[int, ...]) -> None:
    """It compares `speaker_id == len(input_ids)` inside `len(…)`, which is true whatever their numbers."""
    model = add_speakers(load_model(spanish_model), 3)
    given: dict[str, Any] = {
        "input_ids": torch.ones(3, 4, dtype=torch.long),
        "token_lengths": torch.tensor([4, 4, 4]),
        "labels": torch.rand(3, model.config.spectrogram_bins, 40),
        "frame_lengths": torch.tensor([40, 40, 40]),
        "aligner": align,
    }
    output = model.training_forward(**given, speaker_id=torch.tensor([0, 1, 2]))
    wrong = torch.zeros(speakers, dtype=torch.long)
    message = re.escape(f"speaker_id has the shape {[*speakers]} for 3 texts: give one id for each text, [3]")
    with pytest.raises(ModelError, match=message):
        model.training_forward(**given, speaker_id=wrong)
    given["posterior_mean"] = given["posterior_log_std"] = output.posterior_log_std
    del given["labels"]
    with pytest.raises(ModelError, match=message):
        model.prior_forward(**given, speaker_id=wrong)


# --- 24: the rate on several processes -------------------------------------------------------------


def test_the_rate_is_the_same_function_of_the_step_on_any_number_of_processes(
    spanish_model: Path, recordings_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its schedulers take a step for every process: the decay comes to the power of their number."""
    session = make_session(spanish_model, recordings_folder, tmp_path, monkeypatch, lr_decay=0.5, max_steps=9)
    steps = build_steps(session)
    session.plan.per_epoch = 3
    course = []
    for processes in (1, 4):
        monkeypatch.setattr(Accelerator, "num_processes", processes)
        rates = []
        for step in range(9):
            session.state.global_step = step
            set_learning_rates(session, steps)
            rates.append({group["lr"] for optimizer in steps.optimizers for group in optimizer.param_groups})
        course.append(rates)
    rate = session.config.learning_rate
    assert course == [[{rate * 0.5 ** (step // 3)} for step in range(9)]] * 2
