"""Where a server is, and how it is called: what both clients share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc

from vits_client.errors import from_rpc

#: Audio of any length comes back whole, if that is asked for; a connection that has died is noticed.
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)

#: A server may have to load the voice first, and a long text takes its time.
TIMEOUT_SECONDS = 600.0


class Connection:
    """A server's address, and what it takes to be let in.

    Args:
        url: ``grpc://host:port``, or ``grpcs://host:port`` with TLS.
        token: The token, where the server asks for one.
        root_certificates: PEM file of the authority that signed the server's certificate; the system's.
        certificate: PEM file of one's own certificate, where the server asks for one (mTLS).
        key: PEM file of its private key.

    Raises:
        ValueError: The address is not of this form, or files were given that it does not need.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        root_certificates: str | Path | None = None,
        certificate: str | Path | None = None,
        key: str | Path | None = None,
    ) -> None:
        self.url = url
        parts = urlsplit(url)
        if parts.scheme not in {"grpc", "grpcs"} or not parts.hostname or not parts.port:
            raise ValueError(
                f"{url!r} is not the address of a gRPC server: give grpc://host:port, or grpcs://host:port for TLS"
            )
        if (certificate is None) != (key is None):
            raise ValueError("a certificate and its key are needed together")
        self.credentials: grpc.ChannelCredentials | None = None
        if parts.scheme == "grpcs":
            self.credentials = grpc.ssl_channel_credentials(
                *(Path(file).read_bytes() if file else None for file in (root_certificates, key, certificate))
            )
        elif root_certificates or certificate:
            raise ValueError(f"certificates are for TLS, and {url} is without: give grpcs://{parts.netloc}")
        self.target = parts.netloc.rpartition("@")[2]
        self._token = token

    def metadata(self, request_id: str | None) -> tuple[tuple[str, str], ...]:
        """What a call says besides its messages."""
        pairs = [("authorization", f"Bearer {self._token}")] if self._token else []
        return (*pairs, *([("x-request-id", request_id)] if request_id else []))

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn gRPC's errors into ours."""
        try:
            yield
        except grpc.RpcError as error:
            raise from_rpc(error, self.url) from error

    def arguments(self, timeout_seconds: float | None, request_id: str | None) -> dict[str, Any]:
        """Arguments of a call."""
        return {"timeout": timeout_seconds, "metadata": self.metadata(request_id)}
