"""The one table of element types, against those who gave the names."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from longlive_trt import dtypes
from longlive_trt.contract import KERNEL_OPERATORS
from longlive_trt.dtypes import TYPES, ElementType
from longlive_trt.errors import EngineError

every_type = pytest.mark.parametrize("element", TYPES, ids=lambda element: element.name)


@every_type
def test_onnx(element: ElementType) -> None:
    kind = ir.DataType(element.onnx)
    assert element.recorded == kind.name.lower()
    assert element.numpy == kind.numpy()
    assert element.numpy == onnx.helper.tensor_dtype_to_np_dtype(element.onnx)
    assert element.item_bytes == element.numpy.itemsize == kind.itemsize


@every_type
def test_onnxruntime(element: ElementType) -> None:
    ort = pytest.importorskip("onnxruntime")
    info = onnx.helper.make_tensor_value_info("x", element.onnx, [1])
    result = onnx.helper.make_tensor_value_info("y", element.onnx, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "one", [info], [result])
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == element.onnxruntime
    assert dtypes.BY_ONNXRUNTIME[session.get_inputs()[0].type] is element


@every_type
def test_torch_has_numpys_names(element: ElementType) -> None:
    pytest.importorskip("torch")
    from longlive_trt.export.torch_types import torch_type

    assert torch_type(element).itemsize == element.item_bytes


@every_type
def test_tensorrt(element: ElementType) -> None:
    rtx: Any = pytest.importorskip("tensorrt_rtx_bindings")
    kind = rtx.DataType.__members__[element.tensorrt]
    assert kind.itemsize == element.item_bytes


@every_type
def test_cuda(element: ElementType) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    names = {"float32": "32F", "float16": "16F", "bfloat16": "16BF", "float8_e4m3": "8F_E4M3"}
    if element.name not in names:
        assert element.cublaslt is None
        return
    assert int(getattr(runtime.cudaDataType, f"CUDA_R_{names[element.name]}")) == element.cublaslt


def test_a_type_has_a_name_of_its_own_everywhere() -> None:
    for field in ("name", "numpy", "onnx", "recorded", "tensorrt"):
        assert len({getattr(element, field) for element in TYPES}) == len(TYPES)


def test_kernels_write_types_of_the_table() -> None:
    written = {name for names in KERNEL_OPERATORS for name in names.split(", ")}
    assert written <= dtypes.BY_NAME.keys()


def test_names_of_numpys_types() -> None:
    assert dtypes.name_of(dtypes.FLOAT8.numpy) == "float8_e4m3"
    assert dtypes.name_of(np.dtype(np.float16)) == "float16"
    assert dtypes.name_of(np.dtype(np.complex64)) == "complex64"


def test_unknown_types_of_a_record() -> None:
    assert dtypes.recorded_type("float") is dtypes.FLOAT32
    with pytest.raises(EngineError, match=r"of type float64, .*; known are float, float16, bfl"):
        dtypes.recorded_type("float64")
