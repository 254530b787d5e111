"""The corpus: the committed table, and the way from packages to a dataset, on packages made here."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from services.training.data import asterisk, debian, read_recordings
from services.training.data.cli import main
from shared.audio import read_audio, to_pcm16
from shared.errors import DataError, UserError

Tone = Callable[..., np.ndarray]


class TestTable:
    """What a reviewer would check by eye in ``asterisk_es.csv``, checked for every row."""

    rows = tuple(asterisk.read_corrections())
    kept = tuple(row for row in rows if row.keep)

    def test_every_row_is_decided(self) -> None:
        assert len({row.id for row in self.rows}) == len(self.rows) == 220
        assert len(self.kept) == 200
        for row in self.rows:
            assert re.fullmatch("[0-9a-f]{16}", row.audio_sha256)
            assert bool(row.corrected) == bool(row.split) == row.keep
            assert row.keep or row.reason

    def test_corrected_texts_are_written_spanish(self) -> None:
        for row in self.kept:
            assert re.fullmatch(r"[a-záéíóúüñA-ZÁÉÍÓÚÑ¿¡?!.,; ]+", row.corrected), row
            assert re.match(r"[A-ZÁÉÍÓÚÑ¿¡]", row.corrected), row
            assert row.corrected[-1] in ".,?", row
            assert row.corrected.count("¿") == row.corrected.count("?"), row
            assert "  " not in row.corrected

    def test_no_word_lacks_the_accent_it_has_elsewhere(self) -> None:
        bare = str.maketrans("áéíóúñ", "aeioun")
        words = {word for row in self.kept for word in re.findall(r"\w+", row.corrected.lower())}
        accented = {word for word in words if word != word.translate(bare)}
        # Words that Spanish has both ways.
        both = {"el", "esta", "este", "que", "se", "de", "mas", "si", "tu", "quien", "aun"}
        assert {word.translate(bare) for word in accented} & words <= both
        assert {"contraseña", "número", "extensión", "después", "teléfono"} <= accented

    def test_no_known_slip_of_the_package_is_left(self) -> None:
        slips = r"\b(contrasena|contrasenia|numero|extension|ultimo|nimbre|numbre|atravez|introdusca|mesaje|buzon)\b"
        assert not [row.id for row in self.kept if re.search(slips, row.corrected.lower())]

    def test_splits_have_their_sizes_and_share_no_sentence(self) -> None:
        assert Counter(row.split for row in self.kept) == {"train": 176, "validation": 10, "test": 14}
        splits_of = defaultdict(set)
        for row in self.kept:
            splits_of[" ".join(re.findall(r"\w+", row.corrected.lower()))].add(row.split)
        assert all(len(splits) == 1 for splits in splits_of.values())

    def test_reviewers_find_the_recognisers_figure(self) -> None:
        with asterisk._table().open(encoding="utf-8", newline="") as lines:
            rates = [float(row["recogniser_cer"]) for row in csv.DictReader(lines) if row["action"] == "keep"]
        assert sum(rates) / len(rates) < 0.03
        assert max(rates) < 0.25


def g722(samples: np.ndarray) -> bytes:
    """Encode 16 kHz samples as the packages have them."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(to_pcm16(samples)[None], format="s16", layout="mono")
        frame.sample_rate = 16000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return buffer.getvalue()


@pytest.fixture
def tree(tmp_path: Path, tone: Tone) -> Path:
    """An unpacked package of four recordings, one of them a beep."""
    sounds = tmp_path / "tree" / asterisk._SOUNDS
    (sounds / "more").mkdir(parents=True)
    for number, name in enumerate(["hello", "more/bye", "ask", "beep"]):
        (sounds / f"{name}.g722").write_bytes(g722(tone(1.5 + number / 10, 200 + 100 * number)))
    lines = "; A comment\n\nhello: hola a todos\nmore/bye: adios a todos\nask: que es esto\nbeep: [tono: simple]\n"
    transcripts = tmp_path / "tree" / asterisk._TRANSCRIPTS
    transcripts.parent.mkdir(parents=True)
    transcripts.write_bytes(gzip.compress(lines.encode()))
    return tmp_path / "tree"


@pytest.fixture
def corrections(tree: Path) -> list[asterisk.Correction]:
    def row(name: str, split: str, original: str, corrected: str) -> asterisk.Correction:
        digest = hashlib.sha256((tree / asterisk._SOUNDS / f"{name}.g722").read_bytes()).hexdigest()[:16]
        reason = "" if corrected else "a beep"
        return asterisk.Correction(name, split, bool(corrected), original, corrected, reason, digest)

    return [
        row("hello", "train", "hola a todos", "Hola a todos."),
        row("more/bye", "validation", "adios a todos", "Adiós a todos."),
        row("ask", "test", "que es esto", "¿Qué es esto?"),
        row("beep", "", "[tono: simple]", ""),
    ]


