"""The BentoML service: life and death of the one speaker behind HTTP and gRPC.

``vits serve`` runs it. ``bentoml serve services.synthesis.service:SynthesisService`` does, too, with its
settings from the environment (`services.synthesis.settings`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, cast

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.server.http import instruments
from bentoml._internal.server.metrics.prometheus import PrometheusClient
from bentoml.validators import ContentType
from starlette.middleware.errors import ServerErrorMiddleware

from services.synthesis.access import Access
from services.synthesis.grpc import GrpcServer, Tls
from services.synthesis.http import make_app
from services.synthesis.http.bento import PATH as SYNTHESIZE_PATH
from services.synthesis.http.bento import OwnSynthesize
from services.synthesis.http.requests import ResponseFormat
from services.synthesis.http.traffic import EndpointTraffic
from services.synthesis.settings import Settings
from services.synthesis.speaker import Speaker
from services.synthesis.voices import VoiceShelf
from shared.cache import default_cache
from shared.metrics import Metrics
from shared.registry import Registry
from shared.store import Store
from shared.text import espeak
from shared.voice.layout import Opening
from shared.voice.runtime import Runtime
from shared.voice.scheduler import Policy

logger = logging.getLogger("vits.serve")

#: OpenAI's API. Its state holds the speaker while the service lives, when the process began to start, the error that
#: kept it from starting, and whether something of it, such as a store that does not answer, would hold up its end.
http_app = make_app()
http_app.state.started = time.monotonic()
http_app.state.failure = None
http_app.state.drain = lambda: None
http_app.state.loop = None
http_app.state.hangs = False

# One process serves, and counts in memory. BentoML's way, files that several processes share, cannot be read in
# the moment in which one of them is made.
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
BentoMLContainer.metrics_client.set(PrometheusClient(multiproc=False))
# BentoML imports it when it makes the application.
cast("Any", instruments).RunnerTrafficMetricsMiddleware = EndpointTraffic

#: How often it is asked whether there is time to measure variants. An idle server waits once.
SETTLE_SECONDS = 2

#: When the grace period is over, what has been told so has so long to end.
LAST_SECONDS = 1

#: A long text on a slow machine; BentoML's own limit of 60 s is short for it.
REQUEST_TIMEOUT_SECONDS = 600


@bentoml.service(name="vits-synthesis", workers=1, traffic={"timeout": REQUEST_TIMEOUT_SECONDS})
@bentoml.asgi_app(http_app, path="/")
class SynthesisService:
    """One process, one engine, two transports."""

    def __init__(self) -> None:
        self.settings = settings = Settings.from_environment()
        espeak.isolate()
        metrics = Metrics()
        runtime = Runtime(
            Policy(
                max_batch=settings.max_batch,
                max_backlog_seconds=settings.max_backlog_seconds,
                max_bulk_backlog_seconds=settings.max_bulk_backlog_seconds,
                buffer_seconds=settings.buffer_seconds,
            ),
            metrics,
        )
        opening = Opening(
            variant=settings.variant,
            threads=settings.threads,
            streams=settings.streams,
            memory=default_cache(),
            memory_bytes=settings.memory_bytes,
            tell=runtime.widen,
        )
        shelf = VoiceShelf(
            Registry(Store.open(settings.store)),
            opening,
            metrics,
            default=settings.voice,
            memory_of=opening.memory_of,
            memory_bytes=settings.memory_bytes,
            lexicons=Path(settings.lexicons) if settings.lexicons else None,
            forget=runtime.forget_voice,
            choose=opening.choose,
        )
        self.speaker = Speaker(
            shelf,
            runtime,
            metrics,
            max_audio_seconds=settings.max_audio_seconds,
            log_text=bool(settings.log_text),
        )
        tokens = Path(settings.tokens) if settings.tokens else None
        tls = Tls.from_settings(settings.grpc_tls_cert, settings.grpc_tls_key, settings.grpc_tls_client_ca)
        access = Access(tokens, max_audio_seconds=settings.max_audio_seconds)
        self.grpc = GrpcServer(
            self.speaker,
            host=settings.host,
            port=settings.grpc_port,
            access=access,
            tls=tls,
            patience_seconds=settings.reader_patience_seconds,
        )
        self.warming: asyncio.Task[None] | None = None
        self.watching: list[asyncio.Task[None]] = []
        self.stopping: asyncio.Task[None] | None = None
        self.over_at = 0.0
        http_app.state.speaker, http_app.state.access = self.speaker, access

    def __is_ready__(self) -> bool:
        """What ``/readyz`` asks: whether the default voice is warm."""
        return self.speaker.ready

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        """Open gRPC on HTTP's event loop, and load the voice while liveness checks are already answered."""
        http_app.state.drain, http_app.state.loop = self.drain, asyncio.get_running_loop()
        self.warming = asyncio.create_task(self._warm())

    async def _warm(self) -> None:
        try:
            await self.grpc.start()
            http_app.state.grpc_port = self.grpc.port
            loaded = await self.speaker.warm()
            if self.stopping:
                return
            await self.grpc.serving()
        except Exception as error:  # whatever it is, a server without a voice must not stay
            if self.stopping:
                return
            http_app.state.failure = error
            signal.raise_signal(signal.SIGTERM)
            return
        host = self.settings.host
        host = f"[{host}]" if ":" in host else host
        url = f"http://{host}:{self.settings.http_port}"
        logger.info(
            "ready after %.1f s: HTTP on %s, gRPC on %s:%d, voice %s\n"
            """  try: curl %s/v1/audio/speech -H 'Content-Type: application/json' """
            """-d '{"input": "Hola, ¿cómo estás?"}' -o hola.mp3""",
            *(
                time.monotonic() - http_app.state.started,
                url,
                host,
                self.grpc.port,
                loaded.version.reference,
                self.settings.local_url,
            ),
        )

        self.watching.append(asyncio.create_task(self._every(SETTLE_SECONDS, self.speaker.settle)))
        if self.settings.poll_seconds:
            self.watching.append(
                asyncio.create_task(self._every(self.settings.poll_seconds, self.speaker.refresh))
            )

    @bentoml.api(route=SYNTHESIZE_PATH)  # type: ignore[untyped-decorator]
    async def synthesize(
        self,
        input: str,  # noqa: A002 - OpenAI's name for it
        voice: str = "",
        response_format: ResponseFormat = "wav",
        speed: float = 1.0,
        speaker: str | int | None = None,
        seed: int | None = None,
        noise_scale: float | None = None,
        noise_scale_duration: float | None = None,
        sampling_rate: int | None = None,
        language: str | None = None,
        ssml: bool | None = None,
    ) -> Annotated[Path, ContentType("audio/*")]:
        """What BentoML's client knows of ``/synthesize``, which `OwnSynthesize` answers."""
        raise NotImplementedError

    @staticmethod
    async def _every(seconds: float, look_after: Callable[[], Awaitable[None]]) -> None:
        """Look after the voices again and again, until the server stops."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await look_after()
            except Exception:  # whatever it is, the voices that are loaded go on
                logger.exception("looking after the voices failed")

    def drain(self) -> None:
        """Take no more work at either door; on the event loop. What runs goes on for the grace period."""
        if not self.stopping:
            self.speaker.drain()
            loop = asyncio.get_running_loop()
            self.over_at = loop.time() + self.settings.grace_seconds
            loop.call_at(self.over_at, self.speaker.give_up)
            self.stopping = asyncio.ensure_future(self.grpc.stop(self.settings.grace_seconds))

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def stop(self) -> None:
        """Let what is running finish, within the grace period, then give everything back.

        A voice that is being loaded is waited for as long, and no longer: its store may never answer.
        """
        self.drain()
        if self.warming:
            await asyncio.wait([self.warming])
        for watching in self.watching:
            watching.cancel()
        if self.stopping:
            await self.stopping
        patience = max(LAST_SECONDS, self.over_at - asyncio.get_running_loop().time())
        if not await asyncio.to_thread(self.speaker.close, patience):
            http_app.state.hangs = True
            logger.warning("the store has not answered within the grace period, and is not waited for")


# BentoML's time limit waits for the first byte of an answer; an endpoint that raises before it would never end.
cast("Any", SynthesisService).add_asgi_middleware(ServerErrorMiddleware)
cast("Any", SynthesisService).add_asgi_middleware(OwnSynthesize, ours=http_app)
