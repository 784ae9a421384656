"""Kernel nodes in ONNX Runtime, on a CPU: the bridge in C, its callbacks, and its errors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from longlive_trt.contract import KERNEL_DOMAIN, KERNEL_OPERATORS
from longlive_trt.errors import PluginError
from longlive_trt.plugins import onnxruntime_bridge
from longlive_trt.plugins.kernels.base import spec_of
from longlive_trt.plugins.kernels.registry import KERNELS, kernel_of
from longlive_trt.plugins.onnxruntime_bridge import SessionNodes
from tests.fakes.sessions import kernel_session

ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
}


class Scaled:
    """Two outputs: the input, and the input times a parameter plus the second input's sum."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def output_shapes(self, inputs: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        if inputs[0][-1] != 4:
            raise PluginError(f"rows of {inputs[0][-1]} do not fit")
        return [inputs[0], (*inputs[0], 1)]

    def launch(self, inputs: Any, outputs: Any, place: Any) -> None:
        raise AssertionError("there is no device here")

    def compute(self, inputs: Any, outputs: Any) -> None:
        outputs[0][...] = inputs[0]
        outputs[1][..., 0] = inputs[0] * self.factor + inputs[1].sum()


@pytest.fixture(autouse=True)
def known_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, "scaled", Scaled)


def graph(dtype: str = "float32", kernel: str = "scaled") -> ModelProto:
    spec = spec_of(kernel, {"factor": 3})
    node = helper.make_node(
        KERNEL_OPERATORS[dtype], ["x", "n"], ["a", "b"], domain=KERNEL_DOMAIN, spec=spec
    )
    made = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("x", ONNX_TYPES[dtype], ["rows", "columns"]),
            helper.make_tensor_value_info("n", TensorProto.INT64, [2]),
        ],
        [helper.make_tensor_value_info(name, ONNX_TYPES[dtype], None) for name in "ab"],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(KERNEL_DOMAIN, 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def session(model: ModelProto) -> Any:
    return kernel_session(model.SerializeToString())


@pytest.mark.parametrize("dtype", ONNX_TYPES)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_node_computes_in_every_type_and_size(dtype: str, rows: int) -> None:
    x = np.arange(rows * 4).reshape(rows, 4).astype(dtype)
    given = {"x": x, "n": np.array([1, 2], np.int64)}
    copied, scaled = session(graph(dtype)).run(None, given)
    assert copied.dtype == scaled.dtype == x.dtype
    np.testing.assert_array_equal(copied, x)
    np.testing.assert_array_equal(scaled, (x * 3 + 3).astype(dtype)[..., None])


def test_a_kernel_that_fails_stops_the_run_with_its_reason() -> None:
    given = {"x": np.zeros((2, 5), np.float32), "n": np.zeros(2, np.int64)}
    with pytest.raises(Exception, match="rows of 5 do not fit"):
        session(graph()).run(None, given)


def test_an_unknown_kernel_is_named_when_it_runs() -> None:
    given = {"x": np.zeros((2, 4), np.float32), "n": np.zeros(2, np.int64)}
    with pytest.raises(Exception, match="kernel 'other', which this version does not know"):
        session(graph(kernel="other")).run(None, given)


def test_sessions_do_not_mix_their_nodes() -> None:
    first, second = session(graph()), session(graph("float16"))
    for made, dtype in ((second, np.float16), (first, np.float32)):
        given = {"x": np.ones((1, 4), dtype), "n": np.zeros(2, np.int64)}
        assert made.run(None, given)[1].dtype == dtype


def test_a_library_that_is_none_is_refused(tmp_path: Any) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    with pytest.raises(PluginError, match="build the bundle on a machine of this kind"):
        SessionNodes(library=broken)


def test_without_a_compiler_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_bridge, "_COMPILERS", ("no-such-compiler",))
    monkeypatch.setattr(onnxruntime_bridge, "_FLAGS", ("-another",))
    with pytest.raises(PluginError, match="install gcc or clang"):
        onnxruntime_bridge.compiled_library.__wrapped__()


def test_spec_round_trip() -> None:
    assert kernel_of(spec_of("scaled", {"factor": 7})).factor == 7  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match=r"known are attention, .*, scaled, "):
        kernel_of(spec_of("unknown", {}))
