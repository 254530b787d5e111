"""The halos: proved on real decoders and flows by moving one frame and seeing what moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import VitsConfig

from services.export.halo import flow_halo_frames, halo_frames
from shared.errors import ModelError
from shared.modeling import VitsForTraining, VitsResblock2Config

JOE: dict[str, Any] = {
    "upsample_rates": [8, 8, 4],
    "upsample_kernel_sizes": [16, 16, 8],
    "resblock_kernel_sizes": [3, 5, 7],
    "resblock_dilation_sizes": [[1, 2], [2, 6], [3, 12]],
}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(VitsConfig(upsample_initial_channel=32), id="MMS"),
        pytest.param(VitsResblock2Config(upsample_initial_channel=16, **JOE), id="Joe"),
        pytest.param(
            VitsConfig(upsample_initial_channel=8, upsample_rates=[3, 2], upsample_kernel_sizes=[7, 2]),
            id="odd",
        ),
        pytest.param(
            VitsConfig(
                upsample_initial_channel=8,
                upsample_rates=[2, 2],
                upsample_kernel_sizes=[2, 8],
                resblock_kernel_sizes=[3],
                resblock_dilation_sizes=[[9]],
            ),
            id="narrow",
        ),
    ],
)
def test_a_frame_reaches_as_far_as_the_halo_and_no_farther(config: VitsConfig) -> None:
    config.flow_size = 4
    config.num_hidden_layers = config.posterior_encoder_num_wavenet_layers = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # float64, so that the faint edge of the receptive field does not drown in rounding
        decoder = VitsForTraining(config).decoder.double().eval()
        halo = halo_frames(config)
        frames, moved = 2 * halo + 9, halo + 4
        latents = torch.randn(1, 4, frames, dtype=torch.float64)
    other = latents.clone()
    other[:, :, moved] += 1
    with torch.no_grad():
        change = (decoder(other) - decoder(latents))[0, 0].reshape(frames, -1).abs().amax(dim=1).numpy()
    reached = np.flatnonzero(change) - moved
    assert max(-reached.min(), reached.max()) == halo


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"prior_encoder_num_flows": 2}, id="MMS"),  # the edge of four is lost in rounding
        pytest.param(
            {
                "prior_encoder_num_flows": 2,
                "prior_encoder_num_wavenet_layers": 3,
                "wavenet_kernel_size": 3,
                "wavenet_dilation_rate": 2,
            },
            id="dilated",
        ),
    ],
)
def test_a_frame_reaches_as_far_as_the_halo_of_the_flow_and_no_farther(changes: dict[str, Any]) -> None:
    config = VitsConfig(hidden_size=8, flow_size=4, num_hidden_layers=1, num_attention_heads=2, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = VitsForTraining(config).flow.double().eval()
        with torch.no_grad():
            for parameter in flow.parameters():  # couplings begin at zero, and would pass nothing on
                parameter.normal_()
        halo = flow_halo_frames(config)
        frames, moved = 2 * halo + 9, halo + 4
        sample = 0.1 * torch.randn(1, 4, frames, dtype=torch.float64)
    other = sample.clone()
    other[:, :, moved] += 1
    mask = torch.ones(1, 1, frames, dtype=torch.float64)
    with torch.no_grad():
        change = flow(other, mask, reverse=True) - flow(sample, mask, reverse=True)
    reached = np.flatnonzero(change[0].abs().amax(dim=0).numpy()) - moved
    assert max(-reached.min(), reached.max()) == halo


def test_the_halos_of_known_models() -> None:
    assert halo_frames(VitsConfig()) == 13
    assert halo_frames(VitsResblock2Config(**JOE)) == 11
    assert flow_halo_frames(VitsConfig()) == 32


@pytest.mark.parametrize(("rate", "kernel"), [(2, 5), (8, 4)])
def test_upsampling_that_is_not_whole_is_refused(rate: int, kernel: int) -> None:
    config = VitsConfig(upsample_rates=[rate], upsample_kernel_sizes=[kernel])
    with pytest.raises(ModelError, match="whole number of samples"):
        halo_frames(config)
