"""Does the exported voice say what the model says? Every graph, and the whole, against PyTorch.

The reference is the untouched ``forward`` of the model (`transformers.VitsModel`'s own). It draws its noise
from torch's generator; drawn again from the same seed, that noise is handed to the voice. Durations are
compared apart, for a rounding difference before their ``ceil`` would shift all that follows, and then the
reference's durations are given to the voice. Of the whole, the last halo is left out: there the voice decodes
past the end into zero latents, and stock VITS does not. The decoder alone is compared to the very end, on such
zeros.

Shapes: B batch, T tokens, F frames, S samples, D latent channels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import VitsModel

from services.export.graphs import EncoderGraph
from services.export.halo import halo_frames
from services.export.progress import Progress
from shared.errors import MissingExtraError, QualityError, TextError
from shared.text import FrontEnd
from shared.voice import Voice
from shared.voice.durations import exact_frames, expand_prior
from shared.voice.voice import Prior
from shared.voice.windows import plan_windows

#: The largest absolute difference that is allowed, in each output of each graph and in the samples.
TOLERANCE = 1e-4

#: Samples and log-durations may differ by this many times what PyTorch's own fp32 differs from its float64, where that
#: is more. It is for what amplifies rounding: a decoder of MMS's size with random weights turns it into 9e-5, and two
#: runs in different orders of summation into 3e-4; a trained one (Joe) makes 5e-6 of it. The splines of the duration
#: predictor make up to 9e-5 of it on 120 random tokens, and 2e-5 on sentences.
ROUNDINGS = 4

#: A duration may differ only where the reference, before ``ceil``, is this near to a whole number.
INTEGER_MARGIN = 1e-4

#: Lengths of the random token sequences.
RANDOM_LENGTHS = (1, 2, 7, 33, 120, 400)

#: The decoder alone is compared on the first frames of a case: enough for a first, a middle and a last window.
DECODER_FRAMES = 300

#: Cases up to this length also run together, as a batch.
LONGEST_IN_BATCH = 120

#: The decoder is compared on the first frames of a batch: shorter rows end in them, longer ones go on.
BATCH_FRAMES = 100

#: Real sentences, as far as the voice's alphabet has them. The last has 199 characters: 399 tokens with blanks between.
SENTENCES = (
    "Sí.",
    "Hola, ¿cómo estás?",
    "Por favor, marque la extensión de la persona con la que desea hablar.",
    "The quick brown fox jumps over the lazy dog.",
    (
        "ayer por la tarde, cuando ya no quedaba nadie en la plaza, el viejo relojero cerró su tienda, guardó "
        "las llaves en el bolsillo y se fue andando hasta el río, donde lo esperaban sus hijos con la cena,"
    ),
)


@dataclass(frozen=True)
class Case:
    """A sequence of tokens to compare on.

    Attributes:
        name: What it is, for the report.
        ids: Its tokens.
        speaker_id: Who speaks it.
        seed: Of torch's generator.
    """

    name: str
    ids: tuple[int, ...]
    speaker_id: int
    seed: int


@dataclass(frozen=True)
class Reference:
    """What PyTorch makes of a case, and the noise that it made it from.

    Attributes:
        prior: The text encoder's statistics and the log-durations.
        exact_durations: ``[T]`` frames before ``ceil``.
        durations: ``[T]`` frames.
        duration_noise: ``[2, T]``, scaled.
        prior_noise: ``[D, F]``, scaled.
        latents: ``[D, F]``.
        waveform: ``[S]``.
        beginning: ``[S]`` decoded from the first `DECODER_FRAMES` latents and a halo of zeros, and trimmed.
    """

    prior: Prior
    exact_durations: NDArray[np.float32]
    durations: NDArray[np.int64]
    duration_noise: NDArray[np.float32]
    prior_noise: NDArray[np.float32]
    latents: NDArray[np.float32]
    waveform: NDArray[np.float32]
    beginning: NDArray[np.float32]


@torch.no_grad()
def reference(model: VitsModel, case: Case) -> Reference:
    """Run the model's own ``forward`` on a case, and its parts for what ``forward`` keeps to itself."""
    config = model.config
    ids_1T = torch.tensor([case.ids])
    mask_1T1 = torch.ones(1, len(case.ids), 1)
    speaker_id = case.speaker_id if config.num_speakers > 1 else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        output = model(
            ids_1T, attention_mask=torch.ones_like(ids_1T), speaker_id=speaker_id, return_dict=True
        )

        # The same draws again: first the durations' noise, then the prior's, in the layout it was drawn in.
        torch.manual_seed(case.seed)
        duration_noise = torch.zeros(1, 2, len(case.ids))
        if config.use_stochastic_duration_prediction:
            duration_noise = torch.randn(1, 2, len(case.ids)) * config.noise_scale_duration
        channels, frames = output.spectrogram.shape[1:]
        prior_noise = torch.randn_like(torch.empty(1, frames, channels).transpose(1, 2)) * config.noise_scale

        text = model.text_encoder(ids_1T, padding_mask=mask_1T1, attention_mask=torch.ones_like(ids_1T))
        speaker = (
            None if speaker_id is None else model.embed_speaker(torch.tensor([speaker_id])).unsqueeze(-1)
        )
        states = text.last_hidden_state.transpose(1, 2)
        options = {}
        if config.use_stochastic_duration_prediction:
            options = {"reverse": True, "noise_scale": config.noise_scale_duration}
        torch.manual_seed(case.seed)
        log_duration = model.duration_predictor(states, mask_1T1.transpose(1, 2), speaker, **options)

        start = output.spectrogram[:, :, :DECODER_FRAMES]
        samples = start.shape[2] * math.prod(config.upsample_rates)
        padded = torch.nn.functional.pad(start, (0, halo_frames(config)))
        beginning = model.decoder(padded, speaker)[0, 0, :samples]
    exact = torch.exp(log_duration) * (1.0 / config.speaking_rate)
    return Reference(
        prior=Prior(
            text.prior_means[0].numpy(), text.prior_log_variances[0].numpy(), log_duration[0, 0].numpy()
        ),
        exact_durations=exact[0, 0].numpy(),
        durations=torch.ceil(exact)[0, 0].long().numpy(),
        duration_noise=duration_noise[0].numpy(),
        prior_noise=prior_noise[0].numpy(),
        latents=output.spectrogram[0].numpy(),
        waveform=output.waveform[0].numpy(),
        beginning=beginning.numpy(),
    )


