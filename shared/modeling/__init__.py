"""The one VITS definition that training, export and converters use."""

from shared.modeling.inference import Utterance, speak, synthesize
from shared.modeling.loading import load_model, read_discriminator, save_model
from shared.modeling.model import (
    PriorOutput,
    TrainingOutput,
    VitsForTraining,
    VitsResblock2Config,
    resblock_type,
)
from shared.modeling.weight_norm import fold_weight_norm

__all__ = [
    "PriorOutput",
    "TrainingOutput",
    "Utterance",
    "VitsForTraining",
    "VitsResblock2Config",
    "fold_weight_norm",
    "load_model",
    "read_discriminator",
    "resblock_type",
    "save_model",
    "speak",
    "synthesize",
]
