"""Which layers compute in int8: those that save most time for what they spoil, as far as the quality allows.

Damage is measured, not guessed from weights: the decoder speaks calibration latents with one layer at a time in
int8, and the log-spectral distance from fp32 is taken. Time is measured too: OpenVINO's own counters, of each
layer in float and in int8, with the rounding and padding that int8 adds to it.

Shapes: D latent channels, W frames of a window, S samples.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from services.evaluation import log_spectral_distance
from services.export.progress import Progress
from services.export.quantization.decoder import Layer

#: What the search may spoil, in dB of log-spectral distance; the gate allows more (`services.export.gate.Limits`).
#: On the Joe voice 2.0 dB go with a DistillMOS drop of 0.05, 2.5 dB with 0.08, and 6.5 dB with 0.32.
DAMAGE_BUDGET = 2.2

#: Repetitions of a timing, of which the least is taken: what disturbs one only ever adds.
REPEATS = 15

#: Steps of the bisection that spends the budget.
BISECTIONS = 6

Build = Callable[[Collection[str]], onnx.ModelProto]


@dataclass(frozen=True)
class Finding:
    """What int8 does in one layer.

    Attributes:
        layer: Its name.
        damage_db: Log-spectral distance from fp32 with this layer alone in int8.
        saved_ms: Milliseconds that it saves of each window, the mean over the precisions that the rest was timed in;
            below 0 where int8 is slower.
        order: Damage for each millisecond saved; infinite where none is saved.
    """

    layer: str
    damage_db: float
    saved_ms: float

    @property
    def order(self) -> float:
        """Damage for each millisecond saved; infinite where none is saved."""
        return self.damage_db / self.saved_ms if self.saved_ms > 0 else float("inf")


class ProbedWindow(NamedTuple):
    """Latents ``[1, D, W]`` of real speech, and who speaks."""

    latents: NDArray[np.float32]
    speaker_id: int


class Probe:
    """Decodes fixed windows with OpenVINO, to compare and to time decoders that differ in quantisation.

    Args:
        windows: All of one width.
        sampling_rate: Hz of the waveform.
    """

    def __init__(self, windows: Sequence[ProbedWindow], sampling_rate: int) -> None:
        self.windows = list(windows)
        self.sampling_rate = sampling_rate

    def compile(self, model: onnx.ModelProto, *, counters: bool = False, rest: str = "fp32") -> object:
        """A request that computes a decoder on windows of the probe's shape, in int8 and what the rest is."""
        from shared.voice.openvino_engine import CORE, HINTS  # which not every machine has

        network = CORE.read_model(model.SerializeToString())
        shapes = {"latents": list(self.windows[0].latents.shape), "speaker_id": [1]}
        network.reshape({port.get_any_name(): shapes[port.get_any_name()] for port in network.inputs})
        options = {"INFERENCE_PRECISION_HINT": HINTS[rest], "NUM_STREAMS": 1, "PERF_COUNT": counters}
        return CORE.compile_model(network, "CPU", options).create_infer_request()

    def speak(self, model: onnx.ModelProto) -> list[NDArray[np.float32]]:
        """The waveform ``[S]`` of each window."""
        request = self.compile(model)
        return [np.array(_infer(request, window))[0] for window in self.windows]

    def distance(self, expected: Sequence[NDArray[np.float32]], model: onnx.ModelProto) -> float:
        """Mean log-spectral distance, in dB, of a decoder from expected waveforms."""
        pairs = zip(expected, self.speak(model), strict=True)
        return statistics.fmean(log_spectral_distance(one, other, self.sampling_rate) for one, other in pairs)

    def node_times(self, model: onnx.ModelProto, rest: str) -> dict[str, float]:
        """Milliseconds of each of OpenVINO's nodes, by its name: the least of several turns."""
        request = self.compile(model, counters=True, rest=rest)
        times: dict[str, list[float]] = {}
        for _ in range(REPEATS + 2):
            _infer(request, self.windows[0])
            for entry in request.profiling_info:  # type: ignore[attr-defined]
                times.setdefault(entry.node_name, []).append(1000 * entry.real_time.total_seconds())
        return {name: min(values[2:]) for name, values in times.items()}


