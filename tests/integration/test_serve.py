"""``vits serve`` as a user starts it: a real process, a real (tiny, random) voice, real clients of both doors."""

from __future__ import annotations

import base64
import importlib.util
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import httpx_ws
import numpy as np
import openai
import pytest
import soundfile
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from services.cli import main
from services.synthesis.http.app import LIVE_PATH, PAGE_SERVER_PATH
from services.synthesis.http.page import PAGE_FILES
from shared.audio import read_audio, to_pcm16
from shared.protos.vits.synthesis.v1 import synthesis_pb2 as pb
from shared.protos.vits.synthesis.v1.synthesis_pb2_grpc import SynthesisServiceStub
from shared.text.segmentation import SENTENCE_PAUSE
from tests.browser import new_page, opened_browser
from tests.integration.served import ROOT, VITS, Server, World, serving, until

TEXT = "Hola, ¿cómo estás?"
GRPCURL = Path(sys.executable).with_name("grpcurl")

RAISING_ENDPOINT = """
from starlette.testclient import TestClient
from services.synthesis.service import BentoMLContainer, SynthesisService
BentoMLContainer.metrics_client.get().generate_latest = lambda: 1 / 0
print(TestClient(SynthesisService.to_asgi(), raise_server_exceptions=False).get("/metrics").status_code)
"""

#: Every method and path of the server as a whole, BentoML's own included.
ROUTES = """
from starlette.routing import Route
from services.synthesis.service import SynthesisService
def tell(routes):
    for route in routes:
        if isinstance(route, Route):
            for method in (route.methods or set()) - {"HEAD"}:
                print(method, route.path)
        tell(getattr(route, "routes", None) or [])
tell(SynthesisService.to_asgi().routes)
"""

#: A voice that makes its second piece when the client has heard the first.
STREAMING = """
import asyncio, sys, threading, time
import openai, uvicorn
from prometheus_client import CollectorRegistry
from services.synthesis.service import SynthesisService, http_app
from shared.metrics import Metrics
from shared.registry import Registry
from shared.store import Store
from tests.unit.services.synthesis.http.conftest import FakeSpeaker, FakeSpeaking
heard = threading.Event()
make_piece = FakeSpeaking.__anext__
async def make_piece_when_heard(self):
    if self.heard:
        await asyncio.to_thread(heard.wait)
    return await make_piece(self)
FakeSpeaking.__anext__ = make_piece_when_heard
http_app.state.speaker = FakeSpeaker(Registry(Store.open("memory://")), Metrics(CollectorRegistry()))
config = uvicorn.Config(SynthesisService.to_asgi(), port=0, lifespan="off", log_config=None)
server = uvicorn.Server(config)
serving = threading.Thread(target=server.run)
serving.start()
while not server.started:
    time.sleep(0.01)
port = server.servers[0].sockets[0].getsockname()[1]
client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=30)
try:
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input="a" * 100, response_format="pcm", stream_format=sys.argv[1]
    ) as answer:
        pieces = answer.iter_bytes()
        first = next(pieces)
        heard.set()
        sys.stdout.buffer.write(first + b"".join(pieces))
finally:
    heard.set()
    server.should_exit = True
    serving.join()
"""

#: A voice that is loaded when its time has come; what HTTP and gRPC say of the server before and after.
READINESS = """
import asyncio, threading, time
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from starlette.testclient import TestClient
from services.synthesis.service import SynthesisService, http_app
from services.synthesis.speaker import Speaker
load = threading.Event()
warm = Speaker.warm
async def warm_later(self):
    await asyncio.to_thread(load.wait)
    return await warm(self)
Speaker.warm = warm_later
def healthy(channel):
    services = "", "vits.synthesis.v1.SynthesisService"
    check = health_pb2_grpc.HealthStub(channel).Check
    answers = [check(health_pb2.HealthCheckRequest(service=name), timeout=30).status for name in services]
    return "/".join(map(health_pb2.HealthCheckResponse.ServingStatus.Name, answers))
def tell():
    print(client.get("/livez").status_code, client.get("/readyz").status_code, healthy(channel))
unknown = http_app.state.grpc_port
with TestClient(SynthesisService.to_asgi()) as client:
    while http_app.state.grpc_port == unknown:
        time.sleep(0.01)
    with grpc.insecure_channel(f"127.0.0.1:{http_app.state.grpc_port}") as channel:
        try:
            tell()
        finally:
            load.set()
        while client.get("/readyz").status_code == 503 or "NOT" in healthy(channel):
            time.sleep(0.01)
        tell()
"""


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield channel