OUTPUTS = ("prior_mean", "prior_log_std", "log_duration", "latents", "waveform", "voice")

#: Those of them that are samples.
SAMPLES = ("waveform", "voice")


def allowed(rounding: float) -> float:
    """The bound of an output, where PyTorch's own rounding is this."""
    return max(TOLERANCE, ROUNDINGS * rounding)


@dataclass(frozen=True)
class Figures:
    """Largest absolute differences in one case: of each graph on the reference's inputs, and of the whole.

    Attributes:
        case: Which.
        tokens: T.
        frames: F.
        prior_mean: Of the encoder.
        prior_log_std: Of the encoder.
        log_duration: Of the encoder.
        latents: Of the flow.
        waveform: Of the decoder, window by window, with zeros after its first `DECODER_FRAMES`.
        voice: Of all from tokens and noise to samples, with the reference's durations, but for the last halo.
        duration_mismatches: Tokens whose durations differ.
        mismatch_distance: How far from a whole number the worst of them was, before ``ceil``.
        rounding: Of the samples, what PyTorch's own fp32 differs from its float64; measured where it matters.
        duration_rounding: The same of the log-durations.
    """

    case: str
    tokens: int
    frames: int
    prior_mean: float
    prior_log_std: float
    log_duration: float
    latents: float
    waveform: float
    voice: float
    duration_mismatches: int
    mismatch_distance: float
    rounding: float = 0.0
    duration_rounding: float = 0.0

    def allowed(self, output: str) -> float:
        """The bound of an output."""
        if output == "log_duration":
            return allowed(self.duration_rounding)
        return allowed(self.rounding) if output in SAMPLES else TOLERANCE

    def beyond(self) -> bool:
        """Whether the samples differ by more than `TOLERANCE`."""
        return any(value > TOLERANCE for name, value in self.differences().items() if name in SAMPLES)

    def differences(self) -> dict[str, float]:
        """The figures that `TOLERANCE` bounds, by name."""
        return {output: float(getattr(self, output)) for output in OUTPUTS}


