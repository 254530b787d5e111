"""A decoder graph as quantisation sees it: its convolutions, in stages, and the streams that join them.

The graph is the decoder that `services.export.graphs` writes: convolutions joined by leaky ReLU, additions and
divisions by a constant, ended by a hyperbolic tangent. It is read from ONNX, not from the model, so that a voice
folder is all that quantisation needs.

Shapes: B batch, C and O channels in and out, K kernel, L length of a signal at some stage's rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from shared.errors import ModelError

#: An initialiser: fp32 weights, and the integers that quantisation makes of them.
Weights = NDArray[Any]

#: Operators of one input through which a positive scale of each channel passes: f(s x) = s f(x).
HOMOGENEOUS = frozenset({"LeakyRelu", "Identity"})


@dataclass(frozen=True)
class Layer:
    """One convolution.

    Attributes:
        name: The model's name of it, such as ``resblocks.0.convs.1``.
        node: The name of its ONNX node.
        input: The tensor that it reads.
        output: The tensor that it writes.
        weight: The initialiser of its weight.
        bias: The initialiser of its bias, where it has one.
        transposed: It raises the rate.
        stage: How many of those come before it; 0 at the rate of the latents.
        residual: It belongs to a residual block.
    """

    name: str
    node: str
    input: str
    output: str
    weight: str
    bias: str | None
    transposed: bool
    stage: int
    residual: bool


class Decoder:
    """A decoder graph that can be read, scaled and rewritten.

    Args:
        model: The graph; changed in place by whatever is asked for.

    Raises:
        ModelError: It is not a decoder as ``vits export`` writes them.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.weights: dict[str, Weights] = {
            initializer.name: numpy_helper.to_array(initializer) for initializer in model.graph.initializer
        }
        self.layers = list(self._layers())
        self.last_stage = max((layer.stage for layer in self.layers), default=0)
        if not any(layer.residual for layer in self.layers):
            raise ModelError(
                "The decoder has no residual blocks after its upsampling convolutions; quantisation knows "
                "the decoders of VITS alone (MMS, original VITS, Piper)"
            )

    @classmethod
    def read(cls, path: Path) -> Decoder:
        """Read a decoder's ``.onnx`` file."""
        return cls(onnx.load(path))

    def _layers(self) -> Iterator[Layer]:
        stage_of: dict[str, int] = {}
        convolutions = [node for node in self.model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
        for node in self.model.graph.node:
            stage = max((stage_of.get(name, 0) for name in node.input), default=0)
            if node.op_type in ("Conv", "ConvTranspose"):
                transposed = node.op_type == "ConvTranspose"
                yield Layer(
                    name=node.input[1].removeprefix("decoder.").removesuffix(".weight"),
                    node=node.name,
                    input=node.input[0],
                    output=node.output[0],
                    weight=node.input[1],
                    bias=node.input[2] if len(node.input) > 2 else None,
                    transposed=transposed,
                    stage=stage,
                    residual=stage > 0 and not transposed and node is not convolutions[-1],
                )
                stage += transposed
            for name in node.output:
                stage_of[name] = stage

    @property
    def residual_layers(self) -> list[Layer]:
        """The convolutions of residual blocks, in the graph's order."""
        return [layer for layer in self.layers if layer.residual]

    def streams(self) -> list[Stream]:
        """The streams whose channels may be scaled: written and read by convolutions alone."""
        return find_streams(self)

    def store_weights(self) -> onnx.ModelProto:
        """Put the weights, as they are now, back into the graph, and return it."""
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value, order="C"), name)
            for name, value in self.weights.items()
        )
        return self.model


@dataclass(frozen=True)
class Stream:
    """Tensors that share their channels' scales, because additions and leaky ReLU tie them together.

    Attributes:
        writers: Convolutions whose output channels they are.
        readers: Convolutions whose input channels they are.
        tensors: Their names.
    """

    writers: tuple[Layer, ...]
    readers: tuple[Layer, ...]
    tensors: frozenset[str]


