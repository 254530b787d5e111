"""What voices are taken to need in memory, beside what they were measured to hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.voice.memory import BYTES_OF_A_STREAM, memory_of
from shared.voice.spec import Variant

MB = 1 << 20

#: MB of the graphs' files: a Piper medium voice, and one of MMS's size.
JOE, MMS = 67.7, 164.5

VARIANTS = {
    "fp32": {},
    "int8-onnxruntime": {"precision": "int8"},
    "fp32-openvino": {"engine": "openvino"},
    "bf16": {"engine": "openvino", "precision": "bf16"},
    "int8": {"engine": "openvino", "precision": "int8"},
    "int8-bf16": {"engine": "openvino", "precision": "int8", "rest": "bf16"},
}

#: MB that a voice held after a long text, by variant and streams: the first of a process, and one more (docs/log.md,
#: 2026-11-27; `memory_of` is to be fitted again where a runtime's new version makes them others).
MEASURED = [
    ("fp32", 1, JOE, 139, 124),
    ("fp32", 2, JOE, 187, 162),
    ("fp32", 1, MMS, 177, 164),
    ("fp32", 2, MMS, 232, 221),
    ("int8-onnxruntime", 1, JOE, 140, 125),
    ("int8-onnxruntime", 2, JOE, 159, 129),
    ("int8-onnxruntime", 1, MMS, 167, 145),
    ("int8-onnxruntime", 2, MMS, 220, 188),
    ("fp32-openvino", 1, JOE, 384, 280),
    ("fp32-openvino", 2, JOE, 535, 403),
    ("fp32-openvino", 1, MMS, 800, 622),
    ("fp32-openvino", 2, MMS, 1042, 790),
    ("bf16", 1, JOE, 304, 203),
    ("bf16", 2, JOE, 424, 296),
    ("bf16", 1, MMS, 623, 418),
    ("bf16", 2, MMS, 805, 526),
    ("int8", 1, JOE, 397, 296),
    ("int8", 2, JOE, 556, 433),
    ("int8", 1, MMS, 709, 547),
    ("int8", 2, MMS, 953, 732),
    ("int8-bf16", 1, JOE, 327, 227),
    ("int8-bf16", 2, JOE, 448, 322),
    ("int8-bf16", 1, MMS, 623, 458),
    ("int8-bf16", 2, MMS, 826, 617),
]


def variant(**fields: str) -> Variant:
    return Variant.model_validate(
        {"encoder": "fp32/e.onnx", "flow": "fp32/f.onnx", "decoder": "fp32/d.onnx", "opset": 18, **fields}
    )


def graphs(folder: Path, megabytes: float) -> None:
    """A set of graphs of a size, without contents."""
    folder.mkdir()
    with (folder / "decoder.onnx").open("wb") as file:
        file.truncate(round(megabytes * MB))


@pytest.mark.parametrize(("name", "streams", "megabytes", "first", "further"), MEASURED)
def test_a_voice_is_taken_to_need_what_it_was_measured_to_hold(
    tmp_path: Path, name: str, streams: int, megabytes: float, first: int, further: int
) -> None:
    graphs(tmp_path / "fp32", megabytes)
    needed = memory_of(tmp_path, variant(**VARIANTS[name]), streams) / MB
    assert 2 / 3 * first < needed
    assert 0.94 * further < needed < 4 / 3 * further + 50


@pytest.mark.parametrize(
    ("name", "further"), [("int8", 55), ("int8-bf16", 44), ("fp32-openvino", 0), ("fp32", 0)]
)
def test_streams_of_several_speakers_in_int8_share_no_compilation(
    tmp_path: Path, name: str, further: int
) -> None:
    """MB that two streams with a compilation each held more than two with one (Joe; docs/log.md, 2026-11-27)."""
    graphs(tmp_path / "fp32", JOE)

    def needed(streams: int, speakers: int) -> float:
        return memory_of(tmp_path, variant(**VARIANTS[name]), streams, speakers=speakers) / MB

    assert needed(1, 3) == needed(1, 1)
    assert needed(2, 3) - needed(2, 1) == pytest.approx(further, rel=0.1)


def test_the_largest_set_of_graphs_counts(tmp_path: Path) -> None:
    """One in int8 is small as a file, and not in memory."""
    graphs(tmp_path / "fp32", 100)
    graphs(tmp_path / "int8", 30)
    (tmp_path / "report.html").write_bytes(b"x" * MB)
    for precision in ("fp32", "int8"):
        assert memory_of(tmp_path, variant(precision=precision), 1) == 100 * MB + BYTES_OF_A_STREAM
