"""gRPC: ``vits.synthesis.v1``, with health and reflection."""

from __future__ import annotations

import logging
import math
from typing import Any

import grpc
from grpc import StatusCode
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.synthesis.answers import pack_pcm, pack_wav, public_message
from services.synthesis.speaker import (
    MAX_NOISE_SCALE,
    MAX_SEED,
    MAX_SPEAKING_RATE,
    MAX_TEXT_CHARACTERS,
    MIN_SPEAKING_RATE,
    Order,
    Speaker,
    Spoken,
)
from shared.errors import (
    AccessError,
    AlreadyExistsError,
    ConfigError,
    CorruptObjectError,
    DataError,
    DeadlineError,
    EngineError,
    HubUnreachableError,
    LeaseLostError,
    MissingExtraError,
    ModelError,
    NotFoundError,
    OverloadedError,
    ProblemsError,
    QualityError,
    QuotaError,
    RequestError,
    StoreError,
    TextError,
    UserError,
    VitsError,
)
from shared.protos.vits.synthesis.v1 import synthesis_pb2 as pb
from shared.protos.vits.synthesis.v1 import synthesis_pb2_grpc as pb_grpc

logger = logging.getLogger("vits.grpc")

SERVICE = pb.DESCRIPTOR.services_by_name["SynthesisService"].full_name

#: The table of errors. A class that is missing fails the tests.
ERRORS: dict[type[VitsError], StatusCode] = {
    VitsError: StatusCode.INTERNAL,
    UserError: StatusCode.INVALID_ARGUMENT,
    ProblemsError: StatusCode.INVALID_ARGUMENT,
    ConfigError: StatusCode.FAILED_PRECONDITION,
    DataError: StatusCode.INTERNAL,
    TextError: StatusCode.INVALID_ARGUMENT,
    RequestError: StatusCode.INVALID_ARGUMENT,
    AccessError: StatusCode.UNAUTHENTICATED,
    NotFoundError: StatusCode.NOT_FOUND,
    HubUnreachableError: StatusCode.UNAVAILABLE,
    MissingExtraError: StatusCode.FAILED_PRECONDITION,
    ModelError: StatusCode.FAILED_PRECONDITION,
    StoreError: StatusCode.UNAVAILABLE,
    AlreadyExistsError: StatusCode.INTERNAL,
    CorruptObjectError: StatusCode.DATA_LOSS,
    LeaseLostError: StatusCode.INTERNAL,
    QualityError: StatusCode.INTERNAL,
    EngineError: StatusCode.INTERNAL,
    OverloadedError: StatusCode.RESOURCE_EXHAUSTED,
    QuotaError: StatusCode.RESOURCE_EXHAUSTED,
    DeadlineError: StatusCode.DEADLINE_EXCEEDED,
}

#: A client's own mistakes, and load: not worth a traceback in the log.
QUIET = {
    StatusCode.INVALID_ARGUMENT,
    StatusCode.NOT_FOUND,
    StatusCode.RESOURCE_EXHAUSTED,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.UNAUTHENTICATED,
}

PACKERS = {pb.AUDIO_FORMAT_WAV: pack_wav, pb.AUDIO_FORMAT_PCM: pack_pcm}


def status_of(error: Exception) -> StatusCode:
    """The status that an error ends a call with."""
    if not isinstance(error, VitsError):
        return StatusCode.INTERNAL
    return ERRORS[next(kind for kind in type(error).__mro__ if kind in ERRORS)]


