"""The seam between a voice and what computes its graphs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from shared.errors import EngineError, ModelError
from shared.voice.spec import Variant

Arrays = dict[str, NDArray[np.float32]]


class Engine(Protocol):
    """Computes the graphs of one voice. Safe to call from several threads at once."""

    def run(self, graph: str, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Compute ``encoder``, ``flow`` or ``decoder`` (the table in `services.export.graphs`).

        Raises:
            EngineError: The computation failed.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds; it is not used afterwards."""
        ...


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU.

    Args:
        folder: The voice folder.
        variant: Which of its graphs.
        threads: Threads that one computation uses; all that this process may use where not given.

    Raises:
        ModelError: A graph is missing, or not one that ONNX Runtime reads.
    """

    def __init__(self, folder: Path, variant: Variant, *, threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # Plans for one shape are useless to the next, and memory grows with every shape that is planned for.
        options.enable_mem_pattern = False
        # Idle worker threads that spin take the processor from whoever works.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        paths = {"encoder": variant.encoder, "flow": variant.flow, "decoder": variant.decoder}
        self.sessions = {name: _open(folder / path, options) for name, path in paths.items()}

    def run(self, graph: str, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Compute one graph; see `Engine.run`."""
        session = self.sessions[graph]
        names = [output.name for output in session.get_outputs()]
        try:
            values = session.run(names, dict(inputs))
        except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
            raise EngineError(f"ONNX Runtime could not compute the {graph}: {error}") from error
        return dict(zip(names, values, strict=True))

    def close(self) -> None:
        """Drop the sessions."""
        self.sessions.clear()


def _open(path: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    if not path.is_file():
        raise ModelError(f"The voice is not complete: {path} is missing. Fetch or export it again.")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise ModelError(f"{path} is not a graph that ONNX Runtime reads: {error}") from error
