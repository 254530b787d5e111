"""The e2e overlay on a real Kubernetes: ``make e2e-kubernetes``.

One node of Kubernetes 1.20.2 on this machine (`tests.infra.kubernetes.cluster`), our images, a real S3 server, a tiny
voice and a tiny model. The tests go on from each other's state, in the order of the file.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
import yaml

from shared.protos.vits.synthesis.v1 import synthesis_pb2 as pb
from shared.protos.vits.synthesis.v1.synthesis_pb2_grpc import SynthesisServiceStub
from tests.infra.kubernetes.cluster import NODE_ADDRESS, Cluster
from tests.integration.manifests import ROOT, Object, find, shipped
from tests.integration.served import TINY_VOICE
from tests.integration.test_images import readable

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

#: What ``make e2e-kubernetes`` sets: the folder of Kubernetes' programs, the saved images, a folder for the rest.
NEEDED = ("VITS_KUBERNETES", "VITS_SERVE_ARCHIVE", "VITS_TRAIN_ARCHIVE", "VITS_E2E_STATE")
NAMESPACE = "vits-e2e"
HTTP, GRPC = "http://127.0.0.1:30080", "127.0.0.1:30051"
KEYS = {"AWS_ACCESS_KEY_ID": "e2e", "AWS_SECRET_ACCESS_KEY": "nothing-to-hide"}
S3_PORT = 8333
SEED = 7
#: Short ones, as a reader's device sends them.
TEXTS = ("hola", "buenos días, ¿cómo estás?", "uno dos tres cuatro cinco seis siete ocho nueve diez")
#: Five minutes of audio in this voice; a request may have ten.
LONG = "el perro de san roque no tiene rabo porque ramón ramírez se lo ha cortado. " * 20


def eventually(what: Callable[[], object], seconds: float) -> float:
    """Wait until something is true; how long that took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        time.sleep(0.5)
    return time.monotonic() - began


