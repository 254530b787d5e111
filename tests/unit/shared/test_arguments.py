"""Options that a command does not know."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.arguments import Parser


def make() -> Parser:
    parser = Parser(prog="vits thing")
    commands = parser.add_subparsers(dest="command")
    one = commands.add_parser("one")
    one.add_argument("what", nargs="*")
    one.add_argument("--language")
    one.add_argument("--output", required=True)
    return parser


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit, match="2"):
        make().parse_args(arguments)
    return capsys.readouterr().err


def test_the_nearest_option_is_named_by_the_command_that_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    told = error(capsys, "one", "--langauge", "es", "--output", "x", "--qqq")
    assert told.startswith("usage: vits thing one")
    assert "error: unknown option --langauge, did you mean '--language'?; unknown option --qqq\n" in told


def test_a_misspelt_option_is_named_before_what_is_missing_without_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "--ouput, did you mean '--output'?" in error(capsys, "one", "--ouput=a b")


def test_what_argparse_takes_is_taken() -> None:
    """Abbreviations, values behind ``=``, and whatever stands behind ``--``."""
    options = make().parse_args(["one", "--lang", "es", "--output=--x", "--", "--langauge"])
    assert (options.language, options.output, options.what) == ("es", "--x", ["--langauge"])


@pytest.mark.parametrize("text", ["--x=a b c", "-- said he = she", "--langauge es=a"])
def test_what_holds_a_space_is_a_text_unless_its_name_is_like_an_option(text: str) -> None:
    """As argparse has it, wherever the space is."""
    assert make().parse_args(["one", "--output", "x", text]).what == [text]


def test_an_address_is_no_path(capsys: pytest.CaptureFixture[str]) -> None:
    """It was a folder ``s3:`` in the working directory."""
    parser = Parser()
    group = parser.add_argument_group().add_mutually_exclusive_group()
    group.add_argument("--output", type=Path, default="here")
    assert parser.parse_args(["--output", "a/b"]).output == Path("a/b")
    assert parser.parse_args([]).output == Path("here")
    for address, told in (
        ("s3://bucket/voice", "'s3://bucket/voice' is an address; give a path on this machine\n"),
        ("s3:/bucket", "'s3:/bucket' is an address; give a path on this machine (./s3:/bucket is one)\n"),
    ):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(["--output", address])
        assert f"--output: {told}" in capsys.readouterr().err
