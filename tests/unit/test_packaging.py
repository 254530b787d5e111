"""What an installation brings along: the extras, their pins, and what the Makefile asks for."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.infra.pins import pins

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PYPROJECT["project"]["optional-dependencies"]


def installed_extras() -> list[str]:
    found = re.search(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found
    return found[1].split(",")


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


def make_images(*variables: str) -> subprocess.CompletedProcess[str]:
    """What 'make images' would do."""
    command = ["make", "--dry-run", "images", "ENGINE=docker", *variables]
    environment = {"PATH": os.environ["PATH"]}
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)


def builds(output: str) -> dict[str, dict[str, str]]:
    """The build arguments of every image that is built, by its name; ``FILE`` is its Dockerfile."""
    found = {}
    for line in output.replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        pairs = list(itertools.pairwise(words))
        options = {flag: value for flag, value in pairs if flag in {"--tag", "--file"}}
        arguments = dict(value.split("=", 1) for flag, value in pairs if flag == "--build-arg")
        found[options["--tag"]] = {"FILE": options["--file"], **arguments}
    return found


def test_make_images_builds_both() -> None:
    built = builds(make_images("TORCH_INDEX=https://torch.example.com/cpu").stdout)
    assert {name: one["FILE"] for name, one in built.items()} == {
        "vits-serve": "Dockerfile.serve",
        "vits-train": "Dockerfile.train",
    }
    assert "EXTRAS" not in built["vits-serve"]
    assert built["vits-train"]["TORCH_INDEX"] == "https://torch.example.com/cpu"


def test_make_images_builds_those_for_gpus_under_the_names_that_the_cluster_asks_for() -> None:
    built = builds(make_images("GPU=1", "BASE_IMAGE=cuda-and-python").stdout)
    component = ROOT / "deploy" / "kubernetes" / "components" / "gpu" / "kustomization.yaml"
    asked = {image["newName"] for image in yaml.safe_load(component.read_text())["images"]}
    assert built.keys() == asked
    assert {one["BASE_IMAGE"] for one in built.values()} == {"cuda-and-python"}
    extras = built["vits-serve-gpu"]["EXTRAS"].split(",")
    assert "serve-gpu" in extras
    assert set(extras) <= EXTRAS.keys()
    assert built["vits-train-gpu"]["FILE"] == "Dockerfile.train"


def test_make_images_does_not_build_for_gpus_on_a_base_without_their_libraries() -> None:
    refused = make_images("GPU=1")
    assert refused.returncode
    assert refused.stdout == ""
    assert "python:3.11-slim-bookworm has no CUDA" in refused.stderr
    assert "BASE_IMAGE=..." in refused.stderr


@pytest.mark.parametrize("extra", ["serve", "export"])
def test_arm64_gets_onnx_runtime_alone(extra: str) -> None:
    asked = list(map(Requirement, EXTRAS[extra]))

    def runtimes(machine: str) -> set[str]:
        """Those that a machine gets."""
        wanted = {
            one.name
            for one in asked
            if one.marker is None or one.marker.evaluate({"platform_machine": machine})
        }
        return wanted & {"onnxruntime", "openvino"}

    assert runtimes("aarch64") == {"onnxruntime"}
    assert runtimes("x86_64") == {"onnxruntime", "openvino"}


@pytest.mark.parametrize("kind", ["serve", "train"])
def test_a_change_of_the_suite_leaves_the_layers_of_what_it_needs(kind: str) -> None:
    """A layer is built again when one before it, or what is copied into it, has changed."""
    text = (ROOT / f"Dockerfile.{kind}").read_text()
    builder = text[text.index("AS builder") : text.index("AS bill")]
    installation, rest = builder.rsplit("--requirement requirements.txt", 1)
    copied = {
        source
        for line in re.findall("^COPY (.*)", installation, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied <= {"--from=requirements", "/src/torch.txt", "/src/requirements.txt", "constraints.txt"}
    assert "COPY . ./" in rest
    image = text[text.index("AS bill") :]
    needed, suite = "COPY --from=builder /opt/vits ", "COPY --from=builder /suite/opt/vits "
    assert image.index(needed) < image.index(suite)
    # Every commit has another one.
    assert image.index("ARG REVISION") > image.rindex("COPY")
    assert "REVISION" not in text[: text.index("ARG REVISION")]