@dataclass
class Town:
    """The cluster with our service in it."""

    cluster: Cluster
    environment: dict[str, str]
    """Of programs that run on the node beside it: the store, its keys."""

    def kubectl(self, *arguments: str, input: str | None = None) -> str:  # noqa: A002
        return self.cluster.kubectl("--namespace", NAMESPACE, *arguments, input=input)

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "--output=json"))

    def apply(self, *objects: Object) -> None:
        self.kubectl("apply", "--filename=-", input=yaml.safe_dump_all(objects))

    def pods(self, name: str) -> list[Object]:
        """The pods of a component that are not on their way out."""
        found = self.get("pods", f"--selector=app.kubernetes.io/name={name}")["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def ready(self) -> int:
        """Servers that may have work."""
        return len(
            [
                pod
                for pod in self.pods("vits-serve")
                if {"type": "Ready", "status": "True"}.items()
                <= next((c for c in pod["status"].get("conditions", []) if c["type"] == "Ready"), {}).items()
            ]
        )

    def keep_logs(self, name: str) -> None:
        """Keep what the servers have logged beside the cluster's own logs."""
        for pod in self.pods("vits-serve"):
            pod_name = pod["metadata"]["name"]
            (self.cluster.state / f"{name}-{pod_name}.log").write_text(self.kubectl("logs", pod_name))

    def container(self, pod: str, name: str) -> str:
        """The identity of a pod's container on the node's engine."""
        return self.cluster.docker("ps", "--quiet", "--filter", f"name=k8s_{name}_{pod}_").strip()

    def vits(self, *arguments: str) -> str:
        """Run ``vits`` on the node."""
        return self.python("-m", "services.cli", *arguments)

    def python(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def told(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Say a figure, whatever becomes of the output of tests."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")

    def tell(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n  {line}", flush=True)

    return tell


@pytest.fixture(scope="module")
def cluster(told: Callable[[str], None]) -> Iterator[Cluster]:
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: 'make e2e-kubernetes' makes a cluster and runs this")
    began = time.monotonic()
    state = Path(os.environ["VITS_E2E_STATE"])
    with Cluster(Path(os.environ["VITS_KUBERNETES"]), state / "cluster") as cluster:
        told(f"cluster up after {time.monotonic() - began:.0f} s")
        for kind in ("serve", "train"):
            cluster.load(Path(os.environ[f"VITS_{kind.upper()}_ARCHIVE"]), f"vits-{kind}:e2e")
        cluster.start_metrics_adapter()
        told(f"images loaded after {time.monotonic() - began:.0f} s")
        yield cluster


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3 server on the node, and what programs need to reach it."""
    folder = tmp_path_factory.mktemp("s3")
    identity = {
        "name": "e2e",
        "credentials": [{"accessKey": KEYS["AWS_ACCESS_KEY_ID"], "secretKey": KEYS["AWS_SECRET_ACCESS_KEY"]}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
    weed = str(Path(sys.executable).with_name("weed"))
    command = [
        *(weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=0.0.0.0", "-volume.max=100"),
        *("-master.volumeSizeLimitMB=256", "-filer", "-s3", f"-s3.port={S3_PORT}"),
        f"-s3.config={folder / 'identities.json'}",
    ]
    address = f"http://{NODE_ADDRESS}:{S3_PORT}"
    environment = (
        os.environ
        | KEYS
        | {
            "VITS_STORE": "s3://vits/e2e",
            "AWS_ENDPOINT_URL": address,
            "AWS_REGION": "us-east-1",
            "VITS_CACHE": str(folder / "cache"),
        }
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{address}/healthz", trust_env=False).raise_for_status()
                break
            except httpx.HTTPError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
        shell = subprocess.run(
            [weed, "shell", "-master=127.0.0.1:9333"],
            input="s3.bucket.create -name vits\n",
            text=True,
            capture_output=True,
            check=True,
        )
        assert "created bucket vits" in shell.stdout + shell.stderr, shell
        yield environment
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def town(
    cluster: Cluster,
    store: dict[str, str],
    told: Callable[[str], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Town:
    """The overlay applied, but for its training job, and ready to speak."""
    town = Town(cluster, store)
    town.python("-c", TINY_VOICE, str(tmp_path_factory.mktemp("tiny") / "model"))
    objects = shipped("overlays/e2e")
    cluster.kubectl("apply", "--filename=-", input=yaml.safe_dump(find(objects, "Namespace")))
    town.kubectl(
        "create",
        "secret",
        "generic",
        "vits-store-credentials",
        *(f"--from-literal={name}={value}" for name, value in KEYS.items()),
    )
    town.apply(*(thing for thing in objects if thing["kind"] != "Job"))
    told(f"manifests applied; one server ready {eventually(lambda: town.ready() == 1, 300):.0f} s after that")
    return town


@pytest.fixture(scope="module")
def right(town: Town) -> dict[str, bytes]:
    """What each text sounds like, spoken when nothing else is going on."""
    return {text: over_http(text) for text in TEXTS}


def over_http(text: str, client: httpx.Client | None = None) -> bytes:
    """Speak through the service; a new connection unless a client is given."""
    asked = {"model": "tts-1", "voice": "tiny", "input": text, "response_format": "pcm", "seed": SEED}
    with httpx.Client(trust_env=False, timeout=60) as fresh:
        return (client or fresh).post(f"{HTTP}/v1/audio/speech", json=asked).raise_for_status().content


def over_grpc(text: str, channel: grpc.Channel) -> bytes:
    """Speak through the service's other door."""
    request = pb.SynthesizeRequest(text=text, voice="tiny", seed=SEED, audio_format=pb.AUDIO_FORMAT_PCM)
    return SynthesisServiceStub(channel).Synthesize(request, timeout=60, wait_for_ready=True).audio


def over_openai(text: str, client: openai.OpenAI) -> bytes:
    """Speak through OpenAI's client, which keeps its connections and tries again."""
    answer = client.audio.speech.create(
        model="tts-1", voice="tiny", input=text, response_format="pcm", extra_body={"seed": SEED}
    )
    return answer.content


@dataclass
class Load:
    """Callers of three kinds, and what they got."""

    right: dict[str, bytes]
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def ask(self, caller: str, speak: Callable[[str], bytes], stop: threading.Event) -> None:
        """Ask for one text after another, until told to stop."""
        number = 0
        while not stop.is_set():
            text = TEXTS[number % len(TEXTS)]
            number += 1
            try:
                outcome = "right" if speak(text) == self.right[text] else "wrong"
            except (httpx.HTTPError, grpc.RpcError, openai.OpenAIError) as error:
                outcome = "failed"
                self.errors.append(f"{caller}: {type(error).__name__} {error}"[:300])
            self.outcomes[caller, outcome] += 1
            stop.wait(0.05)

    def count(self, outcome: str) -> int:
        return sum(number for (_, what), number in self.outcomes.items() if what == outcome)


@contextmanager
def callers(right: dict[str, bytes]) -> Iterator[Load]:
    """Several callers at once, of each kind, while the body runs."""
    load, stop = Load(right), threading.Event()
    with (
        openai.OpenAI(base_url=f"{HTTP}/v1", api_key="unused") as client,
        grpc.insecure_channel(GRPC) as channel,
    ):
        ways: list[tuple[str, Callable[[str], bytes]]] = [
            ("a connection each", over_http),
            ("a connection each", over_http),
            ("OpenAI's client", lambda text: over_openai(text, client)),
            ("gRPC", lambda text: over_grpc(text, channel)),
            ("gRPC", lambda text: over_grpc(text, channel)),
        ]
        threads = [threading.Thread(target=load.ask, args=(*way, stop)) for way in ways]
        for thread in threads:
            thread.start()
        try:
            time.sleep(3)
            yield load
            time.sleep(3)
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_a_text_is_spoken_through_the_service_at_both_doors(right: dict[str, bytes]) -> None:
    with grpc.insecure_channel(GRPC) as channel:
        assert {text: over_grpc(text, channel) for text in TEXTS} == right
    assert all(len(audio) > 1000 for audio in right.values())
    assert len(set(right.values())) == len(TEXTS)


def test_the_pod_is_confined(town: Town) -> None:
    """What the manifest says holds for the process that runs."""
    (pod,) = town.pods("vits-serve")
    inside = town.container(pod["metadata"]["name"], "serve")
    code = (
        "import os, re; status = open('/proc/1/status').read(); "
        "print(os.getuid(), *re.findall(r'(?:CapEff|NoNewPrivs|Seccomp):\\s*(\\w+)', status)); open('/x', 'w')"
    )
    with pytest.raises(subprocess.CalledProcessError) as failed:
        town.cluster.docker("exec", inside, "python", "-c", code)
    assert failed.value.stdout.split() == ["10001", "0000000000000000", "1", "2"]
    assert "Read-only file system" in failed.value.stderr


def test_pods_come_and_go_with_the_backlog(town: Town, told: Callable[[str], None]) -> None:
    stop = threading.Event()
    outcomes = Counter[str]()

    def ask() -> None:
        while not stop.is_set():
            try:
                over_http(LONG)
                outcomes["spoken"] += 1
            except httpx.HTTPStatusError as error:
                outcomes[str(error.response.status_code)] += 1
                stop.wait(0.5)
            except httpx.HTTPError as error:
                outcomes[repr(error)] += 1

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    try:
        up = eventually(lambda: town.ready() == 3, 300)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    town.keep_logs("autoscaling")
    down = eventually(lambda: len(town.pods("vits-serve")) == 1, 300)
    told(
        f"autoscaling: 1 to 3 ready servers in {up:.0f} s, back to 1 in {down:.0f} s after the load; "
        f"{dict(outcomes)}"
    )
    # Nobody is answered but with the whole text or a refusal.
    assert set(outcomes) <= {"spoken", "429"}
    seen = town.kubectl("describe", "hpa", "vits-serve")
    assert "New size: 3; reason: pods metric vits_backlog_seconds above target" in seen


def test_a_rolling_update_fails_no_request(
    town: Town, right: dict[str, bytes], told: Callable[[str], None]
) -> None:
    before = {pod["metadata"]["name"] for pod in town.pods("vits-serve")}
    with callers(right) as load:
        began = time.monotonic()
        town.kubectl("rollout", "restart", "deployment/vits-serve")
        town.kubectl("rollout", "status", "deployment/vits-serve", "--timeout=300s")
        # The old pod goes on for its preStop, and then finishes what it speaks.
        eventually(lambda: not before & {p["metadata"]["name"] for p in town.get("pods")["items"]}, 200)
        took = time.monotonic() - began
    told(f"rolling update in {took:.0f} s under load: {dict(load.outcomes)}")
    assert load.errors == []
    assert load.count("wrong") == 0
    assert load.count("right") > 50
    assert not before & {pod["metadata"]["name"] for pod in town.pods("vits-serve")}


def test_a_killed_pod_gives_no_wrong_answer(
    town: Town, right: dict[str, bytes], told: Callable[[str], None]
) -> None:
    town.kubectl("patch", "hpa", "vits-serve", "--type=merge", '--patch={"spec": {"minReplicas": 2}}')
    eventually(lambda: town.ready() == 2, 300)
    with callers(right) as load:
        victim = town.pods("vits-serve")[0]["metadata"]["name"]
        town.cluster.docker("kill", town.container(victim, "serve"))
        eventually(lambda: town.ready() < 2, 120)
        recovered = eventually(lambda: town.ready() == 2, 300)
        at_the_end = Counter(load.outcomes)
        time.sleep(3)
        failures = load.count("failed")
        time.sleep(3)
        assert load.count("failed") == failures, "requests fail although both pods are ready again"
    told(
        f"a killed pod: ready again after {recovered:.0f} s; {dict(load.outcomes)}; errors {Counter(load.errors)}"
    )
    assert load.count("wrong") == 0
    assert load.count("right") > sum(at_the_end.values()) / 2
    town.kubectl("patch", "hpa", "vits-serve", "--type=merge", '--patch={"spec": {"minReplicas": 1}}')


def test_a_training_job_goes_on_after_being_stopped_and_killed(
    town: Town, spanish_model: Path, make_dataset: Callable[..., Path], told: Callable[[str], None]
) -> None:
    town.vits("models", "publish", str(spanish_model), "small")
    town.vits("models", "promote", "small", "latest")
    town.apply(*volume(readable(make_dataset())))
    town.apply(find(shipped("overlays/e2e"), "Job"))
    began = time.monotonic()

    def pod(number: int) -> Object:
        """The job's pod of that number, from 0, once there is one."""
        found: list[Object] = []

        def there() -> bool:
            found[:] = sorted(
                town.get("pods", "--selector=app.kubernetes.io/name=vits-train")["items"],
                key=lambda pod: pod["metadata"]["creationTimestamp"],
            )
            return len(found) > number

        eventually(there, 300)
        return found[number]

    def log(number: int) -> str:
        try:
            return town.kubectl("logs", pod(number)["metadata"]["name"])
        except subprocess.CalledProcessError:
            return ""

    def steps(number: int) -> int:
        return max([0, *map(int, re.findall(r"^step (\d+)/", log(number), re.MULTILINE))])

    # A spot node is taken back: SIGTERM, and the step in hand is saved.
    eventually(lambda: steps(0) >= 4, 300)
    town.cluster.docker("kill", "--signal=TERM", town.container(pod(0)["metadata"]["name"], "train"))
    eventually(lambda: pod(0)["status"]["phase"] == "Failed", 200)
    assert pod(0)["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 143
    (saved,) = re.findall(r"told to stop: step (\d+) is saved", log(0))
    # The next pod, with an empty disk, goes on from there; and loses its node without a word.
    eventually(lambda: "going on from step" in log(1), 300)
    assert re.findall(r"going on from step (\d+) of (\d+)", log(1)) == [(saved, "60")]
    checkpoint = 10 * (int(saved) // 10 + 1)
    eventually(lambda: steps(1) > checkpoint, 300)
    eventually(lambda: f"step {checkpoint}: saved" in log(1), 120)
    town.cluster.docker("kill", town.container(pod(1)["metadata"]["name"], "train"))
    eventually(lambda: "going on from step" in log(2), 300)
    ((again, _),) = re.findall(r"going on from step (\d+) of (\d+)", log(2))
    assert int(again) >= checkpoint
    eventually(lambda: town.get("job", "vits-train")["status"].get("succeeded") == 1, 400)
    assert "trained" in town.vits("models", "list")
    told(
        f"training: stopped at step {saved} (exit 143), killed after step {checkpoint}; gone on from {saved} "
        f"and {again}; 60 steps complete after {time.monotonic() - began:.0f} s"
    )


def test_the_store_is_collected_by_the_cron_jobs_own_pod(town: Town) -> None:
    job = town.get("cronjob", "vits-collect")["spec"]["jobTemplate"]
    town.apply(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "collect"}, "spec": job["spec"]}
    )

    def ended() -> bool:
        return bool(town.get("job", "collect")["status"].get("succeeded"))

    eventually(ended, 300)
    # What aliases reach, and what is younger than a day, is still there.
    listed = town.vits("models", "list") + town.vits("voices", "list")
    assert {"tiny", "trained", "small"} <= set(re.findall(r"\w+", listed))


def volume(folder: Path) -> tuple[Object, Object]:
    """A folder of the node as the claim ``vits-data``."""
    common = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    claim = {"name": "vits-data", "namespace": NAMESPACE}
    return (
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": "vits-data"},
            "spec": common
            | {"capacity": {"storage": "1Gi"}, "hostPath": {"path": str(folder)}, "claimRef": claim},
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "vits-data"},
            "spec": common | {"volumeName": "vits-data", "resources": {"requests": {"storage": "1Gi"}}},
        },
    )