def pcm_over_http(client: openai.OpenAI, text: str, seed: int) -> bytes:
    answer = client.audio.speech.create(
        model="tts-1", voice="alloy", input=text, response_format="pcm", extra_body={"seed": seed}
    )
    return answer.content


def pcm_over_grpc(channel: grpc.Channel, text: str, seed: int) -> bytes:
    request = pb.SynthesizeRequest(text=text, seed=seed, audio_format=pb.AUDIO_FORMAT_PCM)
    return SynthesisServiceStub(channel).Synthesize(request, timeout=30).audio


def test_the_official_openai_client_gets_audio(client: openai.OpenAI) -> None:
    answer = client.audio.speech.with_raw_response.create(
        model="tts-1", voice="alloy", input=TEXT, response_format="wav"
    )
    audio = read_audio(answer.content, format="wav")
    assert audio.sampling_rate == 16000
    assert audio.duration_seconds > 0.1
    assert np.abs(audio.samples).max() > 0
    again = pcm_over_http(client, TEXT, int(answer.headers["X-Vits-Seed"]))
    assert again == to_pcm16(audio.samples).tobytes()
    assert answer.headers["X-Vits-Voice"].startswith("tiny/")
    assert {model.id for model in client.models.list()} >= {"tts-1", "tiny"}


@pytest.mark.parametrize("stream_format", ["audio", "sse"])
def test_the_official_client_hears_the_first_before_the_last_is_made(
    world: World, stream_format: str
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", STREAMING, stream_format]
    answer = subprocess.run(
        command, cwd=ROOT, env=world.environment, capture_output=True, check=True, timeout=100
    ).stdout
    if stream_format == "sse":
        *deltas, done = [json.loads(event.removeprefix(b"data: ")) for event in answer.split(b"\n\n")[:-1]]
        assert done["type"] == "speech.audio.done"
        answer = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    assert len(answer) == 2 * 16000


def test_the_official_client_understands_our_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="mp3") as refused:
        client.audio.speech.create(model="tts-1", voice="alloy", input=TEXT, response_format="ogg")  # type: ignore[arg-type]
    assert refused.value.param == "response_format"
    with pytest.raises(openai.NotFoundError, match="did you mean 'tiny'"):
        client.audio.speech.create(model="tts-1", voice="tinny", input=TEXT, response_format="wav")
    with pytest.raises(openai.BadRequestError, match="text"):
        client.audio.speech.create(model="tts-1", voice="tiny", input="你好", response_format="wav")


def test_http_and_grpc_give_the_same_samples_alone_and_in_a_crowd(
    client: openai.OpenAI, channel: grpc.Channel
) -> None:
    texts = [TEXT, "uno", "un texto algo más largo que los otros, para que no vayan al paso"]
    alone = {text: pcm_over_http(client, text, 7) for text in texts}
    assert pcm_over_http(client, TEXT, 8) != alone[TEXT]
    jobs = [(door, text) for text in texts * 4 for door in ("http", "grpc")]

    def ask(job: tuple[str, str]) -> bytes:
        door, text = job
        return pcm_over_http(client, text, 7) if door == "http" else pcm_over_grpc(channel, text, 7)

    with ThreadPoolExecutor(8) as pool:
        crowd = list(pool.map(ask, jobs))
    assert crowd == [alone[text] for _, text in jobs]


