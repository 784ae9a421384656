"""The transformer's passes over rows of tokens, each one read and one write of every tensor.

Float32 inside; each output is rounded once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from longlive_trt import dtypes, hadamard
from longlive_trt.basics import Array
from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.value_layout import (
    TILE_TOKENS,
    transposed_shape,
    transposed_values,
)
from longlive_trt.plugins.attention.variants import ELEMENTS, HEAD_DIMS
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.parameters import FLOAT, INT, POINTER, ParameterStruct
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.tensors import DeviceTensor, require_alignment, require_dtype
from longlive_trt.plugins.kernels.base import OneKernel, Shape

HALVES = ("bfloat16", "float16")
_ROWS_PER_BLOCK = 4
_ROW_THREADS = 128
_MAX_DIM = 8192
TO_FLOAT8, TO_INT8 = 2, 3
"""``LL_QUANTIZE`` of sources that can."""
FLOAT8, INT8 = dtypes.FLOAT8.name, dtypes.INT8.name
LARGEST_FLOAT8, LARGEST_INT8 = 448.0, 127
LEAST_ROW = 1e-12
"""A row of nothing but zeros has a unit, too."""

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class QkvNormRope(OneKernel):
    """Rows of q, k and v [B, S, 3 * dim] to q, k and v [B, S, heads, head_dim].

    Inputs: the rows, the weights of q's and k's RMS norm, cosines and sines [S, head_dim / 2] in
    float32. With ``plain_key`` the fourth output is the normalized key before its rotation. With
    three more inputs, the scales of q, k and v, float32 [heads], the outputs are float8_e4m3.

    With ``hadamard``, rotated q and k are multiplied by the matrix of ``longlive_trt.hadamard``.
    With the scales of k and v, q and k then are int8 and v is float8_e4m3, and the fourth output is
    the scale of each row of each head of q, float32 [B, S, heads]; a plain key is the fifth.

    With ``transposed``, for which there must be scales, v is as ``attention.value_layout`` has it.
    """

    heads: int
    epsilon: float = 1e-6
    plain_key: bool = False
    hadamard: bool = False
    transposed: bool = False
    kernel: ClassVar[CudaKernel] = CudaKernel(
        "rows/qkv_norm_rope.cu",
        ParameterStruct(
            input=POINTER,
            output=POINTER * 3,
            plain_key=POINTER,
            weight=POINTER * 2,
            cosine=POINTER,
            sine=POINTER,
            scale=POINTER * 3,
            row_scale=POINTER,
            rows=INT,
            tokens=INT,
            epsilon=FLOAT,
            pitch=INT,
        ),
    )

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        rows, weight_q, weight_k, cosine, sine, *scales = inputs
        batch, tokens, width = rows
        shape = split_shape((batch, tokens, width // 3), self.heads)
        for name, vector in (("weight_q", weight_q), ("weight_k", weight_k)):
            require_shape(name, vector, (width // 3,))
        for name, table in (("cosine", cosine), ("sine", sine)):
            require_shape(name, table, (tokens, shape[-1] // 2))
        if self.plain_key and bool(scales) != self.hadamard:
            raise PluginError("keys are kept plain without scales, or beside those in int8")
        if scales and len(scales) != (2 if self.hadamard else 3):
            raise PluginError("scales are those of q, k and v; with a Hadamard matrix of k and v")
        if self.transposed and not scales:
            raise PluginError("values are transposed in eight bits only: scales are missing")
        for scale in scales:
            require_shape("scale", scale, (self.heads,))
        by_row = [shape[:-1]] if scales and self.hadamard else []
        values = transposed_shape(shape) if self.transposed else shape
        return [shape, shape, values, *by_row, *[shape] * self.plain_key]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        rows_of_all, weight_q, weight_k, cosine, sine, *scales = inputs
        batch, tokens, width = rows_of_all.shape
        rows, dim = batch * tokens, width // 3
        head_dim = check_head_dim(dim, self.heads)
        if rows == 0:
            return
        plain = outputs[-1] if self.plain_key else None
        of_compute_type = ([plain] if plain else []) if scales else outputs
        check_rows(rows_of_all, [weight_q, weight_k, *of_compute_type], dim)
        narrow = self._narrow_types(len(scales))
        check_narrow(outputs, narrow)
        by_row = outputs[3] if narrow and self.hadamard else None
        check_tables(cosine, sine)
        parameters = {
            "input": rows_of_all.pointer,
            "output": [out.pointer for out in outputs[:3]],
            "plain_key": plain.pointer if plain else 0,
            "weight": (weight_q.pointer, weight_k.pointer),
            "cosine": cosine.pointer,
            "sine": sine.pointer,
            "scale": [0] * (3 - len(scales)) + [scale.pointer for scale in scales],
            "row_scale": by_row.pointer if by_row else 0,
            "rows": rows,
            "tokens": tokens,
            "epsilon": self.epsilon,
            "pitch": outputs[2].shape[-1] if self.transposed else 0,
        }
        constants = {
            "LL_HEAD_DIM": head_dim,
            "LL_PLAIN": int(self.plain_key),
            "LL_QUANTIZE": _quantize_constant(narrow),
            "LL_HADAMARD": int(self.hadamard),
            **({"LL_TRANSPOSED": 1} if self.transposed else {}),
        }
        blocks = -(-rows // _ROWS_PER_BLOCK)
        grid = (blocks, 3)
        if self.transposed:
            require_alignment(outputs[2], "values")
            grid = (batch * self.heads * -(-tokens // TILE_TOKENS) + 2 * blocks, 1)
        launch_rows(self.kernel, parameters, constants, rows_of_all, dim, place, grid=grid)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        parts = np.split(single(inputs[0]), 3, axis=-1)
        cosine, sine = map(single, inputs[3:5])
        shape = outputs[0].shape
        normed = [
            (rms_normalized(part, self.epsilon) * single(weight)).reshape(shape)
            for part, weight in zip(parts, inputs[1:3], strict=False)
        ]
        if self.plain_key:
            outputs[-1][...] = normed[1]
            normed[1] = single(outputs[-1])
        turned = [rotated(x, cosine, sine) for x in normed]
        if self.hadamard:
            turned = [hadamard.multiplied(x) for x in turned]
        results: list[Array] = [*turned, parts[2].reshape(shape)]
        scales = [single(scale)[:, None] for scale in inputs[5:]]
        if scales and self.hadamard:
            rows = row_scales(turned[0])
            outputs[3][...] = rows
            scales = [rows[..., None], *scales]
        if scales:
            types = self._narrow_types(len(inputs) - 5)
            results = [in_eight_bits(*each) for each in zip(results, scales, types, strict=True)]
        if self.transposed:
            results[2] = transposed_values(results[2])
        for out, x in zip(outputs, results, strict=False):
            out[...] = x

    def _narrow_types(self, scales: int) -> tuple[str, ...]:
        """Of q, k and v."""
        if not scales:
            return ()
        return (INT8, INT8, FLOAT8) if self.hadamard else (FLOAT8, FLOAT8, FLOAT8)


@dataclass(frozen=True)
class Rotate(OneKernel):
    """x [B, S, heads, head_dim], turned by cosines and sines [S, head_dim / 2] in float32.

    With a fourth input, a scale for each head, float32 [heads], what was turned is multiplied by
    the matrix of ``longlive_trt.hadamard`` and leaves as int8: keys as ``QkvNormRope`` makes them.
    """

    kernel: ClassVar[CudaKernel] = CudaKernel(
        "rows/rotate.cu",
        ParameterStruct(
            input=POINTER,
            cosine=POINTER,
            sine=POINTER,
            output=POINTER,
            scale=POINTER,
            rows=INT,
            tokens=INT,
        ),
    )

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        x, cosine, sine, *scales = inputs
        for scale in scales:
            require_shape("scale", scale, (x[2],))
        for name, table in (("cosine", cosine), ("sine", sine)):
            require_shape(name, table, (x[1], x[-1] // 2))
        return [x]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        x, cosine, sine, *scales = inputs
        batch, tokens, heads, head_dim = x.shape
        dim, rows = heads * head_dim, batch * tokens
        check_head_dim(dim, heads)
        if rows == 0:
            return
        check_rows(x, [] if scales else outputs, dim)
        check_narrow(outputs, [INT8] * len(scales))
        check_tables(cosine, sine)
        parameters = {
            "input": x.pointer,
            "cosine": cosine.pointer,
            "sine": sine.pointer,
            "output": outputs[0].pointer,
            "scale": scales[0].pointer if scales else 0,
            "rows": rows,
            "tokens": tokens,
        }
        constants = {"LL_HEAD_DIM": head_dim, "LL_INT8": len(scales)}
        launch_rows(self.kernel, parameters, constants, x, dim, place)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        x, cosine, sine, *scales = map(single, inputs)
        turned = rotated(x, cosine, sine)
        if scales:
            mixed = hadamard.multiplied(turned)
            outputs[0][...] = in_eight_bits(mixed, scales[0][:, None], INT8)
        else:
            outputs[0][...] = turned


def row_scales(x: Float32) -> Float32:
    """By which each row of the last axis fills int8."""
    largest = np.maximum(np.abs(x).max(-1), np.float32(LEAST_ROW))
    scales: Float32 = largest / np.float32(LARGEST_INT8)
    return scales


def in_eight_bits(x: Array, scale: Any, dtype: str) -> Array:
    """In units of ``scale``; what is too large becomes the largest."""
    if dtype == FLOAT8:
        return narrowed(single(x), scale)
    steps = np.rint(single(x) / np.asarray(scale, np.float32))
    return np.clip(steps, -LARGEST_INT8, LARGEST_INT8).astype(np.int8)


def single(x: Any) -> Float32:
    """In float32, where all arithmetic is done."""
    return np.asarray(x).astype(np.float32)


def narrowed(x: Float32, scale: Any) -> Array:
    """In float8_e4m3, in units of ``scale``; what is too large becomes the largest."""
    scaled = x / np.asarray(scale, np.float32)
    return np.clip(scaled, -LARGEST_FLOAT8, LARGEST_FLOAT8).astype(dtypes.FLOAT8.numpy)


def rms_normalized(x: Float32, epsilon: float) -> Float32:
    normed: Float32 = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(epsilon))
    return normed


def rotated(x: Float32, cosine: Float32, sine: Float32) -> Float32:
    """Neighboring channels of [B, S, heads, head_dim], turned as pairs."""
    cosine, sine = cosine[:, None], sine[:, None]
    even, odd = x[..., ::2], x[..., 1::2]
    turned = np.stack([even * cosine - odd * sine, even * sine + odd * cosine], axis=-1)
    return turned.reshape(x.shape)


def split_shape(shape: Shape, heads: int) -> Shape:
    *outer, dim = shape
    if dim % heads:
        raise PluginError(f"rows of {dim} values cannot be split into {heads} heads")
    return (*outer, heads, dim // heads)


def check_rows(x: DeviceTensor, others: Sequence[DeviceTensor], dim: int) -> None:
    """All have the same 16-bit type, and rows that are read sixteen bytes at a time."""
    require_dtype(x, "x", HALVES)
    if dim % 8 or not 8 <= dim <= _MAX_DIM:
        raise PluginError(
            f"x has rows of {dim} values: allowed are multiples of 8 up to {_MAX_DIM}"
        )
    for index, tensor in enumerate((x, *others)):
        require_dtype(tensor, f"tensor {index}", [x.dtype])
        require_alignment(tensor, f"tensor {index}")


def check_narrow(outputs: Sequence[DeviceTensor], types: Sequence[str]) -> None:
    """Rows that are written eight values at a time, of the first so many outputs."""
    for tensor, dtype in zip(outputs, types, strict=False):
        require_dtype(tensor, "output", [dtype])
        require_alignment(tensor, "output", 8)


def _quantize_constant(types: Sequence[str]) -> int:
    return 0 if not types else TO_INT8 if INT8 in types else TO_FLOAT8


def check_head_dim(dim: int, heads: int) -> int:
    if dim % heads or dim // heads not in HEAD_DIMS:
        allowed = " or ".join(map(str, HEAD_DIMS))
        raise PluginError(
            f"{heads} heads of {dim / heads:g} values: the kernels are for heads of {allowed}"
        )
    return dim // heads


def check_tables(cosine: DeviceTensor, sine: DeviceTensor) -> None:
    for name, table in (("cosine", cosine), ("sine", sine)):
        require_dtype(table, name, ["float32"])
        require_alignment(table, name)


def launch_rows(
    kernel: CudaKernel,
    parameters: Mapping[str, Any],
    constants: Mapping[str, int],
    x: DeviceTensor,
    dim: int,
    place: Placement,
    *,
    grid: tuple[int, int] | None = None,
) -> None:
    """By default a warp for each row."""
    kernel.launch(
        parameters,
        grid=grid or (-(-parameters["rows"] // _ROWS_PER_BLOCK), 1),
        threads=_ROW_THREADS,
        constants={"LL_ELEMENT": ELEMENTS[x.dtype], "LL_DIM": dim, **constants},
        device=place.device,
        stream=place.stream.handle,
    )


def require_shape(name: str, shape: Shape | None, wanted: Shape) -> None:
    if shape is not None and tuple(shape) != tuple(wanted):
        raise PluginError(f"{name} has shape {list(shape)}: it must be {list(wanted)}")
