"""The transformer's passes over rows of tokens, each one read and one write of every tensor.

Float32 inside; each output is rounded once.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import ml_dtypes
import numpy as np
import numpy.typing as npt

from longlive_trt.basics import Array
from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.variants import ELEMENTS, HEAD_DIMS
from longlive_trt.plugins.cuda import driver
from longlive_trt.plugins.cuda.tensors import DeviceTensor, require_alignment, require_dtype
from longlive_trt.plugins.kernels.base import Shape

HALVES = ("bfloat16", "float16")
_ROWS_PER_BLOCK = 4
_ROW_THREADS = 128
_MAX_DIM = 8192
_NORMS = {"none": 0, "modulate": 1, "affine": 2}
_QUANTIZE = 2
FLOAT8 = "float8_e4m3"
LARGEST_FLOAT8 = 448.0

Float32 = npt.NDArray[np.float32]
_Tensor = TypeVar("_Tensor")


@dataclass(frozen=True)
class LayerNorm:
    """``norm(x) * (1 + scale) + shift``, or ``norm(x) * weight + bias`` where ``norm`` is affine.

    Inputs: x; then a table [rows, dim], of which ``scale_row`` and ``shift_row`` are used; or
    weight and bias. With ``output_scale`` the normalized rows are float8_e4m3, in units of it.
    """

    norm: str = "modulate"
    epsilon: float = 1e-6
    output_scale: float | None = None
    scale_row: int = 0
    shift_row: int = 0
    gate_row: int | None = None
    residual: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.norm not in _NORMS:
            raise PluginError(f"norm is {self.norm!r}: choose one of {', '.join(_NORMS)}")
        if not self.residual and (self.norm == "none" or self.gate_row is not None):
            raise PluginError("a norm without a sum has no gate_row, and norm is not none")
        if self.norm == "none" and self.output_scale is not None:
            raise PluginError("output_scale is that of normalized rows, and norm is none")

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        x, y, table, affine = self._named(inputs)
        dim = x[-1]
        _require_shape("y", y, x)
        for name, vector in zip(("weight", "bias"), affine or (), strict=False):
            _require_shape(name, vector, (dim,))
        if table is not None:
            _require_shape("table", table, (table[0], dim))
            _require_rows(table[0], self._used_rows())
        return [x] * (self.residual + (self.norm != "none"))

    def _used_rows(self) -> list[int]:
        norm = [self.scale_row, self.shift_row] if self.norm == "modulate" else []
        return norm if self.gate_row is None else [*norm, self.gate_row]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], stream: int
    ) -> None:
        x, y, table, affine = self._named(inputs)
        rows, dim = math.prod(x.shape[:-1]), x.shape[-1]
        if rows == 0:
            return
        plain, narrow = self._by_width(outputs)
        check_rows(x, [*inputs[1:], *plain], dim)
        check_narrow(narrow)
        gate = 0 if table is None or self.gate_row is None else _row(table, self.gate_row)
        scale, shift = self._factors(table, affine)
        total, normed = self._targets(outputs)
        parameters = struct.pack(
            "<7Qi2f4x",
            *(x.pointer, y.pointer if y else 0, gate, scale, shift, total, normed),
            *(rows, self.epsilon, 1.0 / (self.output_scale or 1.0)),
        )
        constants = row_constants(
            x.dtype,
            dim,
            LL_RESIDUAL=int(self.residual),
            LL_GATE=int(self.gate_row is not None),
            LL_NORM=_NORMS[self.norm],
            LL_QUANTIZE=_QUANTIZE if self.output_scale else 0,
        )
        launch_rows("residual_norm.cu", "residual_norm", constants, x, rows, parameters, stream)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        x, y, table, affine = self._named(inputs)
        rows = None if table is None else single(table)
        total = single(x)
        if y is not None:
            gate = 1 if rows is None or self.gate_row is None else rows[self.gate_row]
            outputs[0][...] = total + gate * single(y)
            total = single(outputs[0])
        if self.norm == "none":
            return
        if affine is not None:
            factor, addend = single(affine[0]), single(affine[1])
        else:
            assert rows is not None
            factor, addend = 1 + rows[self.scale_row], rows[self.shift_row]
        normed = normalized(total, self.epsilon) * factor + addend
        outputs[-1][...] = (
            normed if self.output_scale is None else narrowed(normed, self.output_scale)
        )

    def _by_width(self, outputs: Sequence[DeviceTensor]) -> tuple[Any, Any]:
        return (outputs[:-1], outputs[-1:]) if self.output_scale else (outputs, ())

    def _named(
        self, inputs: Sequence[_Tensor]
    ) -> tuple[_Tensor, _Tensor | None, _Tensor | None, tuple[_Tensor, _Tensor] | None]:
        """x, y, the table and the affine norm's weight and bias."""
        rest = iter(inputs)
        x = next(rest)
        y = next(rest) if self.residual else None
        table = next(rest) if self._used_rows() else None
        affine = (next(rest), next(rest)) if self.norm == "affine" else None
        return x, y, table, affine

    def _factors(
        self, table: DeviceTensor | None, affine: tuple[DeviceTensor, DeviceTensor] | None
    ) -> tuple[int, int]:
        if affine is not None:
            return affine[0].pointer, affine[1].pointer
        if table is None or self.norm == "none":
            return 0, 0
        return _row(table, self.scale_row), _row(table, self.shift_row)

    def _targets(self, outputs: Sequence[DeviceTensor]) -> tuple[int, int]:
        total = outputs[0].pointer if self.residual else 0
        return total, 0 if self.norm == "none" else outputs[-1].pointer


