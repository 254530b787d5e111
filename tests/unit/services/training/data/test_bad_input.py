"""Bad input, each kind by name, from the dataset's folder through reading to what training would be given.

What cannot be read stops the run before it begins, with every bad row named; what can be read but not trained
on is left out, and listed. A full disk is tried in ``test_cache.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile

from services.training.config import resolve
from services.training.data import read_recordings
from services.training.dataset import Dropped, Examples, prepare
from services.training.features import FeatureSettings
from shared.audio import encode_wav, resample
from shared.errors import DataError
from shared.text import FrontEnd

SETTINGS = FeatureSettings(sampling_rate=16000, hop_length=256, n_fft=1024)
Prepared = tuple[Examples, list[Dropped]]
Prepare = Callable[..., Prepared]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A dataset folder with one good recording."""
    root = tmp_path / "set"
    root.mkdir()
    write(root / "good.wav", voice(1.0))
    return root


@pytest.fixture
def prepared(root: Path, spanish_model: Path, tmp_path: Path) -> Prepare:
    """Reads and prepares the folder, its table's rows given; the good recording comes first."""

    def run(*rows: str, header: str = "file_name,text", **changes: Any) -> Prepared:
        (root / "metadata.csv").write_text("\n".join([header, "good.wav,hola", *rows]), encoding="utf-8")
        return prepare_folder(root, spanish_model, tmp_path / "cache", **changes)

    return run


def prepare_folder(folder: Path, model: Path, cache: Path, **changes: Any) -> Prepared:
    values = {"model_name_or_path": str(model), "dataset_name": str(folder)} | changes
    config = resolve(values, origin="the test")
    recordings = read_recordings(
        str(config.dataset_name),
        split="all",
        text_column=config.text_column_name,
        audio_column=config.audio_column_name,
    )
    return prepare(recordings, FrontEnd.from_folder(model), SETTINGS, config, speakers={}, cache=cache)


def voice(seconds: float, rate: int = 16000, pitch: float = 300) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)


def write(path: Path, samples: np.ndarray, rate: int = 16000, subtype: str = "PCM_16") -> None:
    soundfile.write(path, samples, rate, subtype=subtype)


def only(prepared: Prepared) -> np.ndarray:
    """The samples of the recording after the good one, when nothing was left out."""
    examples, dropped = prepared
    assert not dropped
    assert [example.id for example in examples.examples] == ["good", "bad"]
    return examples.waveform(examples[1])


# -- Sound that cannot be read ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"RIFF", b"ID3 but no music", bytes(5000)], ids=["nothing", "stub", "text", "zeros"]
)
def test_corrupt_audio_is_named_with_its_row(prepared: Prepare, root: Path, content: bytes) -> None:
    (root / "bad.wav").write_bytes(content)
    with pytest.raises(DataError, match=r"metadata\.csv:3 \(bad\).*bad\.wav (cannot be decoded|holds no)"):
        prepared("bad.wav,hola")


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_corrupt_audio_behind_a_sound_beginning_is_named_with_its_row(
    prepared: Prepare, root: Path, suffix: str
) -> None:
    """Cut off by a broken download, in the middle: too late for the look at every file's first frame."""
    noisy = voice(3.0) + 0.05 * np.random.default_rng(0).standard_normal(48000)
    write(root / f"bad.{suffix}", noisy)
    whole = (root / f"bad.{suffix}").read_bytes()
    (root / f"bad.{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"metadata\.csv:3.*bad\.{suffix} (cannot be decoded|is cut short)"):
        prepared(f"bad.{suffix},hola")


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_zero_length_audio_is_named_with_its_row(prepared: Prepare, root: Path, suffix: str) -> None:
    write(root / f"bad.{suffix}", np.zeros(0))
    with pytest.raises(DataError, match=r"metadata\.csv:3 \(bad\).*(holds no audio|cannot be decoded)"):
        prepared(f"bad.{suffix},hola")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_samples_are_named_with_their_row(prepared: Prepare, root: Path, value: float) -> None:
    samples = voice(1.0)
    samples[12345] = value
    write(root / "bad.wav", samples, subtype="FLOAT")
    with pytest.raises(DataError, match=r"metadata\.csv:3.*bad\.wav holds values that are not numbers"):
        prepared("bad.wav,hola")


def test_nan_samples_inside_a_dataset_are_named_with_their_row(tmp_path: Path, spanish_model: Path) -> None:
    samples = voice(1.0)
    samples[12345] = np.nan
    sound = {"array": samples.tolist(), "sampling_rate": 16000}
    datasets.Dataset.from_dict({"audio": [sound], "text": ["hola"]}).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match=r"train\[0\].*values that are not numbers"):
        prepare_folder(tmp_path / "d", spanish_model, tmp_path / "cache")


def test_every_bad_row_is_named_at_once(prepared: Prepare, root: Path) -> None:
    (root / "text.wav").write_text("no sound")
    write(root / "empty.wav", np.zeros(0))
    with pytest.raises(DataError) as raised:
        prepared("text.wav,hola", "empty.wav,hola", "absent.wav,hola")
    assert [problem.partition(" ")[0] for problem in raised.value.problems] == [
        "metadata.csv:3", "metadata.csv:4", "metadata.csv:5",
    ]  # fmt: skip


# -- Sound of another kind -------------------------------------------------------------------------


def test_stereo_is_mixed_down(prepared: Prepare, root: Path) -> None:
    left, right = voice(1.0), voice(1.0, pitch=500)
    write(root / "bad.wav", np.stack([left, right], axis=1))
    np.testing.assert_allclose(only(prepared("bad.wav,hola")), (left + right) / 2, atol=2e-4)


