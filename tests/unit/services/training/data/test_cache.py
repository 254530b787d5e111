"""The cache of samples: its size, its key, two processes at once, and what breaks it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.training.data import Recording, read_recordings
from services.training.data.cache import Treatment, decode
from shared.audio import Audio, from_pcm16, loudness_lufs, read_audio, write_wav
from shared.errors import DataError, UserError

PLAIN = Treatment(16000)


@pytest.fixture
def recordings(recordings_folder: Path) -> list[Recording]:
    return read_recordings(recordings_folder, split="train")


@pytest.fixture
def own(tmp_path: Path, recordings: list[Recording]) -> list[Recording]:
    """Two recordings whose files a test may change."""
    copies = []
    for recording in recordings[:2]:
        assert recording.path is not None
        path = tmp_path / recording.path.name
        path.write_bytes(recording.path.read_bytes())
        copies.append(replace(recording, path=path))
    return copies


def made_of(samples: np.ndarray, rate: int = 16000) -> Recording:
    return Recording("made", "x", embedded=lambda: Audio(samples.astype(np.float32), rate))


def tone(seconds: float, level: float, rate: int = 16000) -> np.ndarray:
    return level * np.sin(2 * np.pi * 300 * np.arange(round(seconds * rate)) / rate)


def test_the_cache_is_little_more_than_the_samples(recordings: list[Recording], tmp_path: Path) -> None:
    """finetune-hf-vits, defect 11: 0.76 GB an hour, where 16-bit samples are 0.115."""
    _, lengths = decode(recordings, PLAIN, cache=tmp_path)
    seconds = sum(read_audio(recording.path).duration_seconds for recording in recordings if recording.path)
    assert sum(lengths) / 16000 == pytest.approx(seconds, abs=0.01)
    kept = sum(file.stat().st_size for file in tmp_path.rglob("*"))
    assert kept <= 1.1 * seconds * 16000 * 2


def test_samples_are_the_recordings_resampled_once(recordings: list[Recording], tmp_path: Path) -> None:
    pcm, lengths = decode(recordings, PLAIN, cache=tmp_path, workers=3)
    start = 0
    for recording, length in zip(recordings, lengths, strict=True):
        expected = recording.audio(16000).samples
        np.testing.assert_allclose(pcm[start : start + length] / 32767, expected, atol=1 / 32767)
        start += length


@pytest.mark.parametrize(
    "change", ["rate", "normalize", "trim", "loudness", "louder", "modified", "size", "order"]
)
def test_another_dataset_or_treatment_is_another_cache(
    own: list[Recording], tmp_path: Path, change: str
) -> None:
    cache, treatment = tmp_path / "cache", replace(PLAIN, loudness=-30.0 if change == "louder" else None)
    decode(own, treatment, cache=cache)
    match change:
        case "rate":
            treatment = Treatment(22050)
        case "normalize":
            treatment = replace(treatment, normalize=True)
        case "trim":
            treatment = replace(treatment, trim_silence=True)
        case "loudness" | "louder":
            treatment = replace(treatment, loudness=-23.0)
        case "modified":
            assert own[0].path
            os.utime(own[0].path, ns=(1, 1))
        case "size":
            assert own[0].path
            stamp = own[0].path.stat().st_mtime_ns
            write_wav(own[0].path, np.zeros(5000, np.float32), 16000)
            os.utime(own[0].path, ns=(stamp, stamp))
        case "order":
            own = own[::-1]
    decode(own, treatment, cache=cache)
    assert len(list(cache.glob("*.json"))) == 2


# -- Whole or not there ----------------------------------------------------------------------------


def test_a_run_that_is_stopped_leaves_nothing_that_passes_for_a_cache(
    recordings: list[Recording], tmp_path: Path
) -> None:
    class KilledError(BaseException):
        pass

    def killed(done: int, total: int) -> None:
        if done == 3:
            raise KilledError

    with pytest.raises(KilledError):
        decode(recordings, PLAIN, cache=tmp_path, progress=killed, workers=1)
    assert list(tmp_path.iterdir()) == []
    _, lengths = decode(recordings, PLAIN, cache=tmp_path)
    assert len(lengths) == len(recordings)


@pytest.mark.parametrize(
    "damage", ["cut short", "too long", "deleted", "no index", "broken index", "odd index"]
)
def test_a_damaged_cache_is_noticed_and_made_again(own: list[Recording], tmp_path: Path, damage: str) -> None:
    cache = tmp_path / "cache"
    pcm, lengths = decode(own, PLAIN, cache=cache)
    whole = np.array(pcm)
    (data,), (index,) = cache.glob("*.pcm16"), cache.glob("*.json")
    match damage:
        case "cut short":
            os.truncate(data, data.stat().st_size - 2)
        case "too long":
            data.write_bytes(data.read_bytes() + bytes(2))
        case "deleted":
            data.unlink()
        case "no index":
            index.unlink()
        case "broken index":
            index.write_text(index.read_text()[:-3])
        case "odd index":
            index.write_text(json.dumps({"some": "thing", "else": 1}))
    pcm, again = decode(own, PLAIN, cache=cache)
    assert again == lengths
    np.testing.assert_array_equal(pcm, whole)


def test_what_a_killed_process_left_is_swept_up(own: list[Recording], tmp_path: Path) -> None:
    decode(own, PLAIN, cache=tmp_path / "first")
    (data,) = (tmp_path / "first").glob("*.pcm16")
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / f"{data.name}.0123.partial").write_bytes(bytes(100))
    (cache / f"{data.stem}.lock").touch()
    decode(own, PLAIN, cache=cache)
    assert sorted(file.suffix for file in cache.iterdir()) == [".json", ".pcm16"]


_FILL = """
import sys
from pathlib import Path
import numpy as np
from services.training.data import read_recordings
from services.training.data.cache import Treatment, decode

