"""How voices are opened: streams as they were measured, and the variant that is known to be the fastest."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.errors import NotFoundError
from shared.voice import Voice, VoiceSpec, layout
from shared.voice.engine import Arrays
from shared.voice.layout import Opening, candidates
from shared.voice.spec import Variant

if TYPE_CHECKING:
    from tests.unit.shared.voice.conftest import FakeEngine


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, voice: Voice) -> list[tuple[str, int]]:
    """Variant and streams of each opening of the fake voice."""
    calls: list[tuple[str, int]] = []

    def open_voice(folder: Path, *, variant: str, threads: int, streams: int) -> Voice:
        calls.append((variant, streams))
        return voice

    monkeypatch.setattr(Voice, "open", open_voice)
    return calls


@pytest.fixture
def folder(tmp_path: Path, fields: dict[str, Any]) -> Path:
    """A voice with a variant that every machine can run, besides the portable one."""
    fields["variants"]["quick"] = {**fields["variants"]["fp32"], "gate": "passed"}
    folder = tmp_path / "ana" / "1"
    folder.mkdir(parents=True)
    VoiceSpec.model_validate(fields).write(folder)
    return folder


@pytest.mark.parametrize(
    ("speeds", "best"),
    [
        ({1: (10.0, 0.1), 2: (10.5, 0.1), 4: (10.9, 0.1)}, 1),
        ({1: (10.0, 0.1), 2: (15.0, 0.1), 4: (16.0, 0.1)}, 2),
        ({1: (10.0, 0.1), 2: (15.0, 0.2), 4: (30.0, 0.3)}, 1),
    ],
    ids=["not worth it", "two", "too long a call"],
)
def test_streams_are_measured_once_and_remembered(
    opened: list[tuple[str, int]],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    speeds: dict[int, tuple[float, float]],
    best: int,
) -> None:
    assert candidates(4) == [1, 2, 4]
    told: list[int] = []
    monkeypatch.setattr(layout, "measure", lambda _, streams: speeds[streams])

    def opening() -> Opening:
        return Opening(variant="fp32", threads=4, memory=tmp_path / "cache", tell=told.append)

    opening()(folder)
    assert opened == [("fp32", 1), ("fp32", 2), ("fp32", 4), ("fp32", best)]
    opening()(folder)
    assert opened[4:] == [("fp32", best)]
    assert told == [best, best]


def test_streams_for_which_there_is_no_memory_are_not_tried(
    opened: list[tuple[str, int]], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what is remembered fits at the next start as well; and with another limit it is measured anew."""
    monkeypatch.setattr(layout, "memory_of", lambda _folder, _variant, streams, **_: 10 * streams)
    monkeypatch.setattr(layout, "measure", lambda _, streams: (10.0 * streams, 0.1))

    def started_with(memory_bytes: int) -> list[int]:
        opened.clear()
        opening = Opening(variant="fp32", threads=2, memory=tmp_path / "cache", memory_bytes=memory_bytes)
        assert opening.memory_of(folder) <= max(10, memory_bytes)
        opening(folder)
        assert opening.memory_of(folder) <= max(10, memory_bytes)
        return [streams for _, streams in opened]

    assert started_with(15) == [1, 1], "cold"
    assert started_with(15) == [1], "warm"
    assert started_with(20) == [1, 2, 2]
    assert started_with(5) == [1], "what does not fit at all is not for this to refuse"


