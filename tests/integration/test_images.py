"""The container images at work: train and export a tiny voice in one, serve it from the other, by way of an S3 server.

``.ci/images`` runs these. They take docker or podman, whichever has an engine that answers (``VITS_ENGINE`` names
one), and build the images with ``make images`` unless ``VITS_TRAIN_IMAGE`` and ``VITS_SERVE_IMAGE`` name them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from packaging.utils import canonicalize_name

from services.cli import SUBCOMMANDS
from shared.audio import read_audio, to_pcm16
from shared.audio_encoding import FORMATS
from tests.infra.pins import pins
from tests.infra.s3_server import S3Server
from vits_client import Client

pytestmark = [pytest.mark.container, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
START_SECONDS = 120
#: What a careful operator adds, and no shell that runs; the images must work with it. exec: phonemizer loads espeak-ng
#: from a copy in /tmp.
CONFINED = (
    "--read-only",
    "--tmpfs=/tmp:exec",
    "--tmpfs=/cache",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--volume=/dev/null:/usr/bin/dash:ro",
    "--volume=/dev/null:/usr/bin/bash:ro",
)
#: A user whom the images do not know, and who owns what is written to a folder of the host's.
ANYBODY = os.getuid() or 4242
#: One for each runtime.
VARIANTS = ("fp32", "fp32-openvino")
#: What a build of torch for GPUs asks for, in versions of its own.
CUDA = re.compile("nvidia-|cuda-|triton$")


@dataclass(frozen=True)
class Engine:
    """docker or podman."""

    command: str

    def run(self, *arguments: str, expect: int = 0) -> str:
        """Run a command of the engine; what it wrote, its standard error first.

        Together in one stream they race: podman carries a container's two streams side by side, and a warning written
        before a JSON document may arrive after it.
        """
        done = subprocess.run([self.command, *arguments], capture_output=True, text=True, check=False)
        written = done.stderr + done.stdout
        assert done.returncode == expect, f"{self.command} {' '.join(arguments)}\n{written}"
        return written

    def inspect(self, kind: str, name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(
            subprocess.run([self.command, kind, "inspect", name], capture_output=True, check=True).stdout
        )
        return found[0]

    @contextmanager
    def background(self, *arguments: str) -> Iterator[str]:
        """A container that runs meanwhile, by name."""
        name = f"vits-test-{uuid.uuid4().hex[:8]}"
        self.run("run", "--detach", "--name", name, *arguments)
        try:
            yield name
        finally:
            self.run("rm", "--force", name)

    def wait_for(self, name: str, line: str) -> None:
        """Wait until a container has written what a pattern matches."""
        deadline = time.monotonic() + START_SECONDS
        while not re.search(line, log := self.run("logs", name)):
            assert self.inspect("container", name)["State"]["Running"], log
            assert time.monotonic() < deadline, log
            time.sleep(0.1)


@pytest.fixture(scope="module")
def engine() -> Engine:
    asked = os.environ.get("VITS_ENGINE")
    for command in [asked] if asked else ["docker", "podman"]:
        if (
            shutil.which(command)
            and not subprocess.run([command, "info"], capture_output=True, check=False).returncode
        ):
            return Engine(command)
    pytest.skip(f"no container engine answers ({asked or 'docker, podman'}): .ci/images installs one")


@pytest.fixture(scope="module")
def images(engine: Engine) -> dict[str, str]:
    """The images' names; built, unless the environment names them."""
    names = {kind: os.environ.get(f"VITS_{kind.upper()}_IMAGE", "") for kind in ("train", "serve")}
    if not all(names.values()):
        if engine.command == "podman":
            base = subprocess.run(
                ["tests/infra/base-image"], cwd=ROOT, text=True, capture_output=True, check=True
            )
            build = ["tests/infra/build-images", f"BASE_IMAGE={base.stdout.strip()}"]
        else:
            build = ["make", "images", f"ENGINE={engine.command}"]
        done = subprocess.run(build, cwd=ROOT, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return {kind: name or f"vits-{kind}" for kind, name in names.items()}


@pytest.fixture(scope="module")
def store(s3_server: S3Server) -> tuple[str, ...]:
    """Arguments of ``run`` that give a container a store on a real S3 server, which listens on the host's loopback."""
    given = {**s3_server.environment(), "VITS_STORE": f"s3://{s3_server.bucket}/images"}
    return ("--network=host", *(f"--env={name}={value}" for name, value in given.items()))


def readable(folder: Path) -> Path:
    """Let the images' user into a temporary folder, which is its maker's alone."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.fixture(scope="module")
def training(
    images: dict[str, str],
    spanish_model: Path,
    make_dataset: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[str]:
    """Arguments of ``run`` that train a mounted configuration, the shipped Spanish one, on what is tiny.

    Before them comes what /output is.
    """
    configuration = json.loads((ROOT / "configs" / "spa.json").read_text())
    configuration |= {
        "model_name_or_path": "./models/small",
        "dataset_name": "./data/few",
        "output_dir": "./output/voz",
        "project_name": "voz",
        "eval_split_name": "test",
        "min_duration_in_seconds": 0,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "preprocessing_num_workers": 1,
    }
    mounted = tmp_path_factory.mktemp("configuration")
    (mounted / "spa.json").write_text(json.dumps(configuration))
    return [
        f"--volume={readable(mounted)}/spa.json:/data/spa.json:ro",
        f"--volume={readable(spanish_model)}:/models/small:ro",
        f"--volume={readable(make_dataset())}:/data/few:ro",
        *(*CONFINED, images["train"], "--config", "/data/spa.json"),
    ]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the host's that anybody may write to."""
    folder = tmp_path_factory.mktemp("outputs")
    folder.chmod(0o777)
    return folder


@pytest.fixture(scope="module")
def exported(
    engine: Engine, images: dict[str, str], training: list[str], store: tuple[str, ...], outputs: Path
) -> tuple[str, ...]:
    """The store, with a model trained in the image and a voice exported in it."""
    mounted = (f"--user={ANYBODY}", f"--volume={outputs}:/output")
    engine.run("run", "--rm", *store, *mounted, *training, "--max_steps", "1")
    vits = ["run", "--rm", *store, *CONFINED, "--entrypoint=vits"]
    engine.run(*vits, images["train"], "export", "voz@latest", "--variants", ",".join(VARIANTS))
    assert "voz" in engine.run(*vits, images["serve"], "voices", "list")
    assert "none" in engine.run(*vits, images["serve"], "voices", "verify", "--all")
    return store


@dataclass(frozen=True)
class Server:
    """A serving container."""

    name: str
    http: str
    grpc: str
    variant: str


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


@pytest.fixture
def server(
    engine: Engine, images: dict[str, str], exported: tuple[str, ...], request: pytest.FixtureRequest
) -> Iterator[Server]:
    """It speaks with the variant that a test asks for, or with the first."""
    http, rpc = free_port(), free_port()
    variant = getattr(request, "param", VARIANTS[0])
    settings = {"HTTP_PORT": http, "GRPC_PORT": rpc, "VARIANT": variant}
    given = (*exported, *(f"--env=VITS_{name}={value}" for name, value in settings.items()), *CONFINED)
    with engine.background(*given, images["serve"], "--host", "127.0.0.1") as name:
        engine.wait_for(name, "ready after")
        wait_until_it_answers(f"http://127.0.0.1:{http}/readyz")
        yield Server(name, f"http://127.0.0.1:{http}", f"127.0.0.1:{rpc}", variant)


def wait_until_it_answers(url: str) -> None:
    """The line that a server is ready comes a moment before it listens."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            httpx.get(url, timeout=5, trust_env=False).raise_for_status()
        except (httpx.TransportError, httpx.HTTPStatusError):
            assert time.monotonic() < deadline, url
            time.sleep(0.1)
        else:
            return


@pytest.mark.parametrize("configuration", [path.name for path in sorted((ROOT / "configs").glob("*.json"))])
def test_the_train_image_finds_the_shipped_configurations_by_name(
    engine: Engine, images: dict[str, str], configuration: str
) -> None:
    given = json.loads((ROOT / "configs" / configuration).read_text())
    left_to_the_user = [key for key in ("model_name_or_path", "dataset_name") if key not in given]
    arguments = ["--config", configuration, *(word for key in left_to_the_user for word in (f"--{key}", "x"))]
    printed = engine.run("run", "--rm", *CONFINED, images["train"], "--print-config", *arguments)
    shown = json.loads(printed[printed.index("{\n") :])
    told = {key: value for key, value in given.items() if key not in ("_comment", "output_dir")}
    assert {key: shown.get(key) for key in told} == told


def test_the_train_image_teaches_when_asked_nothing(engine: Engine, images: dict[str, str]) -> None:
    assert "usage: vits train" in engine.run("run", "--rm", *CONFINED, images["train"])
    assert "usage: vits SUBCOMMAND" in engine.run(
        "run", "--rm", "--entrypoint=vits", images["train"], "--help"
    )


def test_the_alignment_kernel_works_in_the_train_image(engine: Engine, images: dict[str, str]) -> None:
    """It needs OpenMP's library, which a slim base image does not have."""
    code = (
        "import numpy as n; from monotonic_align import maximum_path; "
        "print(maximum_path(n.zeros((1, 3, 2), n.float32), n.array([2], n.int32), n.array([3], n.int32)).sum())"
    )
    printed = engine.run("run", "--rm", *CONFINED, "--entrypoint=python", images["train"], "-c", code)
    assert printed.split()[-1] == "3"


@pytest.mark.parametrize("kind", ["train", "serve"])
def test_the_images_phonemise(engine: Engine, images: dict[str, str], kind: str) -> None:
    code = "from shared.text.espeak import phonemes; print(ascii(phonemes('hola', 'es-419')))"
    printed = engine.run("run", "--rm", *CONFINED, "--entrypoint=python", images[kind], "-c", code)
    assert printed.splitlines()[-1] == ascii("ˈola")


@pytest.mark.parametrize("kind", ["train", "serve"])
def test_the_images_run_as_nobody_in_particular_and_keep_no_tools(
    engine: Engine, images: dict[str, str], kind: str
) -> None:
    code = (
        "import os, shutil, importlib.util as u; "
        "print(os.getuid(), [t for t in ('cc', 'gcc', 'g++') if shutil.which(t)], "
        "[m for m in ('torch', 'transformers', 'Cython', 'pip', 'pytest') if u.find_spec(m)])"
    )
    # Docker's own root file system is writable here: what is denied is denied by ownership.
    printed = engine.run("run", "--rm", "--entrypoint=python", images[kind], "-c", code).splitlines()[-1]
    assert printed == f"10001 [] {['torch', 'transformers'] if kind == 'train' else []}"


@pytest.mark.parametrize("kind", ["train", "serve"])
def test_the_images_say_what_they_are(engine: Engine, images: dict[str, str], kind: str) -> None:
    labels = engine.inspect("image", images[kind])["Config"]["Labels"]
    told = {
        name.removeprefix("org.opencontainers.image."): value
        for name, value in labels.items()
        if name.startswith("org.opencontainers.image.")
    }
    assert told["title"] == f"vits-{kind}"
    assert told["description"]
    # Ours, and espeak-ng's.
    assert told["licenses"] == "Apache-2.0 AND GPL-3.0-or-later"
    assert told["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert told["base.name"]
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", told["revision"]) or not (ROOT / ".git").exists()


@pytest.mark.parametrize("kind", ["train", "serve"])
def test_the_images_hold_what_their_bill_says_and_nothing_that_is_not_pinned(
    engine: Engine, images: dict[str, str], kind: str
) -> None:
    code = (
        "import json; from importlib.metadata import distributions; "
        f"bill = json.load(open('/usr/share/sbom/vits-{kind}.cdx.json')); "
        "print(json.dumps([bill, [[one.name, one.version] for one in distributions()]]))"
    )
    printed = engine.run("run", "--rm", "--network=none", "--entrypoint=python", images[kind], "-c", code)
    bill, distributions = json.loads(printed.splitlines()[-1])  # after what podman says without systemd
    listed = {canonicalize_name(one["name"]): one["version"] for one in bill["components"]}
    there = {canonicalize_name(name): version for name, version in distributions}
    suite = bill["metadata"]["component"]
    assert (suite["name"], suite["version"]) == ("vits-suite", there.pop(canonicalize_name("vits-suite")))
    assert listed == there
    by_us = {name: version.partition("+")[0] for name, version in there.items() if not CUDA.match(name)}
    assert by_us.items() <= pins().items()


def test_a_start_finds_our_modules_and_the_libraries_compiled(engine: Engine, images: dict[str, str]) -> None:
    """A container keeps nothing that it compiles, and would do so at each start."""
    told = (
        "--network=none",
        "--entrypoint=python",
        images["serve"],
        "-v",
        "-c",
        "import services.synthesis.service",
    )
    printed = engine.run("run", "--rm", *CONFINED, *told)
    assert re.search("/opt/vits/.*pyc matches", printed)
    assert re.findall(r"^# code object from (/opt/vits/\S+\.py)$", printed, re.MULTILINE) == []


def test_every_subcommand_teaches_or_says_what_it_lacks(engine: Engine, images: dict[str, str]) -> None:
    """In one container, as processes of their own."""
    code = """
import json, subprocess, sys
def ask(*words):
    done = subprocess.run(["vits", *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout
print(json.dumps([*(ask(name, "--help") for name in sys.argv[1:]), ask("doctor")]))
"""
    asked = ("--network=none", "--entrypoint=python", images["train"], "-c", code, *SUBCOMMANDS)
    *helped, (_, advice) = json.loads(engine.run("run", "--rm", *CONFINED, *asked).splitlines()[-1])
    lacking = {command.extra for command in SUBCOMMANDS.values()} - {"", "train", "export"}
    for (name, command), (failed, said) in zip(SUBCOMMANDS.items(), helped, strict=True):
        if failed:
            assert command.extra in lacking, said
            assert f"vits-suite[{command.extra}]" in said
        else:
            assert said.startswith(f"usage: vits {name}"), said
    # README sends those there who want to know which.
    assert "Traceback" not in advice
    for extra in lacking:
        assert f"extra {extra}" in advice


def test_no_shell_can_be_run_in_these_tests(engine: Engine, images: dict[str, str]) -> None:
    code = "import shutil; print([shell for shell in ('sh', 'dash', 'bash', 'rbash') if shutil.which(shell)])"
    for image in images.values():
        printed = engine.run("run", "--rm", *CONFINED, "--entrypoint=python", image, "-c", code)
        assert printed.splitlines()[-1] == "[]"


def test_the_serve_image_is_small(engine: Engine, images: dict[str, str]) -> None:
    """By the files that are in it: some engines say how much is sent, compressed."""
    code = """
import os
sizes = {}
for folder, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if not os.path.ismount(os.path.join(folder, name))]
    for name in files:
        found = os.lstat(os.path.join(folder, name))
        sizes[found.st_dev, found.st_ino] = found.st_size
print(sum(sizes.values()))
"""
    root = ("--user=0", "--network=none", "--entrypoint=python")
    assert int(engine.run("run", "--rm", *root, images["serve"], "-c", code).splitlines()[-1]) < 700e6


def test_the_serve_image_has_every_codec_and_of_openvino_what_the_cpu_needs(
    engine: Engine, images: dict[str, str]
) -> None:
    code = (
        "import json, openvino, os; from shared.audio_encoding import available_formats; "
        "print(json.dumps([available_formats(), openvino.Core().available_devices, "
        "os.listdir(os.path.join(os.path.dirname(openvino.__file__), 'libs'))]))"
    )
    asked = ("--network=none", *CONFINED, "--entrypoint=python", images["serve"], "-c", code)
    formats, devices, libraries = json.loads(engine.run("run", "--rm", *asked).splitlines()[-1])
    assert formats == list(FORMATS)
    assert devices == ["CPU"]
    parts = {part[0] for name in libraries if (part := re.search("[a-z_]+_(plugin|frontend)", name))}
    assert parts == {"libopenvino_intel_cpu_plugin", "libopenvino_ir_frontend", "libopenvino_onnx_frontend"}


def test_what_is_trained_is_in_the_mounted_folder_whoever_trains(
    exported: tuple[str, ...], outputs: Path
) -> None:
    assert (outputs / "voz" / "model.safetensors").is_file()


@pytest.mark.parametrize("server", VARIANTS, indirect=True)
def test_what_the_train_image_made_the_serve_image_speaks(server: Server) -> None:
    asked = {"model": "tts-1", "voice": "voz", "input": "buenos días, la casa azul", "seed": 7}
    spoken = {}
    with httpx.Client(base_url=server.http, timeout=60, trust_env=False) as http:
        for name in FORMATS:
            answer = http.post("/v1/audio/speech", json={**asked, "response_format": name}).raise_for_status()
            spoken[name] = answer.content
        assert http.get("/v1/audio/voices/voz").json()["variant"] == server.variant
    exact = read_audio(spoken["wav"], format="wav")
    assert exact.sampling_rate == 16000
    assert np.abs(exact.samples).max() > 0
    assert spoken.pop("pcm") == to_pcm16(exact.samples).astype("<i2").tobytes()
    for name, content in spoken.items():
        audio = read_audio(content)
        assert audio.duration_seconds == pytest.approx(exact.duration_seconds, abs=0.15), name
        assert np.abs(audio.samples).max() > np.abs(exact.samples).max() / 2, name
    with grpc.insecure_channel(server.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    with Client(f"grpc://{server.grpc}") as client:
        speech = client.speak("hola", voice="voz", audio_format="wav", seed=7)
    audio = read_audio(speech.audio, format="wav")
    assert np.abs(audio.samples).max() > 0


def test_prometheus_scrapes_the_server_and_our_rules_hold_on_it(server: Server, tmp_path: Path) -> None:
    """A real Prometheus, with the rules that ship."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no Prometheus is installed: .ci/images installs Debian's")
    address = f"127.0.0.1:{free_port()}"
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT / "deploy" / "monitoring" / "rules.yaml")],
        "scrape_configs": [
            {
                "job_name": "vits-serve",
                "static_configs": [
                    {"targets": [server.http.removeprefix("http://")], "labels": {"namespace": "tests"}}
                ],
            }
        ],
    }
    (tmp_path / "prometheus.json").write_text(json.dumps(configuration))
    asked = {"model": "tts-1", "voice": "voz", "input": "hola", "response_format": "wav"}
    httpx.post(f"{server.http}/v1/audio/speech", json=asked, timeout=60, trust_env=False).raise_for_status()
    arguments = [f"--config.file={tmp_path}/prometheus.json", f"--storage.tsdb.path={tmp_path}/data"]
    with (tmp_path / "log").open("wb") as log:
        prometheus = subprocess.Popen(
            [program, *arguments, f"--web.listen-address={address}"], stdout=log, stderr=log
        )
    try:
        assert queried(address, 'up{job="vits-serve"}', tmp_path / "log") == 1
        assert queried(address, 'sum(vits_requests_total{outcome="spoken"})', tmp_path / "log") == 1
        assert queried(address, "namespace:vits_backlog_seconds:sum", tmp_path / "log") == 0
    finally:
        prometheus.terminate()
        prometheus.wait()


def queried(address: str, query: str, log: Path) -> float:
    """What Prometheus answers, as soon as it has an answer."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            answer = httpx.get(
                f"http://{address}/api/v1/query", params={"query": query}, timeout=5, trust_env=False
            ).json()
            if answer["data"]["result"]:
                return float(answer["data"]["result"][0]["value"][1])
        except (httpx.TransportError, KeyError):
            pass
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def test_the_serve_image_knows_its_health_and_stops_when_told(
    engine: Engine, images: dict[str, str], server: Server
) -> None:
    image = engine.inspect("image", images["serve"])
    check = (image.get("Healthcheck") or image["Config"]["Healthcheck"])["Test"]
    assert check[0] == "CMD"  # no shell
    assert httpx.get(f"{server.http}/readyz", timeout=30, trust_env=False).is_success
    engine.run("exec", server.name, *check[1:])
    engine.run("stop", "--time=30", server.name)
    assert engine.inspect("container", server.name)["State"]["ExitCode"] == 0


def test_the_health_check_fails_where_nothing_is_served(engine: Engine, images: dict[str, str]) -> None:
    image = engine.inspect("image", images["serve"])
    entrypoint, *rest = (image.get("Healthcheck") or image["Config"]["Healthcheck"])["Test"][1:]
    engine.run("run", "--rm", f"--entrypoint={entrypoint}", images["serve"], *rest, expect=1)


def test_a_stopped_training_saves_and_says_so(engine: Engine, training: list[str]) -> None:
    """As process 1, Python would not hear the SIGTERM that engines send, if it had not been told to."""
    places = ("--network=none", "--tmpfs=/store", "--tmpfs=/output")
    with engine.background(*places, *training, "--max_steps", "100000") as name:
        engine.wait_for(name, "step 0:")
        engine.run("stop", "--time=60", name)
        assert engine.inspect("container", name)["State"]["ExitCode"] == 143, engine.run("logs", name)
