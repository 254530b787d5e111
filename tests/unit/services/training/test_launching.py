"""torchrun with its processes' exit codes, as the processes that it is."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest


def launch(script: Path, text: str) -> subprocess.Popen[str]:
    """torchrun on one process that runs ``text``."""
    script.write_text(text, encoding="utf-8")
    command = ["-m", "services.training.launching", "--standalone", "--local-addr=127.0.0.1", str(script)]
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=Path(__file__).parents[4],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("end", "code"),
    [("sys.exit(2)", 2), ("os.kill(os.getpid(), signal.SIGKILL)", 137), ("", 0)],
    ids=["a mistake", "no memory", "the end"],
)
def test_it_ends_as_the_process_does(tmp_path: Path, end: str, code: int) -> None:
    launched = launch(tmp_path / "trainer.py", f"import os, signal, sys\n{end}\n")
    _, errors = launched.communicate(timeout=60)
    assert launched.returncode == code, errors
    assert ("trainer.py FAILED" in errors) == (code != 0)


SAVING = """
import signal, sys

def save(*_):
    print("saved", flush=True)
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
print("training", flush=True)
signal.pause()
"""


def test_told_to_stop_it_lets_the_process_save_and_says_so(tmp_path: Path) -> None:
    launched = launch(tmp_path / "trainer.py", SAVING)
    assert launched.stdout
    assert launched.stdout.readline() == "training\n"
    launched.send_signal(signal.SIGTERM)
    said, errors = launched.communicate(timeout=60)
    assert said == "saved\n"
    assert launched.returncode == 143, errors
