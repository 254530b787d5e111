"""The protocol: its generated code is that of its source, and its form what buf's standard rules ask for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import shared.protos
from shared.protos.vits.synthesis.v1 import synthesis_pb2 as pb

ROOT = Path(shared.protos.__file__).parent
FOLDER = ROOT / "vits" / "synthesis" / "v1"


def test_the_generated_code_is_not_stale(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        [ROOT / "generate.sh", tmp_path], check=True, env=os.environ | {"PATH": path}, capture_output=True
    )
    made = {file.name: file.read_text() for file in (tmp_path / "shared/protos/vits/synthesis/v1").iterdir()}
    committed = {file.name: file.read_text() for file in FOLDER.glob("*_pb2*")}
    assert made.keys() == committed.keys()
    stale = [name for name, text in made.items() if committed[name] != text]
    assert stale == [], "run 'make proto'"


def test_names_follow_bufs_standard_rules() -> None:
    file = pb.DESCRIPTOR
    assert file.package == "vits.synthesis.v1"
    assert [*FOLDER.parts[-3:]] == file.package.split(".")
    for service in file.services_by_name.values():
        assert service.name.endswith("Service")
        for method in service.methods:
            assert method.input_type.name == f"{method.name}Request"
            assert method.output_type.name == f"{method.name}Response"
    for enum in file.enum_types_by_name.values():
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
        assert enum.values_by_number[0].name == f"{prefix}UNSPECIFIED"
        assert all(value.name.startswith(prefix) for value in enum.values)
    for message in file.message_types_by_name.values():
        assert all(re.fullmatch(r"[a-z][a-z0-9_]*", field.name) for field in message.fields)


def test_numbers_never_change() -> None:
    """Within v1 a number keeps its meaning for ever: extend these lists, change nothing in them."""

    def numbers(message: str) -> dict[int, str]:
        return {field.number: field.name for field in pb.DESCRIPTOR.message_types_by_name[message].fields}

    assert numbers("SynthesizeRequest") == {
        1: "text",
        2: "voice",
        3: "speaker",
        4: "seed",
        5: "speaking_rate",
        6: "noise_scale",
        7: "noise_scale_duration",
        8: "audio_format",
    }
    assert numbers("SynthesizeResponse") == {
        1: "audio",
        2: "audio_format",
        3: "sampling_rate",
        4: "seed",
        5: "voice",
        6: "voice_version",
        7: "duration_seconds",
        8: "unknown",
    }
    assert dict(pb.AudioFormat.items()) == {
        "AUDIO_FORMAT_UNSPECIFIED": 0,
        "AUDIO_FORMAT_WAV": 1,
        "AUDIO_FORMAT_PCM": 2,
    }
