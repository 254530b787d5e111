"""Our training computes what the plain formulas compute: the forward, every loss, both networks' gradients.

The plain step is `benchmarks.plain`, written from the formulas of `finetune-hf-vits` with nothing shared but the
modules of stock `transformers`. In float64 the two must agree to 1e-9, in float32 to 1e-4, tensor by tensor, as
‖ours − plain‖ / ‖plain‖; dropout is off, since that trainer never has any.
Ours is in training mode otherwise, in the memory layout of a CPU, and checkpoints gradients where it accumulates them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import VitsConfig, VitsModel

from benchmarks import plain
from services.training import discriminator as judges
from services.training import layout, session, winograd
from services.training.config import TrainingConfig, resolve
from services.training.dataset import Batch, Example, Examples
from services.training.features import FeatureSettings
from services.training.steps import Seen, Steps, align
from shared.modeling import VitsForTraining
from shared.modeling.initialization import initialize

SETTINGS = FeatureSettings(sampling_rate=16000, hop_length=256, n_fft=1024)
ANALYSIS = plain.Analysis(sampling_rate=16000, hop_length=256, n_fft=1024)
SCALE_CHANNELS, PERIOD_CHANNELS = (1, 4, 16, 64, 256), (1, 2, 4, 8, 16)
VOCABULARY, LATENTS = 30, 8
#: Samples and tokens of each recording: ragged, none a whole number of frames, one little longer than a slice.
RECORDINGS = ((40 * 256 + 100, 14), (33 * 256 + 9, 11), (57 * 256 + 255, 23), (46 * 256 + 1, 5))
#: None is the loss's default, so that each weight is seen to be used.
WEIGHTS = plain.Weights(duration=1.3, kl=1.7, mel=30.0, generator=0.7, feature_maps=1.9, discriminator=2.3)
#: All of them: with these at 0, training mode draws nothing.
DROPOUTS = (
    "hidden_dropout", "attention_dropout", "activation_dropout", "duration_predictor_dropout", "wavenet_dropout",
    "layerdrop",
)  # fmt: skip
SPEAKERS = {"num_speakers": 3, "speaker_embedding_size": 4}
KINDS: dict[str, dict[str, Any]] = {
    "one speaker": {},
    "many speakers": SPEAKERS,
    "deterministic durations": {"use_stochastic_duration_prediction": False},
    "many speakers, deterministic": {"use_stochastic_duration_prediction": False, **SPEAKERS},
}
#: The discriminator moves between its step and the generator's. The generator stands still: where only the plain
#: one is weight-normed, the same gradient would move the two apart.
RATE = 1e-2
#: In float64 the two are found to agree to 1e-13.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


class Recorder(torch.optim.SGD):
    """Plain gradient descent that keeps every gradient it is given, by the parameter's name."""

    def __init__(self, network: nn.Module, rate: float) -> None:
        super().__init__(network.parameters(), lr=rate)
        self.names = {parameter: name for name, parameter in network.named_parameters()}
        self.seen: list[dict[str, Tensor]] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Keep, then step."""
        self.seen.append(
            {name: p.grad.detach().clone() for p, name in self.names.items() if p.grad is not None}
        )
        super().step(closure)


@dataclass
class Ours:
    """Our networks, ready to train."""

    generator: VitsForTraining
    discriminator: judges.Discriminator
    dtype: torch.dtype


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    return KINDS[request.param]


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    value: torch.dtype = request.param
    return value


@torch.no_grad()
def stock_model(dtype: torch.dtype, **changes: Any) -> VitsModel:
    """A small stock VITS with random weights, every part of it at work: no weight is 0 or 1."""
    fields: dict[str, Any] = dict.fromkeys(DROPOUTS, 0.0) | changes
    config = VitsConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=16,
        flow_size=LATENTS,
        spectrogram_bins=513,
        upsample_initial_channel=16,
        upsample_rates=[8, 8, 4],
        upsample_kernel_sizes=[16, 16, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        posterior_encoder_num_wavenet_layers=2,
        prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=2,
        depth_separable_num_layers=2,
        duration_predictor_num_flows=2,
        duration_predictor_filter_channels=8,
        sampling_rate=16000,
        **fields,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = VitsModel(config)
        initialize(model)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.decoder.conv_post.weight.mul_(100)  # as loud as speech
    stock: VitsModel = model.to(dtype).eval()
    return stock


def make_examples() -> Examples:
    """Recordings of noise whose loudness wanders, and random texts."""
    random = np.random.default_rng(7)
    pcm, examples, start = [], [], 0
    for number, (samples, tokens) in enumerate(RECORDINGS):
        loudness = 3000 * (1.2 + np.sin(np.arange(samples) / 700 + number))
        pcm.append((loudness * random.standard_normal(samples)).clip(-32768, 32767).astype(np.int16))
        examples.append(
            Example(
                id=f"clip{number}",
                text="",
                token_ids=tuple(random.integers(1, VOCABULARY, tokens).tolist()),
                speaker_id=(2, 0, 1, 2)[number],
                index=number,
                start=start,
                samples=samples,
            )
        )
        start += samples
    return Examples(examples, np.concatenate(pcm), SETTINGS)


EXAMPLES = make_examples()


def our_batch(dtype: torch.dtype, *rows: int) -> Seen:
    batch: Batch = EXAMPLES.collate([EXAMPLES[row] for row in rows])
    return Seen.of(replace(batch, padded_waveform=batch.padded_waveform.to(dtype)), SETTINGS)


def plain_batch(dtype: torch.dtype, *rows: int) -> plain.Batch:
    examples = [EXAMPLES[row] for row in rows]
    return plain.collate(
        [torch.from_numpy(EXAMPLES.waveform(example)).to(dtype) for example in examples],
        [example.token_ids for example in examples],
        ANALYSIS,
        torch.tensor([example.speaker_id for example in examples]),
    )


def make_config(folder: Path, **changes: Any) -> TrainingConfig:
    """The plain step's weights, and no clipping."""
    values = {
        "model_name_or_path": "the test's",
        "dataset_name": "the test's",
        "output_dir": str(folder),
        "max_grad_norm": 0,
        "weight_duration": WEIGHTS.duration,
        "weight_kl": WEIGHTS.kl,
        "weight_mel": WEIGHTS.mel,
        "weight_gen": WEIGHTS.generator,
        "weight_fmaps": WEIGHTS.feature_maps,
        "weight_disc": WEIGHTS.discriminator,
        **changes,
    }
    return resolve(values, origin="the test")