def test_windows_that_share_calls_sound_as_they_do_alone(
    world: World, client: openai.OpenAI, tmp_path: Path
) -> None:
    texts = [f"un texto largo, que es el número {number}, y que tarda lo suyo. " * 3 for number in range(8)]
    alone = [pcm_over_http(client, text, 7) for text in texts]
    with (
        serving(World(tmp_path, world.store), "--max-batch", "4", "--max-backlog", "600") as server,
        grpc.insecure_channel(server.grpc_address) as channel,
        ThreadPoolExecutor(len(texts)) as pool,
    ):
        together = list(pool.map(lambda text: pcm_over_grpc(channel, text, 7), texts))
        metrics = dict(line.rsplit(" ", 1) for line in server.get("/metrics").splitlines() if line[0] != "#")
    for heard, expected in zip(together, alone, strict=True):
        # Within 1e-5, and so within one step of 16 bits.
        difference = np.frombuffer(heard, "<i2").astype(int) - np.frombuffer(expected, "<i2")
        assert np.abs(difference).max() <= 1
    calls = float(metrics["vits_decoder_batch_windows_count"])
    assert float(metrics["vits_decoder_batch_windows_sum"]) > calls > 0


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_openvino_on_two_streams_sounds_alike_in_a_crowd(world: World, tmp_path: Path) -> None:
    """What servers on x86 compute with; the other servers here have ONNX Runtime, and one stream."""
    exported = World(tmp_path, tmp_path / "store")
    source, store = str(world.root / "model"), str(exported.store)
    assert main(["export", source, "--name", "tiny", "--variants", "fp32-openvino", "--store", store]) == 0
    texts = [f"un texto largo, que es el número {number}. " * (1 + number % 4) for number in range(8)]
    options = ("--variant", "fp32-openvino", "--threads", "2", "--streams", "2")
    with (
        serving(exported, *options) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client,
        grpc.insecure_channel(server.grpc_address) as channel,
        ThreadPoolExecutor(len(texts)) as pool,
    ):
        doors = partial(pcm_over_http, client), partial(pcm_over_grpc, channel)
        crowd = list(pool.map(lambda number: doors[number % 2](texts[number], 7), range(len(texts))))
        for text, heard in zip(texts, crowd, strict=True):
            assert [door(text, 7) for door in doors] == [heard, heard]
        (voice,) = json.loads(server.get("/v1/audio/voices"))["voices"]
        assert voice["variant"] == "fp32-openvino"


def test_a_server_tries_no_streams_for_which_it_has_no_memory(world: World, tmp_path: Path) -> None:
    with serving(World(tmp_path, world.store), "--threads", "2", "--memory", "60") as server:
        assert re.findall(r"(\d) streams: .* of audio a second", server.log.read_text()) == ["1"]


def test_grpc_health_reflection_and_deadline(server: Server, channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    service = "vits.synthesis.v1.SynthesisService"
    answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert service in ProtoReflectionDescriptorDatabase(channel).get_services()
    with pytest.raises(grpc.RpcError) as late:
        SynthesisServiceStub(channel).Synthesize(pb.SynthesizeRequest(text="lento " * 200), timeout=0.001)
    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_health_over_http(server: Server) -> None:
    for path in ("/livez", "/readyz", "/healthz"):
        assert server.get(path) == "\n"
    with pytest.raises(urllib.error.HTTPError, match="404") as missing:
        server.get("/v1/nothing")
    with missing.value:
        assert json.load(missing.value)["error"]["code"] == "unknown_url"


def test_a_server_is_ready_when_its_voice_is_and_alive_before(world: World) -> None:
    environment = world.environment | {"VITS_GRPC_PORT": "0", "VITS_POLL_SECONDS": "0"}
    command = [sys.executable, "-W", "ignore", "-c", READINESS]
    asked = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    told = ["200 503 NOT_SERVING/NOT_SERVING", "200 200 SERVING/SERVING"]
    assert asked.stdout.splitlines() == told, asked.stderr


def test_everything_that_is_served_is_described(world: World, server: Server) -> None:
    operators = {"/livez", "/healthz", "/readyz", "/metrics", "/schema.json", "/docs.json", "/openapi.json"}
    others = operators | {"/v1/{path:path}", PAGE_SERVER_PATH, *PAGE_FILES}
    asked = world.run(sys.executable, "-W", "ignore", "-c", ROUTES)
    routes = {tuple(line.split()) for line in asked.stdout.splitlines()}
    document = json.loads(server.get("/openapi.json"))
    described = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
        if method != "parameters"
    }
    assert described - {("GET", LIVE_PATH)} == {route for route in routes if route[1] not in others}
    # What BentoML's client is told of its own path.
    (told,) = json.loads(server.get("/schema.json"))["routes"]
    fields = document["components"]["schemas"]["SynthesizeRequest"]["properties"]
    for name, field in told["input"]["properties"].items():
        assert field.get("default") == fields[name].get("default"), name


