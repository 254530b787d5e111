"""What a model is worth on recordings that it was not trained on: the same figures for the same weights.

Nothing is drawn from the generators that training draws from. Each recording's noise and slice follow from its
position in the split alone, so neither the batch it is in nor the process that evaluates it matters.

Shapes: B batch, T tokens, F frames, S samples, W frames of a slice, D latent channels.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torch.nn import functional

from services.training import report
from services.training.config import TrainingConfig
from services.training.dataset import Batch, normalise_text
from services.training.features import MEL_BINS, FeatureSettings, log_mel_of
from services.training.losses import adversarial_loss, discriminator_loss, feature_loss, kl_loss
from services.training.plots import plot_alignment, plot_spectrograms
from services.training.ranking import total_loss
from services.training.session import Session
from services.training.steps import Seen, to_device, widest
from services.training.stopping import Stop
from services.training.tracking import Tracker
from shared.errors import TextError
from shared.modeling import TrainingOutput, synthesize
from shared.modeling.model import sequence_mask

Part = TypeVar("Part")

#: Everything is spoken from this seed, so that evaluations differ by the model alone.
SPEECH_SEED = 0
#: Held-out texts that are spoken to be compared with their recordings.
MAX_SPOKEN = 4
#: The golden ratio's fraction: multiples of it spread over [0, 1) evenly, however many there are.
_SPREAD = (math.sqrt(5) - 1) / 2


class Abandoned(Exception):  # noqa: N818 - nothing has gone wrong
    """An evaluation ended before its end: its figures are as if it had never begun."""


class Schedule:
    """When to evaluate, so that evaluations stay within ``max_eval_share`` of the run's time.

    That time, and what evaluations took of it, is the process's own: a resumed run counts from zero, whatever was
    spent before it was stopped.

    Args:
        config: The run's.
        per_epoch: Steps of an epoch.
    """

    def __init__(self, config: TrainingConfig, per_epoch: int) -> None:
        self.interval = config.evaluation_interval(per_epoch)
        self.share = config.max_eval_share
        self._seconds = 0.0
        self._not_before = 0
        self._last: tuple[int, float] | None = (
            None  # step, and the run's seconds when its evaluation was over
        )

    def due(self, step: int) -> bool:
        """Whether to evaluate once so many steps are done."""
        return self.interval is not None and step % self.interval == 0 and step >= self._not_before

    def spent(self, step: int, seconds: float, run_seconds: float) -> str | None:
        """Take note of an evaluation, and put the next one off until there is time for one as long.

        Args:
            step: Where it was.
            seconds: What it took.
            run_seconds: What the run has taken so far, all its evaluations included.

        Returns:
            What to say where the next one has been put off.
        """
        before, self._last = self._last, (step, run_seconds)
        self._seconds += seconds
        if self.share is None or self.interval is None or before is None or step <= before[0]:
            return None
        pace = (run_seconds - seconds - before[1]) / (step - before[0])
        needed = (self._seconds + seconds) / self.share - seconds - run_seconds
        intervals = math.ceil(needed / max(pace, 1e-9) / self.interval)
        if intervals <= 1:
            return None
        self._not_before = (step // self.interval + intervals) * self.interval
        return (
            f"evaluations have taken {self._seconds / run_seconds:.0%} of the run and may take {self.share:.0%} "
            f"(max_eval_share): the next one is at step {self._not_before}"
        )


def run(
    session: Session, tracker: Tracker, schedule: Schedule | None = None, stop: Stop | None = None
) -> dict[str, float]:
    """Evaluate the model as it is, and log what came of it. Every process has to call it.

    With averaged weights (``session.ema``) it is those that are evaluated. Weights, modes and all that is random
    in training are left as they were.

    Args:
        session: The run.
        tracker: Told the figures, the pictures and the sound.
        schedule: Told what it took.
        stop: Whether the run has been told to stop: then the evaluation ends at once.

    Returns:
        The measures that ``metric_for_best_model`` can name and ``loss``, the same on every process; nothing
        without held-out recordings.

    Raises:
        Abandoned: The run has been told to stop, on any of its processes.
        DivergenceError: What the model computes is not a number.
    """
    start = time.perf_counter()
    stop = stop or Stop()
    values: dict[str, float] = {}
    with _undisturbed(session):
        if session.evaluation:
            values = held_out_losses(session, stop)
            values["mel_distance"] = _speak_held_out(session, tracker, stop)
        if session.accelerator.is_main_process:
            _speak_samples(session, tracker, stop)
    session.accelerator.wait_for_everyone()
    if stop.agreed(session.accelerator):
        raise Abandoned
    # The mean over the processes: what follows from it has to be the same on each.
    device = session.accelerator.device
    clocks = torch.tensor([time.perf_counter() - start, tracker.seconds], dtype=widest(device), device=device)
    seconds, run_seconds = session.accelerator.reduce(clocks, "mean").tolist()
    session.state.evaluation_seconds += seconds
    tracker.evaluated(session.step, values, seconds)
    if values:
        session.state.log_history.append(
            {"step": session.step} | {f"eval_{name}": value for name, value in values.items()}
        )
    put_off = schedule.spent(session.step, seconds, run_seconds) if schedule else None
    if put_off:
        tracker.say(put_off)
    if session.accelerator.is_main_process and session.config.do_train:
        report.write(session)
    return values


@contextlib.contextmanager
def _undisturbed(session: Session) -> Iterator[None]:
    """Evaluate inside: no gradient, no dropout, averaged weights; outside, everything is as it was."""
    networks = (session.generator, session.discriminator)
    training = [module for network in networks for module in network.modules() if module.training]
    averaged = session.ema.applied(session.generator) if session.ema else contextlib.nullcontext()
    device = session.accelerator.device
    devices = [device] if device.type == "cuda" else []
    numpy_state = np.random.get_state()  # the text encoder of transformers draws from it, for nothing
    try:
        with torch.random.fork_rng(devices), torch.no_grad(), averaged:
            for network in networks:
                network.train(False)
            yield
    finally:
        np.random.set_state(numpy_state)
        for module in training:
            module.training = True


# -- Losses ----------------------------------------------------------------------------------------


def _until_told(stop: Stop | None, parts: Iterable[Part]) -> Iterator[Part]:
    """The parts of an evaluation, up to the one at which the run is told to stop; what they come to is thrown away."""
    return takewhile(lambda _: not (stop and stop.requested), parts)


def held_out_losses(session: Session, stop: Stop | None = None) -> dict[str, float]:
    """All losses over all held-out recordings, in float32.

    Each is averaged over what it is a mean of: ``mel`` over the frames of all slices, ``kl`` over all frames,
    ``duration`` over all tokens, those before the discriminator over the recordings. The batches are shared out
    among the processes.

    Returns:
        ``mel``, ``kl``, ``duration``, ``generator``, ``feature_maps``, ``discriminator``; ``loss``: what the
        generator minimises, weighted as in training (before ``discriminator_start_step`` without the discriminator's
        two terms); and ``longest_token``: the share of a recording's frames that
        are aligned with one token, which is large while alignments are not sharp.
    """
    accelerator = session.accelerator
    names = ("mel", "kl", "duration", "generator", "feature_maps", "discriminator", "longest_token")
    sums = torch.zeros(len(names), 2, dtype=widest(accelerator.device), device=accelerator.device)
    mine = session.evaluation[accelerator.process_index :: accelerator.num_processes]
    for batch in _until_told(stop, mine):
        found = _batch_losses(session, Seen.of(batch, session.settings, accelerator.device))
        sums += torch.stack(
            [torch.stack([found[name][0] * found[name][1], found[name][1]]) for name in names]
        )
    sums = accelerator.reduce(sums, "sum")
    values = dict(zip(names, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))
    judged = session.step >= session.judged_from
    return values | {"loss": total_loss(session.config, values, judged=judged)}


def _batch_losses(session: Session, seen: Seen) -> dict[str, tuple[Tensor, Tensor]]:
    """Each loss of a batch: its mean, and of how many."""
    batch, settings, device = seen.batch, session.settings, session.accelerator.device
    kind, width = widest(device), settings.frames(session.config.segment_size)
    output = _forward(session, seen, to_device(slice_starts(seen.host, width), device), width)
    real, mel = seen.slices(output.slice_starts, width, settings)
    inside = sequence_mask(batch.frame_lengths - output.slice_starts, width)[:, None]
    difference = (log_mel_of(output.waveform[:, 0], settings) - mel).abs() * inside
    true, generated = session.discriminator(real), session.discriminator(output.waveform)
    divergence = kl_loss(
        output.flow_latents,
        output.posterior_log_std,
        output.prior_mean,
        output.prior_log_std,
        output.frame_mask,
    )
    frames, slice_frames, token_count = (
        mask.sum().to(kind) for mask in (output.frame_mask, inside, output.token_mask)
    )
    recordings = torch.tensor(len(batch.ids), dtype=kind, device=device)
    return {
        "mel": (difference.to(kind).sum() / (MEL_BINS * slice_frames), slice_frames),
        "kl": (divergence, frames),
        "duration": (output.duration_loss.sum() / token_count, token_count),
        "generator": (adversarial_loss(generated), recordings),
        "feature_maps": (feature_loss(true, generated), recordings),
        "discriminator": (discriminator_loss(true, generated), recordings),
        "longest_token": ((output.durations.amax(1) / batch.frame_lengths).mean(), recordings),
    }


def slice_starts(batch: Batch, width: int) -> Tensor:
    """[B] the first frame of each recording's slice: always the same one, and over a set they lie everywhere."""
    room = (batch.frame_lengths - width + 1).clamp_min(1)
    return ((batch.index + 1).double() * _SPREAD % 1 * room).long()


