"""Values in the layout that 8-bit attention reads: made, kept and moved.

The cache of a graph that attends in eight bits holds its values so, [batch, heads, head_dim,
pitch]: what was remembered is never transposed again. ``attention.value_layout`` is the layout.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from longlive_trt.architectures import FIRST_WITH_FP8
from longlive_trt.basics import Array
from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.value_layout import (
    TILE_TOKENS,
    VALUE_GROUP,
    transposed_shape,
    transposed_values,
    value_positions,
)
from longlive_trt.plugins.attention.variants import ELEMENTS, HEAD_DIMS
from longlive_trt.plugins.cuda.driver import device_facts
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.parameters import INT, LONG, POINTER, ParameterStruct
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
from longlive_trt.plugins.kernels.base import OneKernel, Shape, require_scale
from longlive_trt.plugins.kernels.rows import FLOAT8, HALVES, narrowed, single

_THREADS = 256
MOVED = CudaKernel(
    "rows/moved_values.cu",
    ParameterStruct(
        input=POINTER,
        output=POINTER,
        input_pitch=LONG,
        output_pitch=LONG,
        rows=INT,
        tokens=INT,
        input_first=INT,
        output_first=INT,
    ),
)


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
        for scale in inputs[1:]:
            require_scale(scale, inputs[0][2])
        return [transposed_shape(inputs[0])]

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
    return (first_token + tokens - 1) // TILE_TOKENS - first_token // TILE_TOKENS + 1


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


def move_values(
    source: DeviceTensor,
    target: DeviceTensor,
    *,
    source_first: int,
    target_first: int,
    tokens: int,
    stream: int,
) -> None:
    """So many tokens from one place to another; both are [batch, heads, head_dim, pitch]."""
    _check_moved(source, target, source_first, target_first, tokens)
    rows = math.prod(source.shape[:3])
    groups = (target_first + tokens - 1) // VALUE_GROUP - target_first // VALUE_GROUP + 1
    if not rows or not tokens:
        return
    MOVED.launch(
        {
            "input": source.pointer,
            "output": target.pointer,
            "input_pitch": source.shape[3],
            "output_pitch": target.shape[3],
            "rows": rows,
            "tokens": tokens,
            "input_first": source_first,
            "output_first": target_first,
        },
        grid=(-(-rows * groups // _THREADS),),
        threads=_THREADS,
        constants={},
        device=source.device,
        stream=stream,
    )


def moved(
    source: Array, target: Array, *, source_first: int, target_first: int, tokens: int
) -> None:
    """The same with numpy."""
    taken = value_positions(source_first, tokens)
    target[..., value_positions(target_first, tokens)] = source[..., taken]


def _check_moved(
    source: DeviceTensor, target: DeviceTensor, source_first: int, target_first: int, tokens: int
) -> None:
    require_shape(target, "target", (*source.shape[:3], None), "batch, heads, head_dim, pitch")
    require_device(target, "target", source.device)
    for name, tensor, first in (("source", source, source_first), ("target", target, target_first)):
        require_dtype(tensor, name, [FLOAT8])
        require_alignment(tensor, name)
        require_contiguous(tensor, name)
        pitch = tensor.shape[3]
        if pitch % VALUE_GROUP or not 0 <= first <= pitch - tokens:
            raise PluginError(
                f"{name} holds {pitch} tokens and the first is {first}: the pitch must be a "
                f"multiple of {VALUE_GROUP} that holds first + {tokens}"
            )