def make_ours(stock: VitsModel, config: TrainingConfig) -> Ours:
    """Our networks with the stock model's weights, prepared as a run prepares them, and in training mode."""
    dtype = next(stock.parameters()).dtype
    generator: Any = VitsForTraining(stock.config)
    generator.to(dtype)
    generator.load_state_dict(stock.state_dict())
    base: Any = SimpleNamespace(model=generator, discriminator=None)
    discriminator = session._prepare_networks(config, base, Accelerator(cpu=True))
    return Ours(generator.train(), discriminator.to(dtype).train(), dtype)


def make_plain(stock: VitsModel, ours: Ours) -> plain.PlainStep:
    """The plain step over the stock model, judged by the weights of our discriminator."""
    plain.apply_weight_norm(stock)
    discriminator = plain.PlainDiscriminator(SCALE_CHANNELS, PERIOD_CHANNELS).to(ours.dtype)
    discriminator.load_state_dict(ours.discriminator.state_dict())
    return plain.PlainStep(
        stock,
        discriminator,
        Recorder(stock, 0.0),
        Recorder(discriminator, RATE),
        ANALYSIS,
        WEIGHTS,
        max_grad_norm=float("inf"),
    )


@pytest.fixture(autouse=True)
def small_discriminator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A discriminator of the same shape with a hundredth of the channels."""
    monkeypatch.setattr(judges, "_SCALE_CHANNELS", SCALE_CHANNELS)
    monkeypatch.setattr(judges, "_PERIOD_CHANNELS", PERIOD_CHANNELS)


def distance(ours: Tensor, theirs: Tensor) -> float:
    """‖ours − plain‖ / ‖plain‖."""
    assert ours.shape == theirs.shape
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).norm() / theirs.norm())


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """All tensors agree, and none is 0, which would agree with anything."""
    assert ours.keys() == theirs.keys()
    assert [name for name, value in theirs.items() if not value.any()] == []
    far = {name: distance(ours[name], theirs[name]) for name in theirs}
    assert {name: value for name, value in far.items() if not value <= tolerance} == {}


# --- Features and forward --------------------------------------------------------------------------


def test_features(dtype: torch.dtype) -> None:
    """Spectrograms of a padded batch, and the slices of recording that the losses see."""
    ours, theirs = our_batch(dtype, 0, 1, 2), plain_batch(dtype, 0, 1, 2)
    mask = theirs.frame_mask[:, None]
    starts = torch.tensor([3, 1, 25])
    waveform, mel = ours.slices(starts, ANALYSIS.segment_frames, SETTINGS)
    assert_same(
        {
            "spectrogram": ours.spectrogram * mask,
            "mel": ours.mel * mask,
            "sliced waveform": waveform,
            "sliced mel": mel,
        },
        {
            "spectrogram": theirs.spectrogram,
            "mel": theirs.mel,
            "sliced waveform": plain.cut(theirs.waveform, starts * 256, 8192),
            "sliced mel": plain.cut(theirs.mel, starts, ANALYSIS.segment_frames),
        },
        TOLERANCE[dtype],
    )


def test_forward(kind: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    """Everything that the training forward hands to the losses, alignments included."""
    stock = stock_model(dtype, **kind)
    ours = make_ours(stock, make_config(tmp_path))
    seen, theirs = our_batch(dtype, 0, 1, 2), plain_batch(dtype, 0, 1, 2)
    plain.apply_weight_norm(stock)
    draw = torch.Generator().manual_seed(3)
    noise = plain.Noise(
        posterior=torch.randn(3, LATENTS, theirs.mel.shape[2], generator=draw, dtype=dtype),
        duration=torch.randn(3, 2, theirs.input_ids.shape[1], generator=draw, dtype=dtype),
        slice_starts=torch.tensor([8, 0, 20]),
    )
    output = ours.generator.training_forward(
        seen.batch.input_ids,
        seen.batch.token_lengths,
        seen.spectrogram,
        seen.batch.frame_lengths,
        aligner=align,
        speaker_id=seen.batch.speaker_id,
        slice_starts=noise.slice_starts,
        posterior_noise=noise.posterior,
        duration_noise=noise.duration,
    )
    expected = plain.forward(stock, theirs, noise, ANALYSIS)
    durations = expected.path.sum(1)
    assert output.durations.tolist() == durations.tolist()
    assert all(len(set(row[row > 0].tolist())) > 1 for row in durations), "tokens that are all of one length"
    names = ("waveform", "posterior_log_std", "flow_latents", "prior_mean", "prior_log_std", "frame_mask")
    assert_same(
        {name: getattr(output, name) for name in names}
        | {"duration_loss": output.duration_loss / output.token_mask.sum()},
        {name: getattr(expected, name) for name in (*names, "duration_loss")},
        TOLERANCE[dtype],
    )


# --- The whole step --------------------------------------------------------------------------------


def our_steps(ours: Ours, config: TrainingConfig) -> tuple[Steps, list[Recorder]]:
    """Our steps, over optimisers that keep their gradients."""
    recorders = [Recorder(ours.generator, 0.0), Recorder(ours.discriminator, RATE)]
    steps = Steps(
        Accelerator(cpu=True),
        config,
        SETTINGS,
        ours.generator,
        recorders[0],
        ours.discriminator,
        recorders[1],
    )
    return steps, recorders


def drawn(steps: Steps, parts: list[Seen], step: int, dtype: torch.dtype) -> plain.Noise:
    """What our steps draw for their micro-batches, as one batch's noise."""
    draws = [steps.draws(part, step) for part in parts]

    def joined(noises: list[Tensor]) -> Tensor:
        longest = max(noise.shape[2] for noise in noises)
        padded = [nn.functional.pad(noise, (0, longest - noise.shape[2])) for noise in noises]
        return torch.cat(padded).to(dtype)

    return plain.Noise(
        posterior=joined([draw.posterior_noise for draw in draws]),
        duration=joined([draw.duration_noise for draw in draws]),
        slice_starts=torch.cat([draw.slice_starts for draw in draws]),
    )


