"""Google's, Azure's and Amazon's stores and credentials, as far as a loopback server can stand in for a cloud."""

from __future__ import annotations

import base64
import json
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from shared.errors import AlreadyExistsError, NotFoundError, StoreError
from shared.store import Store

LATER = "2100-01-01T00:00:00Z"


@dataclass(frozen=True)
class Request:
    """One request, as the cloud saw it."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Message
    body: bytes


class Handler(BaseHTTPRequestHandler):
    """Answers what it was told to, and else keeps objects as the stores do."""

    server: Cloud

    def _answer(self) -> None:
        address = urlsplit(self.path)
        path, cloud = unquote(address.path), self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        cloud.requests.append(Request(self.command, path, parse_qs(address.query), self.headers, body))
        condition = self.headers.get("If-None-Match"), self.headers.get("x-goog-if-generation-match")
        if (self.command, path) in cloud.answers:
            self._send(200, cloud.answers[self.command, path])
        elif self.command == "PUT":
            exists = path in cloud.objects and condition in {("*", None), (None, "0")}
            if not exists:
                cloud.objects[path] = body
            self._send(cloud.refusal if exists else 201)
        elif path in cloud.objects:
            self._send(200, cloud.objects[path])
        else:
            self._send(404)

    do_GET = do_PUT = do_POST = _answer  # noqa: N815

    def _send(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", "Sun, 22 Nov 2026 16:00:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Cloud(ThreadingHTTPServer):
    """A server.

    Attributes:
        objects: Its objects by path.
        answers: What it says to a method and a path.
        refusal: The status by which it refuses to create what exists.
        requests: Every request so far.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {}
        self.answers: dict[tuple[str, str], bytes] = {}
        self.refusal = 412
        self.requests: list[Request] = []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def sent(self, method: str, words: str) -> Request:
        """The only request of a method whose path ends so."""
        (found,) = (each for each in self.requests if each.method == method and each.path.endswith(words))
        return found


