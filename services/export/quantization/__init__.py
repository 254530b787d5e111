"""INT8 voices: calibrated on real speech, equalised, and quantised only where that is measured to be worth it."""

from services.export.quantization.recipe import Quantised, quantise

__all__ = ["Quantised", "quantise"]
