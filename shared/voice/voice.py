"""A voice: text in, samples out.

A text is planned into segments (sentences) with silence between them. Each segment is *rendered* (encoder and
flow) into an utterance, and each window of an utterance *decoded*. `Voice.speak` does the one after the
other; `shared.voice.runtime` does the same steps of many texts at once.

The law: the same text, voice and seed give the same samples alone, in any crowd, streamed or whole.
Therefore every shape depends on the segment alone: the encoder runs at its token bucket, flow and decoder in
windows planned from the number of frames; and the noise is keyed by seed and segment.

Shapes: T tokens, F frames, S samples, D latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from shared.errors import EngineError, RequestError
from shared.text import FrontEnd, Tokens
from shared.text.lexicon import Lexicon
from shared.text.script import Script, plan_script
from shared.voice.durations import expand_prior, frame_counts
from shared.voice.engine import Engine, open_engine
from shared.voice.latents import Latents
from shared.voice.noise import SEED_LIMIT, Stream, draw_seed, standard_normal
from shared.voice.selection import PORTABLE, recommended_variant
from shared.voice.spec import VoiceSpec
from shared.voice.windows import Window, each_width, plan_flow, plan_windows

#: A token may last this long on average, at speaking rate 1; a model that asks for more is broken.
MAX_SECONDS_PER_TOKEN = 5.0


class SpeechFields(TypedDict, total=False):
    """`SpeechParameters` as keyword arguments."""

    speaker: str | int | None
    seed: int | None
    speaking_rate: float
    noise_scale: float | None
    noise_scale_duration: float | None


@dataclass(frozen=True, kw_only=True)
class SpeechParameters:
    """How a text is spoken.

    Attributes:
        speaker: Name or number of a speaker; the first where not given.
        seed: Below 2**53; drawn where not given.
        speaking_rate: 2 is twice as fast as the voice's own.
        noise_scale: How much the sound varies; the voice's own where not given.
        noise_scale_duration: How much the rhythm varies; the voice's own where not given.
    """

    speaker: str | int | None = None
    seed: int | None = None
    speaking_rate: float = 1.0
    noise_scale: float | None = None
    noise_scale_duration: float | None = None


@dataclass(frozen=True)
class Plan:
    """A text and how it is spoken, checked against the voice; what remains cannot be the caller's fault.

    Attributes:
        script: The text's segments.
        speaker_id: The speaker.
        seed: The seed of its noise, given or drawn.
        speaking_rate: The voice's own times the request's; a segment's own multiplies it once more.
        noise_scale: Standard deviation of the prior's noise.
        noise_scale_duration: Standard deviation of the durations' noise.
    """

    script: Script
    speaker_id: int
    seed: int
    speaking_rate: float
    noise_scale: float
    noise_scale_duration: float


@dataclass(frozen=True)
class Prior:
    """What the encoder says of an utterance, padding removed.

    Attributes:
        mean: ``[T, D]``.
        log_std: ``[T, D]``.
        log_duration: ``[T]``, natural logarithm of frames.
    """

    mean: NDArray[np.float32]
    log_std: NDArray[np.float32]
    log_duration: NDArray[np.float32]


@dataclass(frozen=True)
class Utterance:
    """A segment up to the decoder: what remains is to decode its windows, in any order and company.

    Of its latents only those that the first window reads may be computed: the rest is when a window needs it.

    Attributes:
        tokens: What the text front end made of the segment; none for a mere pause.
        durations: Frames of each token, int64 ``[T]``.
        flow: Its latents.
        windows: The decoder's windows, which yield the F frames in order.
        speaker_id: The speaker.
        seed: The seed of its noise, given or drawn.
        pause_samples: Zeros after it.
    """

    tokens: Tokens
    durations: NDArray[np.int64]
    flow: Latents
    windows: list[Window]
    speaker_id: int
    seed: int
    pause_samples: int = 0

    @property
    def latents(self) -> NDArray[np.float32]:
        """All of its latents, ``[D, F]``; an `EngineError` where they cannot be computed."""
        return self.flow.whole()

    @property
    def pause(self) -> NDArray[np.float32]:
        """The silence after it."""
        return np.zeros(self.pause_samples, dtype=np.float32)


@dataclass(frozen=True)
class Speech:
    """A spoken text.

    Attributes:
        samples: float32 ``[S]``, within [-1, 1].
        sampling_rate: Hz.
        seed: What to ask with to hear the same again.
        script: What was spoken, with what could not be.
        durations: Frames of each token, int64 ``[T]``, of each segment; a frame is ``hop_length`` samples.
    """

    samples: NDArray[np.float32]
    sampling_rate: int
    seed: int
    script: Script
    durations: tuple[NDArray[np.int64], ...]


class Voice:
    """A voice folder, opened. Safe to use from several threads at once.

    Args:
        spec: What its ``voice.json`` says.
        engine: Computes its graphs.
        variant: Which of its variants they are.
    """

    def __init__(self, spec: VoiceSpec, engine: Engine, variant: str = PORTABLE) -> None:
        self.spec = spec
        self.engine = engine
        self.variant = variant
        self.front_end = FrontEnd.from_spec(spec.front_end)

    @classmethod
    def open(
        cls, folder: Path, *, variant: str = "fp32", threads: int | None = None, streams: int = 1
    ) -> Self:
        """Open a voice folder.

        Args:
            folder: What ``vits export`` wrote, or what the registry fetched.
            variant: Which of the voice's variants; ``auto`` for the one that export recommends for such a
                CPU (`shared.voice.selection` also measures which is fastest).
            threads: Threads that all computations together use; all that this process may use where not given.
            streams: Computations at once, each with its share of the threads.

        Raises:
            ModelError: It is not a voice folder, or an incomplete one.
            NotFoundError: The voice has no such variant.
            EngineError: This machine cannot run the variant.
        """
        spec = VoiceSpec.read(folder)
        name = recommended_variant(spec) if variant == "auto" else variant
        return cls(spec, open_engine(folder, spec.variant(name), threads=threads, streams=streams), name)

    def warm_up(self) -> None:
        """Compute each width of window, and encoder and flow once: what a first caller would wait for.

        Raises:
            EngineError: The computation failed.
            MissingExtraError: Its texts cannot be read without an extra that is not installed.
        """
        self.front_end.warm_up()
        ids = (0,) * self.spec.token_buckets[0]
        prior = self.encode(ids, 0, np.zeros((2, len(ids)), dtype=np.float32))
        frames = self.spec.frame_multiple
        channels = self.spec.latent_channels
        once = Prior(prior.mean[:1], prior.log_std[:1], prior.log_duration[:1])
        latents_DF = self.transform(
            once, np.array([frames]), np.zeros((channels, frames), dtype=np.float32), speaker_id=0
        )
        tokens, flow = Tokens(ids, (), ()), Latents.known(latents_DF)
        for window in each_width(self.spec.decoder):
            self.decode_window(Utterance(tokens, np.array([frames]), flow, [window], 0, seed=0), window)

    def close(self) -> None:
        """Give back what the engine holds."""
        self.engine.close()

    def __enter__(self) -> Self:
        """The voice itself; it is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @property
    def sampling_rate(self) -> int:
        """Hz."""
        return self.spec.sampling_rate

    def synthesize(
        self,
        text: str,
        *,
        ssml: bool = False,
        language: str | None = None,
        lexicon: Lexicon | None = None,
        timed: bool = False,
        **parameters: Unpack[SpeechFields],
    ) -> Speech:
        """Speak a text, whole. Arguments are those of `plan`, and of `SpeechParameters`.

        Raises:
            EngineError: The computation failed.
            VitsError: As `plan`.
        """
        plan = self.plan(
            text, SpeechParameters(**parameters), ssml=ssml, language=language, lexicon=lexicon, timed=timed
        )
        utterances = [self.render(plan, number) for number in range(len(plan.script.segments))]
        pieces = [piece for utterance in utterances for piece in (*self.decode(utterance), utterance.pause)]
        durations = tuple(utterance.durations for utterance in utterances)
        return Speech(np.concatenate(pieces), self.sampling_rate, plan.seed, plan.script, durations)

    def stream(
        self,
        text: str,
        *,
        ssml: bool = False,
        language: str | None = None,
        lexicon: Lexicon | None = None,
        **parameters: Unpack[SpeechFields],
    ) -> Iterator[NDArray[np.float32]]:
        """Speak a text piece by piece; together they are what `synthesize` returns.

        What the caller can have got wrong is raised by the call itself. Arguments and errors are those of
        `synthesize`; `plan` and `speak` are the way to learn a drawn seed.
        """
        plan = self.plan(text, SpeechParameters(**parameters), ssml=ssml, language=language, lexicon=lexicon)
        return self.speak(plan)

    def speak(self, plan: Plan) -> Iterator[NDArray[np.float32]]:
        """Speak what was planned, float32 ``[S]`` each, silence included."""
        for number in range(len(plan.script.segments)):
            utterance = self.render(plan, number)
            yield from self.decode(utterance)
            if utterance.pause_samples:
                yield utterance.pause

    def plan(
        self,
        text: str,
        parameters: SpeechParameters,
        *,
        ssml: bool = False,
        language: str | None = None,
        lexicon: Lexicon | None = None,
        timed: bool = False,
    ) -> Plan:
        """Check what is asked for, and cut the text into segments. Nothing is computed on the engine.

        Args:
            text: What to say.
            parameters: How to say it.
            ssml: Whether the text is SSML.
            language: By which numbers and the like are read; the voice's own where not given.
            lexicon: The voice's own words.
            timed: Whether the places of words in the text are wanted, as timestamps need them.

        Raises:
            TextError: Nothing of the text can be spoken.
            RequestError: A parameter is out of range (its ``param`` says which), or the SSML is wrong.
        """
        defaults = self.spec.defaults
        noise_scale, noise_scale_duration = parameters.noise_scale, parameters.noise_scale_duration
        return Plan(
            speaker_id=self.spec.speaker_id(parameters.speaker),
            seed=draw_seed() if parameters.seed is None else _checked_seed(parameters.seed),
            speaking_rate=defaults.speaking_rate
            * _checked("speaking_rate", parameters.speaking_rate, above_zero=True),
            noise_scale=defaults.noise_scale if noise_scale is None else _checked("noise_scale", noise_scale),
            noise_scale_duration=defaults.noise_scale_duration
            if noise_scale_duration is None
            else _checked("noise_scale_duration", noise_scale_duration),
            script=plan_script(
                text,
                self.front_end,
                language=language or self.spec.language,
                ssml=ssml,
                lexicon=lexicon,
                speaking_rate=parameters.speaking_rate,
                timed=timed,
            ),
        )

    def prepare(self, text: str, *, speaker: str | int | None = None, seed: int | None = None) -> Utterance:
        """The first segment of a text as far as the decoder; errors are those of `synthesize`."""
        return self.render(self.plan(text, SpeechParameters(speaker=speaker, seed=seed)), 0)

    def render(self, plan: Plan, number: int) -> Utterance:
        """Take a segment as far as the decoder.

        Args:
            plan: What is spoken.
            number: Which of its segments.

        Raises:
            EngineError: The computation failed.
        """
        segment = plan.script.segments[number]
        ids, pause = segment.tokens.ids, segment.pause_samples(self.sampling_rate)
        channels = self.spec.latent_channels
        if not ids:
            nothing = Latents.known(np.zeros((channels, 0), dtype=np.float32))
            durations = np.zeros(0, dtype=np.int64)
            return Utterance(segment.tokens, durations, nothing, [], plan.speaker_id, plan.seed, pause)
        prior, durations = self._time(plan, number)
        frames = int(durations.sum())
        noise_DF = standard_normal(plan.seed, Stream.PRIOR, length=frames, channels=channels, segment=number)
        flow = self._flow(prior, durations, noise_DF * np.float32(plan.noise_scale), plan.speaker_id)
        windows = plan_windows(frames, self.spec.decoder)
        flow.until(windows[0].end)
        return Utterance(segment.tokens, durations, flow, windows, plan.speaker_id, plan.seed, pause)

    def sounding_samples(self, plan: Plan, number: int) -> int:
        """How many samples a segment will have, the silence after it included: exactly, by its encoder alone.

        Arguments and errors are those of `render`.
        """
        segment = plan.script.segments[number]
        frames = int(self._time(plan, number)[1].sum()) if segment.tokens.ids else 0
        return frames * self.spec.hop_length + segment.pause_samples(self.sampling_rate)

    def _time(self, plan: Plan, number: int) -> tuple[Prior, NDArray[np.int64]]:
        """What the encoder says of a segment with tokens, and the frames of each."""
        segment = plan.script.segments[number]
        ids = segment.tokens.ids
        noise_2T = standard_normal(plan.seed, Stream.DURATION, length=len(ids), channels=2, segment=number)
        prior = self.encode(ids, plan.speaker_id, noise_2T * np.float32(plan.noise_scale_duration))
        return prior, self.durations(prior, speaking_rate=plan.speaking_rate * segment.speaking_rate)

    def encode(self, ids: tuple[int, ...], speaker_id: int, noise_2T: NDArray[np.float32]) -> Prior:
        """Run the encoder on one utterance, at its token bucket.

        Args:
            ids: Token ids, T of them.
            speaker_id: The speaker.
            noise_2T: Normal noise ``[2, T]`` times ``noise_scale_duration``.
        """
        tokens = len(ids)
        bucket = self.spec.token_bucket(tokens)
        input_ids = np.zeros((1, bucket), dtype=np.int64)
        input_ids[0, :tokens] = ids
        attention_mask = np.zeros((1, bucket), dtype=np.int64)
        attention_mask[0, :tokens] = 1
        noise = np.zeros((1, 2, bucket), dtype=np.float32)
        noise[0, :, :tokens] = noise_2T
        outputs = self.engine.run(
            "encoder",
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "speaker_id": np.array([speaker_id]),
                "duration_noise": noise,
            },
        )
        return Prior(
            mean=outputs["prior_mean"][0, :tokens],
            log_std=outputs["prior_log_std"][0, :tokens],
            log_duration=outputs["log_duration"][0, :tokens],
        )

    def durations(self, prior: Prior, *, speaking_rate: float) -> NDArray[np.int64]:
        """Frames of each token, ``[T]``, at a speaking rate that the voice's own no longer multiplies.

        Raises:
            EngineError: They are absurd, so the model is broken.
        """
        frames_per_second = self.sampling_rate / self.spec.hop_length
        limit = MAX_SECONDS_PER_TOKEN * frames_per_second / speaking_rate
        return frame_counts(prior.log_duration, speaking_rate=speaking_rate, max_frames_per_token=limit)

    def transform(
        self, prior: Prior, durations: NDArray[np.int64], noise_DF: NDArray[np.float32], speaker_id: int
    ) -> NDArray[np.float32]:
        """Sample the prior and run the flow: the latents ``[D, F]``.

        Args:
            prior: What the encoder said.
            durations: Frames of each token, which sum to F.
            noise_DF: Normal noise ``[D, F]`` times ``noise_scale``.
            speaker_id: The speaker.
        """
        return self._flow(prior, durations, noise_DF, speaker_id).whole()

    def _flow(
        self, prior: Prior, durations: NDArray[np.int64], noise_DF: NDArray[np.float32], speaker_id: int
    ) -> Latents:
        """The same, none of it computed yet."""
        sample_DF = expand_prior(prior.mean, prior.log_std, durations, noise_DF)
        channels, frames = sample_DF.shape
        ones_1F = np.ones((1, frames), dtype=np.float32)

        def compute(part: Window) -> NDArray[np.float32]:
            inputs = {
                "prior_sample": part.cut(sample_DF),
                "frame_mask": part.cut(ones_1F),
                "speaker_id": np.array([speaker_id]),
            }
            return part.trim(self.engine.run("flow", inputs)["latents"][0].T, 1).T

        return Latents(channels, plan_flow(frames, self.spec), compute)

    def decode(self, utterance: Utterance) -> Iterator[NDArray[np.float32]]:
        """Decode an utterance window by window, float32 ``[S]`` each."""
        for window in utterance.windows:
            yield self.decode_window(utterance, window)

    def decode_window(self, utterance: Utterance, window: Window) -> NDArray[np.float32]:
        """The samples of one window."""
        return self.decode_windows([(utterance, window)])[0]

    def decode_windows(self, windows: Sequence[tuple[Utterance, Window]]) -> list[NDArray[np.float32]]:
        """The samples of windows of one width, decoded in one call, whosever they are, within [-1, 1].

        In int8 one by one: its kernels sum otherwise in a batch, and company must change nothing. The decoder ends
        in a tanh, which ONNX Runtime approximates to within a rounding of 1, now and then from above.

        Raises:
            EngineError: The computation failed, or what came of it is no sound.
        """
        if len(windows) > 1 and self.spec.variants[self.variant].precision == "int8":
            return [self.decode_windows([one])[0] for one in windows]
        inputs = {
            "latents": np.concatenate(
                [window.cut(utterance.flow.until(window.end)) for utterance, window in windows]
            ),
            "speaker_id": np.array([utterance.speaker_id for utterance, _ in windows]),
        }
        waveform_BS = self.engine.run("decoder", inputs)["waveform"]
        if not np.isfinite(waveform_BS).all():
            raise EngineError(
                "The decoder's samples are not all finite numbers. The voice is broken, or this variant of it is here: "
                "try the variant 'fp32', or export an earlier checkpoint."
            )
        waveform_BS = np.clip(waveform_BS, -1, 1)
        hop_length = self.spec.hop_length
        return [
            window.trim(samples_S, hop_length)
            for samples_S, (_, window) in zip(waveform_BS, windows, strict=True)
        ]


def _checked(name: str, value: float, *, above_zero: bool = False) -> float:
    """Refuse what is not a finite number of at least (or above) zero."""
    if not math.isfinite(value) or value < 0 or (above_zero and value == 0):
        bound = "above 0" if above_zero else "0 or more"
        raise RequestError(f"{name} is {value}; it must be a number {bound}", param=name)
    return value


def _checked_seed(seed: int) -> int:
    if not 0 <= seed < SEED_LIMIT:
        raise RequestError(
            f"seed is {seed}; it must be a whole number from 0 to {SEED_LIMIT - 1}", param="seed"
        )
    return seed
