"""``.ci/images`` ends with 0 for images that are tested, and for a machine without a container engine; else never.

What CI does not test, because a machine has no tool for it, it says.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOBODY = "echo 1000"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder with the script in it, on a machine with nothing but what a test puts into ``bin``."""
    (tmp_path / ".ci").mkdir()
    for name in ("run", "images"):
        shutil.copy(ROOT / ".ci" / name, tmp_path / ".ci" / name)
    for name in ("bash", "dirname", "env"):
        program = shutil.which(name)
        assert program
        put(tmp_path / "bin" / name, f'exec {program} "$@"')
    for program in ("bin/make", "tests/infra/build-images", ".venv/bin/python"):
        put(tmp_path / program, "exit 0")
    put(tmp_path / "tests/infra/base-image", "echo base")
    put(tmp_path / "bin/id", NOBODY)
    return tmp_path


def put(path: Path, script: str) -> None:
    """A program that does as told."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def run(machine: Path, script: str = "images") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(machine / ".ci" / script)],
        env={"PATH": str(machine / "bin")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_any_engine_it_says_that_nothing_was_tested(machine: Path) -> None:
    done = run(machine)
    assert done.returncode == 0, done.stderr
    assert "SKIPPED, NO IMAGE WAS BUILT OR TESTED" in done.stderr
    assert "done" not in done.stdout


def test_an_engine_that_builds_and_runs_is_used(machine: Path) -> None:
    put(machine / "bin/podman", "echo 1000000")
    put(machine / "bin/prometheus", "exit 0")
    done = run(machine)
    assert done.returncode == 0, done.stderr
    assert "both images are built" in done.stdout
    assert "done" in done.stdout


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_an_engine_that_does_not_answer_is_a_failure(machine: Path, engine: str) -> None:
    put(machine / "bin" / engine, "exit 1")
    done = run(machine)
    assert done.returncode == 1
    assert "FAILED: no container engine answers" in done.stderr


@pytest.mark.parametrize(
    ("program", "script", "said"),
    [
        ("bin/podman", '[ "$1" != run ]', "base does not run in it"),
        ("tests/infra/base-image", "echo no such image >&2; exit 125", "no such image"),
        ("tests/infra/build-images", "echo no build >&2; exit 1", "no build"),
        (".venv/bin/python", "echo no test passes >&2; exit 1", "no test passes"),
    ],
    ids=["base does not run", "no base", "no build", "tests fail"],
)
def test_an_engine_that_brings_no_tested_image_is_a_failure(
    machine: Path, program: str, script: str, said: str
) -> None:
    put(machine / "bin/podman", "echo 1000000")
    put(machine / "bin/prometheus", "exit 0")
    put(machine / program, script)
    done = run(machine)
    assert done.returncode not in {0, 127}, done.stdout
    assert said in done.stderr


def test_without_prometheus_it_says_what_was_not_tested(machine: Path) -> None:
    """The tests skip it, and who reads that CI ended well would not know."""
    put(machine / "bin/podman", "echo 1000000")
    done = run(machine)
    assert done.returncode == 0, done.stderr
    assert "NOT TESTED for want of a prometheus" in done.stdout.splitlines()[-1]


def test_where_prometheus_can_be_installed_it_has_to_be_there(machine: Path) -> None:
    put(machine / "bin/podman", "echo 1000000")
    put(machine / "bin/id", "echo 0")
    put(machine / "bin/apt-get", "exit 0")
    put(machine / "tests/infra/install-podman", "exit 0")
    done = run(machine)
    assert done.returncode == 1, done.stdout
    assert "FAILED: there is no prometheus" in done.stderr
    prometheus = machine / "bin/prometheus"
    install = f"echo > {prometheus} && {shutil.which('chmod')} +x {prometheus}"
    put(machine / "bin/apt-get", f'[ "$1" != install ] || {{ {install}; }}')
    done = run(machine)
    assert done.returncode == 0, done.stderr
    assert "NOT TESTED" not in done.stdout


@pytest.fixture
def made(machine: Path) -> Path:
    """A file with a line for each call of make, on a machine with what CI itself needs."""
    calls = machine / "made"
    put(machine / "bin/make", f'echo "$@" >> {calls}')
    for program in ("bin/cc", "bin/python3.11", ".ci/images"):
        put(machine / program, "exit 0")
    return calls


def test_ci_says_what_this_machine_has_no_tool_for(machine: Path, made: Path) -> None:
    put(machine / "bin/apt-get", "exit 100")  # as it ends for anybody but root
    done = run(machine, "run")
    assert done.returncode == 0, done.stderr
    assert "lint-gateway" not in made.read_text()
    untested = [line for line in done.stderr.splitlines() if "NOT TESTED HERE" in line]
    tools = ("promtool", "Chromium", "npm", "jq", "grpcurl")
    assert len(untested) == len(tools)
    assert all(any(tool in line for line in untested) for tool in tools)


@pytest.mark.usefixtures("made")
def test_ci_installs_what_it_may_and_says_what_there_is_not_to_install(machine: Path) -> None:
    put(machine / "bin/id", "echo 0")
    for program in ("bin/npm", ".venv/bin/grpcurl"):
        put(machine / program, "exit 0")
    put(machine / "bin/apt-get", 'case "$*" in *chromium*) exit 100;; esac')  # as on Ubuntu
    done = run(machine, "run")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "Chromium" in line] == done.stderr.splitlines()
    asked = machine / "asked"
    put(machine / "bin/apt-get", f'echo "$@" >> {asked}')
    done = run(machine, "run")
    assert (done.returncode, done.stderr) == (0, "")
    assert {"prometheus", "chromium", "jq"} <= set(asked.read_text().split())


def test_ci_tests_everything_that_this_machine_has_a_tool_for(machine: Path, made: Path) -> None:
    for program in ("bin/npm", "bin/promtool", "bin/google-chrome", "bin/jq", ".venv/bin/grpcurl"):
        put(machine / program, "exit 0")
    done = run(machine, "run")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    targets = {word for line in made.read_text().splitlines() for word in line.split()}
    assert {"install", "lint", "type", "node", "lint-gateway", "lint-proto", "test", "demo"} <= targets
