"""Original VITS, written anew from its equations over a plain dictionary of weights by its own names.

Nothing here comes from the suite or from ``transformers``: it is what conversions are compared with.
Float64 and one utterance at a time, without masks. Shapes: D channels, T tokens, F frames, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """A VITS as small as it can be, with every part at work."""

    vocabulary: int = 12
    hidden: int = 8
    heads: int = 2
    layers: int = 2
    filters: int = 16
    window: int = 4
    latent: int = 6
    bins: int = 9
    posterior_layers: int = 3
    couplings: int = 2
    coupling_layers: int = 2
    duration_flows: int = 3
    bins_of_spline: int = 10
    rates: tuple[int, ...] = (4, 2)
    kernels: tuple[int, ...] = (8, 4)
    channels: int = 16
    block_kernels: tuple[int, ...] = (3, 5)
    dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5))
    resblock: str = "1"
    stochastic: bool = True
    speakers: int = 0
    embedding: int = 4


class _Maker:
    """Random weights by their names, as ``torch.nn`` and the old weight norm would have registered them."""

    def __init__(self, seed: int) -> None:
        self.weights: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)

    def tensor(self, name: str, *shape: int, scale: float = 0.5) -> None:
        self.weights[name] = scale * torch.randn(shape, generator=self._generator)

    def convolution(self, name: str, *shape: int, normed: bool = False, bias: bool | int = True) -> None:
        fan_in = math.prod(shape[1:])
        if normed:
            self.tensor(f"{name}.weight_v", *shape)
            magnitudes = (shape[0], *(1 for _ in shape[1:]))
            self.weights[f"{name}.weight_g"] = 0.3 + torch.rand(magnitudes, generator=self._generator)
        else:
            self.tensor(f"{name}.weight", *shape, scale=fan_in**-0.5)
        if bias:
            self.tensor(f"{name}.bias", bias if bias is not True else shape[0], scale=0.1)

    def norm(self, name: str, channels: int) -> None:
        self.weights[f"{name}.gamma"] = 0.8 + 0.4 * torch.rand(channels, generator=self._generator)
        self.tensor(f"{name}.beta", channels, scale=0.1)


def make_generator(sizes: Sizes, seed: int = 0) -> dict[str, Tensor]:
    """The state dict of a ``SynthesizerTrn`` with random weights."""
    make, hidden = _Maker(seed), sizes.hidden
    embedding = sizes.embedding if sizes.speakers else 0
    make.tensor("enc_p.emb.weight", sizes.vocabulary, hidden)
    for layer in range(sizes.layers):
        attention, feed = f"enc_p.encoder.attn_layers.{layer}", f"enc_p.encoder.ffn_layers.{layer}"
        for part in "qkvo":
            make.convolution(f"{attention}.conv_{part}", hidden, hidden, 1)
        for part in "kv":
            make.tensor(f"{attention}.emb_rel_{part}", 1, 2 * sizes.window + 1, hidden // sizes.heads)
        make.convolution(f"{feed}.conv_1", sizes.filters, hidden, 3)
        make.convolution(f"{feed}.conv_2", hidden, sizes.filters, 3)
        make.norm(f"enc_p.encoder.norm_layers_1.{layer}", hidden)
        make.norm(f"enc_p.encoder.norm_layers_2.{layer}", hidden)
    make.convolution("enc_p.proj", 2 * sizes.latent, hidden, 1)

    make.convolution("enc_q.pre", hidden, sizes.bins, 1)
    _make_wavenet(make, "enc_q.enc", sizes, sizes.posterior_layers, embedding)
    make.convolution("enc_q.proj", 2 * sizes.latent, hidden, 1)

    for coupling in range(sizes.couplings):
        name = f"flow.flows.{2 * coupling}"
        make.convolution(f"{name}.pre", hidden, sizes.latent // 2, 1)
        _make_wavenet(make, f"{name}.enc", sizes, sizes.coupling_layers, embedding)
        make.convolution(f"{name}.post", sizes.latent // 2, hidden, 1)

    _make_decoder(make, sizes, embedding)
    if sizes.stochastic:
        _make_stochastic(make, sizes, embedding)
    else:
        make.convolution("dp.conv_1", 10, hidden, 3)
        make.norm("dp.norm_1", 10)
        make.convolution("dp.conv_2", 10, 10, 3)
        make.norm("dp.norm_2", 10)
        make.convolution("dp.proj", 1, 10, 1)
        if embedding:
            make.convolution("dp.cond", hidden, embedding, 1)
    if embedding:
        make.tensor("emb_g.weight", sizes.speakers, embedding, scale=1.0)
    return make.weights


def _make_wavenet(make: _Maker, name: str, sizes: Sizes, layers: int, embedding: int) -> None:
    hidden = sizes.hidden
    if embedding:
        make.convolution(f"{name}.cond_layer", 2 * hidden * layers, embedding, 1, normed=True)
    for layer in range(layers):
        make.convolution(f"{name}.in_layers.{layer}", 2 * hidden, hidden, 5, normed=True)
        width = hidden if layer == layers - 1 else 2 * hidden
        make.convolution(f"{name}.res_skip_layers.{layer}", width, hidden, 1, normed=True)


def _make_decoder(make: _Maker, sizes: Sizes, embedding: int) -> None:
    make.convolution("dec.conv_pre", sizes.channels, sizes.latent, 7)
    if embedding:
        make.convolution("dec.cond", sizes.channels, embedding, 1)
    block = 0
    for stage, kernel in enumerate(sizes.kernels):
        before, after = sizes.channels // 2**stage, sizes.channels // 2 ** (stage + 1)
        make.convolution(f"dec.ups.{stage}", before, after, kernel, normed=True, bias=after)
        for width, dilations in zip(sizes.block_kernels, sizes.dilations, strict=True):
            for step in range(len(dilations)):
                for part in ("convs1", "convs2") if sizes.resblock == "1" else ("convs",):
                    name = f"dec.resblocks.{block}.{part}.{step}"
                    make.convolution(name, after, after, width, normed=True)
            block += 1
    make.convolution("dec.conv_post", 1, after, 7, bias=False)


def _make_stochastic(make: _Maker, sizes: Sizes, embedding: int) -> None:
    hidden = sizes.hidden
    make.convolution("dp.pre", hidden, hidden, 1)
    make.convolution("dp.proj", hidden, hidden, 1)
    _make_separable(make, "dp.convs", hidden)
    make.convolution("dp.post_pre", hidden, 1, 1)
    make.convolution("dp.post_proj", hidden, hidden, 1)
    _make_separable(make, "dp.post_convs", hidden)
    for flows in ("dp.flows", "dp.post_flows"):
        make.tensor(f"{flows}.0.m", 2, 1, scale=0.3)
        make.tensor(f"{flows}.0.logs", 2, 1, scale=0.3)
        for flow in range(sizes.duration_flows):
            name = f"{flows}.{2 * flow + 1}"
            make.convolution(f"{name}.pre", hidden, 1, 1)
            _make_separable(make, f"{name}.convs", hidden)
            make.convolution(f"{name}.proj", 3 * sizes.bins_of_spline - 1, hidden, 1)
    if embedding:
        make.convolution("dp.cond", hidden, embedding, 1)


def _make_separable(make: _Maker, name: str, hidden: int) -> None:
    for layer in range(3):
        make.convolution(f"{name}.convs_sep.{layer}", hidden, 1, 3)
        make.convolution(f"{name}.convs_1x1.{layer}", hidden, hidden, 1)
        make.norm(f"{name}.norms_1.{layer}", hidden)
        make.norm(f"{name}.norms_2.{layer}", hidden)


# --- Running it ------------------------------------------------------------------------------------


def weight(weights: Weights, name: str) -> Tensor:
    """A plain weight, or ``g · v / ‖v‖``."""
    if f"{name}.weight" in weights:
        return weights[f"{name}.weight"].double()
    direction, magnitude = weights[f"{name}.weight_v"].double(), weights[f"{name}.weight_g"].double()
    lengths = torch.linalg.vector_norm(direction.flatten(1), dim=1).reshape(magnitude.shape)
    folded: Tensor = magnitude * direction / lengths
    return folded


def convolve(weights: Weights, name: str, x: Tensor, *, dilation: int = 1, groups: int = 1) -> Tensor:
    """A convolution [1, C, T] that keeps the length."""
    kernel = weight(weights, name)
    bias = weights[f"{name}.bias"].double() if f"{name}.bias" in weights else None
    padding = dilation * (kernel.shape[2] - 1) // 2
    return functional.conv1d(x, kernel, bias, padding=padding, dilation=dilation, groups=groups)


def normalise(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Layer norm over channels."""
    centred = x - x.mean(1, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(1, keepdim=True) + 1e-5)
    gamma, beta = weights[f"{name}.gamma"].double(), weights[f"{name}.beta"].double()
    return scaled * gamma[None, :, None] + beta[None, :, None]


