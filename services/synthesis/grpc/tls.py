"""Certificates: the server's own, and whose clients' are trusted. They are read again when they change."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

from shared.errors import ConfigError

logger = logging.getLogger("vits.grpc")


@dataclass(frozen=True)
class Tls:
    """Files in PEM.

    Attributes:
        certificate: The server's, followed by those between it and its authority.
        key: Its private key, without a passphrase.
        client_ca: Who signs clients' certificates; where given, no client without one is let in (mTLS).
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @classmethod
    def from_settings(cls, certificate: str, key: str, client_ca: str) -> Self | None:
        """What the settings say; None where they ask for plain text.

        Raises:
            ConfigError: They give one file without the other, or one that cannot be used.
        """
        if not (certificate or key or client_ca):
            return None
        problems = [
            f"{option} is missing: TLS needs a certificate and its key"
            for option, value in (("--grpc-tls-cert", certificate), ("--grpc-tls-key", key))
            if not value
        ]
        if problems:
            raise ConfigError("gRPC cannot use TLS:", problems)
        tls = cls(Path(certificate), Path(key), Path(client_ca) if client_ca else None)
        tls.read()
        return tls

    def stamps(self) -> tuple[int, ...]:
        """Changes when one of the files does."""
        files = [self.certificate, self.key, *([self.client_ca] if self.client_ca else [])]
        return tuple(file.stat().st_mtime_ns for file in files)

    def read(self) -> Any:
        """The certificates as gRPC takes them.

        Raises:
            ConfigError: A file is not there, or is not what it should be.
        """
        problems: list[str] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_passphrase)
        except (OSError, ValueError) as error:
            problems.append(
                f"--grpc-tls-cert {self.certificate} and --grpc-tls-key {self.key} are not a PEM "
                f"certificate and its key: {error}"
            )
        if self.client_ca:
            try:
                context.load_verify_locations(self.client_ca)
            except OSError as error:
                problems.append(f"--grpc-tls-client-ca {self.client_ca} holds no PEM certificate: {error}")
        if problems:
            raise ConfigError("gRPC cannot use TLS:", problems)
        return grpc.ssl_server_certificate_configuration(
            [(self.key.read_bytes(), self.certificate.read_bytes())],
            root_certificates=self.client_ca.read_bytes() if self.client_ca else None,
        )


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase; give one without")


def server_credentials(tls: Tls) -> Any:
    """Credentials that follow their files: a certificate that was renewed needs no restart.

    Raises:
        ConfigError: The files cannot be used now. When they change to something that cannot, the old ones stay.
    """
    known = tls.stamps()

    def newer() -> Any:
        nonlocal known
        try:
            stamps = tls.stamps()
            if stamps == known:
                return None
            configuration = tls.read()
        except (ConfigError, OSError) as error:
            logger.error("the certificates changed and cannot be used; the old ones stay: %s", error)
            return None
        known = stamps
        logger.info("the certificates changed: from now on %s", tls.certificate)
        return configuration

    return grpc.dynamic_ssl_server_credentials(
        tls.read(), newer, require_client_authentication=tls.client_ca is not None
    )