decoded = []
pcm, lengths = decode(
    read_recordings(sys.argv[1], split="train"), Treatment(16000), cache=Path(sys.argv[2]), workers=1,
    progress=lambda done, total: decoded.append(done),
)
print(len(decoded), sum(lengths), np.asarray(pcm, dtype=np.int64).sum())
"""


def test_of_processes_that_fill_one_cache_at_once_only_one_decodes(
    recordings_folder: Path, recordings: list[Recording], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", _FILL, str(recordings_folder), str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = [process.communicate()[0].split() for process in processes]
    assert sorted(int(decoded) for decoded, _, _ in found) == [0, 0, len(recordings)]
    assert len({(samples, checksum) for _, samples, checksum in found}) == 1
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".pcm16"]


def test_who_comes_while_a_cache_is_filled_waits_and_decodes_nothing(
    recordings: list[Recording], tmp_path: Path
) -> None:
    decoded: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        second: list[Future[tuple[np.ndarray, list[int]]]] = []

        def come(done: int, total: int) -> None:
            if done == 2:
                second.append(
                    pool.submit(
                        decode,
                        recordings,
                        PLAIN,
                        cache=tmp_path,
                        progress=lambda done, _: decoded.append(done),
                    )
                )
                with pytest.raises(TimeoutError):
                    second[0].result(timeout=0.3)

        pcm, lengths = decode(recordings, PLAIN, cache=tmp_path, progress=come)
        again, same = second[0].result()
    assert decoded == []
    assert same == lengths
    np.testing.assert_array_equal(pcm, again)


def test_without_locks_processes_work_twice_but_not_wrongly(
    recordings: list[Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems have none."""

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    inner: list[list[int]] = []

    def another(done: int, total: int) -> None:
        if done == 2:
            inner.append(decode(recordings, PLAIN, cache=tmp_path)[1])

    pcm, lengths = decode(recordings, PLAIN, cache=tmp_path, progress=another)
    assert inner == [lengths]
    assert len(pcm) == sum(lengths)
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".pcm16"]


# -- Faults ----------------------------------------------------------------------------------------


def test_undecodable_files_are_all_named_and_nothing_is_kept(own: list[Recording], tmp_path: Path) -> None:
    for recording in own:
        assert recording.path
        recording.path.write_bytes(b"RIFF not audio at all")
    with pytest.raises(DataError) as caught:
        decode(own, PLAIN, cache=tmp_path / "cache")
    assert len(caught.value.problems) == 2
    assert all(
        recording.row in problem for recording, problem in zip(own, caught.value.problems, strict=True)
    )
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_is_a_users_error_and_leaves_nothing(
    own: list[Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *args: object, **kwargs: object) -> object:
        return Path("/dev/full").open("wb") if path.suffix == ".partial" else opened(path, *args, **kwargs)

    opened: Callable[..., object] = Path.open
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match=r"No space left on device.*takes about \d+ MB.*VITS_CACHE"):
        decode(own, PLAIN, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


# -- Treatment -------------------------------------------------------------------------------------


def test_normalizing_scales_the_stored_waveform(tmp_path: Path) -> None:
    """finetune-hf-vits, defect 13: it scales the features alone."""
    pcm, _ = decode([made_of(tone(1, 0.01))], replace(PLAIN, normalize=True), cache=tmp_path)
    assert np.sqrt(np.mean((pcm / 32767) ** 2)) == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("level", [0.01, 0.9])
def test_loudness_is_what_was_asked_for(tmp_path: Path, level: float) -> None:
    pcm, _ = decode([made_of(tone(2, level))], replace(PLAIN, loudness=-23.0), cache=tmp_path)
    assert loudness_lufs(from_pcm16(pcm), 16000) == pytest.approx(-23, abs=0.1)


@pytest.mark.parametrize("treatment", [replace(PLAIN, loudness=-10.0), replace(PLAIN, normalize=True)])
def test_no_treatment_clips_and_what_stays_quieter_is_said(
    tmp_path: Path, treatment: Treatment, caplog: pytest.LogCaptureFixture
) -> None:
    clicks = np.zeros(16000)
    clicks[::1000] = 0.5
    pcm, _ = decode([made_of(clicks), made_of(tone(1, 0.3))], treatment, cache=tmp_path)
    assert np.abs(pcm).max() == pytest.approx(32767 * 10 ** (-1 / 20), abs=2)
    assert "1 of 2 recordings stay quieter" in caplog.text


def test_silence_is_no_louder_for_being_normalised(tmp_path: Path) -> None:
    for treatment in (replace(PLAIN, loudness=-23.0), replace(PLAIN, normalize=True, trim_silence=True)):
        pcm, lengths = decode([made_of(np.zeros(16000))], treatment, cache=tmp_path)
        assert not pcm.any()
        assert lengths == [16000]


def test_trimming_shortens_what_is_kept(tmp_path: Path) -> None:
    clip = np.concatenate([np.zeros(16000), tone(1, 0.2), np.zeros(8000)])
    pcm, lengths = decode([made_of(clip)], replace(PLAIN, trim_silence=True), cache=tmp_path)
    assert lengths[0] / 16000 == pytest.approx(1.1, abs=0.041)
    assert np.abs(pcm).max() == pytest.approx(0.2 * 32767, abs=2)
