"""Hugging Face datasets: from folders, and what is said when the hub is out of reach."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from services.training.data import hub, read_recordings
from services.training.data.cache import Treatment, decode
from services.training.data.reading import survey
from services.training.data.recordings import Columns
from shared.audio import encode_wav
from shared.container import IMAGE
from shared.errors import DataError, HubUnreachableError, UserError

Tone = Callable[..., np.ndarray]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def make(tone: Tone) -> Callable[..., Any]:
    """Makes a dataset of tones, their bytes inside."""

    def rows(texts: list[str | None], sounds: dict[int, bytes] | None = None, **columns: list[object]) -> Any:
        embedded = {i: encode_wav(tone(0.5, 200 + 20 * i, 22050), 22050) for i in range(len(texts))}
        embedded.update(sounds or {})
        audio = [{"bytes": embedded[i], "path": None} for i in range(len(texts))]
        table = datasets.Dataset.from_dict({"audio": audio, "text": texts, **columns})
        return table.cast_column("audio", datasets.Audio(decode=False))

    return rows


class TestFolders:
    @pytest.mark.parametrize("form", ["saved", "saved as one", "parquet"])
    def test_all_forms_read_alike(self, make: Callable[..., Any], tmp_path: Path, form: str) -> None:
        table = make(["Uno.", "Dos.", "Tres.", "Cuatro."], who=["b", "a", "b", "a"])
        if form == "saved":
            datasets.DatasetDict({"train": table, "test": make(["Cinco."], who=["a"])}).save_to_disk(
                tmp_path / "d"
            )
        elif form == "saved as one":
            table.save_to_disk(tmp_path / "d")
        else:
            (tmp_path / "d").mkdir()
            table.to_parquet(tmp_path / "d" / "train.parquet")
        split = "train" if form == "saved" else "all"
        found = read_recordings(tmp_path / "d", split=split, speaker_column="who")
        assert [one.text for one in found] == ["Uno.", "Dos.", "Tres.", "Cuatro."]
        assert [one.speaker for one in found] == ["b", "a", "b", "a"]
        assert [one.id for one in found] == [f"train-00000{i}" for i in range(4)]
        assert found[0].path is None
        audio = found[1].audio(16000)
        assert (audio.sampling_rate, len(audio.samples)) == (16000, 8000)
        peak = np.abs(np.fft.rfft(audio.samples)).argmax() * 16000 / 8000
        assert peak == pytest.approx(220, abs=2)

    def test_one_split_is_held_out_from(self, make: Callable[..., Any], tmp_path: Path) -> None:
        datasets.DatasetDict({"train": make([f"Frase {i}." for i in range(30)])}).save_to_disk(tmp_path / "d")
        ids = {
            s: {one.id for one in read_recordings(tmp_path / "d", split=s)}
            for s in ("train", "validation", "test")
        }
        assert [len(names) for names in ids.values()] == [26, 2, 2]
        assert len(set.union(*ids.values())) == 30

    def test_class_labels_give_their_names(self, make: Callable[..., Any], tmp_path: Path) -> None:
        table = make(["Uno.", "Dos.", "Tres."], who=[1, 0, 1])
        table = table.cast_column("who", datasets.ClassLabel(names=["ana", "zoe"]))
        table.save_to_disk(tmp_path / "d")
        found = read_recordings(tmp_path / "d", split="all", speaker_column="who")
        assert [one.speaker for one in found] == ["zoe", "ana", "zoe"]

    def test_bare_samples_need_no_file(self, tmp_path: Path, tone: Tone) -> None:
        value = {"array": tone(0.5).tolist(), "sampling_rate": 16000}
        datasets.Dataset.from_dict({"audio": [value], "sentence": ["Uno."]}).save_to_disk(tmp_path / "d")
        (one,) = read_recordings(tmp_path / "d", split="train")
        assert one.duration_seconds == 0.5
        np.testing.assert_allclose(one.audio().samples, tone(0.5), atol=1e-6)

    def test_every_bad_row_is_reported_at_once(self, make: Callable[..., Any], tmp_path: Path) -> None:
        texts = ["Uno.", "", "Tres.", None, "Cinco."]
        make(texts, {2: b"no sound at all"}, who=["a", "a", "a", "a", None]).save_to_disk(tmp_path / "d")
        found = survey(tmp_path / "d", split="train", columns=Columns(speaker="who"))
        places = [problem.partition(" ")[0] for problem in found.problems]
        assert places == ["train[1]", "train[2]", "train[3]", "train[4]"]
        with pytest.raises(DataError) as raised:  # training leaves those without a text out later
            read_recordings(tmp_path / "d", split="train", speaker_column="who")
        places = [problem.partition(" ")[0] for problem in raised.value.problems]
        assert places == ["train[2]", "train[4]"]
        assert "cannot be decoded" in raised.value.problems[0]
        assert "speaker is empty" in raised.value.problems[1]

    @pytest.mark.parametrize("form", ["saved", "parquet"])
    def test_embedded_sound_is_known_without_reading_it(
        self, make: Callable[..., Any], tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A second run hashes no audio; a dataset that was written anew is another."""
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
        folder = tmp_path / "d"

        def write(texts: list[str | None], sounds: dict[int, bytes]) -> None:
            folder.mkdir(exist_ok=True)
            table = make(texts, sounds)
            table.to_parquet(folder / "train.parquet") if form == "parquet" else table.save_to_disk(folder)

        def editions() -> list[bytes]:
            found = read_recordings(folder, split="all")
            with monkeypatch.context() as patch:
                patch.setattr(hub.EmbeddedSound, "__call__", None)
                return [recording.edition() for recording in found]

        write(["Uno.", "Dos."], {})
        before = editions()
        assert before == editions()
        assert len(set(before)) == 2
        pcm, lengths = decode(read_recordings(folder, split="all"), Treatment(16000), cache=tmp_path / "c")
        with monkeypatch.context() as patch:
            found = read_recordings(folder, split="all")
            patch.setattr(hub.EmbeddedSound, "__call__", None)
            again, _ = decode(found, Treatment(16000), cache=tmp_path / "c")
        np.testing.assert_array_equal(pcm, again)
        assert lengths == [8000, 8000]
        if form == "saved":
            return  # datasets refuses to write over what it has mapped
        write(["Uno.", "Dos."], {1: encode_wav(np.full(9000, 0.1, np.float32), 16000)})
        assert not set(before) & set(editions())

    def test_sound_in_files_of_its_own_is_known_by_them(self, tmp_path: Path, tone: Tone) -> None:
        path = tmp_path / "a.wav"
        path.write_bytes(encode_wav(tone(0.5), 16000))
        datasets.Dataset.from_dict({"audio": [str(path)], "text": ["Uno."]}).save_to_disk(tmp_path / "d")
        (before,) = read_recordings(tmp_path / "d", split="all")
        assert str(path).encode() in before.edition()
        first = before.edition()
        path.write_bytes(encode_wav(tone(0.7), 16000))
        assert before.edition() != first

    @pytest.mark.parametrize("kind", [int, float])
    def test_numbers_of_speakers_are_read_alike_whatever_their_type(
        self, make: Callable[..., Any], tmp_path: Path, kind: type
    ) -> None:
        make(["Uno.", "Dos."], speaker_id=[kind(10), kind(9)]).save_to_disk(tmp_path / "d")
        found = read_recordings(tmp_path / "d", split="all", speaker_column="speaker_id")
        assert [one.speaker for one in found] == ["10", "9"]

    def test_missing_columns_and_splits_are_named(self, make: Callable[..., Any], tmp_path: Path) -> None:
        splits = {"train": make(["Uno."]), "validation": make(["Dos."])}
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "d")
        with pytest.raises(DataError, match=r"train \(1\), validation \(1\)"):
            read_recordings(tmp_path / "d", split="test")
        with pytest.raises(DataError, match="did you mean 'text'"):
            read_recordings(tmp_path / "d", split="train", text_column="txet")

    def test_an_unfit_folder_says_what_to_write(self, tmp_path: Path) -> None:
        (tmp_path / "holiday.doc").write_text("no dataset")
        with pytest.raises(DataError, match="file_name and text"):
            read_recordings(tmp_path, split="train")