def as_normed(network: nn.Module, gradients: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """Gradients by our parameters, as gradients by the plain network's.

    The two differ where only the plain one is weight-normed: there the chain rule through g·v/‖v‖, at our
    weight, is what the plain one's gradient must be.
    """
    converted = {name: value for name, value in gradients.items() if name in names}
    for name in gradients.keys() - names:
        prefix, _, leaf = name.rpartition(".")
        assert leaf == "weight", name
        weight = network.get_parameter(name).detach()
        layer = parametrize.type_before_parametrizations(network.get_submodule(prefix))
        assert layer in {nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d}
        magnitude = torch.linalg.vector_norm(weight, dim=list(range(1, weight.ndim)), keepdim=True)
        with torch.enable_grad():
            factors = (magnitude.requires_grad_(), weight.clone().requires_grad_())
            normed = torch._weight_norm(factors[1], factors[0], 0)
            by = torch.autograd.grad(normed, factors, gradients[name])
        for number, gradient in enumerate(by):
            converted[f"{prefix}.parametrizations.weight.original{number}"] = gradient
    return converted


def without_moot(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what no loss depends on: softmax takes no heed of a shift that is the same for all keys."""
    return {name: value for name, value in gradients.items() if not name.endswith("k_proj.bias")}


@pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
@pytest.mark.parametrize(
    ("dtype", "parts"),
    [
        (torch.float64, [(0, 1, 2)]),
        (torch.float32, [(0, 1, 2)]),
        (torch.float64, [(0, 1), (2, 3)]),
    ],
    ids=["float64", "float32", "float64 accumulated"],
)
def test_losses_and_gradients(
    kind: dict[str, Any],
    dtype: torch.dtype,
    parts: list[tuple[int, ...]],
    wide: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two steps, so that their order and what they leave behind count too.

    Micro-batches that are accumulated must give what the plain step gives for all their recordings at once.
    ``wide``: computed as layers of hundreds of channels are, by matrix products and minimal filtering.
    """
    if wide:
        monkeypatch.setattr(layout, "_WIDE", 0)
        monkeypatch.setattr(winograd, "_WIDE", 0)
        monkeypatch.setattr(winograd, "_MANY", 0)
    stock = stock_model(dtype, **kind)
    config = make_config(tmp_path, gradient_checkpointing=len(parts) > 1)
    ours = make_ours(stock, config)
    steps, recorders = our_steps(ours, config)
    plainly = make_plain(stock, ours)
    seen = [our_batch(dtype, *rows) for rows in parts]
    batch = plain_batch(dtype, *(row for rows in parts for row in rows))
    for step in range(2):
        expected = plainly(batch, drawn(steps, seen, step, dtype))
        losses = steps.joint(seen, step)
        for name, value in expected.items():
            assert float(losses[name]) == pytest.approx(value, rel=TOLERANCE[dtype]), name
    for network, recorder, optimizer in (
        (ours.generator, recorders[0], plainly.generator_optimizer),
        (ours.discriminator, recorders[1], plainly.discriminator_optimizer),
    ):
        assert isinstance(optimizer, Recorder)
        assert len(recorder.seen) == len(optimizer.seen) == 2
        for gradients, theirs in zip(recorder.seen, optimizer.seen, strict=True):
            assert theirs.keys() == set(optimizer.names.values())
            converted = as_normed(network, gradients, set(theirs))
            assert_same(without_moot(converted), without_moot(theirs), TOLERANCE[dtype])
