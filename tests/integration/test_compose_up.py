"""``deploy/compose.yaml`` at work, by podman-compose: train, export, speak, and be scraped. Grafana is left out.

``.ci/images`` runs it, on the images that it has built. Those of the S3 server and of Prometheus are made here, of the
same programs as PyPI and Debian have them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml

from shared.audio import read_audio
from tests.integration.test_images import ROOT, Engine, free_port, queried, readable, wait_until_it_answers

pytestmark = [pytest.mark.container, pytest.mark.timeout(1800)]

IMAGES = {kind: os.environ.get(f"VITS_{kind.upper()}_IMAGE", f"vits-{kind}") for kind in ("train", "serve")}
#: The programs in the place of images from a registry; the suite's image is a base that is there.
STAND_INS = """
ARG BASE
FROM ${BASE} AS store
USER 0
COPY weed /usr/bin/
ENTRYPOINT ["weed"]
FROM ${BASE} AS prometheus
USER 0
COPY prometheus /usr/bin/
ENTRYPOINT ["prometheus"]
"""
#: The shipped Spanish configuration, on what is tiny.
TINY = {
    "model_name_or_path": "./models/small",
    "dataset_name": "./data/few",
    "eval_split_name": "test",
    "min_duration_in_seconds": 0,
    "per_device_train_batch_size": 2,
    "max_steps": 1,
    "do_eval": False,
    "fp16": False,
    "preprocessing_num_workers": 1,
}


@dataclass(frozen=True)
class Stack:
    """The services of the file, which run.

    Attributes:
        name: Of the project, in front of its containers' names.
        environment: What the file's variables are.
        log: What was said while they came up.
    """

    name: str
    environment: dict[str, str]
    log: Path

    def compose(self, *arguments: str) -> str:
        """Run podman-compose; what it wrote to its standard output."""
        done = subprocess.run(
            [
                *(sys.executable, "-m", "podman_compose", "--project-name", self.name),
                *("--file", str(ROOT / "deploy" / "compose.yaml"), *arguments),
            ],
            env=self.environment,
            text=True,
            capture_output=True,
            check=False,
        )
        with self.log.open("a") as log:
            log.write(done.stdout + done.stderr)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def address(self, port: str) -> str:
        """What one of its ports is published as."""
        return f"127.0.0.1:{self.environment[port]}"


@pytest.fixture(scope="module")
def podman() -> Engine:
    engine = Engine("podman")
    if shutil.which("podman") is None or subprocess.run(["podman", "info"], capture_output=True).returncode:
        pytest.skip("podman-compose needs podman: .ci/images installs it")
    for image in IMAGES.values():
        if subprocess.run(["podman", "image", "exists", image], check=False).returncode:
            pytest.skip(f"there is no image {image}: 'make images ENGINE=podman' makes it")
    return engine


@pytest.fixture(scope="module")
def stand_ins(podman: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Images with SeaweedFS and with Prometheus, by their variables in the file."""
    folder = tmp_path_factory.mktemp("stand-ins")
    for program in ("weed", "prometheus"):
        found = shutil.which(program, path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
        if found is None:
            pytest.skip(f"{program} is not installed: .ci/images installs it")
        shutil.copy(found, folder / program)
    (folder / "Dockerfile").write_text(STAND_INS)
    made = {f"{kind.upper()}_IMAGE": f"localhost/vits-test-{kind}" for kind in ("store", "prometheus")}
    for kind, tag in zip(("store", "prometheus"), made.values(), strict=True):
        podman.run(
            "build", f"--build-arg=BASE={IMAGES['train']}", "--target", kind, "--tag", tag, str(folder)
        )
    yield made
    podman.run("rmi", "--force", *made.values())


def commands() -> list[list[str]]:
    """What the page has users type who have podman; without Grafana, whose image is only in a registry."""
    page = (ROOT / "docs" / "compose.md").read_text(encoding="utf-8")
    typed = re.findall(r"^podman-compose --file deploy/compose.yaml (.*?)(?: &&)?$", page, re.MULTILINE)
    return [[word for word in line.split() if word != "grafana"] for line in typed]


@pytest.fixture(scope="module")
def stack(
    stand_ins: dict[str, str],
    spanish_model: Path,
    make_dataset: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("compose")
    shutil.copytree(make_dataset(), folder / "data" / "few")
    shutil.copytree(spanish_model, folder / "models" / "small")
    shipped = json.loads((ROOT / "configs" / "spa.json").read_text())
    (folder / "data" / "my.json").write_text(json.dumps(shipped | TINY))
    given = {f"{kind.upper()}_IMAGE": image for kind, image in IMAGES.items()} | stand_ins
    given |= {name: str(readable(folder / name.lower())) for name in ("DATA", "MODELS")}
    given |= {f"{name}_PORT": str(free_port()) for name in ("HTTP", "GRPC", "PROMETHEUS", "GRAFANA")}
    given |= {"CONFIG": "/data/my.json", "VOICE": "voz"}
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "CONTAINERS_CONF") if name in os.environ}
    stack = Stack(f"vits-test-{uuid.uuid4().hex[:8]}", inherited | given, folder / "log")
    try:
        for line in commands():
            stack.compose(*line)
        yield stack
    finally:
        stack.compose("down", "--volumes")


def test_what_was_trained_is_spoken(stack: Stack) -> None:
    address = f"http://{stack.address('HTTP_PORT')}"
    wait_until_it_answers(f"{address}/readyz")
    asked = {"model": "tts-1", "voice": "voz", "input": "hola", "response_format": "wav"}
    answer = httpx.post(f"{address}/v1/audio/speech", json=asked, timeout=60, trust_env=False)
    assert np.abs(read_audio(answer.raise_for_status().content, format="wav").samples).max() > 0


def test_prometheus_scrapes_with_our_rules(stack: Stack) -> None:
    address = stack.address("PROMETHEUS_PORT")
    assert queried(address, 'up{job="vits-serve", namespace="compose"} == 1', stack.log)
    assert queried(address, 'namespace:vits_backlog_seconds:sum{namespace="compose"}', stack.log) == 0
    told = httpx.get(f"http://{address}/api/v1/rules", timeout=30, trust_env=False).json()["data"]["groups"]
    rules = yaml.safe_load((ROOT / "deploy" / "monitoring" / "rules.yaml").read_text())["groups"]
    assert {group["name"]: len(group["rules"]) for group in told} == {
        group["name"]: len(group["rules"]) for group in rules
    }


def test_started_again_it_makes_nothing_anew(stack: Stack) -> None:
    """As its page says; so does the command that looks."""

    def promoted() -> object:
        vits = ("run", "--rm", "-T", "--no-deps", "--entrypoint", "vits", "export")
        return json.loads(stack.compose(*vits, "voices", "history", "voz", "latest", "--json"))

    before = promoted()
    for line in commands():
        stack.compose(*line)
    assert promoted() == before