def _noise(batch: Batch, lengths: Tensor, channels: int, *, stream: int) -> Tensor:
    """[B, channels, max(lengths)] standard normal, keyed by each recording alone, zero past its end."""
    rows = []
    for index, length in zip(batch.index.tolist(), lengths.tolist(), strict=True):
        generator = torch.Generator().manual_seed(2 * index + stream)
        rows.append(torch.randn(length, channels, generator=generator))
    return nn.utils.rnn.pad_sequence(rows, batch_first=True).transpose(1, 2).to(lengths.device)


def _forward(session: Session, seen: Seen, starts: Tensor, width: int) -> TrainingOutput:
    """The training forward with everything fixed that training draws."""
    batch, latents = seen.batch, session.generator.config.flow_size
    return session.generator.training_forward(
        batch.input_ids,
        batch.token_lengths,
        seen.spectrogram,
        batch.frame_lengths,
        aligner=seen.align,
        speaker_id=batch.speaker_id,
        segment_frames=width,
        slice_starts=starts,
        posterior_noise=_noise(batch, batch.frame_lengths, latents, stream=0),
        duration_noise=_noise(batch, batch.token_lengths, 2, stream=1),
    )


# -- Speech ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sample:
    """One sentence by one speaker."""

    text: str
    ids: tuple[int, ...]
    speaker: str | None
    speaker_id: int | None