class TestUnreachable:
    def test_says_what_and_how_to_go_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hub, "_why_unreachable", lambda name, token: "Name or service not known")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(HubUnreachableError) as raised:
            read_recordings("someone/some-speech", split="train", cache_dir=tmp_path / "cache")
        message = str(raised.value)
        assert "someone/some-speech" in message
        assert "Name or service not known" in message
        assert "metadata.csv" in message
        assert "--local-dir" in message

    @pytest.mark.parametrize("name", ["data/my-recordings", "./data/my-recordings"])
    def test_in_a_container_a_folder_has_to_be_mounted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setattr(hub, "_why_unreachable", lambda name, token: "away")
        monkeypatch.setenv(IMAGE, "vits-train")
        with pytest.raises(UserError, match="mount it at /data"):
            read_recordings(name, split="train", cache_dir=tmp_path / "cache")

    def test_a_folder_that_may_be_meant_is_named_before_and_after(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def away(name: str, token: str | None) -> str:
            print("asked", file=sys.stderr)
            return "away"

        monkeypatch.setattr(hub, "_why_unreachable", away)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "data" / "asterisk-es").mkdir(parents=True)
        near = "There is no folder {} here, did you mean 'data/asterisk-es'?"
        with pytest.raises(HubUnreachableError) as raised:
            read_recordings("data/astersik-es", split="train", cache_dir=tmp_path / "cache")
        assert str(raised.value).startswith(near.format("'data/astersik-es'"))
        assert "could not be reached (away)" in str(raised.value)
        told = capsys.readouterr().err
        assert told.index(near.format("data/astersik-es")) < told.index("asked")

    def test_any_failure_to_connect_is_a_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        def refuse(*_: object, **__: object) -> None:
            raise RuntimeError("the client's own idea of a network error")

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
        assert hub._why_unreachable("a/b", None) == "the client's own idea of a network error"

    def test_the_libraries_are_back_online_afterwards(self) -> None:
        before = datasets.config.HF_HUB_OFFLINE
        with hub._offline(True):
            assert datasets.config.HF_HUB_OFFLINE is True
        assert before == datasets.config.HF_HUB_OFFLINE

    @pytest.mark.parametrize(
        ("source", "is_id"),
        [
            ("owner/name", True),
            ("name", True),
            ("./name", False),
            ("/abs/name", False),
            ("a/b/c", False),
            ("~/x", False),
        ],
    )
    def test_ids_are_told_from_paths(self, source: str, is_id: bool) -> None:
        assert hub.looks_like_id(source) is is_id
