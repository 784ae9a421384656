"""A product in eight bits with bias, GELU and rounding, all of which other rows' products hide.

The kernel is Hopper's. It keeps the weights of some columns in shared memory while all rows stream
past them, so a row must not be longer than what fits there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longlive_trt.architectures import Architecture
from longlive_trt.plugins.attention.variants import ELEMENTS
from longlive_trt.plugins.cuda.cublaslt import Product
from longlive_trt.plugins.cuda.driver import device_facts, tensor_map
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.parameters import FLOAT, INT, POINTER, ParameterStruct, opaque

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
_ROWS, _STEP = 64, 128
_THREADS = 384
_BARRIER_BYTES = 8
_SHARED_BYTES = 227 << 10
_MOST_STAGES, _FEWEST_STAGES = 8, 4
_QUAD = 4
"""Threads that have neighboring columns."""


@dataclass(frozen=True)
class GeluTiles:
    """A thread block's ``columns``. With ``pair`` the two of a cluster share their rows."""

    inner: int
    columns: int
    pair: bool

    @property
    def steps(self) -> int:
        return self.inner // _STEP

    @property
    def blocks(self) -> int:
        return 2 if self.pair else 1

    @property
    def own_columns(self) -> int:
        """Neighbors that a thread has."""
        return 8 if self.columns % 32 == 0 else 4

    def fits(self, product: Product) -> bool:
        is_whole = (
            product.inner % _STEP == 0 and product.columns % (self.blocks * self.columns) == 0
        )
        return is_whole and self.stages >= _FEWEST_STAGES

    @property
    def fetched_rows(self) -> int:
        """Of a stage, by each block."""
        return _ROWS // self.blocks

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
        return self.steps * (self.columns * _STEP + 2 * _BARRIER_BYTES) + 2 * _BARRIER_BYTES

    @property
    def _stage_bytes(self) -> int:
        return _ROWS * _STEP + 2 * _BARRIER_BYTES

    @property
    def constants(self) -> dict[str, int]:
        return {
            "LL_STEPS": self.steps,
            "LL_COLUMNS": self.columns,
            "LL_STAGES": self.stages,
            "LL_PAIR": int(self.pair),
            "LL_SHARED_BYTES": self.shared_bytes,
        }

    def groups(self, rows: int, columns: int, multiprocessors: int) -> int:
        """Thread blocks, or pairs of them, that have something to do."""
        units = -(-rows // _ROWS) * (columns // (self.blocks * self.columns))
        return min(units, multiprocessors // self.blocks)


def takes(product: Product, architecture: Architecture) -> bool:
    """Whether there is a kernel for it."""
    is_kind = (
        (product.dtype, product.out_dtype) == (_FLOAT8, _FLOAT8)
        and product.activation == "gelu"
        and product.bias
    )
    return is_kind and architecture.has_hopper_attention and bool(fitting_tiles(product))


def fitting_tiles(product: Product) -> list[GeluTiles]:
    """What is expected to be the fastest first: pairs read half as much, and of few columns more
    rows are on their way."""
    kinds = [(112, True), (128, True), (112, False), (128, False)]
    tiles = (GeluTiles(product.inner, *kind) for kind in kinds)
    return [each for each in tiles if each.fits(product)]


def launch(
    product: Product,
    addresses: Mapping[str, int],
    scale: float,
    *,
    device: int,
    stream: int,
    tiles: GeluTiles | None = None,
) -> None:
    """``addresses``: of x, weight, bias, factor and output. ``takes`` has said yes."""
    tiles = tiles or fitting_tiles(product)[0]
    multiprocessors = device_facts(device).multiprocessors
    groups = tiles.groups(product.rows, product.columns, multiprocessors)
    KERNEL.launch(
        _parameters(product, addresses, scale, tiles),
        grid=(groups * tiles.blocks,),
        threads=_THREADS,
        constants={**tiles.constants, "LL_ELEMENT": ELEMENTS[product.side_dtype]},
        device=device,
        stream=stream,
        shared_bytes=tiles.shared_bytes,
    )


def _parameters(
    product: Product, addresses: Mapping[str, int], scale: float, tiles: GeluTiles
) -> dict[str, Any]:
    return {
        "x": _rows_map(product, addresses["x"], tiles),
        "weight": _weight_map(product, addresses["weight"], tiles),
        **{name: addresses[name] for name in ("bias", "factor", "output")},
        "scale": scale,
        "rows": product.rows,
        "columns": product.columns,
    }


def _rows_map(product: Product, x: int, tiles: GeluTiles) -> bytes:
    box = (_STEP, tiles.fetched_rows)
    return tensor_map(1, x, (product.inner, product.rows), (product.inner,), box)


def _weight_map(product: Product, weight: int, tiles: GeluTiles) -> bytes:
    """Columns in the order in which the tensor cores' sums lie in threads.

    Sums of neighboring columns are two in each of four threads, and then in the first again: so the
    third column comes where the first thread's next sums are.
    """
    own = tiles.own_columns
    group = own * _QUAD
    sizes = (product.inner, 2, _QUAD, own // 2, product.columns // group)
    strides = tuple(columns * product.inner for columns in (1, own, 2, group))
    box = (_STEP, 2, _QUAD, own // 2, tiles.columns // group)
    return tensor_map(1, weight, sizes, strides, box)
