"""What an installation brings along: the extras, their pins, and what the Makefile asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PYPROJECT["project"]["optional-dependencies"]


def installed_extras() -> list[str]:
    found = re.search(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found
    return found[1].split(",")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def test_everything_that_make_installs_is_pinned_within_its_bounds() -> None:
    asked = PYPROJECT["project"]["dependencies"] + [
        one for extra in installed_extras() for one in EXTRAS[extra]
    ]
    pinned = pins()
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_what_only_an_image_for_gpus_installs_is_pinned_too() -> None:
    pinned = pins()
    for requirement in map(Requirement, EXTRAS["serve-gpu"]):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_benchmarks_compile_with_the_cython_that_the_kernel_is_built_with() -> None:
    build = next(one for one in PYPROJECT["build-system"]["requires"] if one.startswith("Cython"))
    assert build in EXTRAS["dev"]
    assert "dev" in installed_extras()
    assert f"Cython=={pins()['cython']}" == build


def test_every_extra_that_a_message_tells_users_to_install_exists() -> None:
    for package in ("services", "shared"):
        for file in (ROOT / package).rglob("*.py"):
            for extra in re.findall(r"vits-suite\[(\w[\w-]*)\]", file.read_text(encoding="utf-8")):
                assert extra in EXTRAS, f"{file}: {extra}"


def test_make_bench_runs_every_benchmark() -> None:
    recipe = (ROOT / "Makefile").read_text()
    programs = [file.stem for file in (ROOT / "benchmarks").glob("*.py") if "__main__" in file.read_text()]
    assert programs
    assert [name for name in programs if f"-m benchmarks.{name}" not in recipe] == []