def parse(request: pb.SynthesizeRequest) -> Order:
    """Check a request.

    Raises:
        RequestError: Says everything that is wrong with it.
    """
    problems: list[str] = []
    if not request.text:
        problems.append("text: is empty; it is required")
    if len(request.text) > MAX_TEXT_CHARACTERS:
        problems.append(
            f"text: has {len(request.text)} characters; at most {MAX_TEXT_CHARACTERS} are allowed"
        )
    if request.audio_format not in {pb.AUDIO_FORMAT_UNSPECIFIED, *PACKERS}:
        problems.append(
            f"audio_format: there is no format {request.audio_format}; there is WAV (1) and PCM (2)"
        )
    if request.seed > MAX_SEED:
        problems.append(f"seed: is {request.seed}; it must be from 0 to {MAX_SEED}")
    for name, low, high in (
        ("speaking_rate", MIN_SPEAKING_RATE, MAX_SPEAKING_RATE),
        ("noise_scale", 0.0, MAX_NOISE_SCALE),
        ("noise_scale_duration", 0.0, MAX_NOISE_SCALE),
    ):
        value = getattr(request, name)
        if request.HasField(name) and not (math.isfinite(value) and low <= value <= high):  # type: ignore[arg-type]
            problems.append(f"{name}: is {value:g}; it must be from {low:g} to {high:g}")
    if problems:
        raise RequestError("\n".join(problems), param=problems[0].partition(":")[0])
    return Order(
        text=request.text,
        door="grpc",
        voice=request.voice,
        speaker=request.speaker if request.HasField("speaker") else None,
        seed=request.seed if request.HasField("seed") else None,
        speaking_rate=request.speaking_rate if request.HasField("speaking_rate") else 1.0,
        noise_scale=request.noise_scale if request.HasField("noise_scale") else None,
        noise_scale_duration=request.noise_scale_duration
        if request.HasField("noise_scale_duration")
        else None,
    )


def answer(spoken: Spoken, audio_format: pb.AudioFormat.ValueType) -> pb.SynthesizeResponse:
    """The response that carries a spoken text."""
    packed_as = pb.AUDIO_FORMAT_WAV if audio_format == pb.AUDIO_FORMAT_UNSPECIFIED else audio_format
    return pb.SynthesizeResponse(
        audio=PACKERS[packed_as](spoken),
        audio_format=packed_as,
        sampling_rate=spoken.sampling_rate,
        seed=spoken.seed,
        voice=spoken.voice,
        voice_version=spoken.voice_version,
        duration_seconds=spoken.duration_seconds,
        unknown=spoken.unknown,
    )


class SynthesisServicer(pb_grpc.SynthesisServiceServicer):
    """``vits.synthesis.v1.SynthesisService`` on a speaker."""

    def __init__(self, speaker: Speaker) -> None:
        self._speaker = speaker

    async def Synthesize(  # noqa: N802 - the method's name in the protocol
        self, request: pb.SynthesizeRequest, context: Any
    ) -> pb.SynthesizeResponse:
        """Speak a text, whole; when the client leaves or its deadline passes, what waits is not computed."""
        status = StatusCode.CANCELLED
        try:
            response = answer(await self._speaker.speak(parse(request)), request.audio_format)
            status = StatusCode.OK
            return response
        except Exception as error:
            status = status_of(error)
            if status not in QUIET:
                logger.error("call failed", exc_info=error)
            await context.abort(status, public_message(error))
            raise AssertionError("abort always raises") from error
        finally:
            self._speaker.metrics.responses.labels("grpc", status.name).inc()


class GrpcServer:
    """The gRPC server, on the event loop that it is started from.

    Attributes:
        port: The port it listens on, known once started.
    """

    def __init__(self, speaker: Speaker, *, host: str, port: int) -> None:
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._speaker = speaker
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()
        self.port = port

    async def start(self) -> None:
        """Listen. Health is NOT_SERVING until `serving` is called.

        Raises:
            UserError: The port is taken, or the address is not this machine's.
        """
        # Without this a second server would share the port silently, and get half of the calls.
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        pb_grpc.add_SynthesisServiceServicer_to_server(SynthesisServicer(self._speaker), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            self.port = self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise UserError(
                f"gRPC cannot listen on {self._address}: the port is taken, or the address is not "
                "this machine's. Give another --grpc-port or --host."
            ) from error
        await self._server.start()

    async def serving(self) -> None:
        """Tell health checks that calls are welcome."""
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def _set_health(self, status: Any) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new calls, and wait for the running ones."""
        if self._server:
            await self._health.enter_graceful_shutdown()
            await self._server.stop(grace_seconds)
