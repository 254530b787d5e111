"""A machine that was never measured, and a load for it."""

from __future__ import annotations

import pytest

from services.planning.profile import Profile
from services.planning.simulation import TextWork, works
from services.planning.workload import draw_texts, parse_distribution, plan_texts
from shared.text import FrontEnd
from shared.voice import VoiceSpec
from tests.unit.shared.voice.conftest import spec_fields

ALPHABET = "_abcdefghijklmnopqrstuvwxyzáéíñóúü ,.¿?"


def make_profile(**changes: object) -> Profile:
    """Ten milliseconds of audio a frame; 0.1 engine seconds for a second of it."""
    spec = spec_fields(
        hop_length=160,
        token_buckets=[64, 128, 256],
        decoder={"halo_frames": 10, "first_window_frames": 30, "window_frames": 120},
    )
    spec["front_end"]["vocab"] = {character: number for number, character in enumerate(ALPHABET)}
    facts: dict[str, object] = {
        "voice": "ana/1",
        "variant": "fp32",
        "machine": "none",
        "threads": 2,
        "streams": 1,
        "spec": VoiceSpec.model_validate(spec),
        "planning_seconds_per_character": 2e-5,
        "frames_per_token": 6.0,
        "frames_deviation": 0.1,
        "render_seconds": (0.005, 1e-4, 2e-5),
        "decode_seconds": {40: 0.05, 50: 0.05, 80: 0.08, 110: 0.11, 140: 0.14},
        "render_spread": [0.8, 1.0, 1.2],
        "decode_spread": [0.9, 1.0, 1.1],
    }
    return Profile(**{**facts, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def profile() -> Profile:
    return make_profile()


def make_texts(profile: Profile, distribution: str) -> list[TextWork]:
    drawn = draw_texts(parse_distribution(distribution), "es", seed=0)
    return works(plan_texts(drawn, FrontEnd.from_spec(profile.spec.front_end), "es"), profile, seed=0)


@pytest.fixture(scope="session")
def texts(profile: Profile) -> list[TextWork]:
    return make_texts(profile, "lognormal:80,0.5")
