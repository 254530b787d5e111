"""``vits convert``: what its help promises."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from services.convert import main, parser

KINDS = ("mms-discriminator", "vits", "finetune-hf-vits", "piper", "multi-speaker")


def help_of(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_lists_every_conversion(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys=capsys)
    assert all(re.search(rf"^    {kind}\b", text, re.MULTILINE) for kind in KINDS)
    assert "Nothing is ever unpickled" in text


@pytest.mark.parametrize("kind", ["", *KINDS])
def test_every_example_can_be_typed_as_it_stands(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(*filter(None, [kind]), capsys=capsys)
    examples = re.findall(rf"vits convert ((?:{'|'.join(KINDS)}) .*)", text.partition("\n\n")[2])
    assert examples
    for example in examples:
        arguments = parser().parse_args(shlex.split(example))
        assert example.startswith(kind or arguments.kind)
        assert arguments.output


def test_help_of_a_conversion_imports_nothing_heavy() -> None:
    program = f"""
import contextlib, io, sys
from services.convert import main
for kind in {KINDS}:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main([kind, "--help"])
print([name for name in ("torch", "transformers", "onnx", "numpy", "pydantic") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


@pytest.mark.parametrize("arguments", [[], ["pipper", "--output", "x"], ["piper", "voice.onnx"]])
def test_what_cannot_be_understood(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: vits convert" in capsys.readouterr().err
