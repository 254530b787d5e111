"""``vits plan``: from a profile to an answer, or to the reason why there is none."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from services.cli import main
from services.planning import answer, cli
from services.planning import profile as profiles
from services.planning.answer import Question, Target
from services.planning.autoscaler import Scaling
from services.planning.profile import Profile, measure
from services.planning.report import sentences
from services.planning.simulation import Settings, TextWork
from services.planning.workload import Load, draw_texts, parse_distribution, plan_texts
from shared.errors import UserError
from shared.registry import Registry
from shared.store import Store
from shared.text import FrontEnd
from shared.voice import Voice, VoiceSpec, layout
from tests.unit.shared.voice.conftest import FakeEngine, spec_fields


@pytest.fixture(autouse=True)
def few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here does not need a 99th percentile that is exact."""
    monkeypatch.setattr(answer, "REQUESTS", 400)
    monkeypatch.setattr(answer, "LEAST_SECONDS", 20.0)


@pytest.fixture
def saved(profile: Profile, tmp_path: Path) -> Path:
    path = tmp_path / "pod.json"
    profile.write(path)
    return path


def plan(saved: Path, *more: str) -> list[str]:
    return ["plan", "--profile", str(saved), "--requests-per-second", "4", *more]


def ask(texts: list[TextWork], profile: Profile, target: float, rate: float = 4.0) -> Question:
    return Question(texts, profile, Load("constant", rate, 100.0), Target(target), Settings(pods=1))


def test_the_answer_meets_the_target_and_fewer_pods_do_not(profile: Profile, texts: list[TextWork]) -> None:
    found = ask(texts, profile, 0.4).answer()
    assert found.pods is not None
    assert found.pods >= 4 / found.capacity
    rows = {row.pods: row for row in found.rows}
    assert rows[found.pods].met
    assert rows[found.pods].first_audio[1] <= 0.4
    assert not rows[min(rows)].met
    assert rows[max(rows)].met
    tighter = ask(texts, profile, 0.12).answer()
    assert tighter.pods is not None
    assert tighter.pods > found.pods
    assert ask(texts, profile, 0.4, rate=8.0).answer().pods > found.pods  # type: ignore[operator]


def test_an_hour_of_audio_costs_what_its_pods_do_in_that_time(
    profile: Profile, texts: list[TextWork]
) -> None:
    """Audio seconds a second are audio hours an hour, and a pod's price is of an hour."""
    question = replace(ask(texts, profile, 0.4), pod_price=0.08, scaling=Scaling())
    found = question.answer()
    assert found.scaled
    for row in (*found.rows, found.scaled.row):
        assert row.cost == pytest.approx(0.08 * row.pods / row.throughput)
    for row in found.rows:
        spoken = question.load.peak * found.audio_seconds * (1 - row.refused)
        assert row.throughput == pytest.approx(spoken, rel=0.15)


def test_a_target_below_one_request_alone_is_impossible_and_says_why(
    profile: Profile, texts: list[TextWork]
) -> None:
    found = ask(texts, profile, 0.01).answer()
    assert found.pods is None
    assert "a request that is alone on an idle pod takes" in found.why
    assert found.alone.first_audio[1] > 0.01
    assert found.rows


def test_a_part_of_a_fleet_grows_and_shrinks_as_the_whole() -> None:
    """Of 1,000 pods one in ten is simulated: a pod of it stands for ten, and goes after ten times as long."""
    whole = Scaling(most=1000, least=50, up_pods=20, down_pods=1, down_period_seconds=60)
    part = answer._shared(whole, 10)
    assert (part.least, part.most, part.up_pods) == (5, 100, 2)
    assert part.down_pods * 10 / part.down_period_seconds == whole.down_pods / whole.down_period_seconds
    assert answer._shared(replace(whole, down_pods=0), 10).down_pods == 0
    assert answer._shared(replace(whole, down_percent=10), 10).down_period_seconds == 60
    assert answer._shared(whole, 1) == whole


