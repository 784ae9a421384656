"""The weights of the VAE's convolutions as a GPU reads them, and the convolutions in eight bits."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from longlive_trt.contract import INPUT_SCALE, WEIGHT_SCALE
from longlive_trt.dtypes import BY_ONNX
from longlive_trt.engines.graphs.builder import GraphBuilder, GraphWeights
from longlive_trt.plugins.kernels.conv_tiles import (
    OFFSET_ROWS,
    WIDTH_MULTIPLE,
    ConvTiles,
    packed_weight,
    zero_offsets,
)
from longlive_trt.plugins.kernels.vae_conv import makes_norm, takes_widths

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, np.dtype[Any]]

_LARGEST_INT8 = 127
_LEAST_SILU = 0.278465
"""SiLU gives nothing below minus this."""


@dataclass(frozen=True)
class Steps:
    """The size of an 8-bit number's steps, and the number that stands for zero."""

    size: float
    zero: int = 0


def steps_of_silu(size: float) -> Steps:
    """Of int8 with the range of SiLU's outputs, in place of one that is as wide below zero.

    They are about half as large, and so is what rounding costs.
    """
    finer = (_LARGEST_INT8 * size + _LEAST_SILU) / (2 * _LARGEST_INT8)
    return Steps(finer, round(_LEAST_SILU / finer) - _LARGEST_INT8)


@dataclass(frozen=True)
class QuantizedFrames:
    """What a convolution in eight bits reads: frames, and the two before them if there are any."""

    frames: ir.Value
    history: ir.Value | None


@dataclass(frozen=True)
class Convolution:
    """One in eight bits that no node computes yet, for what follows is computed with it."""

    name: str
    read: QuantizedFrames
    channels: int


class Convolutions:
    """Those of one graph, by their names in the checkpoint.

    ``in_eight_bits``: whether the GPU has the kernel for those that the export quantizes. Others,
    and those of other widths, have their 8-bit weights in the compute type.
    """

    def __init__(
        self, builder: GraphBuilder, weights: GraphWeights, batch: int, *, in_eight_bits: bool
    ) -> None:
        self._builder, self._weights, self._batch = builder, weights, batch
        self._in_eight_bits = in_eight_bits

    def weight(self, name: str) -> Array:
        """In as many axes as the checkpoint's, and without a scale."""
        stored = self._weights.array(f"{name}.weight")
        if not self._weights.has(f"{name}.{WEIGHT_SCALE}"):
            return stored
        scale = np.reshape(self._array(f"{name}.{WEIGHT_SCALE}"), (-1, 1, 1, 1, 1))
        plain: Array = stored.astype(np.float32) * scale
        return plain

    def takes(self, name: str) -> bool:
        return (
            self._in_eight_bits
            and self._weights.has(f"{name}.{WEIGHT_SCALE}")
            and has_kernel(self._weights, name)
        )

    def dtype(self, name: str) -> ir.DataType:
        """Of what it reads."""
        return self._weights.dtype(f"{name}.weight")

    def can_follow(self, before: object, into: str) -> bool:
        """Whether the node that computes ``before`` can make what ``into`` reads, too."""
        return isinstance(before, Convolution) and self.takes(into) and makes_norm(before.channels)

    def quantize(
        self,
        inputs: Sequence[ir.Value],
        into: str,
        history: ir.Value | None,
        **flags: Any,
    ) -> Sequence[ir.Value]:
        """What ``into`` reads, of inputs that are summed, and gamma; before it, perhaps the sum."""
        values: Sequence[ir.Value] = self._builder.kernel(
            "vae_quantize",
            *inputs,
            *([] if history is None else [history]),
            **self._outputs(into, total=flags["total"]),
            batch=self._batch,
            scale=self.steps(into).size,
            zero=self.steps(into).zero,
            history=history is not None,
            **flags,
        )
        return values

    def compute(
        self, convolution: Convolution, bias: ir.Value, residual: ir.Value | None
    ) -> ir.Value:
        """Its sum, in the compute type."""
        value: ir.Value = self._builder.kernel(
            "vae_conv",
            *self._operands(convolution, bias, residual),
            *([] if convolution.read.history is None else [convolution.read.history]),
            **self._flags(convolution, residual),
            total=True,
        )
        return value

    def compute_into(
        self,
        convolution: Convolution,
        bias: ir.Value,
        residual: ir.Value | None,
        *,
        gamma: ir.Value,
        into: str,
        history: ir.Value | None,
        total: bool,
    ) -> Sequence[ir.Value]:
        """What ``into`` reads, and its next history; before them, perhaps the sum."""
        histories = [convolution.read.history, history]
        values: Sequence[ir.Value] = self._builder.kernel(
            "vae_conv",
            *self._operands(convolution, bias, residual),
            gamma,
            *(value for value in histories if value is not None),
            **self._flags(convolution, residual),
            **self._outputs(into, total=total),
            total=total,
            output_scale=self.steps(into).size,
            output_zero=self.steps(into).zero,
        )
        return values

    def _flags(self, convolution: Convolution, residual: ir.Value | None) -> dict[str, Any]:
        return {
            "batch": self._batch,
            "input_zero": self.steps(convolution.name).zero,
            "residual": residual is not None,
            "history": convolution.read.history is not None,
        }

    def _outputs(self, into: str, *, total: bool) -> dict[str, Any]:
        """The frames and the next history that ``into`` reads, behind the sum."""
        narrow = BY_ONNX[int(self.dtype(into))].name
        if not total:
            return {"outputs": 2, "dtype": narrow}
        return {"outputs": 3, "dtype": f"{self._builder.compute_name}, {narrow}, {narrow}"}

    def _operands(
        self, convolution: Convolution, bias: ir.Value, residual: ir.Value | None
    ) -> list[ir.Value]:
        name, read = convolution.name, convolution.read
        operands = [read.frames, self._packed_weight(name), self._sum_scale(name), bias]
        if self.steps(name).zero:
            operands.append(self._offsets(name))
        return operands if residual is None else [*operands, residual]

    def _packed_weight(self, name: str) -> ir.Value:
        full_name, dtype = f"{name}.weight", self.dtype(name)
        channels_out, channels_in = self._weights.shape(full_name)[:2]
        tensor = ir.LazyTensor(
            lambda: ir.tensor(
                packed_weight(self._weights.array(full_name)), dtype=dtype, name=full_name
            ),
            dtype=dtype,
            shape=ir.Shape(ConvTiles(channels_in, channels_out).weight_shape),
            name=full_name,
        )
        return self._builder.weight(full_name, tensor)

    def _sum_scale(self, name: str) -> ir.Value:
        """Of each output channel: what a one of its sums is worth."""
        channels_out = self._weights.shape(f"{name}.weight")[0]
        weight_scale = self._array(f"{name}.{WEIGHT_SCALE}")
        scales = np.broadcast_to(weight_scale * self.steps(name).size, channels_out)
        full_name = f"{name}.scale"
        values = np.ascontiguousarray(scales, np.float32)
        return self._builder.weight(full_name, ir.tensor(values, name=full_name))

    def _offsets(self, name: str) -> ir.Value:
        """What the number that stands for zero adds to the sums."""
        full_name, zero = f"{name}.offsets", self.steps(name).zero
        weight = f"{name}.weight"
        tensor = ir.LazyTensor(
            lambda: ir.tensor(zero_offsets(self._weights.array(weight), zero), name=full_name),
            dtype=ir.DataType.INT32,
            shape=ir.Shape((OFFSET_ROWS, self._weights.shape(weight)[0])),
            name=full_name,
        )
        return self._builder.weight(full_name, tensor)

    def steps(self, name: str) -> Steps:
        """Of what it reads, which SiLU has made."""
        size = float(self._array(f"{name}.{INPUT_SCALE}"))
        is_int8 = self.dtype(name) == ir.DataType.INT8
        return steps_of_silu(size) if is_int8 else Steps(size)

    def _array(self, name: str) -> Array:
        return self._weights.array(name).astype(np.float32)


