"""The port: listens, tells health checks how things are, and stops in good order."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.synthesis.access import Access
from services.synthesis.grpc.servicer import SynthesisServicer
from services.synthesis.grpc.tls import Tls, server_credentials
from services.synthesis.speaker import Speaker
from shared.errors import UserError
from shared.protos.vits.synthesis.v1 import synthesis_pb2 as pb
from shared.protos.vits.synthesis.v1 import synthesis_pb2_grpc as pb_grpc

SERVICE = pb.DESCRIPTOR.services_by_name["SynthesisService"].full_name

#: Larger than a batch of a thousand ordinary texts. gRPC answers a longer message with RESOURCE_EXHAUSTED.
MAX_REQUEST_BYTES = 4 * 2**20

#: A client that has vanished without a word (no power, no network) is noticed after so long, and stops costing.
KEEPALIVE_MILLISECONDS = 20_000
KEEPALIVE_TIMEOUT_MILLISECONDS = 10_000

#: Calls that are on their way when the last one ends are refused for so long; answers have as long to leave.
LINGER_SECONDS = 0.5

#: A connection is as old as this at most, in milliseconds, a tenth more or less; then clients are told to open
#: another, and what runs on it goes on. So calls find servers that are new, and leave one that is about to go before it
#: stops: a connection, once open, is no business of load balancers'. deploy/kubernetes has preStop wait as long.
CONNECTION_MILLISECONDS = 10_000

OPTIONS = (
    # Otherwise a second server would share the port silently, and get half of the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", KEEPALIVE_MILLISECONDS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MILLISECONDS),
    ("grpc.max_connection_age_ms", CONNECTION_MILLISECONDS),
    # Clients may ask as often whether we are still there.
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_TIMEOUT_MILLISECONDS),
)


class Tolerant(grpc.aio.ServerInterceptor):
    """Hands bytes that are no message to our methods as None, since gRPC alone would answer UNKNOWN."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Wrap a method's deserializer."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(f"/{SERVICE}/"):
            return handler
        read = handler.request_deserializer

        def tolerant(content: bytes) -> Any:
            try:
                return read(content)
            except DecodeError:
                return None

        return handler._replace(request_deserializer=tolerant)


class GrpcServer:
    """The gRPC server, on the event loop that it is started from.

    Args:
        speaker: Speaks.
        host: Address to listen on.
        port: 0 takes a free one.
        access: Knows the callers; everybody is let in where not given.
        tls: Certificates; plain text where not given.
        patience_seconds: How long a client may read nothing of what is sent to it.

    Attributes:
        port: The port it listens on, known once started.
    """

    def __init__(
        self,
        speaker: Speaker,
        *,
        host: str,
        port: int,
        access: Access | None = None,
        tls: Tls | None = None,
        patience_seconds: float = math.inf,
    ) -> None:
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._servicer = SynthesisServicer(speaker, access or Access(), patience_seconds)
        self._tls = tls
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()
        self.port = port

    async def start(self) -> None:
        """Listen. Health is NOT_SERVING until `serving` is called.

        Raises:
            UserError: The port is taken, or the address is not this machine's.
            ConfigError: The certificates cannot be used.
        """
        credentials = server_credentials(self._tls) if self._tls else None
        self._server = grpc.aio.server(options=OPTIONS, interceptors=[Tolerant()])
        pb_grpc.add_SynthesisServiceServicer_to_server(self._servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            self.port = (
                self._server.add_secure_port(self._address, credentials)
                if credentials
                else self._server.add_insecure_port(self._address)
            )
        except RuntimeError as error:
            raise UserError(
                f"gRPC cannot listen on {self._address}: the port is taken, or the address is not "
                "this machine's. Give another --grpc-port or --host."
            ) from error
        await self._server.start()

    async def serving(self) -> None:
        """Tell health checks that calls are welcome."""
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Tell health checks, for good, that calls are not welcome any more; they are still answered."""
        await self._health.enter_graceful_shutdown()

    async def _set_health(self, status: Any) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new calls, and wait for the running ones.

        Meanwhile calls are still taken, and refused in words: gRPC would cancel what it takes while it stops.
        """
        if not self._server:
            return
        await self.drain()
        self._servicer.draining.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._servicer.finished(), grace_seconds)
        linger = min(grace_seconds, LINGER_SECONDS)
        await asyncio.sleep(linger)
        # What is left now is too late, or health watches and reflection, which would wait for ever.
        await self._server.stop(linger)
