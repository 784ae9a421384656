"""A product in eight bits with bias, GELU and rounding, all of which other rows' products hide.

The kernel is Hopper's. It keeps the weights of 128 columns in shared memory while all rows stream
past them, so a row must not be longer than what fits there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longlive_trt.architectures import Architecture
from longlive_trt.plugins.attention.variants import ELEMENTS
from longlive_trt.plugins.cuda.cublaslt import Product
from longlive_trt.plugins.cuda.driver import device_facts, tensor_map
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.parameters import FLOAT, INT, POINTER, ParameterStruct, opaque
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.tensors import DeviceTensor
from longlive_trt.plugins.kernels.gemm import Gemm

_MAP = opaque(128, alignment_bytes=64)
KERNEL = CudaKernel(
    "products/gelu_product.cu",
    ParameterStruct(
        x=_MAP,
        weight=_MAP,
        bias=POINTER,
        factor=POINTER,
        output=POINTER,
        scale=FLOAT,
        rows=INT,
        columns=INT,
    ),
)
_FLOAT8 = "float8_e4m3"
_ROWS, _COLUMNS, _STEP = 64, 128, 128
_THREADS = 384
_BARRIER_BYTES = 8
_SHARED_BYTES = 227 << 10
_MOST_STAGES, _FEWEST_STAGES = 8, 4
_OWN, _QUAD = 8, 4
"""Neighboring columns of a thread, and threads that have such ones side by side."""


@dataclass(frozen=True)
class GeluTiles:
    """Of products with so many inputs: what lies in a thread block's shared memory."""

    inner: int

    @property
    def steps(self) -> int:
        return self.inner // _STEP

    @property
    def fit(self) -> bool:
        return self.inner % _STEP == 0 and self.stages >= _FEWEST_STAGES

    @property
    def stages(self) -> int:
        """Of rows."""
        rest = _SHARED_BYTES - self._fixed_bytes
        return min(_MOST_STAGES, rest // self._stage_bytes)

    @property
    def shared_bytes(self) -> int:
        return self._fixed_bytes + self.stages * self._stage_bytes

    @property
    def _fixed_bytes(self) -> int:
        """Weights, and barriers of each step and of both warpgroups."""
        return self.steps * (_COLUMNS * _STEP + 2 * _BARRIER_BYTES) + 2 * _BARRIER_BYTES

    @property
    def _stage_bytes(self) -> int:
        return _ROWS * _STEP + 2 * _BARRIER_BYTES

    @property
    def constants(self) -> dict[str, int]:
        return {
            "LL_STEPS": self.steps,
            "LL_STAGES": self.stages,
            "LL_SHARED_BYTES": self.shared_bytes,
        }


def blocks_of(rows: int, columns: int, multiprocessors: int) -> int:
    """Thread blocks that have something to do."""
    return min(-(-rows // _ROWS) * (columns // _COLUMNS), multiprocessors)


def takes(product: Product, architecture: Architecture) -> bool:
    """Whether there is a kernel for it."""
    is_kind = (
        (product.dtype, product.out_dtype) == (_FLOAT8, _FLOAT8)
        and product.activation == "gelu"
        and product.bias
    )
    is_whole = product.columns % _COLUMNS == 0 and GeluTiles(product.inner).fit
    return is_kind and is_whole and architecture.has_hopper_attention


@dataclass(frozen=True)
class GeluProduct(Gemm):
    """GELU of a product of float8_e4m3, in float8_e4m3: by our kernel, where it takes that."""

    @classmethod
    def cuda_kernels(cls, architecture: Architecture) -> Sequence[CudaKernel]:
        return (KERNEL,) if architecture.has_hopper_attention else ()

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        product, facts = self._product(inputs, outputs[0]), device_facts(place.device)
        if product.rows == 0 or not takes(product, facts.architecture):
            super().launch(inputs, outputs, place)
            return
        bias, factor = self._addresses(inputs)
        addresses = {
            "x": inputs[0].pointer,
            "weight": inputs[1].pointer,
            "bias": bias,
            "factor": factor,
            "output": outputs[0].pointer,
        }
        scale = 1.0 if self.scale is None else self.scale
        launch(product, addresses, scale, device=place.device, stream=place.stream.handle)


def launch(
    product: Product, addresses: Mapping[str, int], scale: float, *, device: int, stream: int
) -> None:
    """``addresses``: of x, weight, bias, factor and output. ``takes`` has said yes."""
    tiles, multiprocessors = GeluTiles(product.inner), device_facts(device).multiprocessors
    KERNEL.launch(
        _parameters(product, addresses, scale),
        grid=(blocks_of(product.rows, product.columns, multiprocessors),),
        threads=_THREADS,
        constants={**tiles.constants, "LL_ELEMENT": ELEMENTS[product.side_dtype]},
        device=device,
        stream=stream,
        shared_bytes=tiles.shared_bytes,
    )


def _parameters(product: Product, addresses: Mapping[str, int], scale: float) -> dict[str, Any]:
    return {
        "x": _rows_map(product, addresses["x"]),
        "weight": _weight_map(product, addresses["weight"]),
        **{name: addresses[name] for name in ("bias", "factor", "output")},
        "scale": scale,
        "rows": product.rows,
        "columns": product.columns,
    }


def _rows_map(product: Product, x: int) -> bytes:
    return tensor_map(1, x, (product.inner, product.rows), (product.inner,), (_STEP, _ROWS))


def _weight_map(product: Product, weight: int) -> bytes:
    """Columns in the order in which the tensor cores' sums lie in threads.

    Sums of neighboring columns are two in each of four threads, and then in the first again: so the
    third column comes where the first thread's next sums are.
    """
    group = _OWN * _QUAD
    sizes = (product.inner, 2, _QUAD, _OWN // 2, product.columns // group)
    strides = tuple(columns * product.inner for columns in (1, _OWN, 2, group))
    box = (_STEP, 2, _QUAD, _OWN // 2, _COLUMNS // group)
    return tensor_map(1, weight, sizes, strides, box)