@dataclass(frozen=True)
class ResidualNorm(LayerNorm):
    """``x + gate * y``, and, unless ``norm`` is none, its layer norm as a second output.

    Inputs: x, y; the table if any of its rows is used (the gate is one without ``gate_row``);
    weight and bias if the norm is affine.
    """

    residual: ClassVar[bool] = True


@dataclass(frozen=True)
class RmsNorm:
    """x [..., dim] and weight [dim] to [..., heads, head_dim]."""

    heads: int
    epsilon: float = 1e-6

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        x, weight = inputs
        _require_shape("weight", weight, x[-1:])
        return [split_shape(x, self.heads)]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], stream: int
    ) -> None:
        x, weight = inputs
        rows, dim = math.prod(x.shape[:-1]), x.shape[-1]
        if rows == 0:
            return
        check_rows(x, [weight, *outputs], dim)
        parameters = struct.pack(
            "<3Qif", x.pointer, weight.pointer, outputs[0].pointer, rows, self.epsilon
        )
        # The norm is over all heads; the file wants the size of one, and any that divides will do.
        constants = row_constants(x.dtype, dim, LL_HEAD_DIM=math.gcd(dim, 128), LL_PLAIN=0)
        launch_rows("rms_rope.cu", "rms_norm", constants, x, rows, parameters, stream)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        x, weight = map(single, inputs)
        outputs[0][...] = (rms_normalized(x, self.epsilon) * weight).reshape(outputs[0].shape)


