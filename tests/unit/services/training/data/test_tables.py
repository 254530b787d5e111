"""Folders of recordings, in the forms that users have them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.training.data import hub, read_recordings
from services.training.data.reading import survey
from services.training.data.recordings import hold_out
from shared.errors import DataError

Folder = Callable[..., Path]


def texts(folder: Path, **options: Any) -> dict[str, str]:
    return {one.id: one.text for one in read_recordings(folder, split="all", **options)}


class TestForms:
    @pytest.mark.parametrize(
        ("name", "table"),
        [
            ("metadata.csv", "file_name,text\na.wav,\"Hola, mundo.\"\nb,Adiós.\n"),
            ("metadata.csv", "file_name;text\r\na.wav;Hola, mundo.\r\nb;Adiós.\r\n"),
            ("metadata.csv", "a|Hola, mundo.\nb|Adiós.\n"),
            ("metadata.csv", "a|crudo|Hola, mundo.\nb|crudo|Adiós.\n"),
            ("metadata.csv", "audio|text\na|Hola, mundo.\nb|Adiós.\n"),
            ("metadata.tsv", "path\tsentence\na\tHola, mundo.\nb.flac\tAdiós.\n"),
            ("metadata.tsv", "a\tHola, mundo.\n\nb\tAdiós.\n"),
            ("metadata.csv", "\ufefffile_name,text\na,\"Hola, mundo.\"\nb,Adiós.\n"),
        ],
    )  # fmt: skip
    def test_all_read_alike(self, folder: Folder, name: str, table: str) -> None:
        root = folder(table, ["wavs/a.wav", "b.flac"], name=name)
        assert texts(root) == {"a": "Hola, mundo.", "b": "Adiós."}

    def test_a_table_file_may_be_named_itself(self, folder: Folder) -> None:
        root = folder("a|Hola.\n", ["a.wav"], name="lines.txt")
        assert texts(root / "lines.txt") == {"a": "Hola."}

    def test_ids_may_hold_dots(self, folder: Folder) -> None:
        assert texts(folder("a.1|Hola.\na.2|Adiós.\n", ["a.1.wav", "wavs/a.2.wav"])) == {
            "a.1": "Hola.",
            "a.2": "Adiós.",
        }

    def test_quotation_marks_in_ljspeech_are_text(self, folder: Folder) -> None:
        assert texts(folder('a|"Hola\nb|Adiós"\n', ["a.wav", "b.wav"])) == {"a": '"Hola', "b": 'Adiós"'}

    def test_columns_by_name_and_by_number(self, folder: Folder) -> None:
        root = folder("wo,wer,was\na,ana,Hola.\n", ["a.wav"])
        named = read_recordings(root, split="all", audio_column="wo", text_column="was", speaker_column="wer")
        assert [(one.id, one.speaker, one.text) for one in named] == [("a", "ana", "Hola.")]
        root = folder("Hola.|ana|a\n", ["a.wav"])
        numbered = read_recordings(root, split="all", audio_column="2", text_column="0", speaker_column="1")
        assert [(one.id, one.speaker, one.text) for one in numbered] == [("a", "ana", "Hola.")]

    def test_speakers_are_strings_in_their_order(self, folder: Folder) -> None:
        table = "file_name,text,speaker_id\na,Uno.,007\nb,Dos.,zoe\nc,Tres.,007\n"
        root = folder(table, ["a.wav", "b.wav", "c.wav"])
        found = read_recordings(root, split="all", speaker_column="speaker_id")
        assert [one.speaker for one in found] == ["007", "zoe", "007"]

    def test_unread_speakers_are_warned_of(self, folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
        root = folder("file_name,text,speaker_id\na,Uno.,1\nb,Dos.,2\n", ["a.wav", "b.wav"])
        with caplog.at_level(logging.WARNING):
            read_recordings(root, split="all")
        assert "2 speakers" in caplog.text

    def test_unread_speakers_are_warned_of_once_a_table(
        self, folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        root = Path(
            folder("file_name,text,speaker_id,split\na,Uno.,1,train\nb,Dos.,2,test\n", ["a.wav", "b.wav"])
        )
        with caplog.at_level(logging.WARNING):
            for split in ("train", "test", "train"):
                read_recordings(root, split=split)
            assert caplog.text.count("2 speakers") == 1
            copied = shutil.copytree(root, tmp_path / "other")
            read_recordings(copied, split="train")
        assert caplog.text.count("2 speakers") == 2

    def test_sound_is_decoded_and_resampled(self, folder: Folder) -> None:
        (one,) = read_recordings(folder("a|Hola.\n", ["a.wav"]), split="train")
        assert one.duration_seconds == pytest.approx(1.0)
        assert len(one.audio().samples) == 16000
        assert one.audio(22050).sampling_rate == 22050
        assert len(one.audio(22050).samples) == 22050


class TestSplits:
    TABLE = "file_name,text,split\na,Uno.,train\nb,Dos.,dev\nc,Tres.,train\nd,Cuatro.,test\n"
    SOUNDS = ("a.wav", "b.wav", "c.wav", "d.wav")

    def ids(self, root: Path, split: str) -> list[str]:
        return [one.id for one in read_recordings(root, split=split)]

    def test_from_a_column(self, folder: Folder) -> None:
        root = folder(self.TABLE, list(self.SOUNDS))
        assert self.ids(root, "train") == ["a", "c"]
        assert self.ids(root, "validation") == self.ids(root, "val") == ["b"]
        assert self.ids(root, "test") == ["d"]
        assert self.ids(root, "all") == ["a", "b", "c", "d"]
        with pytest.raises(DataError, match=r"train \(2\), validation \(1\), test \(1\)"):
            read_recordings(root, split="holdout")

    def test_from_a_table_for_each(self, folder: Folder) -> None:
        folder("a|Uno.\nc|Tres.\n", ["a.wav", "c.wav"], name="train.csv")
        root = folder("b|Dos.\n", ["b.wav"], name="validation.csv")
        assert self.ids(root, "train") == ["a", "c"]
        assert self.ids(root, "validation") == ["b"]

    def test_train_alone_is_held_out_from(self, folder: Folder) -> None:
        root = folder("a|Uno.\nb|Dos.\nc|Tres.\n", ["a.wav", "b.wav", "c.wav"], name="train.csv")
        assert [len(self.ids(root, split)) for split in ("train", "validation", "test", "all")] == [
            1,
            1,
            1,
            3,
        ]

    def test_the_same_recording_in_two_tables_is_refused(self, folder: Folder) -> None:
        folder("a|Uno.\n", ["a.wav"], name="train.csv")
        root = folder("a|Uno.\n", [], name="test.csv")
        with pytest.raises(DataError, match=r"test.csv:1 \(a\).*train.csv:1"):
            read_recordings(root, split="train")

    def test_held_out_where_there_are_none(self, folder: Folder) -> None:
        names = [f"clip{number:02d}" for number in range(40)]
        lines = [f"{name}|Texto {name}.\n" for name in names]
        root = folder("".join(lines), [f"{name}.wav" for name in names])
        splits = {split: self.ids(root, split) for split in ("train", "validation", "test")}
        assert [len(ids) for ids in splits.values()] == [36, 2, 2]
        assert sorted(name for ids in splits.values() for name in ids) == names
        (root / "metadata.csv").write_text("".join(reversed(lines)), encoding="utf-8")
        assert {split: sorted(self.ids(root, split)) for split in splits} == splits

    def test_held_out_the_same_for_ever(self) -> None:
        names = hold_out([(f"clip{number:02d}", None) for number in range(40)])
        held = {f"clip{i:02d}": name for i, name in enumerate(names) if name != "train"}
        assert held == HELD_OUT_FOR_EVER

    def test_every_speaker_keeps_a_recording_in_train(self) -> None:
        pairs = [(f"clip{number}", f"speaker{number % 5}") for number in range(10)]
        pairs += [("alone", "hermit")]
        for extra in range(50):
            names = hold_out([*pairs, (f"more{extra}", "speaker0")])
            trained = {pairs[i][1] for i, name in enumerate(names[:-1]) if name == "train"}
            assert trained == {speaker for _, speaker in pairs}
            assert sorted(set(names)) == ["test", "train", "validation"]

    def test_two_recordings_are_too_few_to_hold_out(self, folder: Folder) -> None:
        root = folder("a|Uno.\nb|Dos.\n", ["a.wav", "b.wav"])
        assert self.ids(root, "train") == ["a", "b"]
        with pytest.raises(DataError, match=r"train \(2\)"):
            read_recordings(root, split="validation")


class TestFaults:
    def test_every_bad_row_is_reported_at_once(self, folder: Folder) -> None:
        table = (
            "file_name,text\n"  # 1
            "good.wav,Bien.\n"  # 2
            "absent.wav,Falta.\n"  # 3
            "broken.wav,Roto.\n"  # 4
            "blank.wav,\n"  # 5
            "good.wav,Otra vez.\n"  # 6
            "dots.wav,...\n"  # 7
            "short.wav\n"  # 8
            ",Sin archivo.\n"  # 9
            "last.wav,Bien.\n"  # 10
        )
        root = folder(table, ["good.wav", "blank.wav", "dots.wav", "short.wav", "last.wav"])
        (root / "broken.wav").write_bytes(b"RIFF but nothing more")
        with pytest.raises(DataError) as raised:
            survey(root).raise_problems()
        expected = {
            3: "absent.wav", 4: "cannot be decoded", 5: "transcript is empty", 6: "metadata.csv:2",
            7: "no letter", 8: "1 columns", 9: "names no audio file",
        }  # fmt: skip
        assert len(raised.value.problems) == len(expected)
        for problem, (line, words) in zip(raised.value.problems, expected.items(), strict=True):
            assert problem.startswith(f"metadata.csv:{line} ")
            assert words in problem
        assert "7 of 9 rows" in str(raised.value)

    def test_rows_without_a_text_are_left_to_the_filters(self, folder: Folder) -> None:
        root = folder("file_name,text\na.wav,Bien.\nb.wav,\nc.wav,...\n", ["a.wav", "b.wav", "c.wav"])
        assert texts(root) == {"a": "Bien.", "b": "", "c": "..."}

    def test_an_unclosed_quotation_mark_is_found(self, folder: Folder) -> None:
        root = folder('file_name,text\na,"Hola\nb,Adiós\n', ["a.wav", "b.wav"])
        with pytest.raises(DataError, match=r"metadata.csv:2 \(a\).*quotation mark"):
            read_recordings(root, split="train")

    def test_a_truncated_file_is_found_when_asked_to_verify(self, folder: Folder) -> None:
        root = folder("a|Uno.\nb|Dos.\n", ["a.flac", "b.flac"])
        whole = (root / "b.flac").read_bytes()
        (root / "b.flac").write_bytes(whole[:-400] + bytes(400))
        with pytest.raises(DataError, match=r"metadata.csv:2 \(b\)"):
            read_recordings(root, split="train", verify=True)

    @pytest.mark.parametrize(
        ("table", "options", "words"),
        [
            ("file_name,text\na,Hola.\n", {"text_column": "txt"}, "'txt'.*did you mean 'text'"),
            ("file_name,text\na,Hola.\n", {"speaker_column": "who"}, "no column 'who' for the speaker"),
            ("a|Hola.\n", {"speaker_column": "who"}, "number from 0 to 1"),
            ("nothing\n", {}, "one column"),
            ("\n\n", {}, "is empty"),
            ("file_name,text\n", {}, "lists no recordings"),
        ],
    )
    def test_a_table_that_cannot_be_read(
        self, folder: Folder, table: str, options: dict[str, Any], words: str
    ) -> None:
        root = folder(table, ["a.wav"])
        with pytest.raises(DataError, match=words):
            read_recordings(root, split="train", **options)

    def test_an_empty_speaker_is_reported(self, folder: Folder) -> None:
        root = folder("file_name,text,who\na,Uno.,ana\nb,Dos.,\n", ["a.wav", "b.wav"])
        with pytest.raises(DataError, match=r"metadata.csv:3 \(b\): its speaker is empty"):
            read_recordings(root, split="train", speaker_column="who")

    def test_latin_1_is_named_with_its_line(self, folder: Folder) -> None:
        root = folder("", ["a.wav"])
        (root / "metadata.csv").write_bytes("file_name,text\na,Adiós\n".encode("latin-1"))
        with pytest.raises(DataError, match="line 2"):
            read_recordings(root, split="train")

    def test_no_such_folder(self) -> None:
        with pytest.raises(DataError, match="no folder or file here has that name"):
            read_recordings("./no/such/folder", split="train")

    def test_a_path_that_is_not_there_names_its_likeliest_neighbour(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And is not asked of the hub, though a hub's name may have such an end too."""
        monkeypatch.setattr(hub, "read_hub", lambda *_, **__: pytest.fail("the hub was asked"))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "data" / "recordings").mkdir(parents=True)
        (tmp_path / "data" / "train.csv").touch()
        for source, near in (
            ("./data/recordigns", "data/recordings"),
            (str(tmp_path / "data/recording/"), str(tmp_path / "data/recordings")),
            ("data/trian.csv", "data/train.csv"),
        ):
            with pytest.raises(DataError) as caught:
                read_recordings(source, split="train")
            assert f"did you mean '{near}'?" in str(caught.value)


HELD_OUT_FOR_EVER = {"clip04": "test", "clip07": "test", "clip24": "validation", "clip29": "validation"}
