"""What a server needs to know, handed from the command line to the service through the environment.

The service is started by BentoML, which makes it without arguments; the environment also serves containers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Self

from shared.errors import ConfigError
from shared.store import default_store_url

#: A field's environment variable is this and the field's name in capitals: ``VITS_GRPC_PORT``.
PREFIX = "VITS_"


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
    grace_seconds: int = 30
    """How long a stopping server waits for what is running."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read the settings from ``VITS_…`` variables; what is not set keeps its default.

        Raises:
            ConfigError: Lists every variable that is not a number and should be.
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
        if problems:
            raise ConfigError("The server's environment cannot be used:", problems)
        return cls(**values)  # type: ignore[arg-type]  # checked field by field above

    def to_environment(self) -> dict[str, str]:
        """The variables that `from_environment` reads these settings from."""
        return {PREFIX + name.upper(): str(value) for name, value in asdict(self).items()}
