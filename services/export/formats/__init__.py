"""Formats that other programs read: one file of ONNX for a whole model, instead of our voice's three graphs."""

from __future__ import annotations

#: What ``vits export --format`` can write, and what reads it.
FORMATS: dict[str, str] = {
    "sherpa-onnx": "one graph and tokens.txt, for sherpa-onnx on phones, boards and desktops",
    "transformers-js": "onnx/model.onnx and tokenizer.json, for @huggingface/transformers in browsers and Node",
    "piper": "NAME.onnx and NAME.onnx.json, for piper-tts and what is built on it; of Piper bases only",
}
