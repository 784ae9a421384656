"""Between the compute type and eight bits: rows, heads, and the values of 8-bit attention."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longlive_trt.basics import Array
from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.value_layout import (
    VALUE_GROUP,
    padded_tokens,
    transposed_values,
)
from longlive_trt.plugins.attention.variants import ELEMENTS, HEAD_DIMS
from longlive_trt.plugins.cuda import driver
from longlive_trt.plugins.cuda.tensors import (
    DeviceTensor,
    as_device_tensor,
    require_alignment,
    require_contiguous,
    require_device,
    require_dtype,
    require_rank,
    require_shape,
    stream_handle,
)
from longlive_trt.plugins.kernels.base import Shape
from longlive_trt.plugins.kernels.rows import FLOAT8, HALVES, narrowed, single

_THREADS = 256
_VECTOR = 8
_FORMATS = {FLOAT8: 2, "int8": 3}
_LARGEST_INT8 = 127
_VALUE_TOKENS = 128
_FIRST_WITH_8_BITS = (8, 9)


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
    """v [B, tokens, heads, head_dim] as 8-bit attention reads it (``value_layout.value_position``).

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


def quantize_values(
    v: Any, scale: Any, out: Any, *, first_token: int = 0, stream: Any = None
) -> None:
    """Values to float8_e4m3 in the transposed layout of 8-bit attention, from ``first_token`` on.

    ``v`` is [batch, tokens, heads, head_dim]; ``out`` is [batch, heads, head_dim, pitch] with a
    pitch that is a multiple of 16; ``scale`` is float32 [heads], or None if ``v`` is float8_e4m3.
    """
    source = as_device_tensor(v, "v")
    narrow = scale is None
    require_dtype(source, "v", [FLOAT8] if narrow else HALVES)
    require_rank(source, "v", "batch, tokens, heads, head_dim")
    batch, tokens, heads, head_dim = source.shape
    if head_dim not in HEAD_DIMS:
        raise PluginError(f"v has head_dim {head_dim}: allowed is 64 or 128")
    if math.prod(source.shape) == 0:
        return
    require_alignment(source, "v")
    target = as_device_tensor(out, "out")
    _check_transposed(target, source, first_token)
    factor = 0 if narrow else _scale_address(scale, source)
    _require_eight_bits(source.device)
    item = source.item_bytes
    parameters = struct.pack(
        "<9Q3i4x",
        *(source.pointer, target.pointer, factor),
        *(source.strides[0] * item, source.strides[1] * item, source.strides[2] * item),
        *(target.strides[0], target.strides[1], target.strides[2]),
        *(heads, tokens, first_token),
    )
    element = "bfloat16" if narrow else source.dtype
    constants = (
        ("LL_ELEMENT", ELEMENTS[element]),
        ("LL_BYTES", int(narrow)),
        ("LL_HEAD_DIM", head_dim),
    )
    kernel = driver.load_kernel(
        "quantize_values.cu", "quantize_values", constants, 0, source.device
    )
    blocks = (first_token + tokens - 1) // _VALUE_TOKENS - first_token // _VALUE_TOKENS + 1
    kernel.launch((blocks, batch * heads), _THREADS, 0, stream_handle(stream, v), parameters)


def _check_transposed(target: DeviceTensor, source: DeviceTensor, first_token: int) -> None:
    batch, tokens, heads, head_dim = source.shape
    require_dtype(target, "out", [FLOAT8])
    require_shape(target, "out", (batch, heads, head_dim, None), "batch, heads, head_dim, pitch")
    require_device(target, "out", source.device)
    require_alignment(target, "out")
    pitch = target.shape[3]
    if pitch % VALUE_GROUP or not 0 <= first_token <= pitch - tokens:
        raise PluginError(
            f"out holds {pitch} tokens and first_token is {first_token}: the pitch must be a "
            f"multiple of {VALUE_GROUP} that holds first_token + {tokens}"
        )


def _scale_address(scale: Any, source: DeviceTensor) -> int:
    tensor = as_device_tensor(scale, "scale")
    require_dtype(tensor, "scale", ["float32"])
    require_shape(tensor, "scale", (source.shape[2],), "heads")
    require_device(tensor, "scale", source.device)
    require_contiguous(tensor, "scale")
    if tensor.pointer % 4:
        raise PluginError("scale must be aligned to 4 bytes")
    return tensor.pointer


def _require_eight_bits(device: int) -> None:
    facts = driver.device_facts(device)
    if facts.capability < _FIRST_WITH_8_BITS:
        major, minor = facts.capability
        raise PluginError(
            f"{facts.name} has compute capability {major}.{minor}: 8-bit types need 8.9 or newer"
        )


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
