"""When words and tokens are heard."""

from __future__ import annotations

import json

import pytest

from shared.text import FrontEnd
from shared.text.script import plan_script
from shared.text.timestamps import Timed, to_json, to_srt, to_vtt, token_times, word_times


def test_times_follow_durations_and_pauses(mms: FrontEnd) -> None:
    script = plan_script("ab cd. ef", mms, language="es")
    durations = [[1] * len(segment.tokens.ids) for segment in script.segments]
    times = word_times(script, durations, hop_length=100, sampling_rate=1000)
    assert times == [Timed("ab", 0.0, 0.5), Timed("cd", 0.6, 1.1), Timed("ef", 1.4, 1.9)]
    tokens = token_times(script, durations, hop_length=100, sampling_rate=1000)
    assert len(tokens) == 16
    assert tokens[11] == Timed(" ", 1.4, 1.5)
    assert word_times(script, durations[:1], hop_length=100, sampling_rate=1000) == times[:2]


def test_a_break_has_no_tokens_and_takes_time(mms: FrontEnd) -> None:
    script = plan_script('<speak><break time="2s"/>ab</speak>', mms, language="es", ssml=True)
    (word,) = word_times(script, [[], [1] * 5], hop_length=100, sampling_rate=1000)
    assert word == Timed("ab", 2.0, 2.5)


def test_durations_of_the_wrong_length_are_noticed(mms: FrontEnd) -> None:
    script = plan_script("ab", mms, language="es")
    with pytest.raises(ValueError, match="5 tokens"):
        word_times(script, [[1] * 4], hop_length=100, sampling_rate=1000)


def test_formats() -> None:
    words = [Timed("¿Qué", 0.0, 0.5), Timed("a --> <b>\n\nc", 3661.0004, 3662.9996)]
    assert json.loads(to_json(words))["words"][0] == {
        "text": "¿Qué",
        "start_seconds": 0.0,
        "end_seconds": 0.5,
    }
    assert to_srt(words).startswith(
        "1\n00:00:00,000 --> 00:00:00,500\n¿Qué\n\n2\n01:01:01,000 --> 01:01:03,000\n"
    )
    vtt = to_vtt(words)
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:00.500\n¿Qué\n\n")
    assert vtt.count("-->") == 2
    assert "&lt;b&gt; c" in vtt