def test_command_prints_json_and_draws(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "plan.html"
    code = main(
        plan(
            saved,
            "--target-first-audio",
            "0.5",
            "--duration",
            "60",
            "--json",
            "--pod-price",
            "0.1",
            "--plot",
            str(page),
        )
    )
    content = json.loads(capsys.readouterr().out)
    assert code == 0
    assert content["pods"] >= 1
    assert content["rows"][-1]["cost"] > 0
    assert content["scaled"]["row"]["pods"] >= 1
    text = page.read_text(encoding="utf-8")
    assert "data:image/svg+xml;base64," in text
    assert "http" not in text.partition("base64,")[0], "the page needs nothing else"
    assert f"With {content['pods']} pod" in text


def test_command_says_what_is_impossible(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(plan(saved, "--target-first-audio", "0.001", "--no-autoscaler")) == 3
    printed = capsys.readouterr()
    assert "cannot be met" in printed.err
    assert "alone on an idle pod" in printed.out


def test_a_given_number_of_pods_is_judged(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(plan(saved, "--target-first-audio", "0.5", "--pods", "1", "--no-autoscaler")) == 0
    assert "With 1 pod there is not a first audio within 0.5 s" in capsys.readouterr().out


def test_the_autoscaler_has_room_for_the_load_unless_it_was_given_a_limit(
    profile: Profile, texts: list[TextWork]
) -> None:
    """Twenty pods, the manifests' most, once stood for any load, and the answer of a larger one was of its refusals."""
    monday = replace(ask(texts, profile, 0.4, rate=30.0), scaling=Scaling(), roomy=True, fixed=30)
    roomy = monday.answer()
    assert roomy.scaling
    assert roomy.scaled
    assert roomy.scaling.most == answer.ROOM * max(30, roomy.needed) > Scaling.most
    assert f"maxReplicas, {Scaling.most}, has to be raised" in " ".join(sentences(monday, roomy))
    assert roomy.scaled.at_most == 0.0
    small = replace(ask(texts, profile, 0.4), scaling=Scaling(), roomy=True, fixed=4).answer()
    assert small.scaling == Scaling()


def test_pods_that_nobody_may_take_away_are_no_room_and_no_limit(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--min-pods raise the most to themselves; twice what the peak needs was said of them, and a limit always met."""
    asked = ["--target-first-audio", "2", "--pods", "1", "--duration", "60"]
    assert main(plan(saved, *asked, "--min-pods", "30")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Under the autoscaler (30 to 30 pods" in said
    assert "It was given" not in said
    assert "as many pods as it may have" not in said


def test_a_limit_that_was_met_is_told_with_what_the_peak_needs(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--target-first-audio", "0.5", "--pods", "5", "--duration", "60", "--max-pods"]
    assert main(plan(saved, *asked, "1", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["scaling"]["most"], found["scaled"]["at_most"]) == (1, 1.0)
    assert main(plan(saved, *asked, "1")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"as many pods as it may have; the peak needs {found['pods']}: give it more, --max-pods" in said
    assert f"--min-pods {found['pods']}" not in said, "it could not be had with this limit"


def test_where_there_is_no_screen_lines_tell_how_far_it_is(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "LINE_SECONDS", 0.0)
    assert main(plan(saved, "--target-first-audio", "0.5", "--pods", "5", "--duration", "60", "--json")) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)
    assert re.search(r"^simulating 5 pods: \d+%, \d+ s left$", printed.err, re.MULTILINE)
    assert re.search(r"^simulating the autoscaler: \d+%, \d+ s left$", printed.err, re.MULTILINE)


def test_a_screen_is_shown_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(
        "rich.console.Console", lambda **_: Console(file=screen, force_terminal=True, width=100)
    )
    with cli.shown() as progress:
        progress("simulating 5 pods", 0.5)
        progress("simulating the autoscaler", 0.25)
    drawn = screen.getvalue()
    assert "simulating the autoscaler" in drawn
    assert "25%" in drawn


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "give --requests-per-second and --target-first-audio"),
        (["--target-first-audio", "1", "--measure"], "finished measurement"),
        (["--target-first-audio", "1", "--min-pods", "3", "--max-pods", "2"], "--min-pods is 3"),
        (["--target-first-audio", "1", "--min-pods", "0"], "none is reported where there are none"),
        (["--target-first-audio", "1", "--max-pods", "0"], "--max-pods 0"),
        (["--target-first-audio", "1", "--target-backlog", "0"], "--target-backlog is 0"),
        (["--target-first-audio", "1", "--plot", "x.pdf"], ".html, .png, .svg"),
        (["--target-first-audio", "1", "--plot", "nowhere/x.png"], "there is no folder"),
        (["--target-first-audio", "1", "--pods", "0"], "--pods is 0"),
        (["--target-first-audio", "1", "--text-length-distribution", "gauss:3"], "lognormal:120,0.6"),
        (["--target-first-audio", "1", "--text-length-distribution", "fixed:9999"], "up to 4096"),
        (
            ["--target-first-audio", "1", "--text-length-distribution", "file:nowhere"],
            "nowhere, which cannot be read",
        ),
    ],
)
def test_bad_options(saved: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(plan(saved, *options)) == 2
    assert says in capsys.readouterr().err


def test_a_profile_that_could_not_be_saved_is_not_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "measured", lambda *_: pytest.fail("it was measured"))
    assert main(["plan", "--measure", "--save-profile", "/proc/self/pod.json"]) == 2
    assert "/proc/self cannot be written" in capsys.readouterr().err


def test_a_damaged_profile_lists_its_faults(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(saved.read_text())
    del content["streams"]
    content["frames_per_token"] = -1
    saved.write_text(json.dumps(content))
    assert main(plan(saved, "--target-first-audio", "1")) == 2
    error = capsys.readouterr().err
    assert "streams" in error
    assert "frames_per_token" in error


def test_profile_survives_its_file(profile: Profile, saved: Path) -> None:
    assert Profile.read(saved) == profile


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [("fixed:120", 112, 120), ("uniform:20-400", 12, 400), ("lognormal:120,0.6", 10, 1500)],
)
def test_texts_have_the_lengths_that_were_asked_for(said: str, least: int, most: int) -> None:
    distribution = parse_distribution(said)
    lengths = [len(text) for text in draw_texts(distribution, "es", seed=1)]
    assert min(lengths) >= least
    assert max(lengths) <= most
    assert distribution.lengths is not None
    wanted = distribution.lengths(np.random.default_rng(1), 100_000).mean()
    assert np.mean(lengths) == pytest.approx(wanted, rel=0.06)


def test_texts_of_a_file_are_spoken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("hola\n\nadiós\n", encoding="utf-8")
    assert set(draw_texts(parse_distribution(f"file:{path}"), "es", seed=0)) == {"hola", "adiós"}


def test_a_voice_that_can_speak_no_example_asks_for_texts() -> None:
    front_end = FrontEnd.from_spec({**spec_fields()["front_end"], "vocab": {"_": 0, "ж": 1}})
    with pytest.raises(UserError, match=r"file:texts\.txt"):
        plan_texts(["你好"], front_end, "ru")


def test_what_a_rendering_costs_is_found_and_never_below_nothing() -> None:
    generator = np.random.default_rng(0)
    shapes = np.column_stack(
        [np.ones(50), generator.integers(1, 5, 50) * 32.0, generator.uniform(20, 300, 50)]
    )
    assert profiles._fitted(shapes, shapes @ [0.01, 2e-4, 3e-5]) == pytest.approx([0.01, 2e-4, 3e-5])
    shrinking = profiles._fitted(shapes, shapes @ [0.1, -2e-4, 3e-5])
    assert shrinking.min() >= 0
    assert shrinking[1] == 0


def test_a_server_knows_the_layout_that_was_found(
    profile: Profile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They share the file; it was once made a folder, and no server remembered anything any more."""

    def open_voice(folder: Path, **_: object) -> Voice:
        return Voice(VoiceSpec.read(folder), FakeEngine())

    folder, store = tmp_path / "voice", str(tmp_path / "store")
    folder.mkdir()
    VoiceSpec.model_validate(spec_fields()).write(folder)
    Registry(Store.open(store)).publish(
        "voices", "ana", folder, licence="CC0-1.0", sources=["nobody"], consent=None, lineage={}
    )
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(layout, "measure", lambda _voice, _streams: (1.0, 0.1))
    monkeypatch.setattr(Voice, "open", open_voice)
    monkeypatch.setattr(profiles, "measure", lambda *_, **__: profile)
    assert main(["plan", "--store", store, "--threads", "2", "--measure"]) == 0
    assert json.loads(capsys.readouterr().out)["voice"] == "ana/1"
    assert list(json.loads((tmp_path / "cache/layouts.json").read_text()).values()) == [1]


def test_measurement_notes_what_the_runtime_computes() -> None:
    spec = VoiceSpec.model_validate(spec_fields(token_buckets=[32, 64, 128, 256]))
    voice = Voice(spec, FakeEngine())
    shares: list[float] = []
    profile = measure(
        voice, reference="ana/1", variant="fp32", threads=1, seconds=0.3, progress=shares.append
    )
    assert shares == sorted(shares)
    assert profile.streams == 1
    widths = {10, 13, 16, 20, 24, 22, 14, 18, 26, 30}
    assert set(profile.decode_seconds) <= widths | set(range(60))
    assert all(seconds > 0 for seconds in profile.decode_seconds.values())
    assert profile.render(64, 100) > 0
    assert np.mean(profile.decode_spread) == pytest.approx(1)
    assert profile.frames_per_token > 0
