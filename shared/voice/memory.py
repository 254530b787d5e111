"""How much memory a voice is taken to need, said before it is opened.

The figures are a fit to what voices of two sizes held (docs/log.md, 2026-11-27): what one more voice adds to a process
in which another was opened before. The first one adds 100 to 280 MB more in OpenVINO: libraries, and what is used again
by the next.
"""

from __future__ import annotations

from pathlib import Path

from shared.voice.spec import Variant

#: Copies of the graphs' weights that an engine keeps, and those that each stream adds in what it computes. OpenVINO has
#: the decoder's weights once for each width of window, laid out for its kernels; weights in int8 take no less then.
COPIES = {"onnxruntime": 1.0, "openvino": 2.75}
COPIES_OF_A_STREAM = {"onnxruntime": 0.0, "openvino": 1.0}
#: Copies that each stream but one adds where it has a compilation of its own.
COPIES_OF_A_COMPILATION = 0.8
#: What a stream needs besides, whatever the voice's size.
BYTES_OF_A_STREAM = 50 << 20
#: Of these, what is left where an engine computes in half as many bits.
HALVED = 0.75

GRAPHS = frozenset({".onnx", ".bin", ".data", ".xml"})


def memory_of(folder: Path, variant: Variant, streams: int, *, speakers: int = 1) -> int:
    """Bytes of memory that a voice is taken to need.

    Args:
        folder: The voice folder; what counts is its largest set of graphs.
        variant: Which of its variants.
        streams: Computations at once. They were measured up to two; more are taken to need as much each.
        speakers: How many the voice has. Of several, OpenVINO's streams cannot share what is compiled in int8.
    """
    sizes: dict[Path, int] = {}
    for path in folder.rglob("*"):
        if path.suffix in GRAPHS:
            sizes[path.parent] = sizes.get(path.parent, 0) + path.stat().st_size
    weights = max(sizes.values(), default=0)
    stream = BYTES_OF_A_STREAM + COPIES_OF_A_STREAM[variant.engine] * weights
    needed = COPIES[variant.engine] * weights + streams * stream
    if variant.engine == "openvino" and variant.precision == "int8" and speakers > 1:
        needed += (streams - 1) * COPIES_OF_A_COMPILATION * weights
    return int(needed * (HALVED if variant.arithmetic == "bf16" else 1))
