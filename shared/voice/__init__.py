"""A voice at work: from a text to samples, on any engine, the same samples whatever the circumstances."""

from shared.voice.engine import Engine, OnnxRuntimeEngine, open_engine
from shared.voice.spec import VoiceSpec
from shared.voice.voice import Plan, Speech, SpeechParameters, Utterance, Voice

__all__ = [
    "Engine",
    "OnnxRuntimeEngine",
    "Plan",
    "Speech",
    "SpeechParameters",
    "Utterance",
    "Voice",
    "VoiceSpec",
    "open_engine",
]
