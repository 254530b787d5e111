"""``vits data clean``: each fault is found, nothing is changed, and corrections are obeyed."""

from __future__ import annotations

import argparse
import csv
import json
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from services.training.data import cli, read_card, read_recordings
from services.training.data.cleaning import (
    DROP,
    KEEP,
    TRIM,
    Decision,
    Examined,
    Limits,
    decide,
    examine,
    signal_to_noise,
)
from services.training.data.commands import clean
from services.training.data.decisions import Verdict, read_decisions, verdicts_of, write_decisions
from services.training.data.hearing import Hearing
from services.training.data.listening import EAR_RATE, Ears
from services.training.data.reading import MAX_LISTED_PROBLEMS, Survey, survey
from services.training.data.recordings import Recording
from shared.audio import Audio, loudness_lufs, read_audio, write_wav
from shared.errors import DataError, UserError
from shared.text import FrontEnd
from tests.conftest import SENTENCES, babble

RATE = 16_000
Samples = NDArray[np.float32]


def sentence(number: int, seconds: float = 2.0) -> Samples:
    """Babble with a breath in its middle, as speech has."""
    return breathing(babble(SENTENCES[number], seconds=seconds, rate=RATE, seed=number))


def breathing(samples: Samples) -> Samples:
    middle, breath = len(samples) // 2, max(RATE // 7, len(samples) // 15)
    samples[middle : middle + breath] *= 0.003
    return samples


def between(samples: Samples, before: float, after: float) -> Samples:
    return np.pad(samples, (round(before * RATE), round(after * RATE)))


def _clipped(samples: Samples) -> Samples:
    return np.clip(samples * 40, -1, 1)


