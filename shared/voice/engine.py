"""The seam between a voice and what computes its graphs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from shared.errors import EngineError, ModelError
from shared.processor import cpu_features, cpu_model
from shared.voice.spec import Variant

Arrays = dict[str, NDArray[np.float32]]

#: ONNX Runtime's name for NVIDIA GPUs.
GPU_PROVIDER = "CUDAExecutionProvider"


class Engine(Protocol):
    """Computes the graphs of one voice. Safe to call from several threads at once.

    Attributes:
        streams: How many callers it serves at once at full speed; more of them wait for one another.
    """

    streams: int

    def run(self, graph: str, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Compute ``encoder``, ``flow`` or ``decoder`` (the table in `services.export.graphs`).

        Raises:
            EngineError: The computation failed.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds; it is not used afterwards."""
        ...


def open_engine(folder: Path, variant: Variant, *, threads: int | None = None, streams: int = 1) -> Engine:
    """Open the graphs of a variant with the runtime that it names.

    Args:
        folder: The voice folder.
        variant: Which of its graphs.
        threads: Threads that all computations together use; all that this process may use where not given.
        streams: Computations at once, each with its share of the threads.

    Raises:
        ModelError: A graph is missing, or not one that the runtime reads.
        EngineError: This machine lacks instructions or a device that the variant needs.
        MissingExtraError: The runtime is not installed.
    """
    lacking = why_not(variant)
    if lacking:
        raise EngineError(
            f"This machine cannot run the variant: {lacking}. Use the variant 'fp32' instead, which runs anywhere, "
            "or 'auto'."
        )
    threads = threads or len(os.sched_getaffinity(0))
    if variant.engine == "openvino":
        from shared.voice.openvino_engine import OpenVinoEngine  # 180 MB that not every installation has

        return OpenVinoEngine(folder, variant, threads=threads, streams=streams)
    return OnnxRuntimeEngine(folder, variant, threads=max(1, threads // streams), streams=streams)


def why_not(variant: Variant) -> str | None:
    """Why this machine cannot run a variant; None where it can."""
    if variant.device == "gpu" and GPU_PROVIDER not in onnxruntime.get_available_providers():
        return "it needs a CUDA GPU and onnxruntime-gpu (the extra 'serve-gpu')"
    if variant.engine == "openvino" and importlib.util.find_spec("openvino") is None:
        return "OpenVINO is not installed (pip install openvino)"
    if variant.requires and not cpu_features() & set(variant.requires):
        return (
            f"its {variant.precision} needs a CPU with {' or '.join(variant.requires)} (see /proc/cpuinfo), "
            "and this one has none of them"
        )
    return None


def computed_by() -> dict[str, str]:
    """What samples depend on beside graphs and inputs: the runtimes' versions and the processor."""
    openvino = importlib.util.find_spec("openvino") is not None
    return {
        "onnxruntime": onnxruntime.__version__,
        "openvino": version("openvino") if openvino else "not installed",
        "cpu": cpu_model(),
        "cpu_features": " ".join(sorted(cpu_features())),
    }


def graph_path(folder: Path, path: str) -> Path:
    """A graph's file.

    Raises:
        ModelError: It is missing.
    """
    if not (folder / path).is_file():
        raise ModelError(f"The voice is not complete: {folder / path} is missing. Fetch or export it again.")
    return folder / path


class OnnxRuntimeEngine:
    """ONNX Runtime, on the CPU or, for a variant that says so, on a CUDA GPU.

    Args:
        folder: The voice folder.
        variant: Which of its graphs.
        threads: Threads that one computation uses; all that this process may use where not given.
        streams: How many callers at once the threads were divided for.
        graphs: Those to open.

    Raises:
        ModelError: A graph is missing, or not one that ONNX Runtime reads.
    """

    def __init__(
        self,
        folder: Path,
        variant: Variant,
        *,
        threads: int | None = None,
        streams: int = 1,
        graphs: Sequence[str] = ("encoder", "flow", "decoder"),
    ) -> None:
        self.streams = streams
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # Plans for one shape are useless to the next, and memory grows with every shape that is planned for.
        options.enable_mem_pattern = False
        # Idle worker threads that spin take the processor from whoever works.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # int8 weights of float layers are unpacked as they are loaded; otherwise ONNX Runtime rounds those layers'
        # inputs too. Where a graph computes in integers it says so itself.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.log_severity_level = 3
        providers: list[Any] = ["CPUExecutionProvider"]
        if variant.device == "gpu":
            # The default tries every algorithm for each new shape, which takes seconds.
            providers.insert(0, (GPU_PROVIDER, {"cudnn_conv_algo_search": "HEURISTIC"}))
        paths = {"encoder": variant.encoder, "flow": variant.flow, "decoder": variant.decoder}
        self.sessions = {name: _open(folder, paths[name], options, providers) for name in graphs}

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


def _open(
    folder: Path, name: str, options: onnxruntime.SessionOptions, providers: list[Any]
) -> onnxruntime.InferenceSession:
    path = graph_path(folder, name)
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # as above
        raise ModelError(f"{path} is not a graph that ONNX Runtime reads: {error}") from error
