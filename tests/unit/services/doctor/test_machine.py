"""Each check of the machine, once where all is well and once where it is not."""

from __future__ import annotations

import importlib
import importlib.metadata
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from services.doctor import machine, stores
from services.doctor.cli import places
from services.doctor.finding import Finding
from shared import audio_encoding, processor
from shared.errors import MissingExtraError
from shared.text import espeak


def one(findings: Iterable[Finding]) -> Finding:
    (found,) = findings
    assert (found.status == "ok") == (found.remedy == ""), "a remedy for what is wrong, and for nothing else"
    return found


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    good = one(machine.versions())
    assert good.status == "ok"
    assert "numpy" in good.said
    monkeypatch.setattr(machine, "PYTHONS", ((3, 99), (3, 101)))
    bad = one(machine.versions())
    assert bad.status == "fail"
    assert "Python 3.99 or 3.100" in bad.remedy


def requires(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(machine, "requires", lambda name: list(lines))


def test_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    requires(monkeypatch, "numpy>=2", 'numpy>=2; extra == "serve"', 'nowhere>=1; extra == "dev"')
    assert one(machine.extras()).status == "ok"
    requires(
        monkeypatch,
        'numpy; extra == "train"',
        'nowhere[data]>=1; extra == "train"',
        'elsewhere; platform_machine == "pdp11" and extra == "serve"',
        'numpy; extra == "serve"',
    )
    lacking, whole = machine.extras()
    assert lacking.status == "note"
    assert "nowhere missing" in lacking.said
    assert "'vits train'" in lacking.said
    assert "'vits serve'" not in lacking.said
    assert lacking.remedy == "pip install 'vits-suite[train]'"
    assert whole.said == "serve: installed", "what is for other machines is not missed"


def test_extras_of_a_suite_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(machine, "requires", missing)
    assert one(machine.extras()).status == "note"


def test_every_extra_that_a_command_needs_is_looked_at() -> None:
    from services.cli import SUBCOMMANDS

    needed = {command.extra for command in SUBCOMMANDS.values()} - {""}
    assert needed <= set(machine._requirements())
    assert not needed & machine.NOT_ASKED


def test_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LEAST_KERNEL_GAIN", 0.0)
    good = one(machine.kernel())
    assert good.status == "ok"
    assert "times as fast as NumPy" in good.said
    monkeypatch.setattr(machine, "LEAST_KERNEL_GAIN", 1e9)
    slow = one(machine.kernel())
    assert slow.status == "note"
    assert "C compiler" in slow.remedy


def test_a_kernel_that_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("monotonic_align")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "monotonic_align._kernel", None)
    found = one(machine.kernel())
    assert found.status == "fail"
    assert "_kernel" in found.said
    assert "C compiler" in found.remedy