#: Nine recordings, each with its own fault but for the first.
SOUNDS: dict[str, tuple[str, Callable[[], Samples]]] = {
    "good": (SENTENCES[2], lambda: sentence(2)),
    "edges": (SENTENCES[3], lambda: between(sentence(3), 1.0, 0.5)),
    "clipped": (SENTENCES[4], lambda: _clipped(sentence(4))),
    "noisy": (
        SENTENCES[5],
        lambda: (
            between(sentence(5), 0.3, 0.3)
            + 0.04 * np.random.default_rng(1).standard_normal(round(2.6 * RATE), dtype=np.float32)
        ),
    ),
    "wrong": (SENTENCES[6], lambda: sentence(6)),
    "again": (SENTENCES[2], lambda: between(0.5 * sentence(2), 0.02, 0.01)),
    "digits": ("marque el 3", lambda: sentence(7)),
    "silent": (SENTENCES[8], lambda: np.zeros(RATE, np.float32)),
    "short": ("hola", lambda: sentence(0, 0.4)),
}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    (root / "audio").mkdir(parents=True)
    rows = ["file_name,text,split"]
    for number, (name, (text, sound)) in enumerate(SOUNDS.items()):
        write_wav(root / f"audio/{name}.wav", sound().astype(np.float32), RATE)
        rows.append(f"audio/{name}.wav,{text},{'test' if number == 0 else 'train'}")
    (root / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    card = {
        "name": "set",
        "licence": "CC-BY-4.0",
        "attribution": "By Ana.",
        "consent": "signed",
        "language": "es",
        "sources": ["a studio", "a kitchen"],
    }
    (root / "dataset.json").write_text(json.dumps(card), encoding="utf-8")
    return root


@dataclass
class Heard:
    """A recogniser that knows the sentences by their length, and counts how often it is asked."""

    asked: int = 0
    wrong: frozenset[str] = frozenset({"wrong"})
    texts: list[str] = field(default_factory=list)

    def __call__(self, samples: Samples) -> str:
        self.asked += 1
        return self.texts.pop(0) if self.texts else "algo muy distinto"

    def ears(self) -> Ears:
        return Ears(
            transcribe=self,
            transcriber="test",
            character_errors=lambda text, heard: float(text != heard),
            naturalness=lambda samples: 3.0,
        )


def looked_at(
    root: Path,
    tmp_path: Path,
    ears: Ears | None = None,
    front_end: FrontEnd | None = None,
    language: str | None = "es",
) -> tuple[Survey, list[Decision]]:
    found = survey(root, refuse_empty_texts=False)
    examined = examine(
        found, ears or Ears(), hearing=Hearing(tmp_path / "heard"), front_end=front_end, language=language
    )
    return found, decide(examined, Limits())


def by_name(decisions: Sequence[Decision]) -> dict[str, Decision]:
    return {Path(d.examined.recording.id).name: d for d in decisions}


def kinds(decision: Decision) -> set[str]:
    return {reason.partition(":")[0] for reason in decision.reasons}


def test_each_fault_is_found_and_nothing_else(dataset: Path, tmp_path: Path) -> None:
    found = by_name(looked_at(dataset, tmp_path)[1])
    assert {name: d.action for name, d in found.items()} == {
        "good": KEEP, "edges": TRIM, "clipped": DROP, "noisy": DROP, "wrong": KEEP, "again": DROP, "digits": DROP,
        "silent": DROP, "short": DROP,
    }  # fmt: skip
    assert kinds(found["good"]) == set()
    assert kinds(found["clipped"]) == {"clipped"}
    assert kinds(found["noisy"]) >= {"noise"}
    assert kinds(found["again"]) == {"duplicate"}
    assert "good" in found["again"].reasons[0]
    assert kinds(found["digits"]) == {"characters"}
    assert kinds(found["silent"]) == {"silent"}
    assert kinds(found["short"]) >= {"too short"}
    edges = found["edges"]
    assert edges.start == pytest.approx(0.9, abs=0.03)
    assert edges.end == pytest.approx(3.1, abs=0.03)


def test_a_judge_of_sound_has_poor_ones_left_out(dataset: Path, tmp_path: Path) -> None:
    poor = Ears(naturalness=lambda samples: 1.0)
    found = by_name(looked_at(dataset, tmp_path, poor)[1])
    assert (found["good"].action, found["good"].reasons) == (DROP, ("poor sound: DNSMOS 1.00",))
    assert kinds(found["silent"]) == {"silent"}  # to which nobody listens
    content = by_name(looked_at(dataset, tmp_path / "again", Ears(naturalness=lambda samples: 2.0))[1])
    assert content["good"].action == KEEP


@pytest.mark.parametrize(
    ("fault", "action", "reason"),
    [
        ({}, KEEP, None),
        ({"naturalness": 1.9}, DROP, "poor sound: DNSMOS 1.90"),
        ({"cer": 0.1}, KEEP, None),
        ({"cer": 0.15}, KEEP, "doubtful transcript: CER 15%: listen and compare"),
        ({"cer": 0.3}, DROP, "transcript: CER 30% against what was heard"),
        ({"text": "¡…!"}, DROP, "no transcript: nothing is written down"),
        ({"seconds": 20.5}, DROP, "too long: 20.5 s: cut it up with 'vits data prepare'"),
        ({"clipped": 5e-4}, KEEP, "clipped: 0.050% of its samples, which is little"),
        ({"clipped": 2e-3}, DROP, "clipped: 0.20% of its samples"),
    ],
)
def test_what_each_figure_comes_to(fault: dict[str, Any], action: str, reason: str | None) -> None:
    """Of a recording that has no other fault, and speech from end to end."""
    figures = {"text": "hola a todos", "seconds": 3.0, **fault}
    recording, length = Recording("one", figures.pop("text")), figures["seconds"]
    one = Examined(recording, "train", speech=(0.05, length - 0.05), snr=40.0, letters=10, **figures)
    (decision,) = decide([one], Limits())
    assert (decision.action, decision.reasons) == (action, (reason,) if reason else ())


def test_a_fading_word_outside_of_the_spans_is_no_noise() -> None:
    """A voice-activity detector leaves out soft ends: 35 of 200 clean recordings were called noisy for it."""
    audio = Audio(sentence(2), RATE)
    pauses = [(0.0, 1.5), (1.64, 2.0)]  # seven frames that are speech
    assert signal_to_noise(audio, pauses) == pytest.approx(signal_to_noise(audio, [(0.0, 2.0)]), abs=1)
    assert signal_to_noise(audio, pauses) > 40
    noise = 0.02 * np.random.default_rng(1).standard_normal(len(audio.samples), dtype=np.float32)
    assert signal_to_noise(Audio(audio.samples + noise, RATE), pauses) < 20


def test_a_recogniser_finds_wrong_transcripts_and_vouches_for_odd_rates(
    dataset: Path, tmp_path: Path
) -> None:
    slow = breathing(babble("sí", seconds=6.0, rate=RATE))  # two letters in six seconds
    write_wav(dataset / "audio/slow.wav", slow, RATE)
    with (dataset / "metadata.csv").open("a", encoding="utf-8") as table:
        table.write("\naudio/slow.wav,sí,train")
    deaf = by_name(looked_at(dataset, tmp_path)[1])["slow"]
    assert (deaf.action, kinds(deaf)) == (DROP, {"speaking rate"})
    texts = [text for name, (text, _) in SOUNDS.items() if name != "silent"]
    texts[4] = "algo muy distinto"
    heard = by_name(looked_at(dataset, tmp_path, Heard(texts=[*texts, "sí"]).ears())[1])
    assert kinds(heard["wrong"]) == {"transcript"}
    assert heard["wrong"].action == DROP
    assert (heard["slow"].action, kinds(heard["slow"])) == (KEEP, {"speaking rate"})


def test_characters_are_those_of_the_model_where_one_is_given(
    dataset: Path, tmp_path: Path, spanish_model: Path
) -> None:
    found = by_name(looked_at(dataset, tmp_path, front_end=FrontEnd.from_folder(spanish_model))[1])
    assert "3" in found["digits"].reasons[0]
    assert by_name(looked_at(dataset, tmp_path, language=None)[1])["digits"].action == KEEP
    english = by_name(looked_at(dataset, tmp_path, language="en-GB")[1])
    assert kinds(english["noisy"]) >= {"characters"}  # mañana


def test_what_was_heard_is_kept_even_by_a_run_that_was_cut_off(dataset: Path, tmp_path: Path) -> None:
    first = Heard()
    looked_at(dataset, tmp_path, first.ears())
    assert first.asked == len(SOUNDS) - 1  # nobody listens to silence
    for kept in (tmp_path / "heard").iterdir():
        whole = kept.read_bytes()
        kept.write_bytes(whole[:-5])  # killed while it wrote the last line
    again = Heard()
    _, decisions = looked_at(dataset, tmp_path, again.ears())
    assert again.asked == 1
    assert all(d.examined.heard == "algo muy distinto" for d in decisions if d.examined.speech)
    third = Heard()
    looked_at(dataset, tmp_path, third.ears())
    assert third.asked == 0


def edited(path: Path, changes: dict[str, dict[str, str]], delimiter: str = ",") -> None:
    """What somebody does to a table in a spreadsheet program."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= changes.get(Path(row["id"]).name, {})
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def run(*arguments: str | Path) -> int:
    return cli.main(["clean", *map(str, arguments)])


def test_from_a_dataset_to_a_clean_one(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))
    before = {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    assert run(dataset) == 0
    said = capsys.readouterr()
    assert "keep 2, trim 1, drop 6" in said.out
    assert "without Silero VAD" in said.err
    table = tmp_path / "set-cleaning" / "decisions.csv"
    page = (table.parent / "report.html").read_text(encoding="utf-8")
    assert page.count("<audio") == 7
    assert "http" not in page.replace("data:audio", "")
    changes = {
        "noisy": {"decision": "trim", "start": "0,25", "end": "2,30"},  # a Spanish spreadsheet's comma
        "digits": {"decision": "keep", "text": "marque el tres"},
        "wrong": {"decision": "drop"},
    }
    edited(table, changes, delimiter=";")
    output = tmp_path / "clean"
    assert run(dataset, "--decisions", table, "--output", output, "--loudness", "-30") == 0
    made = {recording.id: recording for recording in read_recordings(output, split="all")}
    assert set(made) == {f"audio/{name}" for name in ("good", "edges", "noisy", "digits")}
    assert made["audio/digits"].text == "marque el tres"
    assert [r.id for r in read_recordings(output, split="test")] == ["audio/good"]
    assert made["audio/edges"].audio().duration_seconds == pytest.approx(2.2, abs=0.05)
    assert made["audio/noisy"].audio().duration_seconds == pytest.approx(2.05, abs=0.001)
    for recording in made.values():
        assert loudness_lufs(recording.audio().samples, RATE) == pytest.approx(-30, abs=0.1)
    card = read_card(output)
    assert card is not None
    assert (card.name, card.licence, card.consent, card.files) == ("set-clean", "CC-BY-4.0", "signed", 4)
    assert card.attribution.startswith("By Ana. Changed: ")
    assert card.sources == ("a studio", "a kitchen")
    assert {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match="not empty"):
        run(dataset, "--decisions", table, "--output", output)
    # A second look does not lose the corrections.
    assert run(dataset, "--no-page") == 0
    assert "marque el tres" in (table.parent / "decisions.1.csv").read_text(encoding="utf-8-sig")


def test_what_is_said_of_the_recordings_goes_over_their_card(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "clean"
    assert run(dataset, "--no-page", "--output", output, "--source", "a cellar", "--licence", "CC0-1.0") == 0
    card = read_card(output)
    assert card is not None
    assert (card.sources, card.licence, card.consent) == (("a cellar",), "CC0-1.0", "signed")


def test_loudness_can_be_left_alone(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))
    assert run(dataset, "--output", tmp_path / "clean", "--loudness", "none", "--no-page") == 0
    one = read_audio(tmp_path / "clean/audio/good.flac")
    np.testing.assert_array_equal(one.samples, read_audio(dataset / "audio/good.wav").samples)
    with pytest.raises(UserError, match="LUFS"):
        run(dataset, "--loudness", "loud")


def test_everything_that_is_wrong_with_a_table_is_said_at_once(dataset: Path, tmp_path: Path) -> None:
    found, decisions = looked_at(dataset, tmp_path)
    table = tmp_path / "decisions.csv"
    assert write_decisions(decisions, table) is None
    verdicts, lost = read_decisions(table, found)
    assert lost == []
    assert verdicts == [
        verdict if verdict.action == TRIM else Verdict(verdict.id, verdict.action, verdict.text)
        for verdict in map(_rounded, verdicts_of(decisions))
    ]
    edited(
        table,
        {
            "good": {"id": "audio/god"},
            "edges": {"decision": "cut"},
            "wrong": {"text": " "},
            "noisy": {"decision": "trim", "start": "2", "end": "1"},
            "short": {"decision": "trim", "start": "soon"},
        },
    )
    with pytest.raises(DataError) as error:
        read_decisions(table, found)
    assert len(error.value.problems) == 6
    for said in (
        "'audio/god'",
        "'cut'",
        "without a transcript",
        "ends at 1 s",
        "'soon'",
        "'audio/good' of the dataset",
    ):
        assert any(said in problem for problem in error.value.problems), said
    table.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="no table of decisions"):
        read_decisions(table, found)


def _rounded(verdict: Verdict) -> Verdict:
    assert verdict.end is not None
    return replace(verdict, start=round(verdict.start, 3), end=round(verdict.end, 3))


def test_a_broken_file_is_left_out_and_said(dataset: Path, tmp_path: Path) -> None:
    whole = (dataset / "audio/good.wav").read_bytes()
    (dataset / "audio/good.wav").write_bytes(whole[: len(whole) // 2])
    found, decisions = looked_at(dataset, tmp_path)
    broken = [d for d in decisions if d.action == DROP and "unreadable" in kinds(d)]
    assert len(broken) == 1 or any("good" in problem for problem in found.problems)


def spoil(path: Path) -> None:
    """Make a file of one whose beginning can be read, and the rest not."""
    samples = sentence(0)
    samples[len(samples) // 2 :] = np.nan
    soundfile.write(path, samples, RATE, subtype="FLOAT")


def test_a_file_that_cannot_be_decoded_is_named_and_left_out(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))
    spoil(dataset / "audio/edges.wav")
    assert run(dataset, "--output", tmp_path / "clean") == 0
    told = capsys.readouterr().out
    assert "1 row cannot be used at all" in told
    assert f"metadata.csv:3 (audio/edges): {dataset}/audio/edges.wav holds values that are not" in told
    assert [r.id for r in read_recordings(tmp_path / "clean", split="all")] == ["audio/good", "audio/wrong"]


def test_of_many_rows_that_cannot_be_used_the_rest_is_counted(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))
    gone = "".join(f"\naudio/gone{number}.wav,hola,train" for number in range(53))
    with (dataset / "metadata.csv").open("a", encoding="utf-8") as table:
        table.write(gone)
    assert run(dataset, "--no-page") == 0
    told = capsys.readouterr().out
    assert "53 rows cannot be used at all" in told
    assert sum("(audio/gone" in line for line in told.splitlines()) == MAX_LISTED_PROBLEMS
    assert "    … and 3 more\n" in told


def test_what_breaks_after_the_decisions_costs_only_itself(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))
    assert run(dataset, "--no-page") == 0
    table = tmp_path / "set-cleaning/decisions.csv"
    edited(table, {"noisy": {"decision": "trim", "start": "90", "end": ""}})
    (dataset / "audio/good.wav").write_bytes(b"RIFF and no more")
    spoil(dataset / "audio/edges.wav")
    capsys.readouterr()
    assert run(dataset, "--decisions", table, "--output", tmp_path / "clean") == 2
    told = capsys.readouterr().out
    assert "cannot be used, and left out: 3 of 4 that were to be kept" in told
    assert f"metadata.csv:2 (audio/good): {dataset}/audio/good.wav cannot be decoded" in told
    assert f"metadata.csv:3 (audio/edges): {dataset}/audio/edges.wav holds values" in told
    assert "metadata.csv:5 (audio/noisy): it ends before 90 s" in told
    assert [r.id for r in read_recordings(tmp_path / "clean", split="all")] == ["audio/wrong"]
    spoil(dataset / "audio/wrong.wav")
    with pytest.raises(DataError, match=r"No recording .* can be used") as error:
        run(dataset, "--decisions", table, "--output", tmp_path / "none")
    assert len(error.value.problems) == 3
    assert not (tmp_path / "none").exists()


def test_what_breaks_meanwhile_costs_only_itself(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is decoded once more to find it a second time, to be heard on the page, and to be copied."""
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))
    audio, heard = Recording.audio, Counter[str]()

    def once(recording: Recording, sampling_rate: int | None = None) -> Audio:
        heard[recording.id] += 1
        if recording.id in {"audio/good", "audio/edges"} and heard[recording.id] > 1:
            raise UserError("the disk has gone")
        return audio(recording, sampling_rate)

    monkeypatch.setattr(Recording, "audio", once)
    assert run(dataset, "--output", tmp_path / "clean") == 2
    told = capsys.readouterr().out
    assert "metadata.csv:2 (audio/good): the disk has gone" in told
    assert "metadata.csv:3 (audio/edges): the disk has gone" in told
    assert "audio/wrong" in [r.id for r in read_recordings(tmp_path / "clean", split="all")]


