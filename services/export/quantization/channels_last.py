"""An int8 decoder for ONNX Runtime alone: convolutions as integer matrix products over signals with channels last.

ONNX Runtime's own int8 convolution (``QLinearConv``) writes integers too, and rounding what convolutions write is
what one hears. Its integer matrix product can write floats (``com.microsoft.MatMulIntegerToFloat``), so a
convolution of kernel K becomes: round the input, take the K neighbours of every moment (`Gather`), multiply::

    x [B, L, C] ──round──▶ u8 [B, L, C] ──neighbours──▶ u8 [B, L, K·C] ──· s8 [K·C, O]──▶ float [B, L, O]

The values are those of the same grids behind ``DequantizeLinear`` (`services.export.quantization.grids`). A
transposed convolution of stride S is a product with all its taps, whose results are added where they overlap and
laid side by side ("polyphase"): no zeros are multiplied. Stages without an int8 layer stay as they are, channels
first, where ONNX Runtime's float convolutions are at their best.

Shapes: B batch, L moments at some stage's rate, C and O channels in and out, K kernel, S stride.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper

from services.export.quantization.decoder import Decoder, Layer
from services.export.quantization.grids import Grid, integer_weight

#: Of the operators that are ONNX Runtime's own.
DOMAIN = "com.microsoft"

#: Operators that work value by value, whatever the order of the axes.
POINTWISE = frozenset({"LeakyRelu", "Add", "Div", "Mul", "Identity"})


def write_channels_last(
    decoder: Decoder, layers: Collection[str], grids: Mapping[str, Grid]
) -> onnx.ModelProto:
    """Rewrite a decoder, some of whose layers compute in int8; all weights are stored as int8.

    Args:
        decoder: The decoder over ``[B, C, L]``; it is changed, and of no use afterwards.
        layers: Names of the layers that compute in int8.
        grids: The grid of each of those layers' inputs, by tensor.

    Returns:
        The graph: inputs and outputs are the decoder's own.
    """
    return _Rewriting(decoder, frozenset(layers), grids).run()


@dataclass
class _Rewriting:
    """One pass over a decoder's nodes."""

    decoder: Decoder
    int8: frozenset[str]
    grids: Mapping[str, Grid]
    nodes: list[NodeProto] = field(default_factory=list)
    last: dict[str, str] = field(default_factory=dict)
    """Tensors that are there with channels last, by the name of the original."""
    first: set[str] = field(default_factory=set)
    """Tensors that are there with channels first, as the original has them."""
    made: set[str] = field(default_factory=set)
    """Results that several layers share."""

    def run(self) -> onnx.ModelProto:
        graph, weights = self.decoder.model.graph, self.decoder.weights
        by_node = {layer.node: layer for layer in self.decoder.layers}
        stages = {layer.stage for layer in self.decoder.layers if layer.name in self.int8}
        self.first.update(value.name for value in graph.input)
        for node in list(graph.node):
            layer = by_node.get(node.name)
            if layer is not None and (layer.stage + layer.transposed in stages or layer.name in self.int8):
                (self._upsample if layer.transposed else self._convolve)(layer, node)
            elif layer is not None:
                node.input[0] = self._channels_first(node.input[0])
                node.input[1] = self._stored_weight(layer)
                self._keep(node)
            elif node.op_type in POINTWISE and any(name in self.last for name in node.input):
                inputs = [name if name in weights else self._channels_last(name) for name in node.input]
                self.last[node.output[0]] = f"{node.output[0]}.last"
                node.input[:], node.output[:] = inputs, [self.last[node.output[0]]]
                self.nodes.append(node)
            else:
                node.input[:] = [
                    name if name in weights else self._channels_first(name) for name in node.input
                ]
                self._keep(node)
        del graph.node[:]
        graph.node.extend(self.nodes)
        del graph.value_info[:]
        self.decoder.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        return self.decoder.store_weights()

    def _keep(self, node: NodeProto) -> None:
        self.first.update(node.output)
        self.nodes.append(node)

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """A node that several may want, made once; returns its output."""
        if output not in self.made:
            self.made.add(output)
            self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def _constant(self, name: str, value: object, dtype: type[np.generic] = np.int64) -> str:
        self.decoder.weights[name] = np.asarray(value, dtype=dtype)
        return name

    def _channels_last(self, name: str) -> str:
        if name not in self.last:
            self.last[name] = self._add("Transpose", [name], f"{name}.last", perm=[0, 2, 1])
        return self.last[name]

    def _channels_first(self, name: str) -> str:
        if name not in self.first:
            self.first.add(name)
            self._add("Transpose", [self.last[name]], name, perm=[0, 2, 1])
        return name

    # ------------------------------------------------------------------------------------ convolutions

    def _convolve(self, layer: Layer, node: NodeProto) -> None:
        outputs, _, kernel = self.decoder.weights[layer.weight].shape
        dilation = next((a.ints[0] for a in node.attribute if a.name == "dilations"), 1)
        integers_OCK, scale_O = integer_weight(self.decoder.weights.pop(layer.weight), axis=0)
        matrix_KCO = integers_OCK.transpose(2, 1, 0).reshape(-1, outputs)
        quantised = layer.name in self.int8
        source = self._channels_last(layer.input)
        if quantised:
            source = self._rounded(layer.input, source)
        columns = self._neighbours(layer, source, kernel, dilation, quantised=quantised)
        self.last[layer.output] = output = f"{layer.output}.last"
        integers = self._constant(f"{layer.weight}.int8", matrix_KCO, np.int8)
        scale = self._constant(f"{layer.weight}.scale", scale_O, np.float32)
        if quantised:
            grid = [f"{layer.input}.scale", scale, f"{layer.input}.zero"]
            bias = ["", layer.bias] if layer.bias is not None else []
            self._add("MatMulIntegerToFloat", [columns, integers, *grid, *bias], output, domain=DOMAIN)
        else:
            real = self._add("DequantizeLinear", [integers, scale], f"{layer.weight}.real", axis=1)
            self._biased(layer, self._add("MatMul", [columns, real], f"{layer.name}.product"))

    def _rounded(self, tensor: str, source: str) -> str:
        grid = self.grids[tensor]
        scale = self._constant(f"{tensor}.scale", grid.scale, np.float32)
        zero = self._constant(f"{tensor}.zero", grid.zero_point, np.uint8)
        return self._add("QuantizeLinear", [source, scale, zero], f"{tensor}.q")

    def _neighbours(self, layer: Layer, source: str, kernel: int, dilation: int, *, quantised: bool) -> str:
        """The K neighbours of every moment side by side: ``[B, L, K·C]``, beyond the ends nought."""
        if kernel == 1:
            return source
        reach = (kernel - 1) * dilation // 2
        pads = self._constant(f"pads.{reach}", [0, reach, 0, 0, reach, 0])
        value = f"{layer.input}.zero" if quantised else self._constant("nought", 0, np.float32)
        padded = self._add("Pad", [source, pads, value], f"{source}.pad{reach}")
        index = self._index(layer, kernel, dilation)
        gathered = self._add("Gather", [padded, index], f"{source}.taps{kernel}x{dilation}", axis=1)
        # Of [B, L, K, C] the last two become one; the zeros copy B and L.
        shape = self._constant("shape.flat", [0, 0, -1])
        return self._add("Reshape", [gathered, shape], f"{gathered}.flat")

    def _index(self, layer: Layer, kernel: int, dilation: int) -> str:
        """Where the neighbours of every moment of a stage are, in its padded signal: int64 ``[L, K]``."""
        moments = f"stage{layer.stage}.moments"
        if moments not in self.made:
            length = self._add(
                "Shape", [self._channels_last(layer.input)], f"{moments}.length", start=1, end=2
            )
            axis = self._constant("axis.first", [0])
            scalar = self._add("Squeeze", [length, axis], f"{moments}.count")
            start, step = self._constant("count.from", 0), self._constant("count.by", 1)
            row = self._add("Range", [start, scalar, step], f"{moments}.row")
            self._add("Unsqueeze", [row, self._constant("axis.second", [1])], moments)
        offsets = self._constant(f"taps.{kernel}x{dilation}", np.arange(kernel) * dilation)
        return self._add("Add", [moments, offsets], f"{moments}.{kernel}x{dilation}")

    def _biased(self, layer: Layer, product: str) -> None:
        """Add a layer's bias, and call the result the layer's."""
        addend = layer.bias if layer.bias is not None else self._constant("nought", 0, np.float32)
        self._add("Add", [product, addend], self.last[layer.output])

    def _stored_weight(self, layer: Layer) -> str:
        """A weight as int8 behind ``DequantizeLinear``: a smaller file, unpacked when it is loaded."""
        axis = 1 if layer.transposed else 0
        integers, scale_O = integer_weight(self.decoder.weights.pop(layer.weight), axis)
        inputs = [
            self._constant(f"{layer.weight}.int8", integers, np.int8),
            self._constant(f"{layer.weight}.scale", scale_O, np.float32),
        ]
        return self._add("DequantizeLinear", inputs, f"{layer.weight}.real", axis=axis)

    def _upsample(self, layer: Layer, node: NodeProto) -> None:
        """``[B, L, C]`` to ``[B, L·S, O]``: block j of S taps falls j blocks later."""
        integers_COK, scale_O = integer_weight(self.decoder.weights.pop(layer.weight), axis=1)
        channels, outputs, kernel = integers_COK.shape
        stride = next(a.ints[0] for a in node.attribute if a.name == "strides")
        begin, end = next((a.ints for a in node.attribute if a.name == "pads"), (0, 0))
        blocks = -(-kernel // stride)
        taps_CKO = np.zeros((channels, blocks * stride, outputs), dtype=np.int8)
        taps_CKO[:, :kernel] = integers_COK.transpose(0, 2, 1)
        stored = [
            self._constant(f"{layer.weight}.int8", taps_CKO.reshape(channels, -1), np.int8),
            self._constant(f"{layer.weight}.scale", np.tile(scale_O, blocks * stride), np.float32),
        ]
        real = self._add("DequantizeLinear", stored, f"{layer.weight}.real", axis=1)
        name = layer.name
        product = self._add("MatMul", [self._channels_last(layer.input), real], f"{name}.product")
        parts = [f"{name}.block{j}" for j in range(blocks)]
        self.nodes.append(helper.make_node("Split", [product], parts, name=name, axis=2, num_outputs=blocks))
        total = ""
        for j, part in enumerate(parts):
            pads = self._constant(f"pads.{j}of{blocks}", [0, j, 0, 0, blocks - 1 - j, 0])
            shifted = self._add("Pad", [part, pads], f"{part}.shifted")
            total = self._add("Add", [total, shifted], f"{part}.sum") if total else shifted
        shape = self._constant(f"shape.{outputs}", [0, -1, outputs])
        flat = self._add("Reshape", [total, shape], f"{name}.flat")
        first = self._constant(f"{name}.first", [begin])
        after = self._constant(f"{name}.after", [-(end + blocks * stride - kernel) or np.iinfo(np.int64).max])
        cut = self._add("Slice", [flat, first, after, self._constant("axis.second", [1])], f"{name}.cut")
        self.last[layer.output] = f"{layer.output}.last"
        self._biased(layer, cut)