def tell_what_stays_wide(weights: GraphWeights, *, hopper: bool) -> None:
    """Which quantized convolutions have no kernel, and what is done with them."""
    suffix = f".{WEIGHT_SCALE}"
    quantized = [name.removesuffix(suffix) for name in weights.names() if name.endswith(suffix)]
    wide = [name for name in quantized if not (hopper and has_kernel(weights, name))]
    if not wide:
        return
    shape = list(weights.shape(f"{wide[0]}.weight"))
    logger.warning(
        "%d of the decoder's %d quantized convolutions run in fp16, with their 8-bit weights: %s",
        *(len(wide), len(quantized)),
        f"our kernel takes multiples of {WIDTH_MULTIPLE} channels and 3x3x3 taps, and {wide[0]} is "
        f"{shape}"
        if hopper
        else "our kernel for them needs sm90",
    )


def has_kernel(weights: GraphWeights, name: str) -> bool:
    channels_out, channels_in, *taps = weights.shape(f"{name}.weight")
    return taps == [3, 3, 3] and takes_widths(channels_in, channels_out)


def stacked_taps(kernel: Array) -> Array:
    """[out, in, 3, 3, 3] as [out, 3 * in, 3, 3], in the order of the stack: earliest first."""
    return kernel.transpose(0, 2, 1, 3, 4).reshape(kernel.shape[0], -1, *kernel.shape[3:])


def folded_taps(kernel: Array) -> Array:
    """[out, in, 3, 3] after doubling as [4 * out, in, 2, 2] in its place, for outputs 0 and 1 of
    each row and column: what falls on the same pixel is added."""
    square = kernel.reshape(*kernel.shape[:2], *kernel.shape[-2:])
    both = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)
    folded = np.einsum("apy,bqx,oiyx->aboipq", both, both, square.astype(np.float32))
    result: Array = folded.reshape(-1, *folded.shape[3:])
    return result
