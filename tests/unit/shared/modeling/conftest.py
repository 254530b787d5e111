"""Tiny models with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import VitsConfig
from transformers.models.vits.modeling_vits import VitsElementwiseAffine

from shared.modeling import VitsForTraining, VitsResblock2Config

MakeModel = Callable[..., VitsForTraining]


def tiny_config(**changes: Any) -> VitsConfig:
    """A VITS with every part that a real one has, each as small as it can be."""
    fields: dict[str, Any] = {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 16,
        "layerdrop": 0.0,
        "flow_size": 4,
        "spectrogram_bins": 9,
        "upsample_initial_channel": 8,
        "upsample_rates": [4, 2],
        "upsample_kernel_sizes": [8, 4],
        "resblock_kernel_sizes": [3, 5],
        "resblock_dilation_sizes": [[1, 3], [1, 3]],
        "posterior_encoder_num_wavenet_layers": 2,
        "prior_encoder_num_flows": 2,
        "prior_encoder_num_wavenet_layers": 2,
        "depth_separable_num_layers": 2,
        "duration_predictor_filter_channels": 8,
        "sampling_rate": 8000,
    }
    kind = VitsResblock2Config if changes.get("resblock_type") == "2" else VitsConfig
    return kind(**{**fields, **changes})


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """Make a tiny model in evaluation mode, every part of it at work, with durations of a few frames."""

    @torch.no_grad()
    def make(seed: int = 0, **changes: Any) -> VitsForTraining:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: Any = VitsForTraining(tiny_config(**changes))
            for module in model.modules():
                if isinstance(module, VitsElementwiseAffine):
                    module.log_scale.normal_(0.0, 0.3)
                    module.translate.normal_(0.0, 0.3)
            for name, parameter in model.duration_predictor.named_parameters():
                if name.endswith(("conv_proj.weight", "proj.weight")):
                    parameter.mul_(0.5)
            if not model.config.use_stochastic_duration_prediction:
                model.duration_predictor.proj.bias.fill_(1.0)
            for name, parameter in model.text_encoder.named_parameters():
                if name == "project.weight":
                    parameter.mul_(0.3)
        model.train(False)
        return cast("VitsForTraining", model)

    return make


@pytest.fixture(scope="session")
def without_dropout() -> Callable[[nn.Module], None]:
    """Switch every dropout off and leave the rest as it is."""

    def switch_off(module: nn.Module) -> None:
        for child in module.modules():
            if isinstance(child, nn.Dropout):
                child.p = 0.0

    return switch_off
