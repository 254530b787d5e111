"""Recordings and transcripts: fetching, reading, checking, inspecting. Never imports torch."""

from services.training.data.card import DatasetCard, read_card
from services.training.data.reading import read_recordings
from services.training.data.recordings import Recording

__all__ = ["DatasetCard", "Recording", "read_card", "read_recordings"]
