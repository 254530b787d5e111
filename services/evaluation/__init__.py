"""Scoring speech: judges, measures, and the intervals that make two figures comparable.

A leaf: it knows neither training nor export nor synthesis, and only export may know it (docs/adr/0005).
"""

from services.evaluation.judges import Judges, Score
from services.evaluation.measures import log_spectral_distance
from services.evaluation.statistics import Difference, Estimate, compare

__all__ = ["Difference", "Estimate", "Judges", "Score", "compare", "log_spectral_distance"]
