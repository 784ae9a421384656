"""The layer norm of rows of tokens, with the sum before it or alone: one read and one write."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from longlive_trt.basics import Array
from longlive_trt.errors import PluginError
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.parameters import FLOAT, INT, POINTER, ParameterStruct
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.tensors import DeviceTensor
from longlive_trt.plugins.kernels.base import OneKernel, Shape
from longlive_trt.plugins.kernels.rows import (
    FLOAT8,
    TO_FLOAT8,
    Float32,
    check_narrow,
    check_rows,
    launch_rows,
    narrowed,
    require_shape,
    rms_normalized,
    single,
)

_NORMS = {"none": 0, "modulate": 1, "affine": 2}

_Tensor = TypeVar("_Tensor")

_SUM_AND_NORM = ParameterStruct(
    x=POINTER,
    y=POINTER,
    gate=POINTER,
    scale=POINTER,
    shift=POINTER,
    sum=POINTER,
    normed=POINTER,
    rows=INT,
    epsilon=FLOAT,
    output_factor=FLOAT,
)


@dataclass(frozen=True)
class LayerNorm(OneKernel):
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
    kernel: ClassVar[CudaKernel] = CudaKernel("rows/layer_norm.cu", _SUM_AND_NORM)

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
        require_shape("y", y, x)
        for name, vector in zip(("weight", "bias"), affine or (), strict=False):
            require_shape(name, vector, (dim,))
        if table is not None:
            require_shape("table", table, (table[0], dim))
            _require_rows(table[0], self._used_rows())
        return [x] * (self.residual + (self.norm != "none"))

    def _used_rows(self) -> list[int]:
        norm = [self.scale_row, self.shift_row] if self.norm == "modulate" else []
        return norm if self.gate_row is None else [*norm, self.gate_row]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        x, y, table, affine = self._named(inputs)
        rows, dim = math.prod(x.shape[:-1]), x.shape[-1]
        if rows == 0:
            return
        plain, narrow = self._by_width(outputs)
        check_rows(x, [*inputs[1:], *plain], dim)
        check_narrow(narrow, [FLOAT8] * len(narrow))
        gate = 0 if table is None or self.gate_row is None else _row(table, self.gate_row)
        scale, shift = self._factors(table, affine)
        total, normed = self._targets(outputs)
        parameters = {
            "x": x.pointer,
            "y": y.pointer if y else 0,
            "gate": gate,
            "scale": scale,
            "shift": shift,
            "sum": total,
            "normed": normed,
            "rows": rows,
            "epsilon": self.epsilon,
            "output_factor": 1.0 / (self.output_scale or 1.0),
        }
        constants = {
            "LL_NORM": _NORMS[self.norm],
            "LL_QUANTIZE": TO_FLOAT8 if self.output_scale else 0,
            **({"LL_GATE": int(self.gate_row is not None)} if self.residual else {}),
        }
        launch_rows(self.kernel, parameters, constants, x, dim, place)

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
        normed = _normalized(total, self.epsilon) * factor + addend
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
    kernel: ClassVar[CudaKernel] = CudaKernel("rows/residual_norm.cu", _SUM_AND_NORM)


def _normalized(x: Float32, epsilon: float) -> Float32:
    return rms_normalized(x - x.mean(-1, keepdims=True), epsilon)


def _row(table: DeviceTensor, row: int) -> int:
    return table.pointer + row * table.shape[1] * table.item_bytes


def _require_rows(rows: int, used: Sequence[int]) -> None:
    if not all(0 <= row < rows for row in used):
        raise PluginError(f"the table has {rows} rows: {max(used)} was asked for")
