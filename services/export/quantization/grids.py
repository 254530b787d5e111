"""Eight-bit grids: which real number each integer stands for, and what writes them into a graph.

Activations lie on asymmetric grids of one scale per tensor (a leaky ReLU leaves few and small negatives),
weights on symmetric grids of one scale per output channel:

    x ≈ scale · (q - zero_point)        w_o ≈ scale_o · q_o

Shapes: C and O channels in and out, N samples of a signal.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from services.export.quantization.decoder import Decoder, Layer, Weights


@dataclass(frozen=True)
class Grid:
    """An activation's grid: ``x ≈ scale · (q - zero_point)``, q from 0 to 255."""

    scale: float
    zero_point: int

    def round(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The nearest values on the grid."""
        q = np.clip(np.rint(values / self.scale) + self.zero_point, 0, 255)
        return np.asarray((q - self.zero_point) * self.scale, dtype=np.float32)


def grid_of(values: NDArray[np.floating], percentile: float) -> Grid:
    """The grid that covers all but the outermost values.

    Args:
        values: Samples of a signal, any shape.
        percentile: Share of them, in percent, that neither end may cut off: 99.99 leaves the largest and the
            smallest ten-thousandth to be clipped. The few extremes of a decoder are not worth the steps that
            they would take from everything else.
    """
    low, high = np.percentile(values.astype(np.float32), [100 - percentile, percentile])
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = max((high - low) / 255, 1e-8)
    return Grid(scale, int(np.clip(np.rint(-low / scale), 0, 255)))


def integer_weight(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A weight on its grid: the integers, and the scale ``[O]`` of each output channel (axis ``axis``)."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale_O = np.maximum(np.abs(weight).max(axis=others) / 127, 1e-12).astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    return np.clip(np.rint(weight / scale_O.reshape(shape)), -127, 127).astype(np.int8), scale_O


def write_grids(decoder: Decoder, layers: Collection[str], grids: Mapping[str, Grid]) -> None:
    """Write quantisation into a decoder: every weight as int8, and the inputs of some layers.

    A layer's padding is taken out of the convolution and put before it, in integers, by the zero point. The value
    is the same, and oneDNN's AMX kernels, which otherwise work out for every position what the zero point adds
    where padding meets it, are seven times as fast.

    Args:
        decoder: The decoder, which is changed.
        layers: Names of the layers that compute in int8. The others keep their inputs as they are, and their int8
            weights only make the file smaller.
        grids: The grid of each of those layers' inputs, by tensor.
    """
    before: dict[str, list[NodeProto]] = {}
    nodes = {node.name: node for node in decoder.model.graph.node}
    quantised: set[str] = set()
    for layer in decoder.layers:
        node = nodes[layer.node]
        inserted = before.setdefault(layer.node, [])
        inserted.append(_store_weight(decoder, layer))
        node.input[1] = inserted[-1].output[0]
        if layer.name in layers:
            if layer.input not in quantised:
                quantised.add(layer.input)
                inserted.append(_quantise(decoder, layer.input, grids[layer.input]))
            inserted.extend(_padded_input(decoder, layer, node))
            node.input[0] = inserted[-1].output[0]
    ordered = [part for node in decoder.model.graph.node for part in [*before.get(node.name, []), node]]
    del decoder.model.graph.node[:]
    decoder.model.graph.node.extend(ordered)


def _store_weight(decoder: Decoder, layer: Layer) -> NodeProto:
    axis = 1 if layer.transposed else 0
    name = layer.weight
    integers, scale_O = integer_weight(decoder.weights.pop(name), axis)
    parts: dict[str, Weights] = {
        f"{name}.int8": integers,
        f"{name}.scale": scale_O,
        f"{name}.zero": np.zeros_like(scale_O, np.int8),
    }
    decoder.weights.update(parts)
    return helper.make_node("DequantizeLinear", list(parts), [f"{name}.real"], name=f"{name}.real", axis=axis)


def _quantise(decoder: Decoder, tensor: str, grid: Grid) -> NodeProto:
    scale, zero = f"{tensor}.scale", f"{tensor}.zero"
    decoder.weights[scale] = np.array(grid.scale, dtype=np.float32)
    decoder.weights[zero] = np.array(grid.zero_point, dtype=np.uint8)
    return helper.make_node("QuantizeLinear", [tensor, scale, zero], [f"{tensor}.q"], name=f"{tensor}.q")


def _padded_input(decoder: Decoder, layer: Layer, node: NodeProto) -> list[NodeProto]:
    """The nodes that pad a layer's integers and make numbers of them; the layer itself pads no more."""
    scale, zero, integers = (f"{layer.input}.{part}" for part in ("scale", "zero", "q"))
    padding = next((attribute for attribute in node.attribute if attribute.name == "pads"), None)
    result = []
    if padding is not None and any(padding.ints):
        sides = list(padding.ints)
        begin, end = sides[: len(sides) // 2], sides[len(sides) // 2 :]
        decoder.weights[f"{layer.name}.pads"] = np.array([0, 0, *begin, 0, 0, *end])
        result.append(
            helper.make_node(
                "Pad",
                [integers, f"{layer.name}.pads", zero],
                [f"{layer.name}.padded"],
                name=f"{layer.name}.padded",
            )
        )
        integers = f"{layer.name}.padded"
        del padding.ints[:]
        padding.ints.extend([0] * len(sides))
    real = f"{layer.name}.real"
    result.append(helper.make_node("DequantizeLinear", [integers, scale, zero], [real], name=real))
    return result