def test_what_only_training_needs_is_not_missed_without_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in the image that serves, which has no compiler either."""
    real = machine._version
    monkeypatch.setattr(machine, "_version", lambda name: None if name == "torch" else real(name))
    monkeypatch.setitem(sys.modules, "monotonic_align", None)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("the hub was asked"))
    for found in (one(machine.kernel()), one(stores.hub())):
        assert found.status == "ok"
        assert "not needed here" in found.said
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemAvailable: 3000000 kB\n")
    assert one(machine.memory(meminfo, tmp_path / "memory.max")).status == "ok"
    assert "output" not in places("memory://x")  # the image's working directory is /


def test_where_training_is_possible_its_output_needs_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "can_train", lambda: True)
    assert places("memory://x")["output"] == Path.cwd()


def test_a_kernel_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = SimpleNamespace(maximum_path=lambda scores, tokens, frames, threads: np.ones((8, 80), np.int32))
    real = importlib.import_module
    monkeypatch.setattr(
        importlib, "import_module", lambda name: wrong if name == "monotonic_align" else real(name)
    )
    assert "other paths" in one(machine.kernel()).said


@pytest.mark.parametrize(
    ("features", "status", "remedy"),
    [
        ({"avx2", "avx512_bf16"}, "ok", ""),
        ({"avx2"}, "note", "fp32-openvino"),
        ({"sse2"}, "note", "another machine"),
    ],
)
def test_processor(monkeypatch: pytest.MonkeyPatch, features: set[str], status: str, remedy: str) -> None:
    monkeypatch.setattr(processor, "cpu_features", lambda: frozenset(features))
    found = one(machine.processor())
    assert found.status == status
    assert remedy in found.remedy


def test_no_gpu_is_no_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert one(machine.gpu(tmp_path / "absent")).status == "ok"


@pytest.mark.parametrize(
    ("torch", "runtime", "status", "says"),
    [
        ("2.13.0", "1.32", "ok", "A100"),
        ("2.13.0+cpu", "1.32", "note", "TORCH_INDEX"),
        ("2.13.0", None, "note", "serve-gpu"),
        (None, "1.32", "ok", "A100"),
    ],
)
def test_gpu(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    torch: str | None,
    runtime: str | None,
    status: str,
    says: str,
) -> None:
    """`nvidia-smi` is a stand-in here: there is no GPU."""
    monkeypatch.setattr(shutil, "which", lambda name: "nvidia-smi")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="A100, 40 GB\n"))
    monkeypatch.setattr(machine, "_version", lambda name: torch if name == "torch" else runtime)
    found = one(machine.gpu(tmp_path))
    assert found.status == status
    assert says in found.said + found.remedy


def test_a_gpu_whose_driver_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(9, "nvidia-smi")

    monkeypatch.setattr(shutil, "which", lambda name: "nvidia-smi")
    monkeypatch.setattr(subprocess, "run", broken)
    assert one(machine.gpu(tmp_path)).status == "fail"


@pytest.mark.parametrize(
    ("kilobytes", "status"), [(16_000_000, "ok"), (3_000_000, "note"), (900_000, "fail")]
)
def test_memory(tmp_path: Path, kilobytes: int, status: str) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 99 kB\nMemAvailable:   {kilobytes} kB\n")
    assert one(machine.memory(meminfo, tmp_path / "memory.max")).status == status


def test_memory_is_the_containers_where_it_has_less(tmp_path: Path) -> None:
    meminfo, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    meminfo.write_text("MemAvailable: 64000000 kB\n")
    limit.write_text("2000000000\n")
    (tmp_path / "memory.current").write_text("1500000000\n")
    assert machine.memory_free(meminfo, limit) == pytest.approx(0.5)
    assert one(machine.memory(meminfo, limit)).status == "fail"
    limit.write_text("max\n")
    assert machine.memory_free(meminfo, limit) == pytest.approx(64, rel=0.03)


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"output": tmp_path / "not" / "yet" / "there"}
    usage: Callable[[Any], Any] = lambda path: SimpleNamespace(free=100e9)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", usage)
    good = one(machine.disk(there))
    assert good.status == "ok"
    assert "100.0 GB free for output" in good.said
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1e9))
    assert one(machine.disk(there)).status == "note"
    # A file system that is read-only or takes no files refuses what permissions allow.
    said = one(machine.disk({"output": Path("/proc/self/output")})).said
    assert said.startswith("/proc/self/output cannot be written (")
    assert said.endswith(")"), "the remedy is said once"


def test_phonemizer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("phonemizer")
    assert one(machine.phonemizer()).status == "ok"
    monkeypatch.setattr(espeak, "phonemes", lambda text, voice: "")
    assert one(machine.phonemizer()).status == "fail"

    def missing(text: str, voice: str) -> str:
        raise MissingExtraError("This voice speaks from phonemes. Install the extra")

    monkeypatch.setattr(espeak, "phonemes", missing)
    found = one(machine.phonemizer())
    assert found.status == "note"
    assert "vits-suite[phonemes]" in found.remedy


def test_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert one(machine.codecs()).status == "ok"
    monkeypatch.setattr(audio_encoding, "available_formats", lambda: ("wav", "pcm"))
    found = one(machine.codecs())
    assert found.status == "note"
    assert "mp3" in found.said