def _infer(request: object, window: ProbedWindow) -> NDArray[np.float32]:
    known = {"latents": window.latents, "speaker_id": np.array([window.speaker_id])}
    names = [port.get_any_name() for port in request.model_inputs]  # type: ignore[attr-defined]
    result: NDArray[np.float32] = request.infer({name: known[name] for name in names})[0]  # type: ignore[attr-defined]
    return result


def savings(
    layers: Sequence[Layer], real: Mapping[str, float], integer: Mapping[str, float]
) -> dict[str, float]:
    """Milliseconds that int8 saves in each layer.

    Args:
        layers: The layers.
        real: Times of the nodes with every layer in float.
        integer: Times with every one of them in int8.
    """
    readers: dict[str, int] = {}
    for layer in layers:
        readers[layer.input] = readers.get(layer.input, 0) + 1

    def time_of(times: Mapping[str, float], name: str) -> float:
        return sum(value for node, value in times.items() if node == name or node.startswith(f"{name}/"))

    return {
        layer.name: time_of(real, layer.node)
        - time_of(integer, layer.node)
        - time_of(integer, f"{layer.name}.padded")
        - time_of(integer, f"{layer.input}.q") / readers[layer.input]
        for layer in layers
    }


def measure_layers(
    layers: Sequence[Layer],
    build: Build,
    probe: Probe,
    *,
    known: dict[str, float],
    saved: dict[str, float],
    rests: Sequence[str],
    progress: Progress,
) -> list[Finding]:
    """Measure damage and saving of each layer.

    Args:
        layers: Layers that may compute in int8.
        build: Makes a decoder with the named layers in int8.
        probe: Decodes and times.
        known: Damages measured before, by layer; extended as they are measured.
        saved: Savings measured before, by layer; extended likewise. Measured anew they would be a little different,
            and an export that was interrupted would choose other layers than those that have been judged.
        rests: The precisions of the rest in which savings are measured: ``fp32``, ``bf16``.
        progress: Is told of each layer.
    """
    expected = probe.speak(build(()))
    names = [layer.name for layer in layers]
    if not all(name in saved for name in names):
        real, integer = build(()), build(names)
        each = [savings(layers, probe.node_times(real, r), probe.node_times(integer, r)) for r in rests]
        for name in names:
            saved[name] = statistics.fmean(one[name] for one in each)
    with progress.bar("Trying int8 layer by layer", len(names)) as step:
        for name in names:
            if name not in known:
                known[name] = probe.distance(expected, build((name,)))
            step(f"{name}: {known[name]:.2f} dB away")
    return [Finding(name, known[name], saved[name]) for name in names]


def choose_layers(
    findings: Sequence[Finding], damage_of: Callable[[Collection[str]], float], *, budget: float
) -> tuple[list[str], float, list[tuple[list[str], float]]]:
    """As many layers, in order of damage per millisecond saved, as jointly stay within a budget.

    Joint damage is predicted as the root of the sum of squares, which is too little where layers feed each other.
    So the prediction's own bound is found by bisection, each step of which measures.

    Args:
        findings: Of each layer.
        damage_of: Measures the damage of some layers together, in dB.
        budget: dB.

    Returns:
        The names, their joint damage, and all choices that were measured, with their damage: the Pareto curve.
    """
    best: list[str] = []
    damage = 0.0
    curve: list[tuple[list[str], float]] = []
    measured: dict[tuple[str, ...], float] = {}
    low, high = 0.0, budget
    for step in range(BISECTIONS):
        bound = budget if step == 0 else (low + high) / 2
        names = within(findings, bound)
        key = tuple(names)
        if key not in measured:
            measured[key] = damage_of(names)
            curve.append((names, measured[key]))
        if measured[key] > budget:
            high = bound
            continue
        low = bound
        if len(names) >= len(best):
            best, damage = names, measured[key]
        if bound == budget:
            break
    return best, damage, sorted(curve, key=lambda point: point[1])


def within(findings: Sequence[Finding], bound: float) -> list[str]:
    """Layers in order of damage per millisecond saved, without those that would exceed a predicted damage."""
    names: list[str] = []
    squares = 0.0
    for finding in sorted(findings, key=lambda finding: finding.order):
        joint = squares + finding.damage_db**2
        if finding.saved_ms > 0 and joint <= bound**2:
            names.append(finding.layer)
            squares = joint
    return names
