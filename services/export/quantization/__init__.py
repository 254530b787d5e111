"""INT8 voices: calibrated on real speech, equalised, and quantised only where that is measured to be worth it."""

from services.export.quantization.recipe import QUANTISED, Quantised, quantise

__all__ = ["QUANTISED", "Quantised", "quantise"]
