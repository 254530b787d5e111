"""``vits data prepare``, ``augment`` and ``push``, and what every command asks about the recordings' origin."""

from __future__ import annotations

import csv
import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from services.training.data import DatasetCard, cli, read_card, read_recordings
from services.training.data.commands import push
from services.training.data.desk.server import Desk
from services.training.data.listening import Ears
from services.training.session import data_provenance
from shared.audio import read_audio, write_wav
from shared.errors import ConfigError, DataError, HubUnreachableError, UserError
from shared.provenance import Provenance
from tests.conftest import SENTENCES, babble

Samples = NDArray[np.float32]
ORIGIN = ["--licence", "private", "--source", "Ana García", "--consent", "signed"]


class Listening:
    """Ears that hear one sentence after another."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def __call__(self, *, language: str | None, recogniser: Path | None, wanted: Sequence[str]) -> Ears:
        def transcribe(samples: Samples) -> str:
            self.asked.append(len(samples) / 16_000)
            return f" frase {len(self.asked)}\n "

        return Ears(transcribe=transcribe if "recognition" in wanted else None, transcriber="test")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))
    for name in ("HUB_TOKEN", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def rows(root: Path) -> list[dict[str, str]]:
    with (root / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# -- prepare ---------------------------------------------------------------------------------------


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    """Three sentences of two seconds with pauses between them, and a cough of a fifth of a second."""
    pause = np.zeros(22_050, np.float32)
    said = [babble(SENTENCES[n], seconds=2.0, rate=22_050, seed=n) for n in (2, 3, 4)]
    cough = 0.3 * np.ones(4410, np.float32)
    parts = [pause, said[0], pause, cough, pause, said[1], pause, said[2], pause]
    (tmp_path / "talks").mkdir()
    write_wav(tmp_path / "talks/talk.wav", np.concatenate(parts), 22_050)
    return tmp_path / "talks"


def test_a_talk_becomes_a_dataset(talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ears = Listening()
    output = tmp_path / "made"
    arguments = [
        "prepare",
        str(talk),
        "--output",
        str(output),
        "--language",
        "es",
        *ORIGIN,
        "--margin",
        "0.1",
    ]
    assert cli.main(arguments, listeners=ears) == 0
    made = rows(output)
    assert [row["text"] for row in made] == ["frase 1", "frase 2", "frase 3"]
    assert [row["source"] for row in made] == ["talk.wav"] * 3
    assert [float(row["start"]) for row in made] == pytest.approx([0.9, 5.1, 8.1], abs=0.03)
    whole = read_audio(talk / "talk.wav").samples
    first = read_recordings(output, split="all")[0].audio()
    start = round(float(made[0]["start"]) * 22_050)
    np.testing.assert_array_equal(first.samples, whole[start : start + len(first.samples)])
    assert first.duration_seconds == pytest.approx(2.2, abs=0.03)
    card = read_card(output)
    assert card is not None
    assert (card.licence, card.sources, card.consent, card.files) == ("private", ("Ana García",), "signed", 3)
    assert "vits data review" in capsys.readouterr().out
    # Again, elsewhere: nobody is asked twice.
    arguments[3] = str(tmp_path / "again")
    assert cli.main(arguments, listeners=ears) == 0
    assert len(ears.asked) == 3
    with pytest.raises(UserError, match="not empty"):
        cli.main(arguments, listeners=ears)


def test_without_a_recogniser_the_texts_are_for_the_review(
    talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.main(["prepare", str(talk), "--output", str(tmp_path / "made"), *ORIGIN, "--speaker", "ana"]) == 0
    )
    assert [(row["text"], row["speaker_id"]) for row in rows(tmp_path / "made")] == [("", "ana")] * 3
    assert "to type them" in capsys.readouterr().err


def test_what_cannot_be_prepared_is_said(tmp_path: Path, talk: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as error:
        cli.main(
            [
                "prepare",
                str(tmp_path / "no"),
                str(tmp_path / "empty"),
                "--output",
                str(tmp_path / "o"),
                *ORIGIN,
            ]
        )
    assert len(error.value.problems) == 2
    write_wav(tmp_path / "silence.wav", np.zeros(32_000, np.float32), 16_000)
    with pytest.raises(DataError, match="Nobody speaks"):
        cli.main(["prepare", str(tmp_path / "silence.wav"), "--output", str(tmp_path / "o"), *ORIGIN])
    assert not (tmp_path / "o").exists()
    with pytest.raises(UserError, match="--max-seconds"):
        cli.main(["prepare", str(talk), "--output", str(tmp_path / "o"), "--min-seconds", "20", *ORIGIN])
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


def test_a_file_that_cannot_be_read_is_named_and_left_out(
    talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing that was cut and heard before it is lost."""
    (talk / "broken.wav").write_bytes(b"RIFF and no more")
    (talk / "zero.mp3").touch()
    output = tmp_path / "made"
    assert cli.main(["prepare", str(talk), "--output", str(output), *ORIGIN], listeners=Listening()) == 0
    assert [row["source"] for row in rows(output)] == ["talk.wav"] * 3
    told = capsys.readouterr().out.splitlines()
    assert "  cannot be used, and left out: 2 of 3 files" in told
    assert all(
        any(f"{talk / name} cannot be decoded (" in line for line in told)
        for name in ("broken.wav", "zero.mp3")
    )
    (talk / "talk.wav").unlink()
    with pytest.raises(DataError, match="No recording can be read") as error:
        cli.main(["prepare", str(talk), "--output", str(tmp_path / "none"), *ORIGIN])
    assert len(error.value.problems) == 2
    assert not (tmp_path / "none").exists()


