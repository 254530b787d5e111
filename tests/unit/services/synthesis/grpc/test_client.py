"""`vits_client`, sync and async, and every method of the protocol through it, on a real server and channel."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc import StatusCode

import vits_client
from services.synthesis.access import Access, add_token
from services.synthesis.grpc.errors import ERRORS
from shared.audio import read_audio
from shared.protos.vits.synthesis.v1 import synthesis_pb2 as pb
from shared.protos.vits.synthesis.v1.synthesis_pb2_grpc import SynthesisServiceStub
from vits_client import (
    AccessError,
    AsyncClient,
    Cancelled,
    Chunk,
    Client,
    DeadlineError,
    End,
    Flushed,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    QuotaError,
    Sentence,
    ServerError,
    Start,
    StoppedError,
    Timestamp,
    UnavailableError,
)
from vits_client.errors import _KINDS

if TYPE_CHECKING:
    from tests.unit.services.synthesis.grpc.conftest import Running, ScriptedSpeaker, Serve

Pcm = Callable[[str, int], bytes]


@pytest.fixture
def client(server: Running) -> Iterator[Client]:
    with Client(server.url, timeout_seconds=10) as client:
        yield client


def in_loop(server: Running, scene: Callable[[AsyncClient], Any]) -> Any:
    async def play() -> Any:
        async with AsyncClient(server.url, timeout_seconds=10) as client:
            return await scene(client)

    return asyncio.run(play())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_whole_text(client: Client, expected: Pcm, tmp_path: Any) -> None:
    speech = client.speak("uno dos 你", seed=7)
    assert (speech.seed, speech.voice, speech.voice_version) == (7, "ana", "1")
    assert (speech.audio_format, speech.sampling_rate, speech.duration_seconds) == ("wav", 16000, 0.3)
    assert speech.unknown == ("你",)
    assert speech.timestamps == ()
    speech.save(tmp_path / "a.wav")
    assert read_audio(tmp_path / "a.wav").duration_seconds == 0.3
    assert client.speak("uno dos", seed=7, audio_format="pcm").audio == expected("uno dos", 7)
    timed = client.speak("uno dos", timestamps=True)
    assert timed.seed == 77
    assert timed.timestamps == (Timestamp("uno", 0.0, 0.1), Timestamp("dos", 0.1, 0.2))


def test_every_option_arrives(client: Client, speaker: ScriptedSpeaker) -> None:
    client.speak(
        "<speak>uno</speak>",
        voice="ana@x",
        speaker="2",
        seed=0,
        speaking_rate=0.5,
        noise_scale=0.0,
        noise_scale_duration=0.1,
        language="es-MX",
        ssml=True,
        priority="bulk",
        request_id="my-own",
    )
    order = speaker.spoken[0].order
    assert (order.voice, order.speaker, order.seed, order.speaking_rate) == ("ana@x", "2", 0, 0.5)
    assert (order.noise_scale, order.noise_scale_duration) == (0.0, 0.1)
    assert (order.language, order.ssml, order.priority, order.door) == ("es-MX", True, "bulk", "grpc")
    assert order.request_id == "my-own"
    assert order.deadline_seconds is not None
    assert 5 < order.deadline_seconds < 11


def test_what_cannot_be_asked_for(client: Client) -> None:
    with pytest.raises(TypeError, match=r"no option 'volume'; there is voice, speaker"):
        client.speak("uno", volume=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="audio_format: there is no 'ogg'; there is wav, pcm"):
        client.speak("uno", audio_format="ogg")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timestamps: there is no 'letter'; there is word, token"):
        client.speak("uno", timestamps="letter")  # type: ignore[arg-type]


def test_a_stream(client: Client, expected: Pcm) -> None:
    with client.stream("uno dos tres", seed=1, timestamps=True) as stream:
        assert stream.start == Start("pcm", 16000, 1, "ana", "1", ())
        pieces = list(stream)
    assert len(pieces) == 3
    assert b"".join(pieces) == expected("uno dos tres", 1)
    assert [word.text for word in stream.timestamps] == ["uno", "dos", "tres"]
    assert stream.duration_seconds == 0.3


def test_tokens_are_timed_by_every_method(client: Client) -> None:
    text = "Uno dos. Tres"
    options: Any = {"timestamps": "token"}
    whole = client.speak(text, **options)
    assert whole.timestamps == (Timestamp("U", 0.0, 0.1), Timestamp("d", 0.1, 0.2), Timestamp("T", 0.2, 0.3))
    with client.stream(text, **options) as stream:
        assert b"".join(stream)
    assert tuple(stream.timestamps) == whole.timestamps
    pieces = client.stream_pieces([text], **options)
    assert b"".join(pieces)
    assert [one.text for one in pieces.timestamps] == ["U", "d", "T"]
    assert pieces.timestamps[2].start_seconds == pytest.approx(0.5)
    (result,) = client.speak_batch([text], **options)
    assert result.speech
    assert result.speech.timestamps == whole.timestamps
    assert client.speak(text, timestamps=False).timestamps == ()
    assert client.speak(text, timestamps=None).timestamps == ()


def test_a_whole_text_of_more_than_four_megabytes(client: Client, server: Running, expected: Pcm) -> None:
    text = "a " * 1500
    assert client.speak(text, seed=1, audio_format="pcm").audio == expected(text, 1)
    assert len(expected(text, 1)) > 4 * 2**20
    # Another client takes so much only if it is told to, and says so; what is streamed comes in any case.
    with grpc.insecure_channel(server.address) as channel:
        stub = SynthesisServiceStub(channel)
        request = pb.SynthesizeRequest(text=text, seed=1, audio_format=pb.AUDIO_FORMAT_PCM)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Synthesize(request, timeout=20)
        assert refused.value.code() is StatusCode.RESOURCE_EXHAUSTED
        assert str(4 * 2**20) in (refused.value.details() or "")
        stream = stub.SynthesizeStream(pb.SynthesizeStreamRequest(request=request), timeout=20)
        assert b"".join(message.chunk.audio for message in stream) == expected(text, 1)


@pytest.mark.parametrize("audio_format", ["wav", "flac", "mp3", "opus", "aac"])
def test_every_format_streamed_and_whole(client: Client, audio_format: Any) -> None:
    text = "uno dos tres cuatro"
    whole = client.speak(text, audio_format=audio_format, sampling_rate=24000)
    stream = client.stream(text, audio_format=audio_format, sampling_rate=24000)
    decoder = {"opus": "ogg"}.get(audio_format, audio_format)
    for audio in (whole.audio, b"".join(stream)):
        decoded = read_audio(audio, format=decoder)
        assert decoded.sampling_rate in {24000, 48000}  # Opus is always decoded at 48 kHz
        assert decoded.duration_seconds == pytest.approx(0.4, abs=0.1)
    assert whole.sampling_rate == 24000
    assert stream.start is not None
    assert stream.start.sampling_rate == 24000


def test_leaving_a_stream_stops_the_work(client: Client, speaker: ScriptedSpeaker) -> None:
    with client.stream("uno ever tres") as stream:
        assert next(iter(stream))
    wait_until(lambda: speaker.spoken[0].left)
    assert speaker.spoken[0].made == 1
    assert speaker.code("CANCELLED") == 1
    with pytest.raises(StoppedError):
        list(stream)


def test_a_stream_that_fails_in_the_middle(client: Client, speaker: ScriptedSpeaker) -> None:
    stream = client.stream("uno fails")
    with pytest.raises(ServerError, match="The server failed") as caught:
        list(stream)
    assert caught.value.reason == "ENGINE_FAILED"
    assert stream.duration_seconds is None
    assert speaker.spoken[0].left


def test_pieces(client: Client, speaker: ScriptedSpeaker, expected: Pcm) -> None:
    text = "Uno dos. ¿Tres cuatro? *** cinco"
    stream = client.stream_pieces(iter(text), seed=3, timestamps=True)
    audio = b"".join(stream)
    sentences = ["Uno dos.", "¿Tres cuatro?", "*** cinco"]
    assert [one.order.text for one in speaker.spoken] == sentences
    silence = bytes(2 * round(0.3 * 16000))
    assert audio == silence.join(expected(sentence, 3) for sentence in sentences)
    assert [word.text for word in stream.timestamps] == ["Uno", "dos.", "¿Tres", "cuatro?", "***", "cinco"]
    assert stream.timestamps[2].start_seconds == pytest.approx(0.5)
    assert stream.duration_seconds == pytest.approx(1.2)
    assert stream.start is not None


def test_pieces_keep_seed_and_version(client: Client, speaker: ScriptedSpeaker) -> None:
    list(client.stream_pieces(["Uno. ", "Dos. "]))
    first, second = (one.order for one in speaker.spoken)
    assert (first.voice, first.seed) == ("", None)
    assert (second.voice, second.seed) == ("ana/1", 77)


def test_sentences_with_nothing_to_say_do_not_end_a_conversation(client: Client) -> None:
    with client.converse() as conversation:
        for text in ("*** \n", "Uno.\n", "... "):
            conversation.send(text)
        conversation.finish()
        kinds = [type(event).__name__ for event in conversation]
    assert kinds == ["Sentence", "Start", "Sentence", "Chunk", "Sentence", "End"]


def test_nothing_to_say_at_all(client: Client) -> None:
    stream = client.stream_pieces([])
    assert list(stream) == []
    assert stream.duration_seconds == 0


def test_an_error_of_whoever_gives_the_pieces(client: Client) -> None:
    def pieces() -> Iterator[str]:
        yield "Uno. "
        raise KeyError("the model failed")

    with pytest.raises(KeyError, match="the model failed"):
        list(client.stream_pieces(pieces()))


def test_a_conversation_is_flushed_and_interrupted(
    client: Client, speaker: ScriptedSpeaker, expected: Pcm
) -> None:
    with client.converse(seed=5) as conversation:
        events = iter(conversation)
        conversation.send("Uno dos")
        conversation.flush()
        assert isinstance(next(events), Start)
        assert next(events) == Sentence("Uno dos", 0.0, ())
        heard = [next(events), next(events)]
        assert b"".join(chunk.audio for chunk in heard if isinstance(chunk, Chunk)) == expected("Uno dos", 5)
        assert next(events) == Flushed()
        conversation.send("Tres ever. Nunca. Jamás")
        pause, sentence, chunk = next(events), next(events), next(events)
        assert isinstance(pause, Chunk)
        assert isinstance(sentence, Sentence)
        assert isinstance(chunk, Chunk)
        conversation.interrupt()
        assert next(events) == Cancelled()
        assert speaker.spoken[1].left
        conversation.send("Cuatro.")
        conversation.finish()
        rest = list(events)
    assert [one.order.text for one in speaker.spoken] == ["Uno dos", "Tres ever.", "Cuatro."]
    assert isinstance(rest[-1], End)
    assert rest[-1].duration_seconds == pytest.approx(0.2 + 0.3 + 0.1 + 0.3 + 0.1)


def test_a_batch(client: Client, speaker: ScriptedSpeaker, expected: Pcm) -> None:
    speaker.overloaded = 3  # a full server makes a batch wait, and nothing worse
    texts: list[Any] = ["uno", ("dos", {"seed": 9}), "***", "tres", "un bug", ("x", {"voice": "nobody"})]
    results = sorted(client.speak_batch(texts, seed=1, audio_format="pcm"), key=lambda one: one.index)
    assert [one.index for one in results] == list(range(6))
    audio = [one.speech.audio if one.speech else None for one in results]
    assert audio == [expected("uno", 1), expected("dos", 9), None, expected("tres", 1), None, None]
    errors = [one.error for one in results]
    assert isinstance(errors[2], InvalidRequestError)
    assert "text" in errors[2].violations
    assert isinstance(errors[4], ServerError)
    assert "/secret" not in str(errors[4])
    assert isinstance(errors[5], NotFoundError)
    assert {one.order.priority for one in speaker.spoken} == {"bulk"}


def test_batches_of_a_size_that_cannot_be(client: Client) -> None:
    for texts in ([], ["x"] * 1001):
        with pytest.raises(InvalidRequestError, match=r"from 1 to 1000"):
            list(client.speak_batch(texts))


def test_a_batch_of_more_bytes_than_a_message_may_have(client: Client) -> None:
    """Which coming back later, as after an overload, would not mend."""
    with pytest.raises(InvalidRequestError, match=r"4194304\): ask for less at once"):
        list(client.speak_batch(["💥" * 4096] * 300))


def test_leaving_a_batch_stops_it(client: Client, speaker: ScriptedSpeaker) -> None:
    results = client.speak_batch(["uno"] + ["ever"] * 50)
    assert next(results).index == 0
    results.close()  # type: ignore[attr-defined]
    wait_until(lambda: speaker.code("CANCELLED") == 1)
    assert all(one.left for one in speaker.spoken)
    assert len(speaker.spoken) <= 6


def test_voices(client: Client) -> None:
    voice, other = client.voices()
    assert (voice.language, voice.sampling_rate, voice.speakers) == ("es", 16000, ("eva", "mar"))
    assert (voice.is_default, other.is_default, other.name) == (True, False, "luis")
    assert (voice.name, voice.version, voice.licence, voice.sources) == ("ana", "1", "CC0-1.0", ("nobody",))
    assert voice.created.year == 2026


def test_errors_say_what_the_server_says(client: Client) -> None:
    with pytest.raises(InvalidRequestError) as invalid:
        client.speak("", seed=2**60, speaking_rate=9, request_id="mine")
    assert set(invalid.value.violations) == {"text", "seed", "speaking_rate"}
    assert invalid.value.violations["speaking_rate"] == "is 9; it must be from 0.25 to 4"
    assert invalid.value.reason == "INVALID_REQUEST"
    assert invalid.value.request_id == "mine"
    with pytest.raises(InvalidRequestError) as mute:
        client.stream("***")
    assert mute.value.reason == "TEXT_NOT_SPEAKABLE"
    with pytest.raises(NotFoundError, match="there are: ana"):
        client.speak("uno", voice="nobody")
    with pytest.raises(ServerError, match="its log says why") as bug:
        client.speak("bug")
    assert "/secret" not in str(bug.value)
    assert len(bug.value.request_id) == 32
    with pytest.raises(ServerError, match="cannot be used") as damaged:
        client.speak("uno", voice="damaged")
    assert damaged.value.status == "DATA_LOSS"


def test_overload_says_when_to_come_back(client: Client, speaker: ScriptedSpeaker) -> None:
    speaker.overloaded = 1
    with pytest.raises(OverloadedError) as caught:
        client.speak("uno")
    assert caught.value.retry_after_seconds == 0.02


def test_deadlines(server: Running, speaker: ScriptedSpeaker) -> None:
    with Client(server.url, timeout_seconds=0.2) as client, pytest.raises(DeadlineError):
        client.speak("uno ever")
    wait_until(lambda: speaker.spoken[0].left)


def test_no_server_there() -> None:
    refused = pytest.raises(UnavailableError, match=r"grpc://127\.0\.0\.1:1 does not answer: .*'vits serve'")
    with Client("grpc://127.0.0.1:1", timeout_seconds=5) as client, refused:
        client.speak("uno")


@pytest.mark.parametrize(
    ("url", "more", "message"),
    [
        ("http://127.0.0.1:3000", {}, "grpc://host:port"),
        ("127.0.0.1:50051", {}, "grpc://host:port"),
        ("grpc://127.0.0.1", {}, "grpc://host:port"),
        ("grpc://127.0.0.1:1", {"root_certificates": "x"}, "grpcs://127.0.0.1:1"),
        ("grpcs://127.0.0.1:1", {"certificate": "x"}, "needed together"),
    ],
)
def test_addresses_that_cannot_be(url: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Client(url, **more)


def test_tokens_and_quotas(serve: Serve, tmp_path: Any) -> None:
    token = add_token(tmp_path / "tokens.json", "web", audio_seconds_per_hour=0.25)
    with serve(access=Access(tmp_path / "tokens.json")) as server:
        with Client(server.url) as nobody, pytest.raises(AccessError, match="A token is needed") as caught:
            nobody.speak("uno")
        assert caught.value.reason == "INVALID_TOKEN"
        with Client(server.url, token="x") as wrong, pytest.raises(AccessError, match="not valid"):  # noqa: S106
            wrong.voices()
        with Client(server.url, token=token) as web:
            web.speak("uno dos tres")
            with pytest.raises(QuotaError) as used:
                web.speak("uno")
            assert (used.value.retry_after_seconds or 0) > 1
            assert used.value.reason == "QUOTA_EXCEEDED"
            assert web.voices()


def test_audio_longer_than_one_request_may_have(serve: Serve) -> None:
    with serve(access=Access(max_audio_seconds=0.25)) as server, Client(server.url) as client:
        with pytest.raises(InvalidRequestError, match=r"longer than the 0\.25 s"):
            client.speak("uno dos tres")
        with pytest.raises(InvalidRequestError, match=r"longer than the 0\.25 s"):
            list(client.stream("uno dos tres"))


def test_every_status_of_the_server_has_an_error_of_the_client() -> None:
    ours = {StatusCode.INTERNAL, StatusCode.DATA_LOSS, StatusCode.FAILED_PRECONDITION}
    for row in ERRORS.values():
        assert row.status in ours or row.status.name in _KINDS


def test_everything_is_exported() -> None:
    assert all(hasattr(vits_client, name) for name in vits_client.__all__)


def test_async_whole_and_stream(server: Running, expected: Pcm) -> None:
    async def scene(client: AsyncClient) -> None:
        whole = await client.speak("uno dos", seed=7, audio_format="pcm")
        assert whole.audio == expected("uno dos", 7)
        async with await client.stream("uno dos", seed=7, timestamps=True) as stream:
            assert stream.start is not None
            audio = b"".join([piece async for piece in stream])
        assert audio == whole.audio
        assert len(stream.timestamps) == 2
        assert stream.duration_seconds == 0.2
        assert [voice.name for voice in await client.voices()] == ["ana", "luis"]
        results = [result async for result in client.speak_batch(["uno", "***"])]
        assert {(one.index, one.error is None) for one in results} == {(0, True), (1, False)}
        with pytest.raises(NotFoundError):
            await client.stream("uno", voice="nobody")

    in_loop(server, scene)


def test_async_pieces(server: Running, expected: Pcm) -> None:
    async def pieces() -> AsyncIterator[str]:
        for piece in ("Uno d", "os. Tres", " cuatro"):
            yield piece

    async def failing() -> AsyncIterator[str]:
        yield "Uno. "
        raise KeyError("the model failed")

    async def scene(client: AsyncClient) -> None:
        stream = client.stream_pieces(pieces(), seed=2)
        audio = b"".join([piece async for piece in stream])
        assert audio == expected("Uno dos.", 2) + bytes(9600) + expected("Tres cuatro", 2)
        with pytest.raises(KeyError, match="the model failed"):
            [piece async for piece in client.stream_pieces(failing())]

    in_loop(server, scene)


def test_async_conversation(server: Running) -> None:
    async def scene(client: AsyncClient) -> list[str]:
        async with client.converse() as conversation:
            await conversation.send("Uno. ever")
            await conversation.flush()
            await asyncio.sleep(0.1)
            await conversation.interrupt()
            await conversation.finish()
            return [type(event).__name__ async for event in conversation]

    kinds = in_loop(server, scene)
    assert kinds[-1] == "End"
    assert kinds.index("Flushed") < kinds.index("Cancelled")
    assert kinds[:3] == ["Start", "Sentence", "Chunk"]


def test_async_cancel(server: Running, speaker: ScriptedSpeaker) -> None:
    async def scene(client: AsyncClient) -> None:
        stream = await client.stream("uno ever")
        assert await anext(stream)
        stream.cancel()
        with pytest.raises(StoppedError):
            await anext(stream)

    in_loop(server, scene)
    wait_until(lambda: speaker.spoken[0].left)


def test_the_client_imports_nothing_of_what_the_server_is_made_of() -> None:
    program = "import sys, vits_client; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "grpc" in loaded
    assert (
        loaded & {"numpy", "av", "scipy", "pydantic", "onnxruntime", "bentoml", "services", "torch"} == set()
    )


def test_the_page_about_errors_has_every_row() -> None:
    page = (Path(__file__).parents[5] / "docs/grpc.md").read_text(encoding="utf-8")
    rows = [row for row in page.splitlines() if row.startswith("| `")]
    for kind, row in ERRORS.items():
        if row.reason != "HUB_UNREACHABLE":  # no voice comes from a hub
            assert any(f"`{row.status.name}`" in line and f"`{row.reason}`" in line for line in rows), kind
