"""What the activations of a decoder look like on real speech: samples of each, kept on disk as they come.

The latents come through the voice itself: real sentences, its own encoder, durations, noise and flow. Random
latents would calibrate for sounds that nobody hears.

Samples are kept rather than a minimum and a maximum, per channel, so that equalisation can rescale channels and
take percentiles afterwards without running the decoder again.

Shapes: C channels, N samples.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from services.export.graphs import SIGNATURES
from services.export.progress import Progress
from services.export.quantization.decoder import Decoder
from services.export.sentences import Line, shared_out
from shared.cache import CACHE_REMEDY
from shared.folders import writing
from shared.voice import Voice

#: Samples that are kept of each tensor, over all sentences and channels.
SAMPLES_PER_TENSOR = 1_000_000

#: The noise of a sentence: fixed, so that a resumed calibration is the same calibration.
SEED = 1

Samples = NDArray[np.float16]


@dataclass(frozen=True)
class Statistics:
    """What was seen.

    Attributes:
        samples: ``[C, N]`` of each tensor that a convolution reads.
        sentences: How many sentences were spoken.
        seconds: How much speech that was.
    """

    samples: Mapping[str, Samples]
    sentences: int
    seconds: float


def calibrate(
    voice: Voice,
    decoder_path: Path,
    sentences: Sequence[str],
    *,
    cache: Path,
    progress: Progress | None = None,
) -> Statistics:
    """Speak sentences with the fp32 decoder and keep samples of what its convolutions read.

    Each sentence's samples are a file in the cache, so that what was interrupted goes on where it stopped.

    Args:
        voice: The voice, whose encoder and flow make the latents.
        decoder_path: Its fp32 decoder.
        sentences: What it says, its speakers in turn.
        cache: A folder that may be kept from run to run.
        progress: Is told of each sentence.

    Raises:
        UserError: The cache cannot be written.
    """
    folder = cache / f"calibration-{digest_of(voice, decoder_path)}"
    with writing(folder, CACHE_REMEDY):
        folder.mkdir(parents=True, exist_ok=True)
    tensors = list(dict.fromkeys(layer.input for layer in Decoder.read(decoder_path).layers))
    session: onnxruntime.InferenceSession | None = None
    found: dict[str, list[Samples]] = {name: [] for name in tensors}
    seconds = 0.0
    with (progress or Progress()).bar("Calibrating", len(sentences)) as step:
        for line in shared_out(sentences, voice.spec.num_speakers):
            name = hashlib.sha256(line.text.encode()).hexdigest()[:16]
            file = folder / f"{name}-{line.speaker}-{len(sentences)}.npz"
            if not file.is_file():
                session = session or _observed_session(decoder_path, tensors)
                _observe(voice, session, tensors, line, file, len(sentences))
            with np.load(file) as stored:
                for tensor in tensors:
                    found[tensor].append(stored[tensor])
                seconds += float(stored["seconds"])
            step(f"{seconds:.0f} s of speech")
    samples = {tensor: np.concatenate(parts, axis=1) for tensor, parts in found.items()}
    return Statistics(samples, len(sentences), seconds)


def digest_of(voice: Voice, decoder_path: Path) -> str:
    """Of what makes the samples of a sentence and a speaker: all graphs have a part in it, and how the voice speaks."""
    digest = hashlib.sha256(voice.spec.model_dump_json(include={"front_end", "defaults"}).encode())
    for name in SIGNATURES:
        digest.update((decoder_path.parent / f"{name}.onnx").read_bytes())
    return digest.hexdigest()[:16]


def _observed_session(path: Path, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    """The decoder with the given tensors as its outputs."""
    model = onnx.load(path)
    known = {value.name for value in [*model.graph.input, *model.graph.output]}
    model.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in tensors
        if name not in known
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _observe(
    voice: Voice,
    session: onnxruntime.InferenceSession,
    tensors: Sequence[str],
    line: Line,
    path: Path,
    sentences: int,
) -> None:
    """Speak one sentence and store what was seen; the file appears whole or not at all."""
    utterance = voice.prepare(line.text, speaker=line.speaker, seed=SEED)
    inputs = {"latents": utterance.latents[None], "speaker_id": np.array([utterance.speaker_id])}
    values = {name: inputs["latents"] for name in tensors if name in inputs}
    computed = [name for name in tensors if name not in inputs]
    values.update(zip(computed, session.run(computed, inputs), strict=True))
    rng = np.random.default_rng(zlib.crc32(line.text.encode()))
    kept = {name: _thin(value[0], rng, SAMPLES_PER_TENSOR // sentences) for name, value in values.items()}
    seconds = utterance.latents.shape[1] * voice.spec.hop_length / voice.sampling_rate
    temporary = path.with_suffix(".partial")
    with writing(path.parent, CACHE_REMEDY):
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, seconds=np.array(seconds), **kept)
        temporary.replace(path)


def _thin(values_CL: NDArray[np.float32], rng: np.random.Generator, samples: int) -> Samples:
    """Moments of a signal, drawn at random, all channels of each."""
    channels, length = values_CL.shape
    count = min(length, max(1, samples // channels))
    moments_N = np.sort(rng.choice(length, count, replace=False))
    return values_CL[:, moments_N].astype(np.float16)
