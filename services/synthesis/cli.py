"""``vits serve``: voices over HTTP and gRPC, from one process."""

from __future__ import annotations

import argparse
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, cast

from services.synthesis.access import Access, add_token
from services.synthesis.logs import configure_logging
from services.synthesis.settings import LAST_PORT, LOG_FORMATS, Settings
from shared.arguments import Parser
from shared.cache import default_cache
from shared.errors import UserError
from shared.registry import Registry, default_voice
from shared.store import Store, default_store_url

EPILOG = """\
examples:
  vits serve
      the newest voice of ./store (or $VITS_STORE), on 127.0.0.1
  vits serve --store s3://voices --voice joe@production --host 0.0.0.0
      a chosen voice, for other machines too
  vits serve --tokens tokens.json --new-token web --quota 3600
      make a token for "web", good for an hour of audio an hour, and print it; its hash goes into the file
  vits serve --tokens tokens.json
      serve only those who send one of the tokens, as 'Authorization: Bearer TOKEN'

Then, with any client of OpenAI's speech API:
  curl http://127.0.0.1:3000/v1/audio/speech -H 'Content-Type: application/json' \\
      -d '{"model": "tts-1", "voice": "alloy", "input": "Hola, ¿cómo estás?"}' -o hola.mp3

GET /v1/audio/voices lists the voices; any of them can be asked for by name. /livez and /readyz are for
orchestrators, /metrics for Prometheus. Ctrl-C or SIGTERM finishes what is running and exits with 0.
"""


def parser() -> argparse.ArgumentParser:
    """The command line; what it does not say, the environment does.

    Raises:
        ConfigError: The environment says what cannot be.
    """
    defaults = Settings.from_environment()
    made = Parser(
        prog="vits serve",
        description="Serve the voices of a store over HTTP (OpenAI's speech API) and gRPC.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--store", metavar="URL", help="the store that voices come from (default: $VITS_STORE, or ./store)")
    add(
        "--voice",
        metavar="NAME",
        default=defaults.voice,
        help="default voice, as name, name@alias or name/version (default: the newest)",
    )
    add("--host", default=defaults.host, help="address to listen on (default: %(default)s)")
    add(
        "--http-port", type=port, default=defaults.http_port, help="0 takes a free one (default: %(default)s)"
    )
    add(
        "--grpc-port", type=port, default=defaults.grpc_port, help="0 takes a free one (default: %(default)s)"
    )
    add(
        "--tokens",
        type=Path,
        metavar="FILE",
        default=Path(defaults.tokens) if defaults.tokens else None,
        help="only who sends one of its tokens may call (default: everybody)",
    )
    add("--new-token", metavar="NAME", help="add a token to the file of --tokens, print it, and end")
    add(
        "--quota",
        type=float,
        metavar="SECONDS",
        help="audio that the new token may have in an hour, counted by each server alone (default: no limit)",
    )
    add(
        "--max-audio-seconds",
        type=count,
        default=defaults.max_audio_seconds,
        help="longest audio of one request (default: %(default)s)",
    )
    add(
        "--threads",
        type=count,
        default=defaults.threads,
        help="threads that all computations use (default: every CPU)",
    )
    add(
        "--streams",
        type=count,
        default=defaults.streams,
        help="computations at once (default: as many as is best here)",
    )
    add(
        "--max-batch",
        type=count,
        default=defaults.max_batch,
        metavar="WINDOWS",
        help="windows of several texts that one computation decodes; more than 1 is for GPUs (default: %(default)s)",
    )
    add(
        "--variant",
        default=defaults.variant,
        help="precision of the voices, or 'auto': what is fastest here, as measured when idle (default: %(default)s)",
    )
    add(
        "--memory",
        type=count,
        default=defaults.memory_mb,
        metavar="MB",
        help="memory for all loaded voices together (default: a part of what the process may have)",
    )
    add(
        "--max-backlog",
        type=count,
        default=defaults.max_backlog_seconds,
        metavar="SECONDS",
        help="refuse a text when those before it need longer (default: %(default)s)",
    )
    add(
        "--grace",
        type=count,
        default=defaults.grace_seconds,
        metavar="SECONDS",
        help="on SIGTERM, time for what is running (default: %(default)s)",
    )
    add(
        "--lexicons",
        type=Path,
        metavar="FOLDER",
        default=Path(defaults.lexicons) if defaults.lexicons else None,
        help="folder with VOICE.json or VOICE.tsv for each voice that has words of its own (default: none)",
    )
    add("--log-format", choices=LOG_FORMATS, default=defaults.log_format, help="(default: %(default)s)")
    add(
        "--log-text",
        action="store_true",
        default=bool(defaults.log_text),
        help="let the log quote what users have spoken",
    )
    for name, what in (
        ("cert", "the server's certificate for gRPC, PEM (default: no TLS)"),
        ("key", "its private key"),
        ("client-ca", "let in only gRPC clients with a certificate that this one signed"),
    ):
        default = getattr(defaults, f"grpc_tls_{name.replace('-', '_')}")
        add(f"--grpc-tls-{name}", metavar="FILE", default=default, help=what)
    return made