def test_metrics(server: Server, client: openai.OpenAI, channel: grpc.Channel) -> None:
    def samples() -> dict[str, float]:
        rows = (
            line.rpartition(" ") for line in server.get("/metrics").splitlines() if not line.startswith("#")
        )
        return {name: float(value) for name, _, value in rows}

    before = samples()
    seconds = (
        len(pcm_over_http(client, TEXT, 1)) / 2 / 16000 + len(pcm_over_grpc(channel, "uno", 1)) / 2 / 16000
    )
    after = samples()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown('vits_responses_total{code="200",door="http"}') == 1
    assert grown('vits_responses_total{code="OK",door="grpc"}') == 1
    assert grown('vits_audio_seconds_total{voice="tiny"}') == pytest.approx(seconds)
    assert grown('vits_real_time_factor_ratio_count{voice="tiny"}') == 2
    assert grown('vits_first_audio_seconds_count{door="grpc"}') == 1
    assert after["vits_voices_loaded"] == 1
    assert after["vits_voice_memory_bytes"] > 0
    assert after["vits_requests_in_flight"] == 0
    assert any('bentoml_service_request_total{endpoint="/v1/audio/speech"' in name for name in after)
    assert any('service_name="vits-synthesis"' in name for name in after)


def test_promtool_accepts_the_page_with_bentomls_series_beside_ours(
    server: Server, client: openai.OpenAI
) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package 'prometheus')")
    pcm_over_http(client, TEXT, 1)
    page = server.get("/metrics")
    assert {"vits_first_audio_seconds_count", "bentoml_service_request_total", "process_open_fds"} <= set(
        re.findall(r"^\w+", page, re.MULTILINE)
    )
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_paths_that_are_not_served_make_no_metrics_of_their_own(server: Server) -> None:
    def ask(number: int) -> set[str]:
        for path in (
            "/nothing",
            "/v1/nothing",
            "/v1/audio/voices/nobody",
            "/synthesize/",
            "/static_content/",
        ):
            assert httpx.get(f"{server.url}{path}{number}").status_code == 404
            assert httpx.post(f"{server.url}{path}{number}").status_code in {404, 405}
        with pytest.raises(httpx_ws.WebSocketUpgradeError):
            httpx_ws.connect_ws(f"{server.url}/v1/nothing{number}", httpx.Client()).__enter__()
        metrics = server.get("/metrics").splitlines()
        return {line.rpartition(" ")[0] for line in metrics if line.startswith(("bentoml_", "vits_"))}

    first = ask(0)
    assert any('endpoint="other"' in name for name in first)
    assert any('endpoint="/v1/audio/voices/{name}"' in name for name in first)
    assert set.union(*map(ask, range(1, 4))) == first


def test_say_in_process_and_through_the_server_are_the_same(world: World, server: Server) -> None:
    options = ["--seed", "7", "--speed", "1.5"]
    here, there = world.root / "here.wav", world.root / "there.wav"
    line = world.vits("say", TEXT, "-o", str(here), *options)
    assert re.fullmatch(
        r"\S+here\.wav: \d+\.\d\d s of audio at .* times real time, seed 7, voice tiny/\S+\n", line
    )
    world.vits("say", TEXT, "-o", str(there), *options, "--url", server.url)
    assert here.read_bytes() == there.read_bytes()


def test_say_with_a_model_that_was_not_exported(world: World) -> None:
    output = world.root / "model.wav"
    world.vits("say", TEXT, "-o", str(output), "--seed", "7", "--checkpoint", str(world.root / "model"))
    assert read_audio(output).sampling_rate == 16000


