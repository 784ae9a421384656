"""Element types of tensors, and what everybody calls them: the one table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from longlive_trt.errors import EngineError

Key = TypeVar("Key")


@dataclass(frozen=True)
class ElementType:
    name: str
    """Ours: of device tensors, in kernels and in messages."""
    numpy: np.dtype[np.generic]
    """torch's types have the same names."""
    onnx: int
    """Of onnx.TensorProto.DataType."""
    recorded: str
    """ONNX's name in lower case, as exports' records and manifests have it."""
    tensorrt: str
    cublaslt: int | None
    """Of cudaDataType, where products of matrices take it."""
    triton: str | None

    @property
    def item_bytes(self) -> int:
        return self.numpy.itemsize

    @property
    def onnxruntime(self) -> str:
        return f"tensor({self.recorded})"


_TABLE: tuple[tuple[str, Any, int, str, str, int | None, str | None], ...] = (
    ("float32", np.float32, 1, "float", "FLOAT", 0, "TYPE_FP32"),
    ("float16", np.float16, 10, "float16", "HALF", 2, "TYPE_FP16"),
    ("bfloat16", ml_dtypes.bfloat16, 16, "bfloat16", "BF16", 14, "TYPE_BF16"),
    ("float8_e4m3", ml_dtypes.float8_e4m3fn, 17, "float8e4m3fn", "FP8", 28, None),
    ("int8", np.int8, 3, "int8", "INT8", None, "TYPE_INT8"),
    ("uint8", np.uint8, 2, "uint8", "UINT8", None, "TYPE_UINT8"),
    ("int32", np.int32, 6, "int32", "INT32", None, "TYPE_INT32"),
    ("int64", np.int64, 7, "int64", "INT64", None, "TYPE_INT64"),
    ("bool", np.bool_, 9, "bool", "BOOL", None, "TYPE_BOOL"),
)
TYPES = tuple(
    ElementType(name, np.dtype(numpy), onnx, recorded, tensorrt, cublaslt, triton)
    for name, numpy, onnx, recorded, tensorrt, cublaslt, triton in _TABLE
)
FLOAT32, FLOAT16, BFLOAT16, FLOAT8, INT8, UINT8, INT32, INT64, BOOL = TYPES
QUANTIZED_TYPES = (FLOAT8, INT8)


def _index(key: Callable[[ElementType], Key]) -> Mapping[Key, ElementType]:
    return {key(element): element for element in TYPES}


BY_NAME = _index(lambda element: element.name)
BY_NUMPY = _index(lambda element: element.numpy)
BY_ONNX = _index(lambda element: element.onnx)
BY_ONNXRUNTIME = _index(lambda element: element.onnxruntime)
BY_TENSORRT = _index(lambda element: element.tensorrt)
_BY_RECORDED = _index(lambda element: element.recorded)


def name_of(dtype: np.dtype[Any]) -> str:
    """Ours, also where there is none."""
    return BY_NUMPY[dtype].name if dtype in BY_NUMPY else dtype.name


def is_recorded(name: str) -> bool:
    return name in _BY_RECORDED


def recorded_type(name: str) -> ElementType:
    """The type of a tensor in an export's record or a manifest."""
    if name not in _BY_RECORDED:
        raise EngineError(
            f"a tensor of type {name}, which this version does not know; known are "
            f"{', '.join(_BY_RECORDED)}"
        )
    return _BY_RECORDED[name]
