"""``voice.json``: what it accepts, what it refuses and how it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ModelError, NotFoundError, RequestError
from shared.voice import VoiceSpec
from shared.voice.spec import schema_text


def test_what_is_written_is_what_is_read(fields: dict[str, Any], tmp_path: Path) -> None:
    fields["variants"]["bf16"] = {
        **fields["variants"]["fp32"],
        "engine": "openvino",
        "device": "cpu",
        "precision": "bf16",
        "rest": "fp32",
        "requires": ["avx512_bf16", "amx_bf16"],
        "gate": "passed",
    }
    fields["variants"]["fp32"] = {
        **fields["variants"]["bf16"],
        "engine": "onnxruntime",
        "precision": "fp32",
        "requires": [],
        "gate": "reference",
    }
    fields["recommended"] = ["bf16", "fp32"]
    spec = VoiceSpec.model_validate(fields)
    spec.write(tmp_path)
    assert VoiceSpec.read(tmp_path) == spec
    assert json.loads((tmp_path / "voice.json").read_text()) == {
        **fields,
        "front_end": spec.front_end,
    }


def test_voices_from_before_there_were_variants_are_read(fields: dict[str, Any]) -> None:
    assert fields["variants"]["fp32"].keys() == {"encoder", "flow", "decoder", "opset"}
    spec = VoiceSpec.model_validate(fields)
    assert (spec.variant("fp32").engine, spec.variant("fp32").precision) == ("onnxruntime", "fp32")
    assert spec.recommended == []


@pytest.mark.parametrize(
    ("precision", "rest", "arithmetic"),
    [("fp32", "fp32", "fp32"), ("bf16", "fp32", "bf16"), ("int8", "fp32", "fp32"), ("int8", "bf16", "bf16")],
)
def test_what_is_not_quantised_has_a_precision_too(
    fields: dict[str, Any], precision: str, rest: str, arithmetic: str
) -> None:
    fields["variants"]["fp32"].update(precision=precision, rest=rest)
    assert VoiceSpec.model_validate(fields).variant("fp32").arithmetic == arithmetic


def test_a_folder_without_a_voice(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not a voice folder.*vits export"):
        VoiceSpec.read(tmp_path)


def test_every_fault_is_listed(fields: dict[str, Any], tmp_path: Path) -> None:
    fields.update(sampling_rate="16000", schema_version=2, surprise=1)
    del fields["licence"]
    (tmp_path / "voice.json").write_text(json.dumps(fields))
    with pytest.raises(ModelError) as caught:
        VoiceSpec.read(tmp_path)
    for field in ("sampling_rate", "schema_version", "surprise", "licence"):
        assert f"- {field}:" in str(caught.value)


@pytest.mark.parametrize("path", ["../encoder.onnx", "/etc/passwd", "fp32/../../x.onnx"])
def test_graphs_stay_inside_the_folder(fields: dict[str, Any], path: str) -> None:
    fields["variants"]["fp32"]["encoder"] = path
    with pytest.raises(ValueError, match="leads out"):
        VoiceSpec.model_validate(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_buckets": [16, 8]}, "ascend"),
        ({"token_buckets": [8, 8]}, "ascend"),
        ({"token_buckets": []}, "at least 1"),
        ({"speakers": {"eva": 3}}, "past num_speakers"),
        ({"variants": {}}, "at least 1"),
        ({"recommended": ["int8"]}, "which the voice has not"),
        (
            {"defaults": {"noise_scale": float("nan"), "noise_scale_duration": 0.8, "speaking_rate": 1.0}},
            "finite",
        ),
        (
            {"defaults": {"noise_scale": 0.6, "noise_scale_duration": 0.8, "speaking_rate": 0.0}},
            "greater than 0",
        ),
    ],
)
def test_nonsense_is_refused(fields: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VoiceSpec.model_validate({**fields, **change})


def test_token_buckets_depend_on_the_length_alone(fields: dict[str, Any]) -> None:
    spec = VoiceSpec.model_validate(fields)
    lengths = [1, 8, 9, 32, 33, 64, 65]
    assert [spec.token_bucket(length) for length in lengths] == [8, 8, 16, 32, 64, 64, 96]
    assert [spec.frame_bucket(length) for length in (1, 8, 9)] == [8, 8, 16]


@pytest.mark.parametrize(("speaker", "number"), [(None, 0), ("luis", 2), ("1", 1), (2, 2)])
def test_speakers_by_name_and_number(fields: dict[str, Any], speaker: str | int | None, number: int) -> None:
    assert VoiceSpec.model_validate(fields).speaker_id(speaker) == number


@pytest.mark.parametrize("speaker", ["lu", "", "-1", "²", 3, -1])
def test_unknown_speakers(fields: dict[str, Any], speaker: str | int) -> None:
    with pytest.raises(RequestError, match=r"[.?] It has ana, luis") as caught:
        VoiceSpec.model_validate(fields).speaker_id(speaker)
    assert caught.value.param == "speaker"


@pytest.mark.parametrize(
    ("speakers", "words"), [({}, "one speaker only: leave"), ({"ana": 0}, "only, 'ana': leave")]
)
def test_the_only_speaker_needs_no_name(fields: dict[str, Any], speakers: dict[str, int], words: str) -> None:
    spec = VoiceSpec.model_validate(fields | {"num_speakers": 1, "speakers": speakers})
    assert spec.speaker_id(0) == spec.speaker_id(None) == 0
    with pytest.raises(RequestError, match=words):
        spec.speaker_id("juan")


def test_an_unknown_variant_names_those_there_are(fields: dict[str, Any]) -> None:
    with pytest.raises(NotFoundError, match=r"'fp23', did you mean 'fp32'\? It has fp32"):
        VoiceSpec.model_validate(fields).variant("fp23")


def test_the_committed_schema_is_current() -> None:
    committed = Path(__file__).parents[4] / "shared/schemas/voice.json"
    assert committed.read_text(encoding="utf-8") == schema_text(), (
        "write shared.voice.spec.schema_text() into it"
    )
