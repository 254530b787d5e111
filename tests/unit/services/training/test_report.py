"""A run's report, its artefacts, and its model's card."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from accelerate import Accelerator
from huggingface_hub import ModelCard

from services.training import artefacts, model_card, report, summary
from services.training.artefacts import Artefacts, read_index
from services.training.config import TrainingConfig
from services.training.dataset import Dropped
from services.training.plots import curves_svg, histogram_svg, plot_alignment
from services.training.session import Session, begin
from shared.provenance import Provenance

DROPPED = [
    Dropped("long", "longer than max_duration_in_seconds", "31.0 s of 20.0 s"),
    Dropped("longer", "longer than max_duration_in_seconds", "41.0 s of 20.0 s"),
    Dropped("<b>odd</b>", "no text", "it is empty"),
]


class Page(HTMLParser):
    """What a page holds."""

    void = frozenset({"meta", "img", "br", "line", "circle", "rect", "polyline"})
    optional = frozenset({"td", "th", "tr", "html", "head", "body", "tbody"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in {"src", "href", "data", "action", "xlink:href"}:
                self.sources.append((tag, value or ""))
        if tag not in self.void | self.optional:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void | self.optional:
            assert self.open.pop() == tag


@pytest.fixture
def session(
    small_discriminator: None,
    make_config: Callable[..., TrainingConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Session:
    """A run half-way through."""
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))
    config = make_config(
        do_eval=True, max_steps=100, learning_rate=3e-5, project_name="voz", full_generation_sample_text="¿Qué tal?",
        **dict.fromkeys(("token", "hub_token"), "hf_geheim"),
    )  # fmt: skip
    config.output_dir.mkdir()
    session = begin(config, Accelerator(cpu=True))
    session.dropped = {"training": DROPPED}
    session.state.global_step = 50
    for step in range(10, 51, 10):
        session.state.log_history.append({"step": step, "stage": "training", "mel": 60 / step, "kl": 2.0})
        session.state.log_history.append({"step": step, "eval_mel": 70 / step, "eval_mel_distance": 1.5})
    session.state.best = [{"step": 40, "value": 1.75}]
    return session


def keep(session: Session, *steps: int) -> Artefacts:
    kept = Artefacts(session.config.output_dir / "runs" / "artefacts", first_step=0)
    for step in steps:
        kept.audio(step, "full_generation_sample0", np.full(800, 0.5, np.float32), 16000, "¿Qué tal?")
        kept.figure(step, "alignments", plot_alignment(np.array([1, 2], np.int32)), "held out: one")
    return kept


# -- Report ----------------------------------------------------------------------------------------


def test_the_report_holds_all_that_it_shows(session: Session) -> None:
    keep(session, 0, 10, 20, 30, 50)
    path = report.write(session)
    assert path == session.config.output_dir / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert {source.partition(":")[0] for _, source in page.sources} == {"data"}
    assert [tag for tag, _ in page.sources] == ["audio"] * 3 + ["img"] * 3
    assert not re.search(r"https?://|@import|<script|<link", path.read_text(encoding="utf-8"))


def test_the_report_plays_the_first_the_middle_and_the_last_evaluation(session: Session) -> None:
    keep(session, 0, 10, 20, 30, 50)
    text = report.write(session).read_text(encoding="utf-8")
    assert re.findall(r"<th>step ([\d,]+)", text) == ["0", "20", "50"]


def test_the_report_tells_data_losses_and_best_checkpoints(session: Session) -> None:
    text = report.write(session).read_text(encoding="utf-8")
    assert "2 left out of training: longer than max_duration_in_seconds" in text
    assert "41.0 s of 20.0 s" in text
    assert text.count("<polyline") == 4  # mel twice, kl, mel distance
    assert "1.75" in text
    assert "Licence: CC-BY-NC-4.0" in text
    assert "¿Qué tal?" in text


def test_the_report_calls_held_out_only_what_was_not_trained_on(session: Session) -> None:
    assert "evaluation, on recordings that were held out<" in report.write(session).read_text(
        encoding="utf-8"
    )
    assert session.evaluation.examples
    session.evaluation.examples.examples.extend(session.train.examples[:2])
    text = report.write(session).read_text(encoding="utf-8")
    assert "evaluation, on 4 recordings, of which 2 were trained on too<" in text
    assert not re.search(r"held[- ]out", text.partition("<h1>")[2].replace('class="held-out"', ""))


def test_the_report_tells_no_secret_and_runs_nothing_that_it_was_given(session: Session) -> None:
    text = report.write(session).read_text(encoding="utf-8")
    assert "geheim" not in text
    assert "<b>odd</b>" not in text


def test_a_report_of_a_run_that_has_nothing_to_tell_yet(session: Session) -> None:
    session.state.log_history.clear()
    session.state.best.clear()
    text = report.write(session).read_text(encoding="utf-8")
    Page(text)
    assert "<audio" not in text
    assert "Curves" not in text


def test_a_lost_artefact_does_not_stop_a_run(session: Session) -> None:
    keep(session, 0)
    folder = session.config.output_dir / "runs" / "artefacts"
    (folder / read_index(folder)[0].file).unlink()
    report.write(session)
    (folder / artefacts.INDEX_FILE).write_text("{")
    report.write(session)


# -- Charts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "points", [[(0.0, 1.0)], [(5.0, 2.0), (6.0, 2.0)], [(float(x), x * 1e-5) for x in range(5000)]]
)
def test_a_chart_of_any_run_stays_inside_its_frame(points: list[tuple[float, float]]) -> None:
    svg = curves_svg([("train", points)], label="<losses>")
    drawn = re.search(r'<polyline class="train" points="([^"]+)"', svg)
    assert drawn
    numbers = [tuple(map(float, point.split(","))) for point in drawn[1].split()]
    assert 1 <= len(numbers) <= 200
    assert all(0 <= x <= 420 and 0 <= y <= 210 for x, y in numbers)
    assert "<losses>" not in svg


def test_a_histogram_counts_everything_once() -> None:
    svg = histogram_svg([1.0, 1.1, 5.0, 9.0], label="lengths", unit="s")
    assert sum(map(int, re.findall(r": (\d+)</title>", svg))) == 4
    histogram_svg([2.0], label="lengths", unit="s")


# -- Artefacts -------------------------------------------------------------------------------------


def test_artefacts_survive_a_resumed_run_and_those_after_its_checkpoint_do_not(session: Session) -> None:
    folder = keep(session, 0, 10, 20).folder
    resumed = Artefacts(folder, first_step=10)
    assert sorted({item.step for item in read_index(folder)}) == [0, 10]
    assert len(list(folder.glob("*.flac"))) == 2
    resumed.audio(15, "full_generation_sample0", np.zeros(800, np.float32), 16000, "¿Qué tal?")
    assert sorted({item.step for item in read_index(folder)}) == [0, 10, 15]
    Artefacts(folder, first_step=0)
    assert read_index(folder) == []
    assert [file.name for file in folder.iterdir()] == [artefacts.INDEX_FILE]


def test_a_long_run_keeps_a_bounded_number_of_evaluations(session: Session) -> None:
    kept = Artefacts(session.config.output_dir / "many", first_step=0)
    for step in range(0, 1000, 10):
        kept.audio(step, "sample", np.zeros(80, np.float32), 16000, "one")
    steps = [item.step for item in read_index(kept.folder)]
    assert len(steps) <= artefacts.MAX_EVALUATIONS
    assert (steps[0], steps[-1]) == (0, 990)
    assert any(350 <= step <= 650 for step in steps)
    assert len(list(kept.folder.glob("*.flac"))) == len(steps)


def test_sound_is_kept_as_it_was_but_for_its_last_bits(tmp_path: Path) -> None:
    sound = np.random.default_rng(0).uniform(-1.2, 1.2, 1000).astype(np.float32)
    Artefacts(tmp_path, first_step=0).audio(3, "sample", sound, 16000, "one")
    found, rate = soundfile.read(tmp_path / "sample-3.flac")
    assert rate == 16000
    np.testing.assert_allclose(found, np.clip(sound, -1, 1), atol=1e-4)


# -- Model card ------------------------------------------------------------------------------------


def card(session: Session, folder: Path, step: int = 50) -> tuple[dict[str, Any], str]:
    """What the hub reads at a card's head, and its text."""
    folder.mkdir(exist_ok=True)
    found = ModelCard(model_card.write_model_card(session, folder, step).read_text(encoding="utf-8"))
    return yaml.safe_load(found.data.to_yaml()), found.text