def build(tree: Path, corrections: list[asterisk.Correction], made: Path) -> dict[str, tuple[int, float]]:
    (made / "audio").mkdir(parents=True)
    return asterisk.build(tree, corrections, made)


class TestBuild:
    def test_decodes_repairs_and_splits(
        self, tree: Path, corrections: list[asterisk.Correction], tmp_path: Path
    ) -> None:
        splits = build(tree, corrections, tmp_path / "made")
        assert {name: count for name, (count, _) in splits.items()} == {
            "train": 1,
            "validation": 1,
            "test": 1,
        }
        assert splits["train"][1] == pytest.approx(1.5, abs=0.01)
        (one,) = read_recordings(
            tmp_path / "made", split="validation", speaker_column="speaker_id", verify=True
        )
        assert (one.id, one.text, one.speaker) == ("audio/more-bye", "Adiós a todos.", "allison")
        decoded = read_audio(tree / asterisk._SOUNDS / "more/bye.g722", format="g722")
        np.testing.assert_array_equal(one.audio().samples, decoded.samples)
        peak = np.abs(np.fft.rfft(decoded.samples)).argmax() * 16000 / len(decoded.samples)
        assert peak == pytest.approx(300, abs=2)

    def test_the_licence_travels_with_it(
        self, tree: Path, corrections: list[asterisk.Correction], tmp_path: Path
    ) -> None:
        build(tree, corrections, tmp_path / "made")
        card = json.loads((tmp_path / "made" / "dataset.json").read_text())
        assert card["licence"] == "CC-BY-SA-3.0"
        assert "Allison Smith" in card["attribution"]
        assert card["files"] == 3
        assert "Allison Smith" in (tmp_path / "made" / "README.md").read_text()

    def test_every_difference_from_the_reviewed_package_is_reported(
        self, tree: Path, corrections: list[asterisk.Correction], tmp_path: Path, tone: Tone
    ) -> None:
        (tree / asterisk._SOUNDS / "hello.g722").write_bytes(g722(tone(1.5, 999)))
        (tree / asterisk._SOUNDS / "ask.g722").unlink()
        changed = [replace(row, original="otra cosa") if row.id == "beep" else row for row in corrections]
        with pytest.raises(DataError) as raised:
            build(tree, changed, tmp_path / "made")
        assert [problem.partition(":")[0] for problem in raised.value.problems] == ["hello", "ask", "beep"]

    def test_lengths_are_kept_to(
        self,
        tree: Path,
        corrections: list[asterisk.Correction],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(asterisk, "MAX_SECONDS", 1.55)
        with pytest.raises(DataError, match=r"keeps more/bye"):
            build(tree, corrections, tmp_path / "made")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not on this machine")
class TestFetch:
    @pytest.fixture
    def debs(self, tree: Path, tmp_path: Path) -> Path:
        """The tree as the two packages."""
        folder = tmp_path / "debs"
        folder.mkdir()
        for package, part in zip(asterisk.PACKAGES, ("usr/share/asterisk", "usr/share/doc"), strict=True):
            root = tmp_path / package.name
            shutil.copytree(tree / part, root / part)
            (root / "DEBIAN").mkdir()
            (root / "DEBIAN" / "control").write_text(
                f"Package: {package.name}\nVersion: 9\nArchitecture: all\nMaintainer: T <t@example.org>\n"
                "Description: test\n"
            )
            command = [
                "dpkg-deb",
                "--root-owner-group",
                "-b",
                str(root),
                str(folder / f"{package.name}_9_all.deb"),
            ]
            subprocess.run(command, check=True, capture_output=True)
        return folder

    @pytest.fixture(autouse=True)
    def table(
        self, corrections: list[asterisk.Correction], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Path:
        path = tmp_path / "table.csv"
        fields = [
            "id",
            "split",
            "action",
            "original",
            "corrected",
            "reason",
            "recogniser_cer",
            "audio_sha256",
        ]
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fields)
            writer.writeheader()
            for row in corrections:
                action = "keep" if row.keep else "drop"
                cells = {name: getattr(row, name) for name in fields if hasattr(row, name)}
                writer.writerow({**cells, "action": action})
        monkeypatch.setattr(asterisk, "_table", lambda: path)
        return path

    def test_makes_the_folder_once(
        self, debs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "deep" / "asterisk-es"
        arguments = ["fetch", "asterisk-es", "--output", str(output), "--from", str(debs)]
        assert main(arguments) == 0
        said = capsys.readouterr()
        assert "made: 3 recordings" in said.out
        assert f"next: vits data inspect {output}" in said.out
        assert "is not Debian's" in said.err
        before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
        assert main(arguments) == 0
        assert "nothing to do" in capsys.readouterr().out
        assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
        assert [path.name for path in output.parent.iterdir()] == ["asterisk-es"]

    def test_paths_may_be_relative(
        self, debs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["fetch", "asterisk-es", "--output", "made/here", "--from", debs.name]) == 0
        assert "made: 3 recordings" in capsys.readouterr().out

    def test_a_fetch_that_dies_leaves_nothing(
        self, debs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(asterisk, "_write_card", die)
        output = tmp_path / "deep" / "asterisk-es"
        with pytest.raises(KeyboardInterrupt):
            asterisk.fetch(output, downloaded=[debs])
        assert list(output.parent.iterdir()) == []

    def test_what_is_there_is_never_overwritten(self, debs: Path, tmp_path: Path, table: Path) -> None:
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "thesis.doc").write_text("years of work")
        with pytest.raises(UserError, match="holds something else"):
            asterisk.fetch(mine, downloaded=[debs])
        output = tmp_path / "asterisk-es"
        asterisk.fetch(output, downloaded=[debs])
        table.write_text(table.read_text().replace("Hola a todos.", "¡Hola a todos!"))
        with pytest.raises(UserError, match="another edition"):
            asterisk.fetch(output, downloaded=[debs])

    def test_lost_recordings_are_noticed(self, debs: Path, tmp_path: Path) -> None:
        output = tmp_path / "asterisk-es"
        asterisk.fetch(output, downloaded=[debs])
        (output / "audio" / "hello.flac").unlink()
        with pytest.raises(UserError, match="lost 1 of 3"):
            asterisk.fetch(output, downloaded=[debs])

    def test_the_very_packages_need_no_remark(self, debs: Path, tmp_path: Path) -> None:
        exact = [
            replace(
                package, sha256=hashlib.sha256((debs / f"{package.name}_9_all.deb").read_bytes()).hexdigest()
            )
            for package in asterisk.PACKAGES
        ]
        (tmp_path / "work").mkdir()
        _, remarks = debian.unpack(exact, tmp_path / "work", downloaded=[debs])
        assert remarks == []

    def test_what_is_no_package_is_named(self, debs: Path, tmp_path: Path) -> None:
        bad = debs / f"{asterisk.PACKAGES[0].name}_9_all.deb"
        bad.write_bytes(b"not a package")
        with pytest.raises(UserError, match=r"core-sounds-es-g722_9_all.deb cannot be unpacked"):
            asterisk.fetch(tmp_path / "out", downloaded=[debs])

    def test_missing_packages_are_all_named(self, tmp_path: Path) -> None:
        (tmp_path / "nothing").mkdir()
        with pytest.raises(
            UserError, match=r"asterisk-core-sounds-es-g722_.* and no asterisk-core-sounds-es_"
        ):
            asterisk.fetch(tmp_path / "out", downloaded=[tmp_path / "nothing"])


class TestApt:
    """apt is played by a script: what it is asked, and what is made of its refusals."""

    PACKAGE = debian.Package("some-sounds", "1", "0" * 64)

    def play(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apt: str | None) -> Path:
        programs = tmp_path / "bin"
        programs.mkdir()
        scripts = {"dpkg-deb": 'mkdir -p "$3"; cp "$2" "$3"/'}
        if apt is not None:
            scripts["apt-get"] = f'echo "$@" >> {tmp_path}/asked; {apt}'
        for name, script in scripts.items():
            (programs / name).write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(programs))
        work = tmp_path / "work"
        work.mkdir()
        return work

    def test_package_lists_are_fetched_privately_when_there_are_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        apt = """case "$*" in
            *Dir::State=*update) : > updated;;
            *Dir::State=*download*) test -e updated && echo deb > some-sounds_1_all.deb;;
            *) echo 'E: Unable to locate package' >&2; exit 100;;
        esac"""
        work = self.play(tmp_path, monkeypatch, apt)
        tree, remarks = debian.unpack([self.PACKAGE], work)
        assert (tree / "some-sounds_1_all.deb").is_file()
        assert remarks == ["some-sounds_1_all.deb is not Debian's some-sounds 1"]
        asked = (tmp_path / "asked").read_text().splitlines()
        assert [line.split()[-1] for line in asked] == ["some-sounds", "update", "some-sounds"]
        assert all(f"Dir::State={work}" in line for line in asked[1:])

    def test_refusals_are_quoted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        work = self.play(tmp_path, monkeypatch, "echo 'E: the mirror is on fire' >&2; exit 100")
        with pytest.raises(UserError, match=r"--from FOLDER(.|\n)*the mirror is on fire"):
            debian.unpack([self.PACKAGE], work)

    def test_without_apt_it_says_what_to_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        work = self.play(tmp_path, monkeypatch, None)
        with pytest.raises(UserError, match=r"'apt-get' is not here(.|\n)*--from FOLDER"):
            debian.unpack([self.PACKAGE], work)