def children_of(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_runs_and_leaves_nothing(world: World, number: int, tmp_path: Path) -> None:
    fresh = World(tmp_path, world.store)
    with serving(fresh) as server:
        assert children_of(server.process.pid) == []
        talk: httpx_ws.WebSocketSession
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client,
            ThreadPoolExecutor(1) as pool,
            httpx_ws.connect_ws(f"{server.url}/v1/audio/speech/live", httpx.Client()) as talk,
        ):
            talk.send_json({"type": "start"})
            running = pool.submit(pcm_over_http, client, "un texto largo que tarda lo suyo " * 30, 1)
            while 'in_progress{endpoint="/v1/audio/speech"' not in server.get("/metrics"):
                assert not running.done(), "the text is too short to be caught at"
            assert server.stop(number) == 0, server.log.read_text()
            assert running.result()
            assert talk.receive_json(timeout=30)["error"]["code"] == "stopping"
            with pytest.raises(httpx_ws.WebSocketDisconnect) as closed:
                talk.receive_json(timeout=30)
            assert closed.value.code == 1012
        assert "Traceback" not in server.log.read_text()
        assert "stopped" in server.log.read_text()
    assert list((fresh.root / "home").iterdir()) == []
    assert list((fresh.root / "tmp").iterdir()) == []


def test_a_stop_under_load_answers_everybody_and_nobody_wrong(world: World, tmp_path: Path) -> None:
    """What was begun is heard to its end, what was refused is refused in words, and no other has reached the server."""
    with (
        serving(World(tmp_path, world.store), "--log-format", "json") as server,
        grpc.insecure_channel(server.grpc_address) as channel,
    ):
        stub = SynthesisServiceStub(channel)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
            expected = pcm_over_http(client, TEXT, 7)
        numbers = itertools.count()
        heard: dict[str, str] = {}

        def over_http(name: str) -> str:
            body = {"input": TEXT, "seed": 7, "response_format": "pcm"}
            with httpx.Client(base_url=server.url, timeout=60, headers={"x-request-id": name}) as http:
                try:
                    answer = http.send(http.build_request("POST", "/v1/audio/speech", json=body), stream=True)
                except httpx.TransportError:
                    return "nobody listens"
                # What has begun to be answered is answered to its end: `read` raises otherwise.
                content = answer.read()
            if answer.status_code == 200:
                assert content == expected
                return "spoken"
            return str(json.loads(content)["error"]["code"])

        def over_grpc(name: str) -> str:
            request = pb.SynthesizeRequest(text=TEXT, seed=7, audio_format=pb.AUDIO_FORMAT_PCM)
            try:
                answer = stub.Synthesize(request, timeout=60, metadata=(("x-request-id", name),))
            except grpc.RpcError as error:
                why = f"{error.code().name}: {error.details()}"
                if why.startswith("UNAVAILABLE: The server is stopping"):
                    return "stopping"
                # Anything else is a call that was cut off.
                return "nobody listens" if "failed to connect" in why else why
            assert answer.audio == expected
            return "spoken"

        def ask_until_refused(ask: Callable[[str], str]) -> None:
            outcome = "spoken"
            while outcome == "spoken":
                name = f"{ask.__name__}-{next(numbers)}"
                outcome = heard[name] = ask(name)

        with ThreadPoolExecutor(8) as pool:
            asking = [pool.submit(ask_until_refused, ask) for ask in (over_http, over_grpc) * 4]
            until(lambda: len(heard) >= 20)
            assert server.stop() == 0, server.log.read_text()
            for answer in asking:
                answer.result()
        log = server.log.read_text()
        told = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        known = {line["request_id"] for line in told if "request_id" in line}
        begun = {line["request_id"] for line in told if line.get("voice")}
        assert heard == {
            name: "spoken" if name in begun else "stopping" if name in known else "nobody listens"
            for name in heard
        }
        assert "Traceback" not in log


def test_metrics_are_counted_in_memory_and_tell_of_the_process(server: Server) -> None:
    """In files for several processes, they cannot be read in the moment in which one of those is made."""
    assert "process_resident_memory_bytes" in server.get("/metrics")