def settings_from(arguments: argparse.Namespace, *, store: str, http_port: int) -> Settings:
    """What the command line says, and the environment of what has no option."""
    return replace(
        Settings.from_environment(),
        store=store,
        voice=arguments.voice,
        host=arguments.host,
        http_port=http_port,
        grpc_port=arguments.grpc_port,
        threads=arguments.threads,
        streams=arguments.streams,
        max_batch=arguments.max_batch,
        variant=arguments.variant,
        memory_mb=arguments.memory,
        max_backlog_seconds=arguments.max_backlog,
        grace_seconds=arguments.grace,
        lexicons=str(arguments.lexicons or ""),
        log_format=arguments.log_format,
        log_text=int(arguments.log_text),
        grpc_tls_cert=arguments.grpc_tls_cert,
        grpc_tls_key=arguments.grpc_tls_key,
        grpc_tls_client_ca=arguments.grpc_tls_client_ca,
        tokens=str(arguments.tokens.absolute()) if arguments.tokens else "",
        max_audio_seconds=arguments.max_audio_seconds,
    )


def port(text: str) -> int:
    """A port number."""
    number = count(text)
    if number > LAST_PORT:
        raise argparse.ArgumentTypeError(f"{number} is not a port; they go up to {LAST_PORT}")
    return number


def count(text: str) -> int:
    """A whole number, 0 or more."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def listening_socket(host: str, number: int) -> socket.socket:
    """Take the HTTP port before anything slow, so that a port in use is said at once.

    Raises:
        UserError: It cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, number))
        taken.listen(2048)
    except OSError as error:
        taken.close()
        raise UserError(
            f"HTTP cannot listen on {host}:{number} ({error.strerror}). Give another --http-port or --host."
        ) from error
    return taken


def stop_at_once(*_: object) -> NoReturn:
    """What a signal does until the server can stop in good order."""
    raise SystemExit(0)


def beside_signals(work: Callable[[], object]) -> None:
    """Do what may hang, such as asking a store, where signals are obeyed meanwhile; errors are those of the work."""
    outcome: Future[object] = Future()

    def do() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # a panic of the store's client is no Exception; the caller raises it
            outcome.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    outcome.result()


def set_environment(settings: Settings) -> None:
    """Set what BentoML and the service read from the environment, before they are imported."""
    os.environ |= settings.to_environment()
    # Neither library may report home from a server.
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    # BentoML makes folders where it lives; a home directory is no place for them.
    os.environ.setdefault("BENTOML_HOME", str(default_cache() / "bentoml"))


def serve(settings: Settings, taken: socket.socket, *, started: float) -> bool:
    """Run the service in this process, until a signal or a failure to start.

    BentoML's own way is a supervisor with a worker process; a pod needs neither the second process nor a
    supervisor beside Kubernetes. What is done here is what that worker does.

    Returns:
        Whether nothing of it is under way any more.

    Raises:
        VitsError: The service could not start.
    """
    import uvicorn
    from bentoml._internal.context import server_context

    from services.synthesis.http.connections import HttpConnection, LiveConnection
    from services.synthesis.service import LAST_SECONDS, SynthesisService, http_app

    service: Any = SynthesisService  # made a bentoml.Service by its decorator
    configure_logging(settings.log_format)
    http_app.state.started = started
    # The labels of BentoML's own metrics.
    server_context.service_name = server_context.bento_name = service.name
    server_context.service_type = "entry_service"

    class Server(uvicorn.Server):
        """uvicorn's server, but gRPC stops with it, and a signal that has been obeyed is not raised again."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """Have both doors stop taking work at once."""
            if loop := http_app.state.loop:
                loop.call_soon_threadsafe(http_app.state.drain)
            super().handle_exit(sig, frame)

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self.handle_exit)
            yield

    patience: Any = {"patience_seconds": settings.reader_patience_seconds}
    config = uvicorn.Config(
        service.to_asgi(is_main=True),
        http=cast("Any", partial(HttpConnection, **patience)),
        ws=cast("Any", partial(LiveConnection, **patience)),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.grace_seconds + LAST_SECONDS,
    )
    Server(config).run(sockets=[taken])
    failure: Exception | None = http_app.state.failure
    if failure:
        raise failure
    return not http_app.state.hangs


def new_token(name: str, path: Path | None, quota: float | None) -> int:
    """Make a token and print it, once.

    Raises:
        UserError: There is no file to put it in, or its quota is none.
        ConfigError: The file cannot be used, or has a token of that name.
    """
    if path is None:
        raise UserError("--new-token needs --tokens FILE: the file that its hash goes into")
    if quota is not None and not (math.isfinite(quota) and quota > 0):
        raise UserError(f"--quota is {quota:g}; it must be above 0 seconds of audio an hour")
    print(add_token(path, name, audio_seconds_per_hour=quota))
    print(f"This is the only time that it is shown; {path} has its hash.", file=sys.stderr)
    return 0


def main(argv: Sequence[str]) -> int:
    """Serve until told to stop."""
    started = time.monotonic()
    arguments = parser().parse_args(argv)
    if arguments.new_token:
        return new_token(arguments.new_token, arguments.tokens, arguments.quota)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_at_once)
    store = arguments.store or default_store_url()
    registry = Registry(Store.open(store))
    beside_signals(lambda: registry.resolve("voices", arguments.voice or default_voice(registry)))
    # Files that cannot be used are said now.
    Access(arguments.tokens)
    if arguments.grpc_tls_cert or arguments.grpc_tls_key or arguments.grpc_tls_client_ca:
        from services.synthesis.grpc.tls import Tls

        Tls.from_settings(arguments.grpc_tls_cert, arguments.grpc_tls_key, arguments.grpc_tls_client_ca)
    with listening_socket(arguments.host, arguments.http_port) as taken:
        settings = settings_from(arguments, store=store, http_port=taken.getsockname()[1])
        set_environment(settings)
        ended = serve(settings, taken, started=started)
    print("vits serve: stopped", file=sys.stderr)
    if not ended:
        # The interpreter would wait for the threads that wait for the store.
        sys.stderr.flush()
        os._exit(0)
    return 0