def _samples(session: Session, tracker: Tracker) -> Iterator[_Sample]:
    """Every sample sentence with every speaker that is to speak it."""
    config, speakers = session.config, session.sample_speakers()
    for text in dict.fromkeys(config.sample_texts):
        try:
            tokens = session.base.front_end.tokenize(normalise_text(text, config))
        except TextError as error:
            tracker.say(f"the sample sentence {text!r} cannot be spoken: {error}")
            continue
        for speaker, speaker_id in speakers:
            yield _Sample(text, tokens.ids, speaker, speaker_id)


def _speak_samples(session: Session, tracker: Tracker, stop: Stop) -> None:
    """Speak each sample sentence into the log."""
    for number, sample in enumerate(_until_told(stop, _samples(session, tracker))):
        spoken = synthesize(
            session.generator,
            torch.tensor(sample.ids, device=session.accelerator.device),
            seed=SPEECH_SEED,
            speaker_id=sample.speaker_id,
        )
        title = sample.text if sample.speaker is None else f"{sample.text} ({sample.speaker})"
        name = f"full_generation_sample{number}"
        tracker.audio(session.step, name, spoken.samples, spoken.sampling_rate, title=title)


def _speak_held_out(session: Session, tracker: Tracker, stop: Stop) -> float:
    """Speak some held-out texts, and draw one of them.

    Returns:
        The mean of :func:`aligned_distance` between what was spoken and the log-mel of the recordings.
    """
    accelerator, settings = session.accelerator, session.settings
    places = session.evaluation.recordings
    chosen = [
        places[round(at)] for at in np.linspace(0, len(places) - 1, min(MAX_SPOKEN, len(places))).tolist()
    ]
    sums = torch.zeros(2, dtype=widest(accelerator.device), device=accelerator.device)
    mine = range(accelerator.process_index, len(chosen), accelerator.num_processes)
    for number in _until_told(stop, mine):
        seen = Seen.of(session.evaluation.alone(chosen[number]), settings, accelerator.device)
        spoken = synthesize(
            session.generator,
            seen.batch.input_ids[0],
            seed=SPEECH_SEED,
            speaker_id=int(seen.batch.speaker_id[0]) if session.generator.config.num_speakers > 1 else None,
        )
        mel = _mel_of(spoken.samples, settings)
        recorded = seen.mel[0].cpu().numpy()
        sums += torch.tensor([aligned_distance(recorded, mel), 1.0]).to(sums)
        if number == 0 and accelerator.is_main_process:
            _play(session, tracker, seen, spoken.samples)
            _draw(session, tracker, seen, mel)
    total, count = accelerator.reduce(sums, "sum")
    return float(total / count)