def test_an_endpoint_that_raises_is_answered(world: World) -> None:
    """BentoML's time limit alone waits until it has passed."""
    asked = world.run(sys.executable, "-c", RAISING_ENDPOINT)
    assert asked.stdout.split() == ["500"], asked.stderr


def test_two_servers_do_not_share_a_port(world: World, server: Server) -> None:
    for option, address in (("--http-port", server.url), ("--grpc-port", server.grpc_address)):
        ports = {"--http-port": "0", "--grpc-port": "0"} | {option: address.rpartition(":")[2]}
        second = world.run(*VITS, "serve", *(word for pair in ports.items() for word in pair))
        assert second.returncode == 2
        assert option in second.stderr
        assert "Traceback" not in second.stderr


def test_a_damaged_voice_is_refused(world: World, tmp_path: Path) -> None:
    damaged = World(tmp_path, tmp_path / "store")
    shutil.copytree(world.store, damaged.store)
    graph = next(damaged.store.rglob("decoder.onnx"))
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    refused = damaged.run(*VITS, "serve", "--http-port", "0", "--grpc-port", "0")
    assert refused.returncode == 4
    assert "decoder.onnx" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_nonsense_never_fails_the_server(server: Server) -> None:
    def post(body: bytes) -> tuple[int, Any]:
        request = urllib.request.Request(f"{server.url}/v1/audio/speech", body)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)["error"]["message"]

    texts = [
        "",
        " ",
        "\x00",
        "\ud800",
        "😀",
        "‮שלום‬",
        "a\u0301" * 500,
        "<speak>&x;</speak>",
        "1" * 100,
        "x" * 1_000_000,
    ]
    for text in texts:
        status, content = post(json.dumps({"input": text}).encode())
        assert status in {200, 400, 413}, (text, content)
        assert content
    assert post(b"\x00" * 100)[0] == 400


#: In a process of its own, since its imports warn.
BENTOML_CLIENT = """
import sys
import bentoml
url, token, text = sys.argv[1:]
with bentoml.SyncHTTPClient(url, token=token or None) as client:
    sys.stdout.buffer.write(client.synthesize(input=text, seed=7, response_format="pcm").read_bytes())
"""


def pcm_over_bentoml(server: Server, text: str, token: str = "") -> bytes:
    command = [sys.executable, "-W", "ignore", "-c", BENTOML_CLIENT, server.url, token, text]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout


def test_bentomls_client_gets_audio_and_errors(server: Server, client: openai.OpenAI) -> None:
    assert pcm_over_bentoml(server, TEXT) == pcm_over_http(client, TEXT, 7)
    with pytest.raises(subprocess.CalledProcessError):
        pcm_over_bentoml(server, "你好")
    for kind, body in (
        ("multipart/form-data", b"x"),
        ("application/json", b"{"),
        ("application/json", b"1" * 200_000),
    ):
        answer = httpx.post(f"{server.url}/synthesize", content=body, headers={"Content-Type": kind})
        assert 400 <= answer.status_code < 500
        assert answer.json()["error"]


def test_curl_gets_audio(server: Server, world: World) -> None:
    output = world.root / "curl.mp3"
    body = json.dumps({"input": TEXT})
    done = world.run("curl", "-sf", f"{server.url}/v1/audio/speech", "-d", body, "-o", str(output))
    assert done.returncode == 0
    assert read_audio(output).duration_seconds > 0.1


@pytest.mark.skipif(not GRPCURL.exists(), reason="grpcurl is not installed")
def test_grpcurl_gets_audio(server: Server, client: openai.OpenAI, world: World) -> None:
    body = json.dumps({"text": TEXT, "seed": 7, "audio_format": "AUDIO_FORMAT_PCM"})
    method = "vits.synthesis.v1.SynthesisService/Synthesize"
    done = world.run(str(GRPCURL), "-plaintext", "-d", body, server.grpc_address, method)
    assert done.returncode == 0, done.stderr
    assert base64.b64decode(json.loads(done.stdout)["audio"]) == pcm_over_http(client, TEXT, 7)


