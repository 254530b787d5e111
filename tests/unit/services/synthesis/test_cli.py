"""``vits serve`` up to the point where it serves; the rest is in tests/integration/test_serve.py."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from concurrent.futures import Future
from dataclasses import fields
from pathlib import Path

import pytest

from services.synthesis import cli
from services.synthesis.settings import PREFIX, Settings
from shared.errors import ConfigError, NotFoundError, UserError


def test_help_teaches_and_is_light() -> None:
    code = (
        "import sys\nfrom services.synthesis.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'bentoml', 'grpc', 'onnxruntime', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "curl http://127.0.0.1:3000/v1/audio/speech" in done.stdout
    assert "(default: 50051)" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_service_does_not_import_torch() -> None:
    code = "import sys, services.synthesis.service\nprint({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--http-port", "99999"],
        ["--grpc-port", "x"],
        ["--threads", "-1"],
        ["--lexicons", "s3://bucket/words"],
        ["--lexicons", "s3:/bucket/words"],
    ],
)
def test_bad_values(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.parser().parse_args(arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_ports_of_the_environment_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITS_HTTP_PORT", "99999")
    monkeypatch.setenv("VITS_GRPC_PORT", "65536")
    with pytest.raises(ConfigError, match=r"VITS_HTTP_PORT is 99999(?s:.*)VITS_GRPC_PORT is 65536"):
        cli.parser()


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the test process's own handlers."""
    monkeypatch.setattr("signal.signal", lambda *_: None)


@pytest.mark.usefixtures("signals")
def test_an_empty_store_is_said_before_anything_slow(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="holds no voice"):
        cli.main(["--store", str(tmp_path / "store")])


def test_whatever_work_beside_signals_ends_with_is_raised() -> None:
    """The store's client is written in Rust: its panics derive from BaseException, and were waited for without end."""

    class Panic(BaseException):
        pass

    def fail() -> None:
        raise Panic

    caught: Future[Panic] = Future()

    def ask() -> None:
        try:
            cli.beside_signals(fail)
        except Panic as error:
            caught.set_result(error)

    threading.Thread(target=ask, daemon=True).start()
    assert isinstance(caught.result(timeout=10), Panic)


def test_a_port_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="--http-port"):
        cli.listening_socket("127.0.0.1", taken.getsockname()[1])


def test_the_environment_says_what_the_command_line_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers set every one of them so: an option that is not given must not undo it."""
    told = {field.name: "3" if isinstance(field.default, int) else "/x" for field in fields(Settings)}
    told |= {"log_format": "json", "log_text": "1"}
    for name, value in told.items():
        monkeypatch.setenv(PREFIX + name.upper(), value)
    arguments = cli.parser().parse_args([])
    assert cli.settings_from(arguments, store="/x", http_port=3) == Settings.from_environment()
    arguments = cli.parser().parse_args(["--grace", "9"])
    assert cli.settings_from(arguments, store="/x", http_port=3).grace_seconds == 9
