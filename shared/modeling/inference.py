"""Speaking with a model as PyTorch has it, before any export.

Shapes: B batch, T tokens, F frames, S samples, D latent channels.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import RequestError
from shared.modeling.durations import condition
from shared.modeling.loading import load_model
from shared.modeling.model import VitsForTraining, expand
from shared.text import FrontEnd


@dataclass(frozen=True)
class Utterance:
    """One synthesised utterance."""

    samples: NDArray[np.float32]
    """[S] mono, in [-1, 1]."""
    sampling_rate: int
    """Hz."""
    seed: int
    durations: NDArray[np.int32]
    """[T] frames of each token."""
    latents: NDArray[np.float32]
    """[D, F] what the decoder spoke from."""


@torch.no_grad()
def synthesize(
    model: VitsForTraining,
    input_ids: Tensor,
    *,
    seed: int,
    speaker_id: int | None = None,
    speaking_rate: float | None = None,
    noise_scale: float | None = None,
    noise_scale_duration: float | None = None,
) -> Utterance:
    """Speak one sequence of tokens [T], as ``VitsModel`` does, from noise of its own generator.

    Unlike ``VitsModel.forward`` it neither draws from torch's global generator, so that speaking a
    sample never disturbs a training run, nor needs the decoder to be free of weight norm.
    """
    config, device = model.config, input_ids.device
    rate = config.speaking_rate if speaking_rate is None else speaking_rate
    scale = config.noise_scale if noise_scale is None else noise_scale
    duration_scale = config.noise_scale_duration if noise_scale_duration is None else noise_scale_duration
    generator = torch.Generator().manual_seed(seed)
    # Each module's own: in the first stage of training only some of them train.
    training = [module for module in model.modules() if module.training]
    model.train(False)
    try:
        tokens = input_ids[None]
        mask = torch.ones(1, 1, tokens.shape[1], device=device)
        speaker = model.speaker_embedding(
            None if speaker_id is None else torch.tensor([speaker_id], device=device)
        )
        text = model.text_encoder(
            input_ids=tokens, padding_mask=mask.transpose(1, 2), attention_mask=mask[:, 0], return_dict=True
        )
        hidden = text.last_hidden_state.transpose(1, 2)
        noise = torch.randn(1, 2, tokens.shape[1], generator=generator).to(device) * duration_scale
        log_duration = _log_durations(model, hidden, mask, speaker, noise)
        # Times the reciprocal, as VitsModel has it: a quotient rounds differently before the ceiling.
        durations = torch.ceil(torch.exp(log_duration) * mask * (1.0 / rate))[:, 0].long()
        if int(durations.sum()) == 0:
            durations[:, 0] = 1
        frames = int(durations.sum())
        mean = expand(text.prior_means.transpose(1, 2), durations, frames)
        log_std = expand(text.prior_log_variances.transpose(1, 2), durations, frames)
        noise = torch.randn(1, frames, mean.shape[1], generator=generator).to(device).transpose(1, 2)
        frame_mask = torch.ones(1, 1, frames, device=device)
        latents = model.flow(mean + noise * torch.exp(log_std) * scale, frame_mask, speaker, reverse=True)
        waveform = model.decoder(latents, speaker)
    finally:
        for module in training:
            module.training = True
    return Utterance(
        samples=waveform[0, 0].float().cpu().numpy(),
        sampling_rate=config.sampling_rate,
        seed=seed,
        durations=durations[0].int().cpu().numpy(),
        latents=latents[0].float().cpu().numpy(),
    )


def _log_durations(
    model: VitsForTraining, hidden: Tensor, mask: Tensor, speaker: Tensor | None, noise: Tensor
) -> Tensor:
    """[1, 1, T] log-frames; ``noise`` [1, 2, T] is what a stochastic predictor starts from."""
    predictor = model.duration_predictor
    if not model.config.use_stochastic_duration_prediction:
        return predictor(hidden, mask, speaker)  # type: ignore[no-any-return]
    conditioning = condition(predictor, hidden, mask, speaker)
    first, _unused, *rest = predictor.flows  # original VITS leaves its first spline out of synthesis
    for flow in [*reversed(rest), first]:
        noise, _ = flow(torch.flip(noise, [1]), mask, global_conditioning=conditioning, reverse=True)
    return noise[:, :1]


def speak(
    folder: Path,
    text: str,
    *,
    speaker: int | None = None,
    seed: int | None = None,
    speaking_rate: float | None = None,
    noise_scale: float | None = None,
    noise_scale_duration: float | None = None,
) -> Utterance:
    """Speak a text with the model in a folder.

    Args:
        folder: A model folder.
        text: What to say.
        speaker: The speaker's id, for a model of several.
        seed: Drawn when left out; the same seed speaks the same samples.
        speaking_rate: Larger is faster; the model's own when left out, as are the noise scales.
        noise_scale: How much the voice varies.
        noise_scale_duration: How much the rhythm varies.

    Raises:
        ModelError: The folder is not a usable model.
        TextError: The text has nothing that the model can speak.
        RequestError: The model has no such speaker, or the speaking rate is not a positive number.
    """
    if speaking_rate is not None and not 0 < speaking_rate < math.inf:
        raise RequestError(
            f"speaking rate {speaking_rate:g}: give a positive number, such as 1.0", param="speaking_rate"
        )
    model = load_model(folder)
    if speaker is not None and not 0 <= speaker < model.config.num_speakers:
        last = model.config.num_speakers - 1
        has = (
            f"the model has speakers 0 to {last}"
            if last > 0
            else "the model has one speaker: leave speaker out"
        )
        raise RequestError(f"speaker {speaker}: {has}", param="speaker")
    if speaker is None and model.config.num_speakers > 1:
        speaker = 0
    tokens = FrontEnd.from_folder(folder).tokenize(text)
    return synthesize(
        model,
        torch.tensor(tokens.ids),
        seed=secrets.randbits(31) if seed is None else seed,
        speaker_id=speaker,
        speaking_rate=speaking_rate,
        noise_scale=noise_scale,
        noise_scale_duration=noise_scale_duration,
    )
