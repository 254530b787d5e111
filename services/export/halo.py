"""How far the decoder and the flow look to either side of a frame, from the configuration alone.

A window that is cut from the latents with this many frames to spare on each side gives, for the frames
between, the very samples that decoding the whole would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import VitsConfig

from shared.errors import ModelError


@dataclass(frozen=True)
class Reach:
    """An interval of positions ``[first, last]`` that some output depends on, frame 0 being the origin."""

    first: int
    last: int

    def convolution(self, kernel_size: int, dilation: int = 1) -> Reach:
        """Before a "same" convolution, whose output o reads o - p … o - p + (kernel - 1) · dilation."""
        span = (kernel_size - 1) * dilation
        return Reach(self.first - span // 2, self.last + span - span // 2)

    def transposed_convolution(self, kernel_size: int, stride: int) -> Reach:
        """Before an upsampling, whose input i adds to outputs i·stride - p … i·stride - p + kernel - 1."""
        padding = (kernel_size - stride) // 2
        return Reach(-((kernel_size - 1 - padding - self.first) // stride), (self.last + padding) // stride)

    def union(self, other: Reach) -> Reach:
        """The smallest interval that holds both."""
        return Reach(min(self.first, other.first), max(self.last, other.last))


def residual_block(reach: Reach, kernel_size: int, dilations: Sequence[int], resblock_type: str) -> Reach:
    """Before a HiFi-GAN residual block: ResBlock1 follows each dilated convolution by a plain one."""
    for dilation in reversed(dilations):
        if resblock_type == "1":
            reach = reach.convolution(kernel_size)
        reach = reach.convolution(kernel_size, dilation)
    return reach


def halo_frames(config: VitsConfig) -> int:
    """The one-sided receptive field of the decoder, in latent frames.

    Walks from the samples of one frame back to the latents: ``conv_post`` (kernel 7), then for each stage its
    residual blocks, of which the widest counts, and its transposed convolution, then ``conv_pre`` (kernel 7).

    Raises:
        ModelError: The configuration's upsampling does not yield ``hop_length`` samples a frame.
    """
    stages = list(zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True))
    for stride, kernel_size in stages:
        if kernel_size < stride or (kernel_size - stride) % 2:
            raise ModelError(
                f"upsample_kernel_sizes {kernel_size} does not suit upsample_rates {stride}, for the decoder must "
                "make a whole number of samples a frame. Kernel minus rate must be even and not negative."
            )
    hop_length = 1
    for stride, _ in stages:
        hop_length *= stride
    reach = Reach(0, hop_length - 1).convolution(7)
    for stride, upsample_kernel_size in reversed(stages):
        blocks = zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
        stage_output = reach
        for kernel_size, dilations in blocks:
            block = residual_block(
                stage_output, kernel_size, dilations, getattr(config, "resblock_type", "1")
            )
            reach = reach.union(block)
        reach = reach.transposed_convolution(upsample_kernel_size, stride)
    reach = reach.convolution(7)
    return max(-reach.first, reach.last)


def flow_halo_frames(config: VitsConfig) -> int:
    """The one-sided receptive field of the flow, in frames: that of its couplings' WaveNets, one behind the other."""
    reach = Reach(0, 0)
    for _ in range(config.prior_encoder_num_flows):
        for layer in range(config.prior_encoder_num_wavenet_layers):
            reach = reach.convolution(config.wavenet_kernel_size, config.wavenet_dilation_rate**layer)
    return max(-reach.first, reach.last)
