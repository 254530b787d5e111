"""The judges: who is missing is said, and what cannot be judged is refused."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from services.evaluation import Judges, judges, naturalness, recognition
from services.evaluation.likeness import likeness
from services.evaluation.transcripts import Errors
from shared.errors import CorruptObjectError, EngineError, UserError
from tests.unit.services.evaluation.conftest import RATE, tone


@pytest.mark.parametrize(
    ("judge", "module", "package"),
    [
        ("recogniser", "faster_whisper", "vits-suite[judges]"),
        ("dnsmos", "speechmos", "vits-suite[judges]"),
        ("distillmos", "distillmos", "--no-deps distillmos"),
        ("likeness", "torch", "resemblyzer"),
    ],
)
def test_a_missing_judge_is_named_with_its_remedy(
    judge: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    judges = Judges(only=[judge])
    assert judges.available() == ()
    assert module in judges.missing[judge]
    assert package in judges.missing[judge]
    score = judges.score(tone(200), RATE, "hola")
    assert (score.dnsmos, score.distillmos, score.words, score.embedding) == (None, None, None, None)


def test_a_judge_that_breaks_on_import_is_missing_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "distillmos.py").write_text("raise OSError('libjudge.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "distillmos", raising=False)
    assert "libjudge.so" in Judges(only=["distillmos"]).missing["distillmos"]


def test_dnsmos_is_what_its_package_says() -> None:
    """By its own code, which is slower and computes more; on a clip shorter than a segment, and a longer one."""
    with naturalness._quiet_import():
        package = pytest.importorskip("speechmos.dnsmos")
    judge = naturalness.Dnsmos()
    noise = np.random.default_rng(0)
    for seconds in (3.7, 11.3):
        clip = (0.1 * noise.standard_normal(int(seconds * 16_000))).astype(np.float32)
        clip[: len(clip) // 2] *= 0.01
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = package.run(clip, sr=16_000)["ovrl_mos"]
        assert judge(clip) == pytest.approx(expected, abs=1e-5)


def test_judges_that_were_not_asked_are_not_missing(fake_judges: dict[str, str]) -> None:
    judges = Judges(only=["dnsmos"])
    assert judges.available() == ("dnsmos",)
    assert judges.missing == {}
    assert judges.score(tone(200), RATE, "hola").words is None


def test_scores_of_all(fake_judges: dict[str, str]) -> None:
    fake_judges["heard"] = "Hola mundo."
    score = Judges().score(tone(200, rate=22050), 22050, "hola")
    assert (score.seconds, score.dnsmos, score.distillmos) == (1.0, 3.0, 4.0)
    assert score.words == Errors(1, 1)
    assert score.embedding is not None
    assert likeness(score.embedding, score.embedding) == pytest.approx(1.0, abs=1e-6)
    assert Judges().score(tone(200), RATE).words is None


def test_a_judge_that_there_is_not() -> None:
    with pytest.raises(UserError, match="no judge mosnet; there are recogniser"):
        Judges(only=["dnsmos", "mosnet"])


@pytest.mark.parametrize(
    "samples", [np.zeros(0, np.float32), np.zeros((2, 9), np.float32), np.full(9, np.nan, np.float32)]
)
def test_clips_that_cannot_be_judged(samples: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    with pytest.raises(UserError, match="cannot be judged"):
        Judges(only=[]).score(samples, RATE)


def test_a_failing_judge_is_named(fake_judges: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(samples: object) -> float:
        raise ValueError("too short")

    monkeypatch.setattr(naturalness, "Dnsmos", lambda: fail)
    with pytest.raises(EngineError, match="'dnsmos' failed: ValueError: too short"):
        Judges().score(tone(200), RATE)


def test_a_language_that_whisper_does_not_know_leaves_the_recogniser_out() -> None:
    assert "no language 'quc'" in Judges(language="quc", only=["recogniser"]).missing["recogniser"]


@pytest.mark.parametrize("made", [False, True])
def test_a_recogniser_folder_that_is_none(made: bool, tmp_path: Path) -> None:
    folder = tmp_path / "whisper"
    if made:
        folder.mkdir()
    expected = "lacks model.bin and config.json" if made else "is not a folder"
    with pytest.raises(UserError, match=expected):
        Judges(recogniser=folder, only=["recogniser"]).available()


def test_halves_that_are_not_the_pinned_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        data = tmp_path / f"half{number}" / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").touch()
        (data / f"model.bin.part{number}").write_bytes(b"weights")
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        (tmp_path / "half1" / "data" / name).write_text("{}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(recognition, "PARTS", ("half1", "half2"))
    with pytest.raises(CorruptObjectError, match=r"model\.bin of the packages half1 and half2"):
        recognition.packaged_model(tmp_path / "cache")
    assert list((tmp_path / "cache" / "judges").iterdir()) == []


def test_halves_are_joined_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    files = {"model.bin": b"onetwo", "config.json": b"c", "tokenizer.json": b"t", "vocabulary.txt": b"v"}
    for number, half in ((1, b"one"), (2, b"two")):
        data = tmp_path / f"part{number}" / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").touch()
        (data / f"model.bin.part{number}").write_bytes(half)
    for name, content in files.items():
        if name != "model.bin":
            (tmp_path / "part1" / "data" / name).write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(recognition, "PARTS", ("part1", "part2"))
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(recognition, "HASHES", hashes)
    folder = recognition.packaged_model(tmp_path / "cache")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/cache/judges cannot be written .* set VITS_CACHE"):
        recognition.packaged_model(tmp_path / "file/cache")
    monkeypatch.setattr(recognition, "PARTS", ("gone1", "gone2"))
    assert recognition.packaged_model(tmp_path / "cache") == folder
    with pytest.raises(naturalness.MissingJudgeError, match="--recogniser"):
        recognition.packaged_model(tmp_path / "another cache")


def test_judges_that_might_say_something_else_have_another_identity(
    fake_judges: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hears:
        def __init__(self, folder: Path, language: str) -> None:
            self.folder = folder

    monkeypatch.setattr(recognition, "Whisper", Hears)
    (tmp_path / "model.bin").write_bytes(b"weights")
    first = dict(Judges(recogniser=tmp_path, language="es").identity)
    assert first == Judges(recogniser=tmp_path, language="es").identity
    found = [first, dict(Judges(recogniser=tmp_path, language="en").identity)]
    found.append(dict(Judges(recogniser=tmp_path, language="es", only=["recogniser"]).identity))
    (tmp_path / "model.bin").write_bytes(b"others")
    found.append(dict(Judges(recogniser=tmp_path, language="es").identity))
    monkeypatch.setattr(judges, "version", lambda package: "99")
    found.append(dict(Judges(recogniser=tmp_path, language="es").identity))
    monkeypatch.setattr(judges, "_CODE", ("judges.py",))
    found.append(dict(Judges(recogniser=tmp_path, language="es").identity))
    assert all(one != other for number, one in enumerate(found) for other in found[:number])
