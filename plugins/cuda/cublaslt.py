"""Matrix products by cuBLASLt: bias and GELU in the same launch, float32 sums.

Everything that costs the host time (descriptors, the choice of an algorithm) is done when a
``Matmul`` is made or first called; after that a call is one call of the library, which may be
captured. The algorithm is the library's first proposal.
"""

import ctypes
import math
import weakref
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from longlive_trt.dtypes import TYPES
from longlive_trt.errors import PluginError
from longlive_trt.plugins.cuda.driver import device_facts
from longlive_trt.plugins.cuda.tensors import ITEM_BYTES

WORKSPACE_BYTES = 32 << 20
LIBRARY = "cublasLt"
_CANDIDATES = 8
_LARGEST_ALIGNMENT_BYTES = 256
_SMALLEST_ALIGNMENT_BYTES = 16

_COMPUTE_FLOAT32 = 68
_TYPES = {element.name: element.cublaslt for element in TYPES if element.cublaslt is not None}
_HALVES = ("float16", "bfloat16")
_FLOAT8 = "float8_e4m3"
_EPILOGUES = {("none", False): 1, ("none", True): 4, ("gelu", False): 32, ("gelu", True): 36}

# Attributes of a product, and of a preference.
_TRANSPOSE_A, _TRANSPOSE_B, _EPILOGUE, _BIAS_POINTER = 3, 4, 7, 8
_D_SCALE_POINTER, _FAST_ACCUMULATION, _BIAS_TYPE = 20, 25, 26
_MAX_WORKSPACE_BYTES = 1
_MIN_ALIGNMENTS = (5, 6, 7, 8)

_ZERO = ctypes.c_float(0.0)