def encode_text(weights: Weights, sizes: Sizes, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [1, D, T], prior mean and log-std."""
    x = weights["enc_p.emb.weight"].double()[ids].T[None] * math.sqrt(sizes.hidden)
    for layer in range(sizes.layers):
        x = normalise(weights, f"enc_p.encoder.norm_layers_1.{layer}", x + _attend(weights, sizes, layer, x))
        feed = f"enc_p.encoder.ffn_layers.{layer}"
        y = convolve(weights, f"{feed}.conv_2", convolve(weights, f"{feed}.conv_1", x).relu())
        x = normalise(weights, f"enc_p.encoder.norm_layers_2.{layer}", x + y)
    mean, log_std = convolve(weights, "enc_p.proj", x).chunk(2, 1)
    return x, mean, log_std


def _attend(weights: Weights, sizes: Sizes, layer: int, x: Tensor) -> Tensor:
    """Attention whose keys and values know their distance, up to the window (Shaw et al.)."""
    name, tokens, head = (
        f"enc_p.encoder.attn_layers.{layer}",
        x.shape[2],
        sizes.hidden // sizes.heads,
    )
    query, key, value = (
        convolve(weights, f"{name}.conv_{part}", x).reshape(sizes.heads, head, tokens) for part in "qkv"
    )
    near_keys, near_values = (weights[f"{name}.emb_rel_{part}"][0].double() for part in "kv")
    out = torch.zeros(sizes.heads, head, tokens, dtype=torch.float64)
    for i in range(tokens):
        window = [j for j in range(tokens) if abs(j - i) <= sizes.window]
        scores = torch.einsum("hd,hdt->ht", query[:, :, i], key)
        for j in window:
            scores[:, j] += query[:, :, i] @ near_keys[j - i + sizes.window]
        shares = torch.softmax(scores / math.sqrt(head), 1)
        out[:, :, i] = torch.einsum("ht,hdt->hd", shares, value)
        for j in window:
            out[:, :, i] += shares[:, j, None] * near_values[j - i + sizes.window]
    return convolve(weights, f"{name}.conv_o", out.reshape(1, sizes.hidden, tokens))


def wavenet(weights: Weights, name: str, x: Tensor, layers: int, speaker: Tensor | None) -> Tensor:
    """Gated convolutions with skip connections."""
    hidden, out = x.shape[1], torch.zeros_like(x)
    condition = None if speaker is None else convolve(weights, f"{name}.cond_layer", speaker)
    for layer in range(layers):
        y = convolve(weights, f"{name}.in_layers.{layer}", x)
        if condition is not None:
            y = y + condition[:, 2 * hidden * layer : 2 * hidden * (layer + 1)]
        y = convolve(
            weights,
            f"{name}.res_skip_layers.{layer}",
            torch.tanh(y[:, :hidden]) * torch.sigmoid(y[:, hidden:]),
        )
        if layer < layers - 1:
            x = x + y[:, :hidden]
            y = y[:, hidden:]
        out = out + y
    return out


def encode_speech(
    weights: Weights, sizes: Sizes, spectrogram: Tensor, speaker: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The posterior's mean and log-std [1, D, F]."""
    x = convolve(weights, "enc_q.pre", spectrogram)
    x = wavenet(weights, "enc_q.enc", x, sizes.posterior_layers, speaker)
    mean, log_std = convolve(weights, "enc_q.proj", x).chunk(2, 1)
    return mean, log_std


def couple(weights: Weights, sizes: Sizes, z: Tensor, speaker: Tensor | None) -> Tensor:
    """The flow from the posterior to the prior: couplings, each followed by a flip."""
    for coupling in range(sizes.couplings):
        name = f"flow.flows.{2 * coupling}"
        first, second = z.chunk(2, 1)
        shift = wavenet(
            weights, f"{name}.enc", convolve(weights, f"{name}.pre", first), sizes.coupling_layers, speaker
        )
        z = torch.cat([first, second + convolve(weights, f"{name}.post", shift)], 1).flip(1)
    return z


def decode(weights: Weights, sizes: Sizes, z: Tensor, speaker: Tensor | None) -> Tensor:
    """HiFi-GAN: latents [1, D, F] → [1, 1, S]."""
    x = convolve(weights, "dec.conv_pre", z)
    if speaker is not None:
        x = x + convolve(weights, "dec.cond", speaker)
    block = 0
    for stage, (rate, kernel) in enumerate(zip(sizes.rates, sizes.kernels, strict=True)):
        name = f"dec.ups.{stage}"
        x = functional.conv_transpose1d(
            functional.leaky_relu(x, 0.1),
            weight(weights, name),
            weights[f"{name}.bias"].double(),
            stride=rate,
            padding=(kernel - rate) // 2,
        )
        outputs = []
        for dilations in sizes.dilations:
            outputs.append(_block(weights, sizes, f"dec.resblocks.{block}", x, dilations))
            block += 1
        x = torch.stack(outputs).mean(0)
    return torch.tanh(convolve(weights, "dec.conv_post", functional.leaky_relu(x, 0.01)))


def _block(weights: Weights, sizes: Sizes, name: str, x: Tensor, dilations: Sequence[int]) -> Tensor:
    for step, dilation in enumerate(dilations):
        y = functional.leaky_relu(x, 0.1)
        if sizes.resblock == "1":
            y = convolve(weights, f"{name}.convs1.{step}", y, dilation=dilation)
            y = convolve(weights, f"{name}.convs2.{step}", functional.leaky_relu(y, 0.1))
        else:
            y = convolve(weights, f"{name}.convs.{step}", y, dilation=dilation)
        x = x + y
    return x


def _separable(weights: Weights, name: str, x: Tensor, condition: Tensor | None = None) -> Tensor:
    if condition is not None:
        x = x + condition
    for layer in range(3):
        y = convolve(weights, f"{name}.convs_sep.{layer}", x, dilation=3**layer, groups=x.shape[1])
        y = functional.gelu(normalise(weights, f"{name}.norms_1.{layer}", y))
        y = convolve(weights, f"{name}.convs_1x1.{layer}", y)
        x = x + functional.gelu(normalise(weights, f"{name}.norms_2.{layer}", y))
    return x


def _spline(x: Tensor, parameters: Tensor, bins: int, hidden: int) -> tuple[Tensor, Tensor]:
    """A monotone rational-quadratic spline on [−5, 5] and its log-slope, point by point (Durkan et al.)."""
    parameters = parameters.reshape(3 * bins - 1, -1).T
    widths, heights = (
        10 * (0.001 + (1 - 0.001 * bins) * torch.softmax(part / math.sqrt(hidden), 1))
        for part in (parameters[:, :bins], parameters[:, bins : 2 * bins])
    )
    inner = 0.001 + functional.softplus(parameters[:, 2 * bins :])
    ones = torch.ones(len(inner), 1, dtype=torch.float64)
    slopes = torch.cat([ones, inner, ones], 1)
    out, log_slope = x.clone(), torch.zeros_like(x)
    for point in range(len(x)):
        if abs(float(x[point])) >= 5:
            continue
        edge, level = torch.tensor(-5.0, dtype=torch.float64), torch.tensor(-5.0, dtype=torch.float64)
        for number in range(bins):
            width, height = widths[point, number], heights[point, number]
            if x[point] <= edge + width or number == bins - 1:
                break
            edge, level = edge + width, level + height
        left, right, steep = slopes[point, number], slopes[point, number + 1], height / width
        at = (x[point] - edge) / width
        bottom = steep + (left + right - 2 * steep) * at * (1 - at)
        out[point] = level + height * (steep * at**2 + left * at * (1 - at)) / bottom
        top = steep**2 * (right * at**2 + 2 * steep * at * (1 - at) + left * (1 - at) ** 2)
        log_slope[point] = torch.log(top) - 2 * torch.log(bottom)
    return out, log_slope


def _spline_flow(
    weights: Weights, sizes: Sizes, name: str, z: Tensor, condition: Tensor
) -> tuple[Tensor, Tensor]:
    first, second = z[:, :1], z[:, 1:]
    hidden = _separable(weights, f"{name}.convs", convolve(weights, f"{name}.pre", first), condition)
    moved, log_slope = _spline(
        second.flatten(),
        convolve(weights, f"{name}.proj", hidden),
        sizes.bins_of_spline,
        sizes.hidden,
    )
    return torch.cat([first, moved.reshape(second.shape)], 1), log_slope.sum()


def _flows(weights: Weights, sizes: Sizes, name: str, z: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """An affine flow, then splines, each followed by a flip."""
    log_scale = weights[f"{name}.0.logs"].double()
    z = weights[f"{name}.0.m"].double() + torch.exp(log_scale) * z
    total = log_scale.sum() * z.shape[2]
    for flow in range(sizes.duration_flows):
        z, change = _spline_flow(weights, sizes, f"{name}.{2 * flow + 1}", z, condition)
        z, total = z.flip(1), total + change
    return z, total


def _condition(weights: Weights, hidden: Tensor, speaker: Tensor | None) -> Tensor:
    x = convolve(weights, "dp.pre", hidden)
    if speaker is not None:
        x = x + convolve(weights, "dp.cond", speaker)
    return convolve(weights, "dp.proj", _separable(weights, "dp.convs", x))


def duration_loss(
    weights: Weights,
    sizes: Sizes,
    hidden: Tensor,
    durations: Tensor,
    noise: Tensor,
    speaker: Tensor | None,
) -> Tensor:
    """The stochastic predictor's bound in nats; durations [1, 1, T], noise [1, 2, T]."""
    condition = _condition(weights, hidden, speaker)
    seen = _separable(weights, "dp.post_convs", convolve(weights, "dp.post_pre", durations))
    seen = convolve(weights, "dp.post_proj", seen)
    z, log_q = _flows(weights, sizes, "dp.post_flows", noise, condition + seen)
    log_q = log_q + (functional.logsigmoid(z[:, :1]) + functional.logsigmoid(-z[:, :1])).sum()
    log_q = (-0.5 * (math.log(2 * math.pi) + noise**2)).sum() - log_q
    logs = torch.log((durations - torch.sigmoid(z[:, :1])).clamp_min(1e-5))
    z, log_p = _flows(weights, sizes, "dp.flows", torch.cat([logs, z[:, 1:]], 1), condition)
    return (0.5 * (math.log(2 * math.pi) + z**2)).sum() - (log_p - logs.sum()) + log_q


def predict_durations(weights: Weights, hidden: Tensor, speaker: Tensor | None) -> Tensor:
    """The deterministic predictor's log-durations [1, 1, T]."""
    x = hidden if speaker is None else hidden + convolve(weights, "dp.cond", speaker)
    for number in (1, 2):
        x = normalise(weights, f"dp.norm_{number}", convolve(weights, f"dp.conv_{number}", x).relu())
    return convolve(weights, "dp.proj", x)


# --- The discriminator -----------------------------------------------------------------------------

STRIDES_AND_GROUPS = [(1, 1), (4, 4), (4, 16), (4, 64), (4, 256), (1, 1)]
PERIODS = (2, 3, 5, 7, 11)


def discriminator_shapes(scale: Sequence[int], period: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The shape of each layer's weight; published models have 16, 64, 256, 1024 and 32, 128, 512, 1024."""
    first, second, third, fourth = scale
    layers = {
        "convs.0": (first, 1, 15),
        "convs.1": (second, first // 4, 41),
        "convs.2": (third, second // 16, 41),
        "convs.3": (fourth, third // 64, 41),
        "convs.4": (fourth, fourth // 256, 41),
        "convs.5": (fourth, fourth, 5),
        "conv_post": (1, fourth, 3),
    }
    shapes: dict[str, tuple[int, ...]] = {f"discriminators.0.{name}": layers[name] for name in layers}
    for number in range(1, 1 + len(PERIODS)):
        before = 1
        for layer, after in enumerate((*period, period[-1])):
            shapes[f"discriminators.{number}.convs.{layer}"] = (after, before, 5, 1)
            before = after
        shapes[f"discriminators.{number}.conv_post"] = (1, before, 3, 1)
    return shapes


def make_discriminator(
    seed: int = 0, *, scale: Sequence[int] = (4, 16, 64, 256), period: Sequence[int] = (2, 4, 8, 16)
) -> dict[str, Tensor]:
    """The state dict of a ``MultiPeriodDiscriminator`` with random weights."""
    make = _Maker(seed)
    for name, shape in discriminator_shapes(scale, period).items():
        make.convolution(name, *shape, normed=True)
    return make.weights


def judge(weights: Weights, waveform: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
    """Each network's score [1, N] of a waveform [1, 1, S], and its activations."""
    judgements = []
    for number, period in enumerate((None, *PERIODS)):
        name, x = f"discriminators.{number}", waveform
        if period is not None:
            x = functional.pad(x, (0, -x.shape[2] % period), mode="reflect")
            x = x.reshape(1, 1, -1, period)
        activations = []
        layers = [f"convs.{layer}" for layer in range(6 if period is None else 5)]
        for layer, part in enumerate([*layers, "conv_post"]):
            kernel, bias = weight(weights, f"{name}.{part}"), weights[f"{name}.{part}.bias"].double()
            padding = kernel.shape[2] // 2
            last = part == "conv_post"
            if period is None:
                stride, groups = (1, 1) if last else STRIDES_AND_GROUPS[layer]
                x = functional.conv1d(x, kernel, bias, stride=stride, padding=padding, groups=groups)
            else:
                stride = 3 if layer < 4 else 1
                x = functional.conv2d(x, kernel, bias, stride=(stride, 1), padding=(padding, 0))
            x = x if last else functional.leaky_relu(x, 0.1)
            activations.append(x)
        judgements.append((x.flatten(1), activations))
    return judgements