def test_a_cache_that_cannot_be_written_is_not_the_recordings_fault(dataset: Path, tmp_path: Path) -> None:
    """Every recording was called unreadable, and left out."""
    (tmp_path / "heard").touch()
    with pytest.raises(UserError, match="name another folder in the environment's VITS_CACHE"):
        looked_at(dataset, tmp_path, Heard().ears())


def test_where_nothing_can_be_written_is_said_before_anybody_listens(dataset: Path, tmp_path: Path) -> None:
    """As where recordings are mounted read-only: it ended in a traceback, after an hour of listening."""

    def listeners(**_: object) -> Ears:
        pytest.fail("somebody listened first")

    (tmp_path / "set-cleaning").touch()
    remedies = {"--report": [], "--output": ["--output", str(tmp_path / "set-cleaning/clean")]}
    for option, arguments in remedies.items():
        with pytest.raises(UserError, match=f"{tmp_path}/set-cleaning cannot be written .* {option}"):
            cli.main(["clean", str(dataset), *arguments], listeners=listeners)


def test_of_two_equal_recordings_one_without_a_fault_stays(tmp_path: Path) -> None:
    """The first would be kept of two equal ones; with a fault it goes, and took the other one with it."""
    root = tmp_path / "set"
    (root / "audio").mkdir(parents=True)
    texts = {"first": "7 §", "second": SENTENCES[2]}
    for name in texts:
        write_wav(root / f"audio/{name}.wav", sentence(2), RATE)
    rows = ["file_name,text", *(f'audio/{name}.wav,"{text}"' for name, text in texts.items())]
    (root / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    found = by_name(looked_at(root, tmp_path)[1])
    assert (found["first"].action, kinds(found["first"])) == (DROP, {"characters", "duplicate"})
    assert found["second"].action != DROP


def test_the_same_sound_is_known_where_its_ends_are_heard_a_little_differently(tmp_path: Path) -> None:
    """As it is with a short silence at an end, which voice activity takes for speech."""
    root = tmp_path / "set"
    (root / "audio").mkdir(parents=True)
    sound = sentence(2)
    write_wav(root / "audio/first.wav", sound, RATE)
    write_wav(root / "audio/second.wav", np.pad(0.4 * sound, (0, RATE // 20)), RATE)
    rows = ["file_name,text", *(f'audio/{name}.wav,"{SENTENCES[2]}"' for name in ("first", "second"))]
    (root / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    everything = Ears(speech=lambda samples: [(0.0, len(samples) / EAR_RATE)])
    found = by_name(looked_at(root, tmp_path, everything)[1])
    assert kinds(found["second"]) == {"duplicate"}


def test_the_command_that_is_suggested_reads_the_dataset_as_it_was_read(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    clean.add(parser)
    given = ["--audio-column", "sound", "--text-column", "words", "--language", "es", "--loudness", "none"]
    suggested = clean._command(parser.parse_args(["set", *given]), tmp_path / "decisions.csv")
    again = parser.parse_args(shlex.split(suggested)[3:])
    assert (again.source, again.audio_column, again.text_column) == ("set", "sound", "words")
    assert (again.language, again.loudness, again.decisions) == ("es", "none", tmp_path / "decisions.csv")
    plain = clean._command(parser.parse_args(["set"]), Path("decisions.csv"))
    assert plain == "vits data clean set --decisions decisions.csv --output set-clean"
