"""``vits convert``: other projects' voices, turned into model folders."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The arguments of ``vits convert``."""
    top = argparse.ArgumentParser(prog="vits convert", description=__doc__)
    kinds = top.add_subparsers(dest="kind", required=True, metavar="KIND")
    piper = kinds.add_parser(
        "piper",
        help="a Piper voice (ONNX)",
        description="Turn a Piper ONNX voice into a Hugging Face VITS folder that 'vits train', 'vits export' and "
        "'vits say --checkpoint' load. The result is compared with ONNX Runtime on the original at zero noise.",
        epilog="example: vits convert piper en_US-joe-medium.onnx --output models/joe --espeak-voice es-419",
    )
    piper.add_argument("voice", type=Path, help="the .onnx file; its .onnx.json must be beside it")
    piper.add_argument("--output", type=Path, required=True, help="the model folder to write")
    piper.add_argument(
        "--espeak-voice",
        metavar="NAME",
        help="phonemise by another espeak-ng voice than the one in the JSON, to train another language (es-419, de, …)",
    )
    piper.add_argument("--licence", help="the voice's licence, to travel with everything made from it")
    return top


def main(argv: Sequence[str]) -> int:
    """Run ``vits convert``."""
    arguments = parser().parse_args(argv)
    from services.export.convert.piper import convert

    difference = convert(
        arguments.voice, arguments.output, espeak_voice=arguments.espeak_voice, licence=arguments.licence
    )
    print(
        f"{arguments.output}: converted; differs from the original by at most {difference:.1e} at zero noise"
    )
    return 0
