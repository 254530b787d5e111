"""What a server needs to know, handed from the command line to the service through the environment.

The service is started by BentoML, which makes it without arguments; the environment also serves containers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from shared.addresses import why_no_path
from shared.errors import ConfigError
from shared.store import default_store_url

#: A field's environment variable is this and the field's name in capitals: ``VITS_GRPC_PORT``.
PREFIX = "VITS_"

LOG_FORMATS = ("text", "json")
LAST_PORT = 65535

#: The part of the memory that this process may have which is for voices, where nobody says.
MEMORY_SHARE = 0.6


@dataclass(frozen=True)
class Settings:
    """A server's settings."""

    store: str
    """URL of the store that voices come from."""
    voice: str = ""
    """The default voice: ``name``, ``name@alias`` or ``name/version``. Empty: the newest in the store."""
    host: str = "127.0.0.1"
    """Address that both transports listen on."""
    http_port: int = 3000
    """Port of HTTP, as told to the user; whoever starts the server has bound it."""
    grpc_port: int = 50051
    """Port of gRPC; 0 takes a free one."""
    threads: int = 0
    """Threads that one synthesis uses; 0 uses every CPU."""
    tokens: str = ""
    """File of the callers' tokens; see `services.synthesis.access`. Empty: everybody may call."""
    max_audio_seconds: int = 600
    """The longest audio of one request."""
    variant: str = "auto"
    """Which of a voice's precisions; ``auto``: what its export recommends, or the fastest once it is measured."""
    streams: int = 0
    """Computations at once, which share the threads; 0 measures how many are best."""
    max_batch: int = 1
    """Windows of several texts that one call of an engine decodes; more than 1 is for GPUs."""
    memory_mb: int = 0
    """Megabytes that the loaded voices together may need; 0 takes a part of what the process may have."""
    max_backlog_seconds: int = 10
    """An interactive request is refused when those before it need longer than this."""
    max_bulk_backlog_seconds: int = 60
    """A bulk request is refused when all before it need longer than this."""
    buffer_seconds: int = 20
    """Audio that is made ahead of a client that reads slowly."""
    reader_patience_seconds: int = 60
    """How long a client may stop reading."""
    poll_seconds: int = 5
    """How often the store is asked whether names and aliases of voices have moved; 0: never."""
    lexicons: str = ""
    """Folder with a lexicon, ``<voice>.json`` or ``<voice>.tsv``, for each voice that has one."""
    log_format: str = "text"
    """``text``, or ``json``: one object a line."""
    log_text: int = 0
    """1 lets the log quote what users have spoken."""
    grpc_tls_cert: str = ""
    """The server's certificate for gRPC, PEM. Empty: no TLS."""
    grpc_tls_key: str = ""
    """The certificate's key."""
    grpc_tls_client_ca: str = ""
    """Who signs clients' certificates; where given, gRPC lets in no client without one."""
    grace_seconds: int = 30
    """How long a stopping server waits for what is running."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read the settings from ``VITS_…`` variables; what is not set keeps its default.

        Raises:
            ConfigError: Lists every variable that is not what it should be.
        """
        environment = os.environ if environment is None else environment
        values: dict[str, str | int] = {"store": default_store_url()}
        problems: list[str] = []
        for field in fields(cls):
            name = PREFIX + field.name.upper()
            text = environment.get(name, "")
            if not text:
                continue
            if isinstance(field.default, int):
                if text.isascii() and text.isdigit():
                    values[field.name] = int(text)
                else:
                    problems.append(f"{name} is {text!r}; it must be a whole number, 0 or more")
            else:
                values[field.name] = text
        problems += [
            f"{PREFIX}{name.upper()} is {values[name]}; ports go up to {LAST_PORT}"
            for name in ("http_port", "grpc_port")
            if int(values.get(name, 0)) > LAST_PORT
        ]
        log_format = values.get("log_format", "text")
        if log_format not in LOG_FORMATS:
            problems.append(f"{PREFIX}LOG_FORMAT is {log_format!r}; it must be {' or '.join(LOG_FORMATS)}")
        if why := why_no_path(str(values.get("lexicons", ""))):
            problems.append(f"{PREFIX}LEXICONS cannot be used: {why}")
        if problems:
            raise ConfigError("The server's environment cannot be used:", problems)
        return cls(**values)  # type: ignore[arg-type]  # checked field by field above

    @property
    def local_url(self) -> str:
        """Where this machine itself finds HTTP: what stands for all of its addresses is none to call."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.http_port}"

    @property
    def memory_bytes(self) -> int:
        """What the loaded voices together may need."""
        return self.memory_mb << 20 or int(memory_limit() * MEMORY_SHARE)

    def to_environment(self) -> dict[str, str]:
        """The variables that `from_environment` reads these settings from."""
        return {PREFIX + name.upper(): str(value) for name, value in asdict(self).items()}


def memory_limit(cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Bytes that this process may have: its container's limit, or the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        text = cgroup.read_text().strip()
    except OSError:
        return machine
    return min(machine, int(text)) if text.isdigit() else machine