@dataclass(frozen=True)
class Parity:
    """All figures of a voice.

    Attributes:
        cases: One by one, each run by itself.
        batch: Largest absolute difference of each graph's outputs, run on a batch of the cases.
        batch_duration_rounding: Of the batch's log-durations, what PyTorch's own fp32 differs from its float64;
            measured where it matters.
        batch_rounding: The same of the batch's samples.
    """

    cases: Sequence[Figures]
    batch: Mapping[str, float]
    batch_duration_rounding: float = 0.0
    batch_rounding: float = 0.0

    def bounded(self) -> list[tuple[str, str, float, float]]:
        """Every difference: of which case, of which output, how much, and its bound."""
        rows = [
            (row.case, output, value, row.allowed(output))
            for row in self.cases
            for output, value in row.differences().items()
        ]
        bounds = dict.fromkeys(OUTPUTS, TOLERANCE) | {
            "log_duration": allowed(self.batch_duration_rounding),
            "waveform": allowed(self.batch_rounding),
        }
        return rows + [
            ("a mixed batch", output, value, bounds[output]) for output, value in self.batch.items()
        ]

    def failures(self) -> list[str]:
        """What is beyond its bound, in words."""
        failures = [
            f"{name}: {output} differs by {value:.3g}, more than {bound:.3g}"
            for name, output, value, bound in self.bounded()
            if not value <= bound  # also where it is NaN
        ]
        failures += [
            f"{row.case}: {row.duration_mismatches} durations differ, one that is "
            f"{row.mismatch_distance:.2g} from a whole number, more than {INTEGER_MARGIN:.0e}"
            for row in self.cases
            if not row.mismatch_distance <= INTEGER_MARGIN
        ]
        return failures

    @property
    def worst(self) -> tuple[float, float]:
        """The largest absolute difference of all, and its bound."""
        return max(((value, bound) for *_, value, bound in self.bounded()), key=lambda pair: pair[0])

    def to_json(self) -> dict[str, object]:
        """The figures for ``report.json``, the worst of each kind first."""
        return {
            "reference": "the model's own forward in PyTorch",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "tolerance": TOLERANCE,
            "largest_rounding": max(row.rounding for row in self.cases),
            "max_abs_difference": {
                output: max(row.differences()[output] for row in self.cases) for output in OUTPUTS
            },
            "max_abs_difference_in_a_batch": dict(self.batch),
            "batch_rounding": self.batch_rounding,
            "batch_duration_rounding": self.batch_duration_rounding,
            "durations": {
                "tokens": sum(row.tokens for row in self.cases),
                "mismatches": sum(row.duration_mismatches for row in self.cases),
                "largest_distance_to_integer": max(row.mismatch_distance for row in self.cases),
            },
            "cases": [asdict(row) for row in self.cases],
        }


