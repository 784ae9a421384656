"""Between the compute type and eight bits: rows, heads, and the values of 8-bit attention."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longlive_trt.basics import Array
from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.reference import padded_tokens, transposed_values
from longlive_trt.plugins.attention.variants import ELEMENTS
from longlive_trt.plugins.cuda import driver
from longlive_trt.plugins.cuda.tensors import DeviceTensor, require_alignment, require_dtype
from longlive_trt.plugins.kernels.base import Shape
from longlive_trt.plugins.kernels.companions import quantize_values
from longlive_trt.plugins.kernels.rows import FLOAT8, HALVES, narrowed, single

_THREADS = 256
_VECTOR = 8
_FORMATS = {FLOAT8: 2, "int8": 3}
_LARGEST_INT8 = 127


@dataclass(frozen=True)
class Quantize:
    """x [..., dim] to float8_e4m3, in units of ``scale``."""

    scale: float

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        return [inputs[0]]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], stream: int
    ) -> None:
        (x,), (out,) = inputs, outputs
        vectors = _vectors(x, out)
        parameters = struct.pack("<2Qqf4x", x.pointer, out.pointer, vectors, 1.0 / self.scale)
        _launch(
            "quantize_rows", (("LL_ELEMENT", ELEMENTS[x.dtype]),), vectors, parameters, x, stream
        )

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        outputs[0][...] = narrowed(single(inputs[0]), self.scale)


class OfHeads:
    """x [B, tokens, heads, head_dim], and a scale for each head, float32 [heads]."""

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        x, scale = inputs
        _require_scale(scale, x[2])
        return [x]


@dataclass(frozen=True)
class NarrowHeads(OfHeads):
    """To eight bits, in units of the scale."""

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], stream: int
    ) -> None:
        _launch_heads("narrow_heads", inputs, outputs[0], (inputs[0], outputs[0]), stream)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        x, scale = single(inputs[0]), single(inputs[1])[:, None]
        if outputs[0].dtype == np.int8:
            outputs[0][...] = np.clip(np.rint(x / scale), -_LARGEST_INT8, _LARGEST_INT8)
        else:
            outputs[0][...] = narrowed(x, scale)


@dataclass(frozen=True)
class WidenHeads(OfHeads):
    """The reverse: eight bits times the scale."""

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], stream: int
    ) -> None:
        _launch_heads("widen_heads", inputs, outputs[0], (outputs[0], inputs[0]), stream)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        outputs[0][...] = single(inputs[0]) * single(inputs[1])[:, None]


@dataclass(frozen=True)
class TransposedValues:
    """v [B, tokens, heads, head_dim] as 8-bit attention reads it (``reference.value_position``).

    Inputs: values of float8_e4m3; or in the compute type, and their scale, float32 [heads].
    """

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        batch, tokens, heads, head_dim = inputs[0]
        for scale in inputs[1:]:
            _require_scale(scale, heads)
        return [(batch, heads, head_dim, padded_tokens(tokens))]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], stream: int
    ) -> None:
        v, *scale = inputs
        quantize_values(v, scale[0] if scale else None, outputs[0], stream=stream)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        v, *scale = inputs
        narrow = narrowed(single(v), single(scale[0])[:, None]) if scale else v
        outputs[0][...] = transposed_values(narrow)


def _require_scale(scale: Shape, heads: int) -> None:
    if tuple(scale) != (heads,):
        raise PluginError(f"scale has shape {list(scale)}: it must be [{heads}]")


def _launch_heads(
    entry: str,
    inputs: Sequence[DeviceTensor],
    out: DeviceTensor,
    wide_and_narrow: tuple[DeviceTensor, DeviceTensor],
    stream: int,
) -> None:
    x, scale = inputs
    wide, narrow = wide_and_narrow
    require_dtype(scale, "scale", ["float32"])
    heads, head_dim = x.shape[2:]
    if head_dim % _VECTOR:
        raise PluginError(f"heads of {head_dim} values: they must be multiples of {_VECTOR}")
    vectors = _vectors(wide, narrow)
    parameters = struct.pack("<3Qqi4x", x.pointer, out.pointer, scale.pointer, vectors, heads)
    constants = (
        ("LL_ELEMENT", ELEMENTS[wide.dtype]),
        ("LL_FORMAT", _FORMATS[narrow.dtype]),
        ("LL_HEAD_DIM", head_dim),
    )
    _launch(entry, constants, vectors, parameters, x, stream)


def _vectors(wide: DeviceTensor, narrow: DeviceTensor) -> int:
    require_dtype(wide, "the wide tensor", HALVES)
    require_dtype(narrow, "the narrow tensor", list(_FORMATS))
    values = math.prod(wide.shape)
    if values == 0:
        return 0
    require_alignment(wide, "the wide tensor")
    require_alignment(narrow, "the narrow tensor", _VECTOR)
    if values % _VECTOR:
        raise PluginError(f"a tensor of {values} values: they must be a multiple of {_VECTOR}")
    return values // _VECTOR


def _launch(
    entry: str,
    constants: tuple[tuple[str, int], ...],
    vectors: int,
    parameters: bytes,
    x: DeviceTensor,
    stream: int,
) -> None:
    if vectors:
        kernel = driver.load_kernel("quantize_rows.cu", entry, constants, 0, x.device)
        kernel.launch((-(-vectors // _THREADS),), _THREADS, 0, stream, parameters)
