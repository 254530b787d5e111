"""The voice before training, after it, and the recordings themselves, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from services.evaluation import Judges
from services.training.checkpoints import TrainerState
from services.training.data import read_recordings
from services.training.features import FeatureSettings, log_mel_of
from services.training.plots import plot_alignment, plot_spectrograms
from shared.audio import Audio
from shared.errors import MissingExtraError, ModelError
from shared.modeling import VitsForTraining, load_model, synthesize
from shared.text import FrontEnd

_SHOWN = 3


@dataclass(frozen=True)
class Heard:
    """One sentence in three voices."""

    text: str
    recording: Audio | None
    before: Audio
    after: Audio


@dataclass(frozen=True)
class Comparison:
    """What changed."""

    mel_before: float
    """Held-out mel loss before the first step."""
    mel_between: float
    """Where the first stage left it, which teaches the posterior encoder that the base lacks."""
    mel_after: float
    mos_recordings: float
    """Mean DNSMOS (OVRL) of the recordings."""
    mos_before: float
    mos_after: float
    sentences: int
    steps: int
    warm_up_steps: int
    """Of them, those of the first stage."""
    heard: list[Heard]
    history: list[dict[str, float]]
    """The training's log, as in ``trainer_state.json``."""
    alignment: Figure
    spectrograms: Figure


def mean_opinion(clips: list[Audio]) -> float:
    """Mean DNSMOS (OVRL) of several clips.

    Raises:
        MissingExtraError: The judge is not installed.
    """
    judges = Judges(only=["dnsmos"])
    if judges.missing:
        raise MissingExtraError(judges.missing["dnsmos"])
    scores = [judges.score(clip.samples, clip.sampling_rate).dnsmos for clip in clips]
    return float(np.mean([score for score in scores if score is not None]))


class Speaker:
    """A model folder that speaks."""

    def __init__(self, folder: Path) -> None:
        self.model: VitsForTraining = load_model(folder)
        self.front_end = FrontEnd.from_folder(folder)

    def say(self, text: str, seed: int) -> tuple[Audio, NDArray[np.int32]]:
        """Speech, and the frames of each token."""
        spoken = synthesize(self.model, torch.tensor(self.front_end.tokenize(text).ids), seed=seed)
        return Audio(spoken.samples, spoken.sampling_rate), spoken.durations


def compare(data: Path, base: Path, trained: Path, sentence: str) -> Comparison:
    """Speak every held-out test sentence before and after, and score all of it.

    Args:
        data: The dataset.
        base: The model before training.
        trained: The run's output folder.
        sentence: One more sentence, which nobody recorded.

    Raises:
        ModelError: Nothing was trained there.
    """
    state = TrainerState.read(trained)
    if state is None:
        raise ModelError(f"{trained} holds no finished training: it has no trainer_state.json. Train again.")
    history = state.log_history
    mels = [row["eval_mel"] for row in history if "eval_mel" in row]
    recordings = read_recordings(data, split="test")
    before, after = Speaker(base), Speaker(trained)
    heard = [
        Heard(
            recording.text,
            recording.audio(),
            before.say(recording.text, seed)[0],
            after.say(recording.text, seed)[0],
        )
        for seed, recording in enumerate(recordings)
    ]
    spoken, durations = after.say(sentence, 0)
    extra = Heard(sentence, None, before.say(sentence, 0)[0], spoken)
    return Comparison(
        mel_before=mels[0],
        mel_between=mel_between(history, state.warm_up_steps),
        mel_after=mels[-1],
        mos_recordings=mean_opinion([clip.recording for clip in heard if clip.recording]),
        mos_before=mean_opinion([clip.before for clip in heard]),
        mos_after=mean_opinion([clip.after for clip in heard]),
        sentences=len(heard),
        steps=state.global_step,
        warm_up_steps=state.warm_up_steps,
        heard=[extra, *heard[:_SHOWN]],
        history=history,
        alignment=plot_alignment(durations),
        spectrograms=_spectrograms(heard[0], after.model),
    )


def mel_between(history: list[dict[str, float]], warm_up_steps: int) -> float:
    """The last held-out mel loss of the first stage; the very first where there is but one stage."""
    return [row["eval_mel"] for row in history if "eval_mel" in row and row["step"] <= warm_up_steps][-1]


def _spectrograms(clip: Heard, model: VitsForTraining) -> Figure:
    """The same sentence three times, each whole: what is shorter is followed by silence."""
    settings = FeatureSettings(
        model.config.sampling_rate, model.hop_length, 2 * (model.config.spectrogram_bins - 1)
    )

    def mel(audio: Audio) -> NDArray[np.float32]:
        samples = torch.from_numpy(audio.resampled(settings.sampling_rate).samples)[None]
        return np.asarray(log_mel_of(samples, settings)[0])

    assert clip.recording is not None  # noqa: S101 - a test sentence has one
    mels = {"recording": mel(clip.recording), "before": mel(clip.before), "after": mel(clip.after)}
    return plot_spectrograms(**as_long_as_the_longest(mels))


def as_long_as_the_longest(mels: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Spectrograms [80, F] with the quietest of their own values up to the F of the longest."""
    frames = max(mel.shape[1] for mel in mels.values())
    return {
        name: np.pad(mel, ((0, 0), (0, frames - mel.shape[1])), constant_values=mel.min())
        for name, mel in mels.items()
    }
