"""Between the compute type and eight bits: rows, heads, and the values of 8-bit attention."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from longlive_trt.architectures import FIRST_WITH_FP8
from longlive_trt.basics import Array
from longlive_trt.dtypes import name_of
from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.value_layout import (
    VALUE_GROUP,
    padded_tokens,
    transposed_values,
)
from longlive_trt.plugins.attention.variants import ELEMENTS, HEAD_DIMS
from longlive_trt.plugins.cuda.driver import device_facts
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.parameters import FLOAT, INT, LONG, POINTER, ParameterStruct
from longlive_trt.plugins.cuda.placement import Placement
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
from longlive_trt.plugins.kernels.base import OneKernel, Shape
from longlive_trt.plugins.kernels.rows import (
    FLOAT8,
    HALVES,
    INT8,
    TO_FLOAT8,
    TO_INT8,
    in_eight_bits,
    narrowed,
    single,
)

_THREADS = 256
_VECTOR = 8
_FORMATS = {FLOAT8: TO_FLOAT8, INT8: TO_INT8}
_VALUE_TOKENS = 128

_OF_HEADS = ParameterStruct(input=POINTER, output=POINTER, scale=POINTER, vectors=LONG, heads=INT)


@dataclass(frozen=True)
class Quantize(OneKernel):
    """x [..., dim] to float8_e4m3, in units of ``scale``."""

    scale: float
    kernel: ClassVar[CudaKernel] = CudaKernel(
        "rows/quantize.cu",
        ParameterStruct(input=POINTER, output=POINTER, vectors=LONG, factor=FLOAT),
    )

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        return [inputs[0]]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        (x,), (out,) = inputs, outputs
        parameters = {
            "input": x.pointer,
            "output": out.pointer,
            "vectors": _vectors(x, out),
            "factor": 1.0 / self.scale,
        }
        _launch(self.kernel, parameters, {"LL_ELEMENT": ELEMENTS[x.dtype]}, place)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        outputs[0][...] = narrowed(single(inputs[0]), self.scale)


class _OfHeads(OneKernel):
    """x [B, tokens, heads, head_dim], and a scale for each head, float32 [heads]."""

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        x, scale = inputs
        _require_scale(scale, x[2])
        return [x]


@dataclass(frozen=True)
class NarrowHeads(_OfHeads):
    """To eight bits, in units of the scale."""

    kernel: ClassVar[CudaKernel] = CudaKernel("rows/narrow_heads.cu", _OF_HEADS)

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        wide_and_narrow = (inputs[0], outputs[0])
        _launch_heads(self.kernel, inputs, outputs[0], wide_and_narrow, place)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        scale = single(inputs[1])[:, None]
        outputs[0][...] = in_eight_bits(inputs[0], scale, name_of(outputs[0].dtype))


@dataclass(frozen=True)
class WidenHeads(_OfHeads):
    """The reverse: eight bits times the scale."""

    kernel: ClassVar[CudaKernel] = CudaKernel("rows/widen_heads.cu", _OF_HEADS)

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        wide_and_narrow = (outputs[0], inputs[0])
        _launch_heads(self.kernel, inputs, outputs[0], wide_and_narrow, place)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        outputs[0][...] = single(inputs[0]) * single(inputs[1])[:, None]


@dataclass(frozen=True)
class TransposedValues(OneKernel):
    """v [B, tokens, heads, head_dim] as 8-bit attention reads it (``value_layout.value_position``).

    Inputs: values of float8_e4m3; or in the compute type, and their scale, float32 [heads].
    """

    kernel: ClassVar[CudaKernel] = CudaKernel(
        "rows/transposed_values.cu",
        ParameterStruct(
            input=POINTER,
            output=POINTER,
            scale=POINTER,
            input_batch_bytes=LONG,
            input_token_bytes=LONG,
            input_head_bytes=LONG,
            output_batch_bytes=LONG,
            output_head_bytes=LONG,
            output_row_bytes=LONG,
            heads=INT,
            tokens=INT,
            first_token=INT,
        ),
    )

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        batch, tokens, heads, head_dim = inputs[0]
        for scale in inputs[1:]:
            _require_scale(scale, heads)
        return [(batch, heads, head_dim, padded_tokens(tokens))]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        v, *scale = inputs
        quantize_values(v, scale[0] if scale else None, outputs[0], stream=place.stream)

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
    TransposedValues.kernel.launch(
        {
            "input": source.pointer,
            "output": target.pointer,
            "scale": factor,
            **_strides_bytes(source, "input", ("batch", "token", "head")),
            **_strides_bytes(target, "output", ("batch", "head", "row")),
            "heads": heads,
            "tokens": tokens,
            "first_token": first_token,
        },
        grid=(_value_blocks(first_token, tokens), batch * heads),
        threads=_THREADS,
        constants={
            "LL_ELEMENT": ELEMENTS["bfloat16" if narrow else source.dtype],
            "LL_BYTES": int(narrow),
            "LL_HEAD_DIM": head_dim,
        },
        device=source.device,
        stream=stream_handle(stream, v),
    )


def _strides_bytes(tensor: DeviceTensor, side: str, axes: Sequence[str]) -> dict[str, int]:
    return {
        f"{side}_{axis}_bytes": stride * tensor.item_bytes
        for axis, stride in zip(axes, tensor.strides, strict=False)
    }


def _value_blocks(first_token: int, tokens: int) -> int:
    """Thread blocks for these tokens of the layout, aligned as it is."""
    return (first_token + tokens - 1) // _VALUE_TOKENS - first_token // _VALUE_TOKENS + 1


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
    facts = device_facts(device)
    if not facts.architecture.has_fp8:
        raise PluginError(
            f"{facts.name} has compute capability {facts.architecture.capability}: 8-bit types "
            f"need {FIRST_WITH_FP8.capability} or newer"
        )


def _require_scale(scale: Shape, heads: int) -> None:
    if tuple(scale) != (heads,):
        raise PluginError(f"scale has shape {list(scale)}: it must be [{heads}]")


def _launch_heads(
    kernel: CudaKernel,
    inputs: Sequence[DeviceTensor],
    out: DeviceTensor,
    wide_and_narrow: tuple[DeviceTensor, DeviceTensor],
    place: Placement,
) -> None:
    x, scale = inputs
    wide, narrow = wide_and_narrow
    require_dtype(scale, "scale", ["float32"])
    heads, head_dim = x.shape[2:]
    if head_dim % _VECTOR:
        raise PluginError(f"heads of {head_dim} values: they must be multiples of {_VECTOR}")
    parameters = {
        "input": x.pointer,
        "output": out.pointer,
        "scale": scale.pointer,
        "vectors": _vectors(wide, narrow),
        "heads": heads,
    }
    constants = {
        "LL_ELEMENT": ELEMENTS[wide.dtype],
        "LL_FORMAT": _FORMATS[narrow.dtype],
        "LL_HEAD_DIM": head_dim,
    }
    _launch(kernel, parameters, constants, place)


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
    kernel: CudaKernel,
    parameters: Mapping[str, Any],
    constants: Mapping[str, int],
    place: Placement,
) -> None:
    vectors = parameters["vectors"]
    if vectors:
        kernel.launch(
            parameters,
            grid=(-(-vectors // _THREADS),),
            threads=_THREADS,
            constants=constants,
            device=place.device,
            stream=place.stream.handle,
        )