class Algorithm(ctypes.Structure):
    """What the library proposes."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace_bytes", ctypes.c_size_t),
        ("status", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


@dataclass(frozen=True)
class Product:
    """x [rows, inner] times weight [inner, columns], dense and row by row.

    ``dtype`` is that of both factors; float8_e4m3 needs a transposed weight, [columns, inner], and
    can give float8_e4m3 too. The bias is in ``bias_dtype``, by default that of the result.
    ``alignment_bytes`` is what all addresses are multiples of.
    """

    rows: int
    inner: int
    columns: int
    dtype: str
    out_dtype: str
    bias: bool = False
    activation: str = "none"
    transposed: bool = False
    alignment_bytes: int = _LARGEST_ALIGNMENT_BYTES
    bias_dtype: str = ""

    def __post_init__(self) -> None:
        known = (*_HALVES, _FLOAT8)
        if self.dtype not in known or self.out_dtype not in known:
            raise PluginError(
                f"a product of {self.dtype} to {self.out_dtype}: allowed are {', '.join(known)}"
            )
        if self.dtype in _HALVES and self.dtype != self.out_dtype:
            raise PluginError(f"a product of {self.dtype} cannot give {self.out_dtype}")
        if self.side_dtype not in _HALVES:
            raise PluginError(
                f"bias_dtype is {self.bias_dtype!r}: a {self.out_dtype} result needs "
                f"{' or '.join(_HALVES)}"
            )
        if (self.activation, self.bias) not in _EPILOGUES:
            raise PluginError(f"activation is {self.activation!r}: choose none or gelu")
        if self.dtype == _FLOAT8 and not self.transposed:
            raise PluginError("a float8_e4m3 weight must be transposed: [columns, inner]")
        if min(self.rows, self.inner, self.columns) < 1:
            raise PluginError(f"an empty product: {self.rows} x {self.inner} x {self.columns}")
        if self.alignment_bytes < _SMALLEST_ALIGNMENT_BYTES:
            raise PluginError(
                f"tensors of a product must be aligned to {_SMALLEST_ALIGNMENT_BYTES} bytes"
            )
        self._check_rows()

    def _check_rows(self) -> None:
        for name, size, dtype in (
            ("inner", self.inner, self.dtype),
            ("columns", self.columns, self.out_dtype),
        ):
            multiple = _SMALLEST_ALIGNMENT_BYTES // ITEM_BYTES[dtype]
            if size % multiple:
                raise PluginError(f"{name} is {size}: it must be a multiple of {multiple}")

    @property
    def side_dtype(self) -> str:
        """Of the bias, and of what the library could add to the product."""
        return self.bias_dtype or self.out_dtype

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inner * self.columns


class Matmul:
    """One product. Calls must be ordered with others on the same workspace."""

    def __init__(
        self, product: Product, *, device: int = 0, algorithm: Algorithm | None = None
    ) -> None:
        """``algorithm``: in place of the library's first proposal."""
        self.product, self.device, self._algorithm = product, device, algorithm
        self._description = _description(product)
        self._layouts = _layouts(product)
        self._bias = self._out_factor = 0

    def __call__(
        self,
        x: int,
        weight: int,
        out: int,
        *,
        workspace: int,
        bias: int = 0,
        scale: float = 1.0,
        out_factor: int = 0,
        stream: int = 0,
    ) -> None:
        """Addresses in device memory. The product times ``scale`` is what the bias is added to.

        ``out_factor``, float32 [1], is what an 8-bit result is multiplied by at last. The
        ``workspace`` has ``WORKSPACE_BYTES``.
        """
        self._point(bias, out_factor)
        if self._algorithm is None:
            self._algorithm = _first_proposal(self.product, self.device)
        factor_a, factor_b, addend, result = (layout.pointer for layout in self._layouts)
        pointer = ctypes.c_void_p
        status = _library().cublasLtMatmul(
            pointer(_handle(self.device)),
            self._description.pointer,
            ctypes.byref(ctypes.c_float(scale)),
            *(pointer(weight), factor_a),
            *(pointer(x), factor_b),
            # Nothing is added, so nothing is read; but a result of another type may not lie there.
            ctypes.byref(_ZERO),
            *(pointer(x if self.product.out_dtype == _FLOAT8 else out), addend),
            *(pointer(out), result),
            ctypes.byref(self._algorithm),
            pointer(workspace),
            ctypes.c_size_t(WORKSPACE_BYTES),
            pointer(stream),
        )
        _check(status, f"multiply {self.product}")

    def _point(self, bias: int, out_factor: int) -> None:
        if bool(bias) != self.product.bias:
            raise PluginError("a product was made with a bias and called without, or the reverse")
        if bool(out_factor) != (self.product.out_dtype == _FLOAT8):
            raise PluginError("out_factor belongs to a float8_e4m3 result, and only to it")
        if bias != self._bias:
            _set_attribute(self._description, _BIAS_POINTER, ctypes.c_uint64(bias))
            self._bias = bias
        if out_factor != self._out_factor:
            _set_attribute(self._description, _D_SCALE_POINTER, ctypes.c_uint64(out_factor))
            self._out_factor = out_factor


class _Owned:
    """A descriptor of the library, destroyed with its owner."""

    def __init__(self, kind: str, *arguments: Any) -> None:
        self.pointer = ctypes.c_void_p()
        create = getattr(_library(), f"cublasLt{kind}Create")
        _check(create(ctypes.byref(self.pointer), *arguments), f"describe a product ({kind})")
        destroy = getattr(_library(), f"cublasLt{kind}Destroy")
        weakref.finalize(self, destroy, self.pointer)
        self.kind = kind


def alignment_of(*pointers: int) -> int:
    return math.gcd(_LARGEST_ALIGNMENT_BYTES, *pointers)


def _description(product: Product) -> _Owned:
    """The library sees columns where we have rows, so it computes weight^T x^T."""
    description = _Owned("MatmulDesc", ctypes.c_int(_COMPUTE_FLOAT32), _type("float32"))
    epilogue = _EPILOGUES[product.activation, product.bias]
    _set_attribute(description, _TRANSPOSE_A, ctypes.c_int32(product.transposed))
    _set_attribute(description, _TRANSPOSE_B, ctypes.c_int32(0))
    _set_attribute(description, _EPILOGUE, ctypes.c_uint32(epilogue))
    if product.dtype == _FLOAT8:
        _set_attribute(description, _FAST_ACCUMULATION, ctypes.c_int8(1))
    if product.bias:
        bias_type = ctypes.c_int32(_TYPES[product.side_dtype])
        _set_attribute(description, _BIAS_TYPE, bias_type)
    return description