def serving(cloud: Cloud) -> Iterator[Cloud]:
    with cloud:
        thread = threading.Thread(target=cloud.serve_forever, args=(0.01,))
        thread.start()
        yield cloud
        cloud.shutdown()
        thread.join()


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    yield from serving(Cloud())


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that nobody has set up for any cloud."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "GCE_", "IDENTITY_")):
            monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def set_up(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


# ---------------------------------------------------------------------- Google and Azure


@pytest.fixture
def google(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Store:
    """On a machine with a service account."""
    set_up(monkeypatch, GOOGLE_BASE_URL=f"http://{cloud.host}", GCE_METADATA_HOST=cloud.host)
    account = "/computeMetadata/v1/instance/service-accounts/default/token"
    cloud.answers["GET", account] = json.dumps(
        {"access_token": "of-the-machine", "expires_in": 3600, "token_type": "Bearer"}
    ).encode()
    return Store.open("gs://bucket/prefix")


@pytest.fixture
def azure(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Store:
    """With an account and its key."""
    set_up(
        monkeypatch,
        AZURE_STORAGE_ENDPOINT=f"http://{cloud.host}",
        AZURE_STORAGE_ACCOUNT_NAME="account",
        AZURE_STORAGE_ACCOUNT_KEY=base64.b64encode(b"very-secret").decode(),
    )
    cloud.refusal = 409
    return Store.open("az://bucket/prefix")


@pytest.mark.parametrize(
    ("provider", "condition", "authorization"),
    [
        ("google", ("x-goog-if-generation-match", "0"), "Bearer of-the-machine"),
        ("azure", ("If-None-Match", "*"), "SharedKey account:"),
    ],
)
def test_only_create_is_conditional(
    cloud: Cloud,
    request: pytest.FixtureRequest,
    provider: str,
    condition: tuple[str, str],
    authorization: str,
) -> None:
    store: Store = request.getfixturevalue(provider)
    name, value = condition
    store.create("a/x", b"first")
    created = cloud.sent("PUT", "prefix/a/x")
    assert created.headers[name] == value
    assert created.headers["Authorization"].startswith(authorization)
    with pytest.raises(AlreadyExistsError, match=f"{store.url}/a/x exists already"):
        store.create("a/x", b"second")
    assert cloud.objects == {"/bucket/prefix/a/x": b"first"}
    assert store.read("a/x") == b"first"
    store.write("y", b"1")
    assert name not in cloud.sent("PUT", "prefix/y").headers
    with pytest.raises(NotFoundError, match=f"{store.url}/z does not exist"):
        store.read("z")


@pytest.mark.parametrize(
    ("provider", "remedy"),
    [("google", "GOOGLE_APPLICATION_CREDENTIALS"), ("azure", "AZURE_STORAGE_ACCOUNT_KEY")],
)
def test_a_refusal_names_the_object_and_the_provider_s_remedy(
    cloud: Cloud, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, provider: str, remedy: str
) -> None:
    store: Store = request.getfixturevalue(provider)
    monkeypatch.setattr(Handler, "do_PUT", lambda handler: handler._send(403))
    with pytest.raises(
        StoreError, match=rf"could not create {store.url}/x: access was refused.*{remedy}"
    ) as told:
        store.create("x", b"1")
    assert "very-secret" not in str(told.value)


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("s3://bucket", "AWS_ACCESS_KEY_ID"),
        ("gs://bucket", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("az://bucket", "AZURE_STORAGE_ACCOUNT_KEY"),
    ],
)
@pytest.mark.parametrize("status", [403, 404])
def test_where_there_are_no_credentials_nobody_is_said_to_have_refused_them(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, url: str, remedy: str, status: int
) -> None:
    set_up(
        monkeypatch,
        AWS_METADATA_ENDPOINT=f"http://{cloud.host}",
        GCE_METADATA_HOST=cloud.host,
        AZURE_MSI_ENDPOINT=f"http://{cloud.host}/metadata/identity/oauth2/token",
        AZURE_STORAGE_ACCOUNT_NAME="account",
    )
    for method in ("do_GET", "do_PUT"):
        monkeypatch.setattr(Handler, method, lambda handler: handler._send(status))
    with pytest.raises(StoreError, match=rf"could not list {url}/voices: no credentials .*{remedy}") as told:
        Store.open(url).list("voices")
    assert "refused" not in str(told.value)


def test_a_key_of_google_s_signs_by_itself(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "key.pem"]
    openssl(tmp_path, *command)
    account = {
        "type": "service_account",
        "client_email": "voices@example.org",
        "private_key_id": "1",
        "private_key": (tmp_path / "key.pem").read_text(),
    }
    (tmp_path / "account.json").write_text(json.dumps(account))
    set_up(
        monkeypatch,
        GOOGLE_BASE_URL=f"http://{cloud.host}",
        GOOGLE_APPLICATION_CREDENTIALS=str(tmp_path / "account.json"),
    )
    Store.open("gs://bucket").write("x", b"1")
    kind, _, token = cloud.sent("PUT", "x").headers["Authorization"].partition(" ")
    claims = token.split(".")[1]
    assert kind == "Bearer"
    assert json.loads(base64.urlsafe_b64decode(claims + "=="))["iss"] == "voices@example.org"


def test_a_managed_identity_of_azure_s_is_asked_for(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(
        monkeypatch,
        AZURE_STORAGE_ENDPOINT=f"http://{cloud.host}",
        AZURE_STORAGE_ACCOUNT_NAME="account",
        AZURE_MSI_ENDPOINT=f"http://{cloud.host}/identity",
    )
    cloud.answers["GET", "/identity"] = b'{"access_token": "managed", "expires_on": "4102444800"}'
    Store.open("az://bucket").write("x", b"1")
    assert cloud.sent("PUT", "x").headers["Authorization"] == "Bearer managed"


def test_a_workload_identity_of_azure_s_is_exchanged(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("of-the-cluster")
    set_up(
        monkeypatch,
        AZURE_STORAGE_ENDPOINT=f"http://{cloud.host}",
        AZURE_STORAGE_ACCOUNT_NAME="account",
        AZURE_CLIENT_ID="client",
        AZURE_TENANT_ID="tenant",
        AZURE_FEDERATED_TOKEN_FILE=str(tmp_path / "token"),
        AZURE_AUTHORITY_HOST=f"http://{cloud.host}",
    )
    cloud.answers["POST", "/tenant/oauth2/v2.0/token"] = b'{"access_token": "workload", "expires_in": 3600}'
    Store.open("az://bucket").write("x", b"1")
    exchanged = parse_qs(cloud.sent("POST", "/token").body.decode())
    assert exchanged["client_assertion"] == ["of-the-cluster"]
    assert cloud.sent("PUT", "x").headers["Authorization"] == "Bearer workload"


# ---------------------------------------------------------------------- Amazon


@pytest.fixture
def amazon(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Writes to S3, and says by which access key."""
    # Nobody else is asked, whatever the test is about.
    set_up(monkeypatch, AWS_ENDPOINT_URL=f"http://{cloud.host}", AWS_REGION="us-east-1")
    set_up(monkeypatch, AWS_METADATA_ENDPOINT=f"http://{cloud.host}")

    def write() -> str:
        Store.open("s3://bucket").write("x", b"1")
        signed: str = cloud.sent("PUT", "bucket/x").headers["Authorization"]
        return signed.partition("Credential=")[2].partition("/")[0]

    return write


def answer(key: str) -> bytes:
    """What a container's and a machine's role is given."""
    return json.dumps(
        {"AccessKeyId": key, "SecretAccessKey": "s", "Token": "session", "Expiration": LATER}
    ).encode()


def write_profiles(home: Path, *names: str) -> None:
    lines = [f"[{name}]\naws_access_key_id = of-{name}\naws_secret_access_key = s\n" for name in names]
    (home / ".aws").mkdir()
    (home / ".aws" / "credentials").write_text("".join(lines))


def test_keys_in_the_environment_go_before_all(
    cloud: Cloud, amazon: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_profiles(tmp_path / "home", "default", "speech")
    set_up(monkeypatch, AWS_PROFILE="speech", AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="s")  # noqa: S106
    set_up(monkeypatch, AWS_SESSION_TOKEN="session")  # noqa: S106
    assert amazon() == "key"
    assert cloud.sent("PUT", "x").headers["x-amz-security-token"] == "session"


@pytest.mark.parametrize("profile", ["speech", ""])
def test_a_profile_goes_before_the_default_and_that_before_a_role(
    amazon: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    write_profiles(tmp_path / "home", "default", "speech")
    set_up(monkeypatch, AWS_PROFILE=profile)
    assert amazon() == f"of-{profile or 'default'}"


def test_a_pod_s_role_is_asked_of_its_cluster(
    cloud: Cloud, amazon: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("of-the-pod")
    set_up(
        monkeypatch,
        AWS_CONTAINER_CREDENTIALS_FULL_URI=f"http://{cloud.host}/v1/credentials",
        AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=str(tmp_path / "token"),
    )
    cloud.answers["GET", "/v1/credentials"] = answer("of-a-pod")
    assert amazon() == "of-a-pod"
    assert cloud.sent("GET", "/v1/credentials").headers["Authorization"] == "of-the-pod"
    assert cloud.sent("PUT", "x").headers["x-amz-security-token"] == "session"


def test_a_machine_s_role_is_asked_of_the_machine(cloud: Cloud, amazon: Callable[[], str]) -> None:
    roles = "/latest/meta-data/iam/security-credentials/"
    cloud.answers["PUT", "/latest/api/token"] = b"for-questions"
    cloud.answers["GET", roles] = b"speech"
    cloud.answers["GET", f"{roles}speech"] = answer("of-a-machine")
    assert amazon() == "of-a-machine"
    assert cloud.sent("GET", "/speech").headers["X-aws-ec2-metadata-token"] == "for-questions"


def openssl(folder: Path, *arguments: str) -> None:
    command = shutil.which("openssl")
    if command is None:
        pytest.skip("no key can be made here: openssl is not installed")
    subprocess.run([command, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """A server over TLS, of a certificate that this machine trusts."""
    new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    openssl(tmp_path, *new, "-subj", "/CN=tests", "-keyout", "ca.key", "-out", "ca.pem")
    leaf = ["-extensions", "v3_req", "-addext", "subjectAltName=IP:127.0.0.1", "-subj", "/CN=127.0.0.1"]
    openssl(
        tmp_path, *new, *leaf, "-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", "key.pem", "-out", "own.pem"
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "own.pem", tmp_path / "key.pem")
    server = Cloud()
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    yield from serving(server)


@pytest.fixture
def web_identity(encrypted: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """The security token service, which takes the token of a cluster's service account."""
    (tmp_path / "token").write_text("of-the-cluster")
    set_up(
        monkeypatch,
        AWS_WEB_IDENTITY_TOKEN_FILE=str(tmp_path / "token"),
        AWS_ROLE_ARN="arn:aws:iam::1:role/speech",
        AWS_ENDPOINT_URL_STS=f"https://{encrypted.host}",
    )
    return encrypted


def test_a_web_identity_is_exchanged_before_the_file_s_default(
    web_identity: Cloud, cloud: Cloud, amazon: Callable[[], str], tmp_path: Path
) -> None:
    write_profiles(tmp_path / "home", "default")
    web_identity.answers["POST", "/"] = (
        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
        "<SessionToken>session</SessionToken><SecretAccessKey>s</SecretAccessKey>"
        f"<AccessKeyId>of-a-web-identity</AccessKeyId><Expiration>{LATER}</Expiration>"
        "</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    ).encode()
    assert amazon() == "of-a-web-identity"
    asked = web_identity.sent("POST", "/")
    assert asked.query["WebIdentityToken"] == ["of-the-cluster"]
    assert asked.query["RoleArn"] == ["arn:aws:iam::1:role/speech"]
    assert cloud.sent("PUT", "x").headers["x-amz-security-token"] == "session"


def test_a_web_identity_that_is_refused_is_told_without_its_token(
    web_identity: Cloud, amazon: Callable[[], str]
) -> None:
    with pytest.raises(StoreError, match=r"could not write s3://bucket/x: .*or a role") as told:
        amazon()
    assert web_identity.sent("POST", "/").query["WebIdentityToken"] == ["of-the-cluster"]
    assert "of-the-cluster" not in str(told.value)