def find_streams(decoder: Decoder) -> list[Stream]:
    """See `Decoder.streams`."""
    graph = decoder.model.graph
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    fixed = {value.name for value in [*graph.input, *graph.output]}
    for node in graph.node:
        names = [name for name in [*node.input, *node.output] if name not in decoder.weights]
        if node.op_type in ("Conv", "ConvTranspose"):
            continue
        for name in names[1:]:
            leader[find(name)] = find(names[0])
        if not _lets_scales_pass(node, decoder.weights):
            fixed.update(names)
    pinned = {find(name) for name in fixed}
    streams = []
    for root in dict.fromkeys(find(layer.output) for layer in decoder.layers):
        if root in pinned:
            continue
        streams.append(
            Stream(
                writers=tuple(layer for layer in decoder.layers if find(layer.output) == root),
                readers=tuple(layer for layer in decoder.layers if find(layer.input) == root),
                tensors=frozenset(name for name in list(leader) if find(name) == root),
            )
        )
    return streams


def _lets_scales_pass(node: NodeProto, weights: Mapping[str, Weights]) -> bool:
    """Whether f(s x) = s f(x): so not where a constant is added, nor where two signals are multiplied."""
    constants = sum(name in weights for name in node.input)
    if node.op_type == "Add":
        return constants == 0
    if node.op_type in ("Mul", "Div"):
        return constants == 1 and node.input[-1] in weights and weights[node.input[-1]].size == 1
    return node.op_type in HOMOGENEOUS


def scale_stream(decoder: Decoder, stream: Stream, scale_C: Weights) -> None:
    """Multiply a stream's channels by positive scales without changing what the decoder computes.

    Its writers' weights and biases are multiplied, its readers' weights divided: leaky ReLU and addition let a
    positive scale pass (Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.1).

    Raises:
        ValueError: A scale is not positive.
    """
    if not bool((scale_C > 0).all()):
        raise ValueError("A channel's scale must be positive: leaky ReLU lets no other pass")
    for layer in stream.writers:
        _multiply(decoder, layer.weight, scale_C, axis=1 if layer.transposed else 0)
        if layer.bias is not None:
            _multiply(decoder, layer.bias, scale_C, axis=0)
    for layer in stream.readers:
        _multiply(decoder, layer.weight, 1 / scale_C, axis=0 if layer.transposed else 1)


def _multiply(decoder: Decoder, name: str, scale_C: Weights, *, axis: int) -> None:
    weight = decoder.weights[name]
    shape = [1] * weight.ndim
    shape[axis] = -1
    decoder.weights[name] = (weight * scale_C.reshape(shape)).astype(np.float32)


def in_two_dimensions(decoder: Decoder) -> None:
    """Rewrite the convolutions over ``[B, C, L]`` as convolutions over images ``[B, C, 1, L]``.

    The values are the same. OpenVINO's kernels for images are the faster ones: for fp32 by a quarter, for bf16
    by two.
    """
    graph = decoder.model.graph
    weights = decoder.weights
    weights["axis_of_height"] = np.array([2], dtype=np.int64)
    made_by_convolution: set[str] = set()
    nodes: list[NodeProto] = []
    raised: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            if node.input[0] not in made_by_convolution:
                source = node.input[0]
                if source not in raised:
                    raised[source] = f"{source}_image"
                    nodes.append(helper.make_node("Unsqueeze", [source, "axis_of_height"], [raised[source]]))
                node.input[0] = raised[source]
            _raise_attributes(node)
            weights[node.input[1]] = np.expand_dims(weights[node.input[1]], 2)
            made_by_convolution.update(node.output)
        elif node.op_type == "Tanh":
            output = node.output[0]
            node.output[0] = f"{output}_image"
            nodes.extend([node, helper.make_node("Squeeze", [node.output[0], "axis_of_height"], [output])])
            continue
        elif any(name in made_by_convolution for name in node.input):
            made_by_convolution.update(node.output)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    decoder.layers = list(decoder._layers())


def _raise_attributes(node: NodeProto) -> None:
    """Give a convolution's attributes an axis of height, over which it does nothing."""
    for attribute in node.attribute:
        values = list(attribute.ints)
        if attribute.name in ("kernel_shape", "strides", "dilations"):
            values = [1, *values]
        elif attribute.name == "pads":
            values = [0, values[0], 0, values[1]]
        elif attribute.name == "output_padding":
            values = [0, *values]
        else:
            continue
        del attribute.ints[:]
        attribute.ints.extend(values)