def _mel_of(samples: NDArray[np.float32], settings: FeatureSettings) -> NDArray[np.float32]:
    """[S] → [80, F], of at least one window."""
    waveform = torch.from_numpy(samples)
    waveform = functional.pad(waveform, (0, max(0, settings.n_fft - len(waveform))))
    mel: NDArray[np.float32] = log_mel_of(waveform[None], settings)[0].numpy()
    return mel


def _play(session: Session, tracker: Tracker, seen: Seen, spoken: NDArray[np.float32]) -> None:
    """One recording as it is spoken from its text, and, once a run, as it was recorded."""
    rate, padding = session.settings.sampling_rate, session.settings.padding
    title = _title(session, seen)
    if not any("eval_mel" in entry for entry in session.state.log_history):
        recorded = seen.batch.padded_waveform[0, padding:-padding].cpu().numpy()
        tracker.audio(session.step, "held_out_recording", recorded, rate, title=f"{title}, as recorded")
    tracker.audio(session.step, "held_out", spoken, rate, title=title)


def _title(session: Session, seen: Seen) -> str:
    """What an evaluation's recording is called; splits of two names may have it in common."""
    (name,) = seen.batch.ids
    trained = any(example.id == name for example in session.train.examples)
    return f"{'trained on too' if trained else 'held out'}: {name}"


def _draw(session: Session, tracker: Tracker, seen: Seen, spoken: NDArray[np.float32]) -> None:
    """The alignment of one recording, and its spectrogram beside the decoded and the spoken one."""
    model, batch = session.generator, seen.batch
    output = _forward(session, seen, torch.zeros_like(batch.frame_lengths), width=1)
    speaker = model.speaker_embedding(batch.speaker_id)
    latents, _ = model.posterior(seen.spectrogram, output.frame_mask, speaker)
    decoded = log_mel_of(model.decoder(latents, speaker)[:, 0], session.settings)
    title, step = _title(session, seen), session.step
    tracker.figure(step, "alignments", plot_alignment(output.durations[0].cpu().numpy()), title=title)
    figure = plot_spectrograms(
        recording=seen.mel[0].cpu().numpy(), decoded=decoded[0].cpu().numpy(), spoken_from_text=spoken
    )
    tracker.figure(step, "spectrogram", figure, title=title)


# -- Distance --------------------------------------------------------------------------------------


def aligned_distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The mean absolute difference of two log-mel spectrograms along their best alignment.

    Dynamic time warping (Sakoe and Chiba, 1978) with steps of one frame in either or both, each costing the mean
    absolute difference of the bands; the path's cost divided by its length. In the unit of the mel loss.

    Args:
        one: [80, F].
        other: [80, F'], of another length or the same.
    """
    cost = cdist(one.T.astype(np.float64), other.T.astype(np.float64), "cityblock") / one.shape[0]
    rows, columns = cost.shape
    # total[i, j]: the cheapest way to (i, j). One anti-diagonal depends on the two before it alone.
    total = np.full((rows + 1, columns + 1), np.inf)
    length = np.zeros((rows + 1, columns + 1))
    total[0, 0] = 0.0
    for diagonal in range(rows + columns - 1):
        i = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        j = diagonal - i
        before = np.stack([total[i, j], total[i, j + 1], total[i + 1, j]])
        lengths = np.stack([length[i, j], length[i, j + 1], length[i + 1, j]])
        best = before.argmin(0)
        at = np.arange(len(i))
        total[i + 1, j + 1] = before[best, at] + cost[i, j]
        length[i + 1, j + 1] = lengths[best, at] + 1
    return float(total[-1, -1] / length[-1, -1])
