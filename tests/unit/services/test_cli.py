"""The console command: its table, its exit codes, and how much it imports."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from services.cli import EXIT_CODES, SUBCOMMANDS, exit_code, main
from shared.errors import (
    ConfigError,
    HubUnreachableError,
    LeaseLostError,
    MissingExtraError,
    OverloadedError,
    ProblemsError,
    QualityError,
    StoreError,
    VitsError,
)


def classes(base: type[VitsError] = VitsError) -> set[type[VitsError]]:
    return {base}.union(
        *(classes(child) for child in base.__subclasses__() if child.__module__ == "shared.errors")
    )


def make(kind: type[VitsError]) -> VitsError:
    if issubclass(kind, OverloadedError):
        return kind("busy", retry_after_seconds=1.0)
    if issubclass(kind, ProblemsError):
        return kind("no", ["why"])
    return kind("no")


def fake(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    """Put a function in the place of 'vits train'."""
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(main=run))


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_teaches(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(SUBCOMMANDS[name].module)
    assert callable(module.main)
    try:
        code: object = main([name, "--help"])
    except SystemExit as ended:  # argparse's own way
        code = ended.code
    assert code == 0
    assert re.match(rf"usage: vits {name}\b", capsys.readouterr().out)


def run_python(program: str) -> str:
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return ran.stdout


HEAVY = ("torch", "transformers", "numpy", "onnx", "bentoml", "grpc", "datasets", "pydantic")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from services.cli import main; code = main(['--help']); "
        f"print('imported', [name for name in {HEAVY} if name in sys.modules], code)"
    )
    output = run_python(program)
    assert output.endswith("imported [] 0\n")
    assert all(re.search(rf"^  {name} +\S", output, re.MULTILINE) for name in SUBCOMMANDS)


def test_help_of_subcommands_leaves_frameworks_alone() -> None:
    """A second for a help text is too long: torch alone takes more."""
    program = """
import contextlib, io, sys
from services.cli import SUBCOMMANDS, main
for name in SUBCOMMANDS:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main([name, "--help"])
    print(name, [m for m in ("torch", "transformers", "onnx", "bentoml", "datasets") if m in sys.modules])
"""
    answers = run_python(program).splitlines()
    assert answers == [f"{name} []" for name in SUBCOMMANDS]


@pytest.mark.parametrize("kind", sorted(classes(), key=str))
def test_every_error_has_an_exit_code(
    kind: type[VitsError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(argv: object) -> int:
        raise make(kind)

    fake(monkeypatch, run)
    code = main(["train"])
    assert code == exit_code(make(kind))
    assert 0 < code < 100
    assert capsys.readouterr().err.startswith("vits train: ")
    # Only the root itself may fall through to the root's row.
    assert (code == EXIT_CODES[VitsError]) == (kind is VitsError)


def test_exit_codes_tell_the_kinds_apart() -> None:
    assert exit_code(ConfigError("no", [])) == 2
    assert exit_code(HubUnreachableError("no")) == 8  # a Job does not try again after a 2
    assert exit_code(QualityError("no")) == 3
    assert exit_code(LeaseLostError("no")) == exit_code(StoreError("no")) == 4
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)
    assert list(EXIT_CODES)[-1] is VitsError  # the first that fits wins


def test_result_of_a_subcommand_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def run(argv: object) -> int:
        seen.append(argv)
        return 42

    fake(monkeypatch, run)
    assert main(["train", "--config", "x.json"]) == 42
    assert main(["models", "list"]) == 42
    assert seen == [["--config", "x.json"], ["models", "list"]]


def test_unknown_subcommand_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    error = capsys.readouterr().err
    assert "no subcommand 'trian', did you mean 'train'?" in error
    assert "vits --help" in error
    assert main(["zzzzz"]) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_nothing_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: vits" in capsys.readouterr().out


def missing(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize("when", ["on import", "on the way"])
def test_missing_extra(
    when: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise missing("torch.nn")

    if when == "on import":
        monkeypatch.setattr(importlib, "import_module", fail)
    else:
        fake(monkeypatch, fail)
    assert main(["train"]) == exit_code(MissingExtraError("")) == 2
    error = capsys.readouterr().err
    assert "'vits train' needs the package 'torch'" in error
    assert "pip install 'vits-suite[train]'" in error


def test_a_missing_module_of_our_own_is_a_bug_and_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> object:
        raise missing("services.nowhere")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ModuleNotFoundError):
        main(["train"])


def test_interruptions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(argv: object) -> int:
        raise KeyboardInterrupt

    def close(argv: object) -> int:
        raise BrokenPipeError

    fake(monkeypatch, stop)
    assert main(["train"]) == 130
    assert "stopped" in capsys.readouterr().err
    fake(monkeypatch, close)
    assert main(["train"]) == 141


#: A misspelt option of each subcommand, and what is meant.
MISSPELT = {
    "data": (["inspect", "x", "--langauge", "es"], "--language"),
    "convert": (["piper", "voice.onnx", "--ouput", "x"], "--output"),
    "train": (["--dataset_nam", "x"], "dataset_name"),
    "tune": (["--trails", "3"], "trials"),
    "export": (["x", "--varients", "fp32"], "--variants"),
    "evaluate": (["x", "--jugdes", "wer"], "--judges"),
    "say": (["hola", "--sped", "2"], "--speed"),
    "serve": (["--htpp-port", "1"], "--http-port"),
    "synthesize": (["--inptu", "x"], "--input"),
    "plan": (["--requests-per-secnd", "1"], "--requests-per-second"),
    "doctor": (["--confg", "x"], "--config"),
    "models": (["list", "--stroe", "x"], "--store"),
    "voices": (["gc", "--dry-rnu"], "--dry-run"),
}


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_an_unknown_option_suggests_the_nearest(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, meant = MISSPELT[name]
    try:
        code: object = main([name, *arguments])
    except SystemExit as ended:  # argparse's own way
        code = ended.code
    assert code == 2
    assert f"did you mean '{meant}'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "inspect", "x"], ["data", "clean", "x"], ["data", "record", "x"],
        ["data", "prepare", "x", "--output", "y"], ["convert", "vits", "G.pth", "--output", "y"],
        ["export", "x"], ["evaluate", "x"], ["say", "hola"],
    ],
)  # fmt: skip
def test_a_language_is_given_by_its_code(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--language", "espanol"]) == 2
    assert "did you mean 'es' (Spanish)?" in capsys.readouterr().err