# -- where recordings come from --------------------------------------------------------------------


def test_origin_is_asked_for_and_told_all_at_once(talk: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        cli.main(["prepare", str(talk), "--output", str(tmp_path / "o"), "--licence", "CC0-1.0"])
    assert [problem.split(":")[0] for problem in error.value.problems] == ["--source", "--consent"]
    with pytest.raises(ConfigError):
        cli.main(["record", str(tmp_path / "o"), "--language", "es"])
    assert not (tmp_path / "o").exists()


def test_on_a_terminal_somebody_is_asked(
    talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("Ana, at home\nsigned form\n"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert cli.main(["prepare", str(talk), "--output", str(tmp_path / "o"), "--licence", "CC0-1.0"]) == 0
    card = read_card(tmp_path / "o")
    assert card is not None
    assert (card.licence, card.sources, card.consent) == ("CC0-1.0", ("Ana, at home",), "signed form")
    assert "How the speaker agreed" in capsys.readouterr().err


def test_what_was_said_of_a_speaker_is_in_the_folder_while_it_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Recording ends by Ctrl-C, so whatever is to be kept is written before; and nobody is asked again to go on."""
    cards: list[DatasetCard | None] = []

    def ended(desk: Desk) -> None:
        cards.append(read_card(tmp_path / "ana"))
        desk._server.server_close()
        raise KeyboardInterrupt

    monkeypatch.setattr(Desk, "serve", ended)
    folder = str(tmp_path / "ana")
    assert cli.main(["record", folder, "--language", "es-MX", "--port", "0", *ORIGIN]) == 0
    said = capsys.readouterr().out
    assert "0 of 60 sentences are recorded" in said
    assert f"next: vits data clean {folder}" in said
    assert cli.main(["record", folder, "--port", "0"]) == 0
    for card in [*cards, read_card(tmp_path / "ana")]:
        assert card is not None
        assert (card.name, card.licence, card.sources) == ("ana", "private", ("Ana García",))
        assert (card.consent, card.language) == ("signed", "es-MX")


def test_a_card_goes_into_a_models_provenance(tmp_path: Path) -> None:
    DatasetCard("x", "CC-BY-4.0", ("a studio",), "By Ana.", consent="signed").write(tmp_path)
    assert data_provenance(str(tmp_path)) == Provenance(
        licence="CC-BY-4.0", sources=("a studio", "By Ana."), consent="signed"
    )
    assert Provenance(consent="of Joe").joined(data_provenance(str(tmp_path))).consent == "of Joe; signed"


# -- augment ---------------------------------------------------------------------------------------


def test_copies_are_varied_and_held_out_recordings_are_not(
    recordings_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "augment",
        str(recordings_folder),
        "--copies",
        "2",
        "--speed",
        "0.1",
        "--pitch",
        "1",
        "--output",
    ]
    assert cli.main([*arguments, str(tmp_path / "one"), "--speaker-column", "speaker"]) == 0
    assert "hurt quality if overdone" in capsys.readouterr().out
    made = rows(tmp_path / "one")
    assert len(made) == 3 * 8 + 2
    assert {row["speaker_id"] for row in made} == {"ana", "luis"}
    assert [row["varied"] for row in made if row["split"] == "test"] == ["", ""]
    originals = {r.id: r for r in read_recordings(recordings_folder, split="train")}
    first = next(iter(originals.values())).audio()
    copies = [read_audio(tmp_path / "one" / row["file_name"]) for row in made[:3]]
    np.testing.assert_array_equal(copies[0].samples, first.samples)
    assert len({len(copy.samples) for copy in copies}) == 3
    assert all(0.89 < len(copy.samples) / len(first.samples) < 1.12 for copy in copies)
    assert cli.main([*arguments, str(tmp_path / "two")]) == 0
    for file in sorted((tmp_path / "one/audio").iterdir()):
        assert file.read_bytes() == (tmp_path / "two/audio" / file.name).read_bytes()
    card = read_card(tmp_path / "one")
    assert card is not None
    assert (card.licence, card.files) == ("CC0-1.0", 26)


def test_too_much_is_refused(recordings_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        cli.main(
            ["augment", str(recordings_folder), "--output", str(tmp_path / "o"), "--pitch", "3", "--speed", "0.5",
             "--noise-snr", "5", "--copies", "0"]
        )  # fmt: skip
    assert len(error.value.problems) == 4
    with pytest.raises(ConfigError, match="nothing is varied"):
        cli.main(["augment", str(recordings_folder), "--output", str(tmp_path / "o")])


def test_a_recording_that_cannot_be_read_costs_only_itself(
    recordings_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(recordings_folder, tmp_path / "set")
    (root / "clip00.wav").write_bytes(b"RIFF and no more")
    spoilt = np.append(np.zeros(8000), np.full(8000, np.nan))  # its beginning can be read
    soundfile.write(root / "clip01.wav", spoilt, 16_000, subtype="FLOAT")
    arguments = ["augment", str(root), "--pitch", "1", "--output"]
    assert cli.main([*arguments, str(tmp_path / "made")]) == 2
    told = capsys.readouterr().out
    assert "14 recordings, 6 of them varied" in told
    assert "cannot be used, and left out: 2 of 10 recordings" in told
    assert f"metadata.csv:2 (clip00): {root}/clip00.wav cannot be decoded" in told
    assert f"metadata.csv:3 (clip01): {root}/clip01.wav holds values that are not numbers" in told
    assert len(rows(tmp_path / "made")) == 14
    for number in range(10):
        soundfile.write(root / f"clip{number:02d}.wav", spoilt, 16_000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"No recording .* can be used") as error:
        cli.main([*arguments, str(tmp_path / "none")])
    assert len(error.value.problems) == 10
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        ("prepare {talk} --output {file}/made --licence private --source Ana --consent signed", "--output"),
        ("augment {recordings} --pitch 1 --output {file}/made", "--output"),
        ("fetch asterisk-es --output {file}/made", "--output"),
        ("record {file}/made --language es", "another folder"),
        ("review /proc/self", "review the copy"),
    ],
)
def test_where_nothing_can_be_written_is_said_at_once(
    command: str, remedy: str, talk: Path, recordings_folder: Path, tmp_path: Path
) -> None:
    """As over a read-only mount."""
    (tmp_path / "file").touch()
    given = command.format(talk=talk, recordings=recordings_folder, file=tmp_path / "file")
    with pytest.raises(UserError, match=rf"({tmp_path}/file|/proc/self).* cannot be written \(.*{remedy}"):
        cli.main(given.split(), listeners=Listening())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "talks"]


# -- push ------------------------------------------------------------------------------------------


class FakeHub:
    """Stands in for the hub, which cannot be reached from here; remembers what it is given."""

    calls: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    tokens: ClassVar[list[str | None]] = []
    error: ClassVar[Exception | None] = None
    private: ClassVar[bool] = True

    def __init__(self, token: str | None = None) -> None:
        self.tokens.append(token)

    def create_repo(self, name: str, **options: Any) -> None:
        if self.error:
            raise self.error
        self.calls.append((name, options))

    def repo_info(self, name: str, *, repo_type: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, *, folder_path: Path, **options: Any) -> None:
        files = sorted(
            str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file()
        )
        self.calls.append((options["repo_id"], options | {"files": files}))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    import huggingface_hub

    FakeHub.calls, FakeHub.tokens, FakeHub.error = [], [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    return FakeHub


def test_a_folder_that_is_not_empty_is_refused_under_the_name_of_its_option(
    recordings_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty.*give another --save-to") as caught:
        cli.main(["push", str(recordings_folder), "me/babble", "--save-to", str(tmp_path)])
    assert "--output" not in str(caught.value)


def test_what_is_pushed_is_read_back_as_it_was(recordings_folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "hub"
    assert cli.main(
        ["push", str(recordings_folder), "me/babble", "--save-to", str(saved), "--speaker-column", "speaker"]
    ) == 0  # fmt: skip
    for split in ("train", "test"):
        before = read_recordings(recordings_folder, split=split, speaker_column="speaker")
        after = read_recordings(saved, split=split, speaker_column="speaker_id", id_column="id")
        assert [(r.id, r.text, r.speaker) for r in after] == [(r.id, r.text, r.speaker) for r in before]
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one.audio().samples, other.audio().samples)
    card = (saved / "README.md").read_text(encoding="utf-8")
    assert "license: cc0-1.0" in card
    assert "Babble, by nobody" in card
    assert "Consent of the speaker: not recorded here" in card


def test_a_push_is_private_one_commit_and_takes_its_token_from_the_environment(
    recordings_folder: Path,
    hub: type[FakeHub],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HUB_TOKEN", "hf_secret")
    assert cli.main(["push", str(recordings_folder), "me/babble"]) == 0
    (created, options), (uploaded, sent) = hub.calls
    assert created == uploaded == "me/babble"
    assert (options["private"], options["repo_type"], sent["repo_type"]) == (True, "dataset", "dataset")
    assert sent["files"] == [
        "README.md", "data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet",
    ]  # fmt: skip
    assert hub.tokens == ["hf_secret"]
    assert "hf_secret" not in "".join(capsys.readouterr())
    with pytest.raises(ConfigError, match="public"):
        cli.main(["push", str(recordings_folder), "me/babble", "--public"])
    with pytest.raises(UserError, match="owner/name"):
        cli.main(["push", str(recordings_folder), "babble"])


def test_what_is_to_be_private_is_not_sent_where_everybody_sees_it(
    recordings_folder: Path, hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making a repository that is there already leaves it as public as it was."""
    monkeypatch.setattr(hub, "private", False)
    with pytest.raises(UserError, match="everybody sees it: nothing was sent"):
        cli.main(["push", str(recordings_folder), "me/babble"])
    assert [name for name, options in hub.calls if "files" in options] == []


def test_a_hub_out_of_reach_says_how_to_go_on(recordings_folder: Path, hub: type[FakeHub]) -> None:
    hub.error = ConnectionError("no route to host")
    with pytest.raises(HubUnreachableError) as error:
        cli.main(["push", str(recordings_folder), "me/babble"])
    assert "no route to host" in str(error.value)
    assert "--save-to DIR" in str(error.value)
    assert "hf upload --repo-type dataset me/babble" in str(error.value)


def test_a_card_for_the_hub() -> None:
    text = push.hub_card(
        DatasetCard("ana", "private", ("Ana",), consent="signed", language="es-MX"), "me/ana", {"train": 3}
    )
    assert "license: other" in text
    assert "language: es" in text
    assert "Consent of the speaker: signed." in text
