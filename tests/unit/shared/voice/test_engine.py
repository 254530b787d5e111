"""ONNX Runtime behind the seam, on graphs of one node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from shared.errors import EngineError, ModelError
from shared.voice import OnnxRuntimeEngine
from shared.voice.spec import Variant

VARIANT = Variant(encoder="encoder.onnx", flow="flow.onnx", decoder="decoder.onnx", opset=18)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    for name in ("encoder", "flow", "decoder"):
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"])
        graph = helper.make_graph([helper.make_node("Neg", ["x"], [name])], "negation", [value], [output])
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10),
            tmp_path / f"{name}.onnx",
        )
    return tmp_path


def test_each_graph_is_its_own(folder: Path) -> None:
    engine = OnnxRuntimeEngine(folder, VARIANT, threads=1)
    for name in ("encoder", "flow", "decoder"):
        outputs = engine.run(name, {"x": np.array([1, 2], dtype=np.float32)})
        assert outputs.keys() == {name}
        np.testing.assert_array_equal(outputs[name], [-1, -2])
    engine.close()


def test_the_runtime_is_set_up_for_changing_shapes_and_neighbours(folder: Path) -> None:
    options = OnnxRuntimeEngine(folder, VARIANT, threads=2).sessions["decoder"].get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.inter_op_num_threads == 1
    assert options.enable_mem_pattern is False
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_missing_graph(folder: Path) -> None:
    (folder / "flow.onnx").unlink()
    with pytest.raises(ModelError, match=r"flow\.onnx is missing"):
        OnnxRuntimeEngine(folder, VARIANT)


def test_a_damaged_graph(folder: Path) -> None:
    (folder / "flow.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelError, match=r"flow\.onnx is not a graph"):
        OnnxRuntimeEngine(folder, VARIANT)


def test_a_failed_computation(folder: Path) -> None:
    engine = OnnxRuntimeEngine(folder, VARIANT, threads=1)
    with pytest.raises(EngineError, match="could not compute the flow"):
        engine.run("flow", {"y": np.zeros(1, dtype=np.float32)})
