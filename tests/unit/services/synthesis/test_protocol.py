"""The protocol: its generated code is that of its source, and its form what buf's standard rules ask for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

import shared.protos
from shared.protos.compatibility import CONTRACT, breaks, describe
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


def test_nothing_that_was_published_changes() -> None:
    published = json.loads(CONTRACT.read_text())
    now = describe(pb.DESCRIPTOR)
    assert breaks(published, now) == [], "within v1 fields and methods are only ever added"
    assert published == now, "something was added: run 'make proto'"


def test_the_contract_holds_what_the_first_release_promised() -> None:
    """The contract itself is a file that somebody could edit: these lines are not made from anything."""
    request = json.loads(CONTRACT.read_text())["messages"]["SynthesizeRequest"]
    assert {number: request[number]["name"] for number in "12345678"} == {
        "1": "text",
        "2": "voice",
        "3": "speaker",
        "4": "seed",
        "5": "speaking_rate",
        "6": "noise_scale",
        "7": "noise_scale_duration",
        "8": "audio_format",
    }
    assert request["4"] == {
        "name": "seed",
        "type": "uint64",
        "repeated": False,
        "presence": True,
        "oneof": "_seed",
    }


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("string language = 9;", "string language = 19;", "SynthesizeRequest.9: was removed"),
        ("string language = 9;", "string tongue = 9;", "9.name: was 'language' and is 'tongue'"),
        ("string language = 9;", "bytes language = 9;", "9.type: was 'string' and is 'bytes'"),
        ("string language = 9;", "repeated string language = 9;", "9.repeated: was False and is True"),
        ("optional uint64 seed = 4;", "uint64 seed = 4;", "4.presence: was True and is False"),
        ("AUDIO_FORMAT_MP3 = 4;", "AUDIO_FORMAT_OGG = 4;", "4: was 'AUDIO_FORMAT_MP3'"),
        ("PRIORITY_BULK = 2;", "", "Priority.2: was removed"),
        ("returns (stream SynthesizeStreamResponse)", "returns (SynthesizeStreamResponse)", "server_streams"),
        ("string consent = 6;", "string consent = 6; string more = 99;", None),
    ],
)
def test_a_change_that_breaks_clients_is_found(
    before: str, after: str, found: str | None, tmp_path: Path
) -> None:
    """Each is compiled and compared with the contract."""
    text = (FOLDER / "synthesis.proto").read_text()
    assert text.count(before) == 1
    changed = tmp_path / "changed.proto"
    changed.write_text(text.replace(before, after))
    made = tmp_path / "set"
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={tmp_path}", "--include_imports"]
    subprocess.run([*protoc, f"--descriptor_set_out={made}", changed], check=True)
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(made.read_bytes()).file:
        pool.Add(file)
    problems = breaks(json.loads(CONTRACT.read_text()), describe(pool.FindFileByName("changed.proto")))
    if found is None:
        assert problems == []
    else:
        assert any(found in problem for problem in problems), problems
