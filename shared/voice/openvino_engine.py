"""OpenVINO behind the seam: the fastest on x86 CPUs, with bf16 and int8.

The encoder stays with ONNX Runtime, in every variant: then its results, and with them all durations, are the
same bits whichever variant speaks, and none of its many shapes needs compiling. The flow is compiled once, for
any length. The decoder is compiled for each width that it meets, which makes it a quarter faster than one for
any width; widths are few (`shared.voice.windows`), and no more than `MOST_SHAPES` are kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
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

#: What may make a constant of another in a graph whose streams share them: each writes but what it has written before.
LAYOUTS = frozenset({"Const", "Reorder", "Reshape"})

#: The process's only one, which is never dropped. Its CPU plugin gives the thread that compiles first a stack for
#: signals, and unmaps it when dropped, in whichever thread that is: the next signal that the first thread handles,
#: such as the SIGTERM of a server, would end the process by SIGSEGV (2026.4; docs/log.md).
CORE = openvino.Core()

# OpenVINO's first look at NumPy is taken here, behind the import's lock: two threads whose first arrays meet wait for
# each other for ever, one for Python's lock, one for what the other is about to make (docs/log.md).
_FIRST_LOOK = [openvino.Tensor(np.zeros(1, dtype=kind)).data for kind in (np.float32, np.int64)]


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
        self._settings = {
            "INFERENCE_PRECISION_HINT": HINTS[variant.arithmetic],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            # The scheduler of the system knows who else works here; in a container, pinning to the first
            # cores piles every process onto them.
            "ENABLE_CPU_PINNING": False,
        }
        self._alone = {
            **self._settings,
            "INFERENCE_NUM_THREADS": max(1, threads // streams),
            "NUM_STREAMS": 1,
        }
        self._apart: set[str] = set()  # graphs that each stream has for itself
        self._encoder = OnnxRuntimeEngine(
            folder, variant, threads=max(1, threads // streams), graphs=("encoder",)
        )
        self._turn = threading.BoundedSemaphore(streams)
        self._compiling = threading.Lock()
        self._models = {
            "flow": self._read(graph_path(folder, variant.flow)),
            "decoder": self._read(graph_path(folder, variant.decoder)),
        }
        self._any_shape: dict[str, _Compiled] = {"flow": self._compile("flow", self._models["flow"])}
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
            return CORE.read_model(path)
        except RuntimeError as error:
            raise ModelError(f"{path} is not a graph that OpenVINO reads: {error}") from error

    def _compile(self, graph: str, model: openvino.Model) -> _Compiled:
        """Compile a graph for all streams, or for each by itself where they would spoil each other's constants.

        OpenVINO builds the graphs of all streams at the same time, over the same constants. One that is computed
        in several steps is computed in place by each stream anew, while another may be packing it for its
        kernels: then all streams use half-made weights, until the voice is closed (2026.4; docs/log.md).
        """
        if graph not in self._apart:
            compiled = CORE.compile_model(model, "CPU", self._settings)
            if self.streams == 1 or not computed_constants(compiled):
                return _Compiled([compiled], self.streams)
            self._apart.add(graph)
        each = [CORE.compile_model(model, "CPU", self._alone) for _ in range(self.streams)]
        return _Compiled(each, self.streams)

    def _compiled(self, graph: str, inputs: Mapping[str, NDArray[np.generic]]) -> _Compiled:
        """What computes a graph at the shape of these inputs."""
        latents = inputs.get("latents")
        with self._compiling:
            if graph == "decoder" and latents is not None and len(latents) == 1:
                return self._decoder(latents.shape)
            if graph not in self._any_shape:
                self._any_shape[graph] = self._compile(graph, self._models[graph])
            return self._any_shape[graph]

    def _decoder(self, shape: tuple[int, ...]) -> _Compiled:
        if shape not in self._decoders:
            model = self._models["decoder"].clone()
            model.reshape({"latents": list(shape), "speaker_id": [1]})
            self._decoders[shape] = self._compile("decoder", model)
            if len(self._decoders) > MOST_SHAPES:
                self._decoders.popitem(last=False)
        self._decoders.move_to_end(shape)
        return self._decoders[shape]


def computed_constants(compiled: openvino.CompiledModel) -> set[str]:
    """Names of a compiled graph's constants that it computed of others, not only laid out anew."""
    constants: set[str] = set()
    computed: set[str] = set()
    for node in compiled.get_runtime_model().get_ordered_ops():
        kind = node.rt_info["layerType"].value
        sources = {value.get_source_output().node.friendly_name for value in node.inputs()}
        if kind == "Const" or (sources and sources <= constants):
            constants.add(node.friendly_name)
            if kind not in LAYOUTS:
                computed.add(node.friendly_name)
    return computed


class _Compiled:
    """A graph, compiled for all streams or once for each, with a request for each: they hold intermediate results."""

    def __init__(self, compiled: Sequence[openvino.CompiledModel], streams: int) -> None:
        self.graphs = compiled
        self._requests: LifoQueue[Any] = LifoQueue()
        for number in range(streams):
            self._requests.put(compiled[number % len(compiled)].create_infer_request())
        self._names = [output.any_name for output in compiled[0].outputs]

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        request = self._requests.get()
        try:
            request.infer(dict(inputs), share_inputs=True)
            # Copied: the next call writes into the same memory.
            return {name: request.get_tensor(name).data.copy() for name in self._names}
        finally:
            self._requests.put(request)