def test_the_card_is_one_that_the_hub_reads(session: Session, tmp_path: Path) -> None:
    session.provenance = Provenance(
        licence="CC-BY-4.0", sources=("someone's recordings",), consent="in writing"
    )
    data, text = card(session, tmp_path / "model")
    assert data == {
        "language": "spa",
        "library_name": "transformers",
        "license": "cc-by-4.0",
        "pipeline_tag": "text-to-speech",
        "tags": ["text-to-speech", "vits"],
        "metrics": ["mel", "mel_distance"],
    }
    for told in ("someone's recordings", "in writing", "| training | 8 |", "`mel_distance` | 1.5", "3e-05"):
        assert told in text


def test_the_card_of_the_best_checkpoint_tells_its_own_figures(session: Session, tmp_path: Path) -> None:
    _, last = card(session, tmp_path / "last")
    assert "evaluation at step 50;" in last
    assert "`mel` | 1.4 |" in last
    assert "the best by" not in last
    _, best = card(session, tmp_path / "best", step=25)
    assert "evaluation at step 20;" in best
    assert "`mel` | 3.5 |" in best
    assert "The model is that of step 25, the best by `mel`" in best
    data, none = card(session, tmp_path / "none", step=5)
    assert "## Evaluation" not in none
    assert "metrics" not in data


