"""``vits synthesize --engine ray`` on a real cluster of this machine, with a real (tiny, random) voice.

Skipped where Ray is not installed, which is so in the development installation: it is 491 MB. ``make install``, then
``pip install 'vits-suite[ray]'``, runs it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.served import ROOT, TINY_VOICE, VITS, World

pytest.importorskip("ray", reason="Ray (491 MB, the extra 'ray') is not installed")


@pytest.fixture
def short() -> Iterator[str]:
    """A folder whose path leaves room for the names of Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


def test_ray_makes_what_the_local_engine_makes_and_nothing_twice(tmp_path: Path, short: str) -> None:
    world = World(tmp_path, tmp_path / "store")
    made = world.run(sys.executable, "-W", "ignore", "-c", TINY_VOICE, str(tmp_path / "model"))
    assert made.returncode == 0, made.stderr
    table = tmp_path / "texts.jsonl"
    rows = [{"id": f"r{number}", "text": f"hola {'abcdefgh'[number]}"} for number in range(8)]
    rows.append({"id": "bad", "text": ""})
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def synthesize(output: str, *more: str) -> dict[str, object]:
        command = [*VITS, "synthesize", "--input", str(table), "--output", str(tmp_path / output), "--json"]
        command += ["--shard-rows", "3", "--threads", "1", "--streams", "1", *more]
        environment = world.environment | {"RAY_TMPDIR": short, "RAY_USAGE_STATS_ENABLED": "0"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        summary: dict[str, object] = json.loads(done.stdout[done.stdout.index("{") :])
        return summary

    spread = synthesize("ray", "--engine", "ray")
    assert (spread["made"], spread["bad"]) == (8, 1)
    assert synthesize("ray", "--engine", "ray")["made"] == 0
    assert synthesize("local")["made"] == 8
    for name in ("manifest.jsonl", "bad_rows.jsonl"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