@pytest.mark.parametrize("rate", [8000, 48000])
def test_8_and_48_khz_are_resampled(prepared: Prepare, root: Path, rate: int) -> None:
    original = voice(2.0, rate).astype(np.float32)
    write(root / "bad.wav", original, rate)
    samples = only(prepared("bad.wav,hola"))
    assert len(samples) == 32000
    np.testing.assert_allclose(samples, resample(original, rate, 16000), atol=2e-4)
    assert np.abs(np.fft.rfft(samples)).argmax() / 2.0 == pytest.approx(300, abs=1)


@pytest.mark.parametrize("trim_silence", [False, True])
@pytest.mark.parametrize("loudness", [None, -23.0])
def test_digital_silence_stays_finite(
    prepared: Prepare, root: Path, trim_silence: bool, loudness: float | None
) -> None:
    write(root / "bad.wav", np.zeros(16000))
    samples = only(prepared("bad.wav,hola", trim_silence=trim_silence, loudness=loudness))
    assert not samples.any()


# -- What is left out ------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 100, 384, 8191])
def test_a_clip_shorter_than_a_segment_is_left_out_and_listed(
    prepared: Prepare, root: Path, samples: int
) -> None:
    write(root / "bad.wav", voice(1.0)[100 : 100 + samples])
    examples, dropped = prepared("bad.wav,a")
    assert [example.id for example in examples.examples] == ["good"]
    assert [(item.id, item.row, item.kind) for item in dropped] == [
        ("bad", "metadata.csv:3", "shorter than segment_size 8192")
    ]


@pytest.mark.parametrize("text", ["Ω Ψ", "你好", "😀Ω"])
def test_text_of_unknown_characters_only_is_left_out_and_listed(
    prepared: Prepare, root: Path, text: str
) -> None:
    write(root / "bad.wav", voice(1.0))
    examples, dropped = prepared(f"bad.wav,{text}")
    assert [example.id for example in examples.examples] == ["good"]
    assert [(item.id, item.kind) for item in dropped] == [
        ("bad", "nothing in the text that the model can speak")
    ]


@pytest.mark.parametrize("text", ["", "   ", "...", "?!"])
def test_empty_text_is_left_out_and_listed(prepared: Prepare, root: Path, text: str) -> None:
    write(root / "bad.wav", voice(1.0))
    _, dropped = prepared(f"bad.wav,{text}")
    assert [(item.id, item.kind) for item in dropped] == [("bad", "empty text")]


# -- Tables of the wrong shape ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_column_name": "txet"}, r"no column 'txet' for the text, did you mean 'text'\?"),
        (
            {"audio_column_name": "sound"},
            "no column 'sound' for the audio.*The columns are file_name, text.*--audio-column.*--audio_column_name",
        ),
    ],
)
def test_a_missing_column_is_named_with_those_that_are_there(
    prepared: Prepare, changes: dict[str, str], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        prepared(**changes)


def test_a_missing_audio_column_is_called_what_the_manual_calls_it(prepared: Prepare) -> None:
    with pytest.raises(DataError, match=r"no column 'file_name' \(or 'audio'\) for the audio.*fichero, text"):
        prepared(header="fichero,text")


def test_a_folder_without_a_table_is_told_what_was_looked_for(root: Path) -> None:
    with pytest.raises(
        DataError, match=r"metadata\.csv, metadata\.tsv or metadata\.txt.*train\.csv"
    ) as caught:
        read_recordings(root, split="all")
    assert "error occurred" not in str(caught.value)
    (root / "data.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="nor is it a Hugging Face dataset folder") as caught:
        read_recordings(root, split="all")
    assert "An error occurred while generating" not in str(caught.value)


def test_a_missing_audio_file_is_told_where_it_was_looked_for(prepared: Prepare) -> None:
    with pytest.raises(
        DataError, match=r"'nowhere\.wav' is not in .*set or its folders wavs, audio or clips"
    ):
        prepared("nowhere.wav,hola")


def test_a_missing_column_of_a_hugging_face_dataset_is_named(tmp_path: Path, spanish_model: Path) -> None:
    datasets.Dataset.from_dict({"sound": [1], "text": ["hola"]}).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match=r"no column 'file_name' \(or 'audio'\) for the audio.*sound, text"):
        prepare_folder(tmp_path / "d", spanish_model, tmp_path / "cache")


def test_a_wrong_type_numbers_for_text_are_refused(prepared: Prepare, root: Path) -> None:
    """The column of durations, say."""
    (root / "metadata.csv").write_text("file_name,text\ngood.wav,1.25\n")
    with pytest.raises(DataError, match=r"the text column 'text' holds numbers only, such as 1\.25"):
        read_recordings(root, split="all")


def test_a_wrong_type_numbers_for_text_in_a_hugging_face_dataset_are_refused(
    tmp_path: Path, spanish_model: Path
) -> None:
    sound = {"bytes": encode_wav(voice(1.0).astype(np.float32), 16000), "path": None}
    datasets.Dataset.from_dict({"audio": [sound], "text": [7]}).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match="the text column 'text' holds int64 and no text"):
        prepare_folder(tmp_path / "d", spanish_model, tmp_path / "cache")


def test_a_wrong_type_an_audio_column_without_audio_is_named(
    prepared: Prepare, tmp_path: Path, spanish_model: Path
) -> None:
    with pytest.raises(DataError, match=r"metadata\.csv:2.*its audio file 'hola' is not in"):
        prepared(header="text,file_name")  # the columns' names are in the wrong order
    datasets.Dataset.from_dict({"audio": [1.5], "text": ["hola"]}).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match=r"train\[0\].*it holds no sound"):
        prepare_folder(tmp_path / "d", spanish_model, tmp_path / "cache")