def _layouts(product: Product) -> tuple[_Owned, _Owned, _Owned, _Owned]:
    """Of the weight, x, what might be added, and the result, each with its rows as columns."""
    weight = (product.columns, product.inner)
    return (
        _layout(product.dtype, *(weight[::-1] if product.transposed else weight)),
        _layout(product.dtype, product.inner, product.rows),
        _layout(product.side_dtype, product.columns, product.rows),
        _layout(product.out_dtype, product.columns, product.rows),
    )


def _layout(dtype: str, height: int, width: int) -> _Owned:
    return _Owned(
        "MatrixLayout",
        _type(dtype),
        ctypes.c_uint64(height),
        ctypes.c_uint64(width),
        ctypes.c_int64(height),
    )


def _type(dtype: str) -> ctypes.c_int:
    return ctypes.c_int(_TYPES[dtype])


@cache
def _first_proposal(product: Product, device: int) -> Algorithm:
    return proposals(product, device)[0]


def proposals(product: Product, device: int, most: int = _CANDIDATES) -> list[Algorithm]:
    """The library's, what it expects to be the fastest first."""
    description, layouts = _description(product), _layouts(product)
    # Nothing is computed: addresses stand for their alignment.
    address = ctypes.c_uint64(product.alignment_bytes)
    if product.bias:
        _set_attribute(description, _BIAS_POINTER, address)
    if product.out_dtype == _FLOAT8:
        _set_attribute(description, _D_SCALE_POINTER, address)
    preference = _preference(product)
    proposed, count = (Algorithm * most)(), ctypes.c_int(0)
    status = _library().cublasLtMatmulAlgoGetHeuristic(
        ctypes.c_void_p(_handle(device)),
        description.pointer,
        *(layout.pointer for layout in layouts),
        preference.pointer,
        ctypes.c_int(most),
        proposed,
        ctypes.byref(count),
    )
    _check(status, f"find an algorithm for {product}")
    usable = [algorithm for algorithm in proposed[: count.value] if algorithm.status == 0]
    if not usable:
        raise PluginError(f"cuBLASLt has no algorithm for {product}")
    return usable


def library_version() -> int:
    return int(_library().cublasLtGetVersion())


def _preference(product: Product) -> _Owned:
    preference = _Owned("MatmulPreference")
    _set_attribute(preference, _MAX_WORKSPACE_BYTES, ctypes.c_uint64(WORKSPACE_BYTES))
    for attribute in _MIN_ALIGNMENTS:
        _set_attribute(preference, attribute, ctypes.c_uint32(product.alignment_bytes))
    return preference


def _set_attribute(target: _Owned, attribute: int, value: Any) -> None:
    change = getattr(_library(), f"cublasLt{target.kind}SetAttribute")
    size = ctypes.c_size_t(ctypes.sizeof(value))
    status = change(target.pointer, ctypes.c_int(attribute), ctypes.byref(value), size)
    _check(status, f"set attribute {attribute} of {target.kind}")


@cache
def _handle(device: int) -> int:
    device_facts(device)
    import_module("cuda.core").Device(device).set_current()
    handle = ctypes.c_void_p()
    _check(_library().cublasLtCreate(ctypes.byref(handle)), "start cuBLASLt")
    return int(handle.value or 0)


@cache
def _library() -> ctypes.CDLL:
    try:
        pathfinder = import_module("cuda.pathfinder")
        file = pathfinder.load_nvidia_dynamic_lib(LIBRARY)
        library = ctypes.CDLL(file.abs_path)
    except (ImportError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise PluginError(
            f"cuBLASLt cannot be loaded ({reason}): install the packages cuda-pathfinder and "
            "nvidia-cublas"
        ) from error
    library.cublasLtGetStatusName.restype = ctypes.c_char_p
    library.cublasLtGetVersion.restype = ctypes.c_size_t
    return library


def _check(status: int, what: str) -> None:
    if status:
        name = _library().cublasLtGetStatusName(ctypes.c_int(status)).decode()
        raise PluginError(f"cuBLASLt could not {what}: {name} ({status})")
