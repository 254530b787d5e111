"""What the activations of a graph look like on real speech: samples of each, kept on disk as they come.

Its inputs come through the voice itself: real sentences, its own encoder, durations, noise and flow. Random
ones would calibrate for sounds that nobody hears.

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
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from services.export.graphs import SIGNATURES
from services.export.progress import Progress
from services.export.quantization.decoder import Network
from shared.voice import Voice
from shared.voice.engine import Arrays, Engine

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
    path: Path,
    sentences: Sequence[str],
    *,
    cache: Path,
    graph: str = "decoder",
    progress: Progress | None = None,
) -> Statistics:
    """Speak sentences and keep samples of what the convolutions of one of the voice's graphs read.

    Each sentence's samples are a file in the cache, so that what was interrupted goes on where it stopped.

    Args:
        voice: The voice, whose own graphs make the inputs.
        path: The fp32 graph.
        sentences: What it says.
        cache: A folder that may be kept from run to run.
        graph: Which it is: ``flow`` or ``decoder``.
        progress: Is told of each sentence.
    """
    digest = hashlib.sha256(voice.spec.model_dump_json(include={"front_end", "defaults"}).encode())
    for name in SIGNATURES:  # all of them have a part in what is read
        digest.update((path.parent / f"{name}.onnx").read_bytes())
    folder = cache / f"calibration-{graph}-{digest.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = list(dict.fromkeys(layer.input for layer in Network.read(path).layers))
    session: onnxruntime.InferenceSession | None = None
    found: dict[str, list[Samples]] = {name: [] for name in tensors}
    seconds = 0.0
    with (progress or Progress()).bar(f"Calibrating the {graph}", len(sentences)) as step:
        for sentence in sentences:
            name = hashlib.sha256(sentence.encode()).hexdigest()[:16]
            file = folder / f"{name}-{len(sentences)}.npz"
            if not file.is_file():
                session = session or _observed_session(path, tensors)
                _observe(voice, graph, session, tensors, sentence, file, len(sentences))
            with np.load(file) as stored:
                for tensor in tensors:
                    found[tensor].append(stored[tensor])
                seconds += float(stored["seconds"])
            step(f"{seconds:.0f} s of speech")
    samples = {tensor: np.concatenate(parts, axis=1) for tensor, parts in found.items()}
    return Statistics(samples, len(sentences), seconds)


class _Listener:
    """An engine that remembers what each graph was last given."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.streams = engine, engine.streams
        self.inputs: dict[str, dict[str, NDArray[Any]]] = {}

    def run(self, graph: str, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """See `Engine.run`."""
        self.inputs[graph] = dict(inputs)
        return self.engine.run(graph, inputs)

    def close(self) -> None:
        """The engine is closed by whom it belongs to."""


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
    graph: str,
    session: onnxruntime.InferenceSession,
    tensors: Sequence[str],
    sentence: str,
    path: Path,
    sentences: int,
) -> None:
    """Speak one sentence and store what was seen; the file appears whole or not at all."""
    listener = _Listener(voice.engine)
    utterance = Voice(voice.spec, listener).prepare(sentence, seed=SEED)
    frames = utterance.latents.shape[1]
    inputs = {"latents": utterance.latents[None], "speaker_id": np.array([utterance.speaker_id])}
    if graph == "flow":  # as it was called, without what it was padded to
        inputs = listener.inputs["flow"] | {
            name: listener.inputs["flow"][name][..., :frames] for name in ("prior_sample", "frame_mask")
        }
    values = {name: inputs["latents"] for name in tensors if name in inputs}
    computed = [name for name in tensors if name not in inputs]
    known = {port.name for port in session.get_inputs()}
    fed = {name: value for name, value in inputs.items() if name in known}
    values.update(zip(computed, session.run(computed, fed), strict=True))
    rng = np.random.default_rng(zlib.crc32(sentence.encode()))
    kept = {name: _thin(value[0], rng, SAMPLES_PER_TENSOR // sentences) for name, value in values.items()}
    seconds = frames * voice.spec.hop_length / voice.sampling_rate
    temporary = path.with_suffix(".partial")
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, seconds=np.array(seconds), **kept)
    temporary.replace(path)


def _thin(values_CL: NDArray[np.float32], rng: np.random.Generator, samples: int) -> Samples:
    """Moments of a signal, drawn at random, all channels of each."""
    channels, length = values_CL.shape
    count = min(length, max(1, samples // channels))
    moments_N = np.sort(rng.choice(length, count, replace=False))
    return values_CL[:, moments_N].astype(np.float16)
