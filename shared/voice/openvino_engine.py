"""OpenVINO behind the seam: the fastest on x86 CPUs, with bf16 and int8.

The encoder stays with ONNX Runtime, in every variant: then its results, and with them all durations, are the
same bits whichever variant speaks, and none of its many shapes needs compiling. The flow is compiled once, for
any length. The decoder is compiled for each width that it meets, which makes it a quarter faster than one for
any width; widths are few (`shared.voice.windows`), and no more than `MOST_SHAPES` are kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from queue import LifoQueue
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from shared.errors import EngineError, ModelError
from shared.voice.engine import Arrays, OnnxRuntimeEngine, graph_path
from shared.voice.spec import Variant

#: Widths of the decoder that stay compiled. Each holds the weights in its own layout: 20 to 40 MB of a Piper
#: medium voice, 90 of an MMS voice. The default plan has five.
MOST_SHAPES = 6

#: OpenVINO's names of the precisions.
HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoEngine:
    """OpenVINO on the CPU.

    Args:
        folder: The voice folder.
        variant: Which of its graphs; its decoder the one over images of height 1.
        threads: Threads that all streams together use.
        streams: Computations at once.

    Raises:
        ModelError: A graph is missing, or not one that OpenVINO reads.
    """

    def __init__(self, folder: Path, variant: Variant, *, threads: int, streams: int = 1) -> None:
        self.streams = streams
        self._core = openvino.Core()
        self._settings = {
            "INFERENCE_PRECISION_HINT": HINTS[variant.arithmetic],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            # The scheduler of the system knows who else works here; in a container, pinning to the first
            # cores piles every process onto them.
            "ENABLE_CPU_PINNING": False,
        }
        self._encoder = OnnxRuntimeEngine(
            folder, variant, threads=max(1, threads // streams), graphs=("encoder",)
        )
        self._turn = threading.BoundedSemaphore(streams)
        self._compiling = threading.Lock()
        self._models = {
            "flow": self._read(graph_path(folder, variant.flow)),
            "decoder": self._read(graph_path(folder, variant.decoder)),
        }
        self._any_shape: dict[str, _Compiled] = {"flow": self._compile(self._models["flow"])}
        self._decoders: OrderedDict[tuple[int, ...], _Compiled] = OrderedDict()

    def run(self, graph: str, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Compute one graph; see `Engine.run`."""
        with self._turn:
            if graph == "encoder":
                return self._encoder.run(graph, inputs)
            try:
                return self._compiled(graph, inputs).run(inputs)
            except RuntimeError as error:
                raise EngineError(f"OpenVINO could not compute the {graph}: {error}") from error

    def close(self) -> None:
        """Drop everything compiled."""
        self._encoder.close()
        self._models.clear()
        self._any_shape.clear()
        self._decoders.clear()

    def _read(self, path: Path) -> openvino.Model:
        try:
            return self._core.read_model(path)
        except RuntimeError as error:
            raise ModelError(f"{path} is not a graph that OpenVINO reads: {error}") from error

    def _compile(self, model: openvino.Model) -> _Compiled:
        return _Compiled(self._core.compile_model(model, "CPU", self._settings), self.streams)

    def _compiled(self, graph: str, inputs: Mapping[str, NDArray[np.generic]]) -> _Compiled:
        """What computes a graph at the shape of these inputs."""
        latents = inputs.get("latents")
        with self._compiling:
            if graph == "decoder" and latents is not None and len(latents) == 1:
                return self._decoder(latents.shape)
            if graph not in self._any_shape:
                self._any_shape[graph] = self._compile(self._models[graph])
            return self._any_shape[graph]

    def _decoder(self, shape: tuple[int, ...]) -> _Compiled:
        if shape not in self._decoders:
            model = self._models["decoder"].clone()
            model.reshape({"latents": list(shape), "speaker_id": [1]})
            self._decoders[shape] = self._compile(model)
            if len(self._decoders) > MOST_SHAPES:
                self._decoders.popitem(last=False)
        self._decoders.move_to_end(shape)
        return self._decoders[shape]


class _Compiled:
    """A compiled graph with a request for each stream, which hold its intermediate results."""

    def __init__(self, compiled: openvino.CompiledModel, streams: int) -> None:
        self._requests: LifoQueue[Any] = LifoQueue()
        for _ in range(streams):
            self._requests.put(compiled.create_infer_request())
        self._names = [output.any_name for output in compiled.outputs]

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        request = self._requests.get()
        try:
            request.infer(dict(inputs), share_inputs=True)
            # Copied: the next call writes into the same memory.
            return {name: request.get_tensor(name).data.copy() for name in self._names}
        finally:
            self._requests.put(request)