@pytest.mark.parametrize(
    ("licence", "identifier", "name"),
    [
        ("CC-BY-NC-4.0", "cc-by-nc-4.0", None),
        ("CC-BY-4.0 AND unknown", "other", "CC-BY-4.0 AND unknown"),
        ("unknown", None, None),
    ],
)
def test_only_a_single_known_licence_is_named_as_such(
    session: Session, tmp_path: Path, licence: str, identifier: str | None, name: str | None
) -> None:
    session.provenance = Provenance(licence=licence)
    data, text = card(session, tmp_path / "model")
    assert data.get("license") == identifier
    assert data.get("license_name") == name
    assert ("The licence is not known" in text) == (identifier is None)


def test_base_and_data_are_linked_only_where_they_are_on_the_hub(session: Session, tmp_path: Path) -> None:
    assert "base_model" not in card(session, tmp_path / "model")[0]
    session.config = session.config.model_copy(
        update={"model_name_or_path": "facebook/mms-tts-spa", "dataset_name": "someone/speech"}
    )
    data, _ = card(session, tmp_path / "model")
    assert data["base_model"] == "facebook/mms-tts-spa"
    assert data["datasets"] == ["someone/speech"]


def test_what_is_trained_from_scratch_is_not_of_its_base(session: Session, tmp_path: Path) -> None:
    session.config = session.config.model_copy(
        update={"model_name_or_path": "facebook/mms-tts-spa", "tokenizer_name": "someone/symbols"}
    )
    assert "fine-tuned from `facebook/mms-tts-spa`" in card(session, tmp_path / "model")[1]
    session.config = session.config.model_copy(update={"train_from_scratch": True})
    session.provenance = Provenance()
    data, text = card(session, tmp_path / "model")
    assert "base_model" not in data
    assert "fine-tuned from" not in text
    assert "the architecture of `facebook/mms-tts-spa`, the symbols of `someone/symbols`, no weights" in text
    assert "ask the owners of the recordings before" in text


def test_recordings_that_were_trained_on_are_not_held_out(session: Session, tmp_path: Path) -> None:
    assert "On recordings that were held out, in the evaluation" in card(session, tmp_path / "model")[1]
    some = session.train.examples[:2]
    assert session.evaluation.examples
    session.evaluation.examples.examples.extend(some)
    assert "4 recordings, of which 2 were trained on too" in card(session, tmp_path / "model")[1]


def test_the_card_tells_no_secret_and_no_path(session: Session, tmp_path: Path) -> None:
    text = str(card(session, tmp_path / "model"))
    assert "geheim" not in text
    assert str(tmp_path) not in text


def test_the_card_names_the_speakers(session: Session, tmp_path: Path) -> None:
    session.base.speakers = {"ana": 0, "luis": 1}
    data, text = card(session, tmp_path / "model")
    assert "ana (0), luis (1)" in text
    assert "multi-speaker" in data["tags"]


def test_what_was_left_out_is_counted_by_its_fault(session: Session) -> None:
    training = summary.splits(session)[0]
    assert [(reason.text, len(reason.dropped)) for reason in training.reasons] == [
        ("longer than max_duration_in_seconds", 2),
        ("no text", 1),
    ]
    assert training.hours == pytest.approx(session.train.hours, rel=0.02)


def test_the_configuration_is_told_without_what_nobody_set(session: Session) -> None:
    changed, rest = summary.configuration(session.config)
    assert changed["learning_rate"] == 3e-5
    assert "learning_rate" not in rest
    assert rest["weight_mel"] == 35
    assert changed.keys().isdisjoint({"token", "hub_token"})
