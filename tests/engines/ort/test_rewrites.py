"""Graphs in other operators compute the same."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from longlive_trt.engines.ort.rewrites import rewrite

SHAPE = [2, 3, 7, 5, 4]


def graph(*nodes: Any, **constants: Any) -> onnx.ModelProto:
    made = helper.make_graph(
        list(nodes),
        "norm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", 22)
    return helper.make_model(made, opset_imports=[opset], ir_version=10)


def norm(bound: str) -> onnx.ModelProto:
    """A channel norm as the exporter writes it."""
    least = np.float32(1e-12)
    return graph(
        helper.make_node("ReduceL2", ["x", "axes"], ["length"], keepdims=1),
        helper.make_node(bound, ["length", "least"], ["bounded"]),
        helper.make_node("Div", ["x", "bounded"], ["y"]),
        axes=np.array([2], np.int64),
        least=least,
    )


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    loaded = ir.from_proto(model)
    assert rewrite(loaded)
    return ir.to_proto(loaded)


@pytest.mark.parametrize("bound", ["Clip", "Max"])
def test_a_norm_is_the_same_in_faster_operators(bound: str) -> None:
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    x[0, 0, :, 0, 0] = 0
    before, after = norm(bound), rewritten(norm(bound))
    kinds = {node.op_type for node in after.graph.node}
    assert kinds == {"Mul", "ReduceSum", "Sqrt", bound, "Reciprocal"}
    np.testing.assert_allclose(run(after, x), run(before, x), rtol=3e-7, atol=0)


def test_a_length_that_divides_nothing_is_rewritten_too() -> None:
    node = helper.make_node("ReduceL2", ["x", "axes"], ["y"], keepdims=0)
    model = graph(node, axes=np.array([1, 2], np.int64))
    x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    np.testing.assert_allclose(run(rewritten(model), x), run(model, x), rtol=1e-6)


def test_other_divisions_stay() -> None:
    model = graph(helper.make_node("Div", ["x", "two"], ["y"]), two=np.float32(2))
    loaded = ir.from_proto(model)
    assert not rewrite(loaded)
    assert [node.op_type for node in loaded.graph] == ["Div"]