@pytest.mark.parametrize("streams", [1, 2])
def test_speed_is_the_audio_of_all_streams_in_a_second_and_the_slowest_call_is_told(
    voice: Voice, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, streams: int
) -> None:
    """Each stream makes one call that does not count, and three that do, at the same time as the others."""
    now = 0.0
    taken = iter([9.0, 0.25, 1.0, 0.75])

    def pass_time() -> None:
        nonlocal now
        now += next(taken)

    at_work = threading.Barrier(streams, pass_time, timeout=10)
    compute = engine.run

    def run(graph: str, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        at_work.wait()
        return compute(graph, inputs)

    monkeypatch.setattr(engine, "run", run)
    monkeypatch.setattr(layout, "time", SimpleNamespace(perf_counter=lambda: now))
    plan = voice.spec.decoder
    window_seconds = plan.window_frames * voice.spec.hop_length / voice.sampling_rate
    speed, slowest = layout.measure(voice, streams)
    assert speed == pytest.approx(streams * 3 * window_seconds / (0.25 + 1.0 + 0.75))
    assert slowest == 1.0
    widths = [shapes["latents"][2] for _, shapes in engine.calls]
    assert widths == [plan.window_frames + 2 * plan.halo_frames] * 4 * streams


def test_machines_that_share_a_home_do_not_share_their_layouts(
    opened: list[tuple[str, int]], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started_on(machine: str, speeds: dict[int, tuple[float, float]]) -> int:
        monkeypatch.setattr(layout, "cpu_model", lambda: machine)
        monkeypatch.setattr(layout, "measure", lambda _, streams: speeds[streams])
        Opening(variant="fp32", threads=2, memory=tmp_path / "cache")(folder)
        return opened[-1][1]

    narrow, wide = {1: (10.0, 0.1), 2: (15.0, 0.1)}, {1: (10.0, 0.1), 2: (5.0, 0.1)}
    assert started_on("AMD EPYC", narrow) == 2
    assert started_on("Ampere Altra", wide) == 1
    assert started_on("AMD EPYC", wide) == 2, "remembered"


def test_a_voice_opens_with_what_is_known_to_be_the_fastest(
    opened: list[tuple[str, int]], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(_folder: Path, _spec: VoiceSpec, names: list[str], **_: Any) -> dict[str, float]:
        return {name: 1.0 if name == "quick" else 2.0 for name in names}

    monkeypatch.setattr("shared.voice.selection.measure_variants", measured)

    def undisturbed() -> bool:
        return True

    first = Opening(variant="auto", threads=2, streams=1, memory=tmp_path / "cache")
    first(folder)
    assert first.choose(folder, undisturbed) == "quick"
    first(folder)
    # Another start knows it at once; where nothing can be kept, the same start knows it still.
    Opening(variant="auto", threads=2, streams=1, memory=tmp_path / "cache")(folder)
    forgetful = Opening(variant="auto", threads=2, streams=1)
    forgetful.choose(folder, undisturbed)
    forgetful(folder)
    # A variant that somebody asked for is not measured.
    chosen = Opening(variant="fp32", threads=2, streams=1)
    assert chosen.choose(folder, lambda: pytest.fail("measured")) == "fp32"
    assert opened == [("fp32", 1), ("quick", 1), ("quick", 1), ("quick", 1)]
    assert list(json.loads((tmp_path / "cache" / "variants.json").read_text()).values()) == ["quick"]


def test_what_a_voice_needs_is_asked_of_the_variant_and_the_streams_that_it_is_opened_with(
    opened: list[tuple[str, int]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Variant, int]] = []

    def needed(_folder: Path, variant: Variant, streams: int, *, speakers: int) -> int:
        assert speakers == VoiceSpec.read(folder).num_speakers
        asked.append((variant, streams))
        return 10

    monkeypatch.setattr(layout, "memory_of", needed)
    monkeypatch.setattr(layout, "measure", lambda _, streams: (10.0 * streams, 0.1))
    variants = VoiceSpec.read(folder).variants
    opening = Opening(variant="quick", threads=4)
    assert opening.memory_of(folder) == 10
    opening(folder)
    assert opened[-1] == ("quick", 4)
    opening.memory_of(folder)
    Opening(variant="auto", streams=2).memory_of(folder)
    Opening(variant="auto", streams=2).memory_of(folder, "quick")
    assert asked == [
        (variants["quick"], 1),
        (variants["quick"], 4),
        (variants["fp32"], 2),
        (variants["quick"], 2),
    ]
    with pytest.raises(NotFoundError, match="no variant 'quik', did you mean 'quick'"):
        Opening(variant="quik").memory_of(folder)