@dataclass(frozen=True)
class QkvNormRope:
    """Rows of q, k and v [B, S, 3 * dim] to q, k and v [B, S, heads, head_dim].

    Inputs: the rows, the weights of q's and k's RMS norm, cosines and sines [S, head_dim / 2] in
    float32. With ``plain_key`` the fourth output is the normalized key before its rotation. With
    three more inputs, the scales of q, k and v, float32 [heads], the outputs are float8_e4m3.
    """

    heads: int
    epsilon: float = 1e-6
    plain_key: bool = False

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        rows, weight_q, weight_k, cosine, sine, *scales = inputs
        batch, tokens, width = rows
        shape = split_shape((batch, tokens, width // 3), self.heads)
        for name, vector in (("weight_q", weight_q), ("weight_k", weight_k)):
            _require_shape(name, vector, (width // 3,))
        for name, table in (("cosine", cosine), ("sine", sine)):
            _require_shape(name, table, (tokens, shape[-1] // 2))
        if scales and (self.plain_key or len(scales) != 3):
            raise PluginError("scales are those of q, k and v, without a plain key")
        for scale in scales:
            _require_shape("scale", scale, (self.heads,))
        return [shape] * (4 if self.plain_key else 3)

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], stream: int
    ) -> None:
        rows_of_all, weight_q, weight_k, cosine, sine, *scales = inputs
        batch, tokens, width = rows_of_all.shape
        rows, dim = batch * tokens, width // 3
        head_dim = check_head_dim(dim, self.heads)
        if rows == 0:
            return
        check_rows(rows_of_all, [weight_q, weight_k, *([] if scales else outputs)], dim)
        check_narrow(outputs if scales else [])
        check_tables(cosine, sine)
        plain = outputs[3].pointer if self.plain_key else 0
        parameters = struct.pack(
            "<12Q2if4x",
            rows_of_all.pointer,
            *(out.pointer for out in outputs[:3]),
            *(plain, weight_q.pointer, weight_k.pointer, cosine.pointer, sine.pointer),
            *([scale.pointer for scale in scales] or [0, 0, 0]),
            *(rows, tokens, self.epsilon),
        )
        constants = row_constants(
            *(rows_of_all.dtype, dim),
            LL_HEAD_DIM=head_dim,
            LL_PLAIN=int(self.plain_key),
            LL_QUANTIZE=_QUANTIZE if scales else 0,
        )
        launch_rows(
            "rms_rope.cu", "qkv_norm_rope", constants, rows_of_all, rows, parameters, stream, 3
        )

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        parts = np.split(single(inputs[0]), 3, axis=-1)
        cosine, sine = map(single, inputs[3:5])
        shape, dtype = outputs[0].shape, outputs[0].dtype
        normed = [
            (rms_normalized(part, self.epsilon) * single(weight)).reshape(shape)
            for part, weight in zip(parts, inputs[1:3], strict=False)
        ]
        if self.plain_key:
            outputs[3][...] = normed[1]
            normed[1] = single(normed[1].astype(dtype))
        turned = [rotated(x, cosine, sine) for x in normed]
        results: list[Array] = [*turned, parts[2].reshape(shape)]
        if len(inputs) > 5:
            scales = (single(scale)[:, None] for scale in inputs[5:])
            results = [narrowed(single(x), scale) for x, scale in zip(results, scales, strict=True)]
        for out, x in zip(outputs, results, strict=False):
            out[...] = x


@dataclass(frozen=True)
class Rotate:
    """x [B, S, heads, head_dim], turned by cosines and sines [S, head_dim / 2] in float32."""

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        x, cosine, sine = inputs
        for name, table in (("cosine", cosine), ("sine", sine)):
            _require_shape(name, table, (x[1], x[-1] // 2))
        return [x]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], stream: int
    ) -> None:
        x, cosine, sine = inputs
        batch, tokens, heads, head_dim = x.shape
        dim, rows = heads * head_dim, batch * tokens
        check_head_dim(dim, heads)
        if rows == 0:
            return
        check_rows(x, outputs, dim)
        check_tables(cosine, sine)
        parameters = struct.pack(
            "<4Q2i",
            *(x.pointer, cosine.pointer, sine.pointer, outputs[0].pointer, rows, tokens),
        )
        constants = row_constants(x.dtype, dim, LL_HEAD_DIM=head_dim, LL_PLAIN=0)
        launch_rows("rms_rope.cu", "rotate_rows", constants, x, rows, parameters, stream)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        x, cosine, sine = map(single, inputs)
        outputs[0][...] = rotated(x, cosine, sine)


def single(x: Any) -> Float32:
    """In float32, where all arithmetic is done."""
    return np.asarray(x).astype(np.float32)


def narrowed(x: Float32, scale: Any) -> Array:
    """In float8_e4m3, in units of ``scale``; what is too large becomes the largest."""
    scaled = x / np.asarray(scale, np.float32)
    return np.clip(scaled, -LARGEST_FLOAT8, LARGEST_FLOAT8).astype(ml_dtypes.float8_e4m3fn)


def normalized(x: Float32, epsilon: float) -> Float32:
    return rms_normalized(x - x.mean(-1, keepdims=True), epsilon)


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


def check_narrow(outputs: Sequence[DeviceTensor]) -> None:
    """Rows that are written eight values at a time."""
    for tensor in outputs:
        require_dtype(tensor, "output", [FLOAT8])
        require_alignment(tensor, "output", 8)


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


def row_constants(dtype: str, dim: int, **others: int) -> tuple[tuple[str, int], ...]:
    return (("LL_ELEMENT", ELEMENTS[dtype]), ("LL_DIM", dim), *sorted(others.items()))


def launch_rows(
    file: str,
    entry: str,
    constants: tuple[tuple[str, int], ...],
    x: DeviceTensor,
    rows: int,
    parameters: bytes,
    stream: int,
    parts: int = 1,
) -> None:
    kernel = driver.load_kernel(file, entry, constants, 0, x.device)
    blocks = -(-rows // _ROWS_PER_BLOCK)
    kernel.launch((blocks, parts), _ROW_THREADS, 0, stream, parameters)


def _row(table: DeviceTensor, row: int) -> int:
    return table.pointer + row * table.shape[1] * table.item_bytes


def _require_shape(name: str, shape: Shape | None, wanted: Shape) -> None:
    if shape is not None and tuple(shape) != tuple(wanted):
        raise PluginError(f"{name} has shape {list(shape)}: it must be {list(wanted)}")


def _require_rows(rows: int, used: Sequence[int]) -> None:
    if not all(0 <= row < rows for row in used):
        raise PluginError(f"the table has {rows} rows: {max(used)} was asked for")