def difference(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """The largest absolute difference; infinite where the shapes differ, NaN where a value is."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours - theirs).max(initial=0.0))


def decode(voice: Voice, latents_DF: NDArray[np.float32], case: Case) -> NDArray[np.float32]:
    """Decode latents window by window, as `Voice.decode` does; but what is no number is a finding here, not refused."""
    speaker_id = np.array([case.speaker_id])
    samples = []
    for window in plan_windows(latents_DF.shape[1], voice.spec.decoder):
        inputs = {"latents": window.cut(latents_DF), "speaker_id": speaker_id}
        waveform_1S = voice.engine.run("decoder", inputs)["waveform"]
        samples.append(window.trim(waveform_1S[0], voice.spec.hop_length))
    return np.concatenate(samples)


def compare(voice: Voice, expected: Reference, case: Case) -> Figures:
    """Measure one case."""
    prior = voice.encode(case.ids, case.speaker_id, expected.duration_noise)
    exact = exact_frames(prior.log_duration, speaking_rate=voice.spec.defaults.speaking_rate)
    differ = np.ceil(exact) != expected.durations  # also where it is NaN
    distance = np.abs(expected.exact_durations - np.round(expected.exact_durations))[differ]

    counts, noise = expected.durations, expected.prior_noise
    common = max(0, int(counts.sum()) - voice.spec.decoder.halo_frames) * voice.spec.hop_length
    latents = voice.transform(prior, counts, noise, case.speaker_id)
    return Figures(
        case=case.name,
        tokens=len(case.ids),
        frames=latents.shape[1],
        prior_mean=difference(prior.mean, expected.prior.mean),
        prior_log_std=difference(prior.log_std, expected.prior.log_std),
        log_duration=difference(prior.log_duration, expected.prior.log_duration),
        latents=difference(voice.transform(expected.prior, counts, noise, case.speaker_id), expected.latents),
        waveform=difference(decode(voice, expected.latents[:, :DECODER_FRAMES], case), expected.beginning),
        voice=difference(decode(voice, latents, case)[:common], expected.waveform[:common]),
        duration_mismatches=int(differ.sum()),
        mismatch_distance=float(distance.max(initial=0.0)),
    )


def compare_batch(voice: Voice, cases: Sequence[Case], references: Sequence[Reference]) -> dict[str, float]:
    """Run each graph once on a batch of mixed lengths and speakers; each row against its reference.

    The decoder computes the reference's latents, the first `BATCH_FRAMES` and the halo that they hear.

    Returns:
        The largest absolute difference of each output, over all rows.
    """
    speaker_id = np.array([case.speaker_id for case in cases])
    tokens, frames = max(len(case.ids) for case in cases), max(ref.latents.shape[1] for ref in references)
    B, D, hop = len(cases), voice.spec.latent_channels, voice.spec.hop_length
    inputs: dict[str, NDArray[np.generic]] = {
        "input_ids": np.zeros((B, tokens), dtype=np.int64),
        "attention_mask": np.zeros((B, tokens), dtype=np.int64),
        "duration_noise": np.zeros((B, 2, tokens), dtype=np.float32),
        "speaker_id": speaker_id,
    }
    sample, mask = np.zeros((B, D, frames), dtype=np.float32), np.zeros((B, 1, frames), dtype=np.float32)
    start = np.zeros((B, D, BATCH_FRAMES + voice.spec.decoder.halo_frames), dtype=np.float32)
    for row, (case, expected) in enumerate(zip(cases, references, strict=True)):
        T, F = len(case.ids), expected.latents.shape[1]
        inputs["input_ids"][row, :T] = case.ids
        inputs["attention_mask"][row, :T] = 1
        inputs["duration_noise"][row, :, :T] = expected.duration_noise
        prior = expected.prior
        sample[row, :, :F] = expand_prior(prior.mean, prior.log_std, expected.durations, expected.prior_noise)
        mask[row, 0, :F] = 1
        known = expected.latents[:, : min(DECODER_FRAMES, start.shape[2])]
        start[row, :, : known.shape[1]] = known
    outputs = voice.engine.run("encoder", inputs)
    flow = {"prior_sample": sample, "frame_mask": mask, "speaker_id": speaker_id}
    latents = voice.engine.run("flow", flow)["latents"]
    waveform = voice.engine.run("decoder", {"latents": start, "speaker_id": speaker_id})["waveform"]

    worst = dict.fromkeys(("prior_mean", "prior_log_std", "log_duration", "latents", "waveform"), 0.0)
    for row, (case, expected) in enumerate(zip(cases, references, strict=True)):
        T, F = len(case.ids), expected.latents.shape[1]
        S = min(F, BATCH_FRAMES) * hop
        found = {
            "prior_mean": difference(outputs["prior_mean"][row, :T], expected.prior.mean),
            "prior_log_std": difference(outputs["prior_log_std"][row, :T], expected.prior.log_std),
            "log_duration": difference(outputs["log_duration"][row, :T], expected.prior.log_duration),
            "latents": difference(latents[row, :, :F], expected.latents),
            "waveform": difference(waveform[row, :S], expected.beginning[:S]),
        }
        worst = {name: float(np.maximum(worst[name], value)) for name, value in found.items()}
    return worst


@torch.no_grad()
def rounding(model: VitsModel, expected: Reference, case: Case) -> float:
    """What the samples of PyTorch's own fp32 differ by from those of its float64, from the same prior sample."""
    double = copy.deepcopy(model).double()
    prior = expected.prior
    sample = expand_prior(prior.mean, prior.log_std, expected.durations, expected.prior_noise)
    speaker = None
    if model.config.num_speakers > 1:
        speaker = double.embed_speaker(torch.tensor([case.speaker_id])).unsqueeze(-1)
    sample_1DF = torch.tensor(sample, dtype=torch.float64)[None]
    latents = double.flow(sample_1DF, torch.ones_like(sample_1DF[:, :1]), speaker, reverse=True)
    waveform = double.decoder(latents, speaker)[0, 0].numpy()
    return difference(expected.waveform, waveform.astype(np.float32))


@torch.no_grad()
def duration_rounding(model: VitsModel, expected: Reference, case: Case) -> float:
    """What the log-durations of PyTorch's fp32 differ by from those of its float64, from the same noise.

    Of two orders of summation, the model's own and the graph's, both in PyTorch, the larger: one alone may be lucky.
    """
    ids_1T = torch.tensor([case.ids])
    noise_12T = torch.tensor(expected.duration_noise)[None]
    speaker_id = torch.tensor([case.speaker_id])
    single, double = (
        EncoderGraph(network)(ids_1T, torch.ones_like(ids_1T), speaker_id, noise_12T.to(dtype))[2][0]
        .numpy()
        .astype(np.float32)
        for network, dtype in (
            (copy.deepcopy(model), torch.float32),
            (copy.deepcopy(model).double(), torch.float64),
        )
    )
    return max(difference(expected.prior.log_duration, double), difference(single, double))


def choose_cases(model: VitsModel, front_end: FrontEnd) -> list[Case]:
    """Real sentences that the front end can read, and random tokens of 1 to 400; the speakers in turn."""
    named: list[tuple[str, tuple[int, ...]]] = []
    for sentence in SENTENCES:
        try:
            named.append((f"'{sentence}'", front_end.tokenize(sentence).ids))
        except (TextError, MissingExtraError):  # not this voice's alphabet, or no phonemes here
            continue
    generator = np.random.default_rng(0)
    size = min(model.config.vocab_size, front_end.vocab_size)
    for length in RANDOM_LENGTHS:
        ids = tuple(int(token) for token in generator.integers(0, size, length))
        named.append((f"{length} random tokens", ids))
    speakers = model.config.num_speakers
    return [Case(name, ids, number % speakers, seed=number) for number, (name, ids) in enumerate(named)]


def measure(
    model: VitsModel, voice: Voice, *, what: str = "Comparing", progress: Progress | None = None
) -> Parity:
    """Compare a voice with the model that it was exported from.

    Args:
        model: The model, as loaded: in evaluation mode, weight norm and all.
        voice: The exported voice.
        what: What to call this while it goes on.
        progress: Is told of each case.

    Raises:
        QualityError: They differ by more than is allowed; the message lists where, and by how much.
    """
    cases = choose_cases(model, voice.front_end)
    references, figures = [], []
    with (progress or Progress()).bar(what, len(cases)) as step:
        for case in cases:
            expected = reference(model, case)
            row = compare(voice, expected, case)
            if row.beyond():
                row = replace(row, rounding=rounding(model, expected, case))
            if row.log_duration > TOLERANCE:
                row = replace(row, duration_rounding=duration_rounding(model, expected, case))
            references.append(expected)
            figures.append(row)
            step(case.name)
    short = [row for row, case in enumerate(cases) if len(case.ids) <= LONGEST_IN_BATCH]
    batch = compare_batch(voice, [cases[row] for row in short], [references[row] for row in short])
    durations = samples = 0.0
    if batch["log_duration"] > TOLERANCE:
        durations = max(duration_rounding(model, references[row], cases[row]) for row in short)
    if batch["waveform"] > TOLERANCE:
        samples = max(rounding(model, references[row], cases[row]) for row in short)
    parity = Parity(figures, batch, durations, samples)
    failures = parity.failures()
    if failures:
        listed = "\n".join(f"  - {failure}" for failure in failures)
        raise QualityError(f"The exported graphs do not compute what the model computes:\n{listed}")
    return parity
