"""The halo: proved on real decoders by moving one latent frame and seeing which samples move."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import VitsConfig

from services.export.halo import halo_frames
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


def test_the_halos_of_known_decoders() -> None:
    assert halo_frames(VitsConfig()) == 13
    assert halo_frames(VitsResblock2Config(**JOE)) == 11


@pytest.mark.parametrize(("rate", "kernel"), [(2, 5), (8, 4)])
def test_upsampling_that_is_not_whole_is_refused(rate: int, kernel: int) -> None:
    config = VitsConfig(upsample_rates=[rate], upsample_kernel_sizes=[kernel])
    with pytest.raises(ModelError, match="whole number of samples"):
        halo_frames(config)
