"""The window plans: every frame once, with its halo, in few widths."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.voice import VoiceSpec
from shared.voice.spec import DecoderPlan
from shared.voice.windows import Window, plan_flow, plan_windows
from tests.unit.shared.voice.conftest import spec_fields

plans = st.builds(
    DecoderPlan,
    halo_frames=st.integers(0, 20),
    first_window_frames=st.integers(1, 40),
    window_frames=st.integers(1, 100),
)


@settings(deadline=None)
@given(st.integers(1, 1000), plans)
def test_every_frame_is_yielded_once_with_its_halo(frames: int, plan: DecoderPlan) -> None:
    windows = plan_windows(frames, plan)
    yielded = [frame for window in windows for frame in range(window.first, window.last)]
    assert yielded == list(range(frames))
    for window in windows:
        # Left: the whole halo, or the very beginning. Right: the whole halo, zeros past the end included.
        assert window.start == max(0, window.first - plan.halo_frames)
        assert window.start + window.width >= window.last + plan.halo_frames
    assert windows[-1].start + windows[-1].width >= frames + plan.halo_frames


@settings(deadline=None)
@given(plans)
def test_the_widths_are_few(plan: DecoderPlan) -> None:
    widths = {window.width for frames in range(1, 400) for window in plan_windows(frames, plan)}
    assert len(widths) <= 2 + -(-plan.window_frames // plan.first_window_frames)


def test_the_first_window_is_short_and_the_last_no_longer_than_it_must_be() -> None:
    plan = DecoderPlan(halo_frames=10, first_window_frames=32, window_frames=128)
    assert [(w.start, w.width, w.first, w.last) for w in plan_windows(32 + 128 + 40, plan)] == [
        (0, 42, 0, 32),
        (22, 148, 32, 160),
        (150, 84, 160, 200),
    ]


def test_a_cut_past_the_end_is_zero() -> None:
    latents = np.arange(10, dtype=np.float32).reshape(2, 5)
    cut = Window(start=3, width=4, first=3, last=5).cut(latents)
    np.testing.assert_array_equal(cut, [[[3, 4, 0, 0], [8, 9, 0, 0]]])
    assert Window(start=3, width=4, first=4, last=5).trim(np.arange(12, dtype=np.float32), 3).tolist() == [
        3,
        4,
        5,
    ]


@settings(deadline=None)
@given(st.integers(1, 1000), plans, st.integers(0, 40), st.integers(1, 64))
def test_the_flow_yields_every_frame_once_and_first_what_is_heard_first(
    frames: int, decoder: DecoderPlan, halo: int, multiple: int
) -> None:
    spec = VoiceSpec.model_validate(
        spec_fields(decoder=decoder.model_dump(), flow_halo_frames=halo, frame_multiple=multiple)
    )
    parts = plan_flow(frames, spec)
    assert [frame for part in parts for frame in range(part.first, part.last)] == [*range(frames)]
    for part in parts:
        assert part.start == max(0, part.first - halo)
        assert part.end >= min(frames, part.last + halo)
        assert part.width % multiple == 0
    assert parts[0].last >= min(frames, plan_windows(frames, decoder)[0].end)
    assert sum(part.width for part in parts) < frames + 2 * halo + 2 * multiple
    whole = plan_flow(frames, spec.model_copy(update={"flow_halo_frames": None}))
    assert [(part.first, part.last) for part in whole] == [(0, frames)]
    # Cut only where somebody would wait much longer for the whole.
    assert len(parts) == 1 or parts[0].width * 2 < frames