def test_a_text_in_pieces_over_a_real_connection(server: Server, client: openai.OpenAI) -> None:
    socket: httpx_ws.WebSocketSession
    with httpx_ws.connect_ws(f"{server.url}/v1/audio/speech/live", httpx.Client()) as socket:
        socket.send_json({"type": "start", "response_format": "pcm", "seed": 7, "timestamps": True})
        for piece in ("Hola, ", "¿cómo ", "estás? Uno"):
            socket.send_json({"type": "text", "text": piece})
        socket.send_json({"type": "end"})
        messages: list[dict[str, Any]] = [socket.receive_json(timeout=30)]
        while messages[-1]["type"] not in {"done", "error"}:
            messages.append(socket.receive_json(timeout=30))
    assert messages[-1]["type"] == "done"
    audio = b"".join(base64.b64decode(m["audio"]) for m in messages if m["type"] == "audio")
    pause = bytes(2 * round(SENTENCE_PAUSE * 16000))
    assert audio == pcm_over_http(client, TEXT, 7) + pause + pcm_over_http(client, "Uno", 7)
    assert [t["text"] for m in messages for t in m.get("timestamps", [])]


def test_our_page_is_at_the_root_and_nothing_from_outside(server: Server) -> None:
    page = server.get("/")
    assert 'id="spectrogram"' in page
    assert "https://" not in page


def test_a_browser_gets_audio(server: Server, client: openai.OpenAI) -> None:
    with opened_browser() as browser:
        page, complaints = new_page(browser, f"{server.url}/")
        page.get_by_label("Text", exact=True).fill(TEXT)
        page.get_by_label("Seed", exact=True).fill("7")
        page.keyboard.press("Control+Enter")
        with page.expect_download() as download:
            page.get_by_role("link", name="Download WAV").click()
        samples, rate = soundfile.read(download.value.path(), dtype="int16")
        assert complaints == []
    assert rate == 16000
    assert samples.tobytes() == pcm_over_http(client, TEXT, 7)


def test_tokens_hold_at_both_doors(world: World) -> None:
    path = world.root / "tokens.json"
    token = world.vits("serve", "--tokens", str(path), "--new-token", "web").strip()
    with serving(world, "--tokens", str(path)) as server:
        with (
            pytest.raises(openai.AuthenticationError),
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as wrong,
        ):
            pcm_over_http(wrong, TEXT, 7)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=token, max_retries=0) as right:
            heard = pcm_over_http(right, TEXT, 7)
        assert pcm_over_bentoml(server, TEXT, token) == heard
        with grpc.insecure_channel(server.grpc_address) as channel:
            stub = SynthesisServiceStub(channel)
            request = pb.SynthesizeRequest(text=TEXT, seed=7, audio_format=pb.AUDIO_FORMAT_PCM)
            with pytest.raises(grpc.RpcError) as refused:
                stub.Synthesize(request, timeout=30)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
            metadata = (("authorization", f"Bearer {token}"),)
            assert stub.Synthesize(request, timeout=30, metadata=metadata).audio == heard
    assert token not in server.log.read_text()


def test_nasty_texts_are_answered(server: Server, channel: grpc.Channel) -> None:
    bomb = '<!DOCTYPE s [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><speak>&b;</speak>'
    texts = [
        "",
        " ",
        "👩‍👩‍👧",
        "\u202eשלום",
        "\0\x01\x7f",
        "a\ud800",
        bomb,
        "<speak>" * 500,
        "9" * 40,
        "\u0323" * 500,
        "a < b, 2 > 3",
    ]
    for text, language in itertools.product(texts, [None, "fr"]):
        body = json.dumps({"input": text, "language": language})
        for path in ("/v1/audio/speech", "/synthesize"):
            answer = httpx.post(f"{server.url}{path}", content=body, timeout=60)
            assert answer.status_code in {200, 400}, (text, answer.text)
            if answer.status_code == 400:
                assert answer.json()["error"]["message"]
        if "\ud800" in text:
            continue  # which protocol buffers cannot carry
        request = pb.SynthesizeRequest(text=text, language=language or "", ssml=text.startswith("<"))
        outcome = SynthesisServiceStub(channel).Synthesize.future(request, timeout=60)
        assert outcome.code() in {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}, (text, outcome)
        assert outcome.code() is grpc.StatusCode.OK or outcome.details()
