"""The passes around attention, each one read and one write: normalize, rotate, modulate, quantize.

All work on rows of ``heads * head_dim`` 16-bit values and round where the unfused computation does.
"""

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.reference import VALUE_GROUP
from longlive_trt.plugins.attention.variants import ELEMENTS
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

_HALVES = ("bfloat16", "float16")
_ROWS_PER_BLOCK = 4
_ROW_THREADS = 128
_VALUE_TOKENS = 128
_BSHD = "batch, tokens, heads, head_dim"
_QUANTIZE = {"none": 0, "float8_e4m3": 2, "int8": 3}
_MAX_DIM = 8192


@dataclass(frozen=True)
class RopeTables:
    """Cosine and sine of each token's angles: float32 device tensors [tokens, head_dim / 2]."""

    cosine: Any
    sine: Any


def qk_norm_rope(
    inputs: Sequence[Any],
    weights: tuple[Any, Any],
    tables: RopeTables,
    outputs: Sequence[Any],
    *,
    epsilon: float = 1e-6,
    quantize: str = "none",
    key_scale: Any = None,
    query_scale: Any = None,
    stream: Any = None,
) -> None:
    """Normalizes and rotates queries and keys; copies values, if given, to their slot.

    ``inputs`` are q, k and perhaps v, [batch, tokens, heads * head_dim] with any row stride;
    ``outputs`` are as many [batch, tokens, heads, head_dim] tensors, such as slots of a cache.
    ``quantize``: none; float8_e4m3 (``query_scale`` and ``key_scale`` are given, float32 [heads]);
    or int8 (``key_scale`` is given; ``query_scale``, float32 [batch, heads, tokens], is written).
    """
    names = _check_rope_request(inputs, outputs, quantize)
    sources = [as_device_tensor(x, f"inputs.{n}") for x, n in zip(inputs, names, strict=True)]
    targets = [as_device_tensor(x, f"outputs.{n}") for x, n in zip(outputs, names, strict=True)]
    _check_rope_tensors(names, sources, targets, quantize)
    first = sources[0]
    batch, tokens, dim = first.shape
    heads, head_dim = targets[0].shape[2:]
    given = [
        *(_vector(w, f"weights.{n}", (dim,), first) for w, n in zip(weights, "qk", strict=True)),
        _table(tables.cosine, "tables.cosine", (tokens, head_dim // 2), first),
        _table(tables.sine, "tables.sine", (tokens, head_dim // 2), first),
        *_rope_scales(quantize, query_scale, key_scale, first, heads),
    ]
    if batch * tokens == 0:
        return
    parameters = struct.pack(
        "<22Q2if4x",
        *_padded(source.pointer for source in sources),
        *_padded(target.pointer for target in targets),
        *given,
        *_padded(source.strides[1] * source.item_bytes for source in sources),
        *_padded(target.strides[0] * target.item_bytes for target in targets),
        *_padded(target.strides[1] * target.item_bytes for target in targets),
        *(batch, tokens),
        epsilon,
    )
    constants = _constants(first.dtype, dim, LL_HEAD_DIM=head_dim, LL_QUANTIZE=_QUANTIZE[quantize])
    kernel = driver.load_kernel("qk_norm_rope.cu", "qk_norm_rope", constants, 0, first.device)
    grid = (-(-batch * tokens // _ROWS_PER_BLOCK), len(sources))
    kernel.launch(grid, _ROW_THREADS, 0, stream_handle(stream, *inputs), parameters)


def _check_rope_request(inputs: Sequence[Any], outputs: Sequence[Any], quantize: str) -> str:
    """The names of the tensors, one letter each."""
    if len(inputs) not in (2, 3) or len(outputs) != len(inputs):
        raise PluginError(
            f"inputs has {len(inputs)} entries and outputs {len(outputs)}: allowed is 2 (q, k) or "
            "3 (q, k, v) of each"
        )
    if quantize not in _QUANTIZE:
        raise PluginError(f"quantize is {quantize!r}: choose one of {', '.join(_QUANTIZE)}")
    if quantize != "none" and len(inputs) == 3:
        raise PluginError("inputs has values: quantized values go through quantize_values")
    return "qkv"[: len(inputs)]


def _check_rope_tensors(
    names: str, sources: list[DeviceTensor], targets: list[DeviceTensor], quantize: str
) -> None:
    first, target = sources[0], targets[0]
    require_rank(first, "inputs.q", "batch, tokens, heads * head_dim")
    require_rank(target, "outputs.q", _BSHD)
    batch, tokens, dim = first.shape
    heads, head_dim = target.shape[2:]
    _check_row(first, "inputs.q", dim)
    if head_dim not in (64, 128) or heads * head_dim != dim:
        raise PluginError(
            f"outputs.q has shape {list(target.shape)}: heads * head_dim must be {dim}, with "
            "head_dim 64 or 128"
        )
    for name, source, output in zip(names, sources, targets, strict=True):
        require_dtype(source, f"inputs.{name}", [first.dtype])
        require_shape(source, f"inputs.{name}", first.shape, "batch, tokens, heads * head_dim")
        _require_rows(source, f"inputs.{name}", first.device)
        require_dtype(output, f"outputs.{name}", [first.dtype if quantize == "none" else quantize])
        require_shape(output, f"outputs.{name}", (batch, tokens, heads, head_dim), _BSHD)
        _require_slot(output, f"outputs.{name}", first.device)


def _padded(values: Iterable[int]) -> list[int]:
    """Three entries, as the kernel has room for q, k and v."""
    given = list(values)
    return [*given, *[0] * (3 - len(given))]


def norm_modulate(
    x: Any,
    scale: Any,
    shift: Any,
    out: Any,
    *,
    affine: bool = False,
    epsilon: float = 1e-6,
    output_scale: Any = None,
    stream: Any = None,
) -> None:
    """Layer norm of each row, then ``* (1 + scale) + shift``, or ``* weight + bias`` if ``affine``.

    ``x`` is [rows, dim]; ``scale`` and ``shift`` are [groups, dim], each for rows / groups
    consecutive rows. A float8_e4m3 ``out`` needs ``output_scale``, float32 [1].
    """
    source = _matrix(x, "x")
    rows, dim = source.shape
    _check_row(source, "x", dim)
    target = as_device_tensor(out, "out")
    require_dtype(target, "out", [source.dtype, "float8_e4m3"])
    require_shape(target, "out", source.shape, "rows, dim")
    require_device(target, "out", source.device)
    require_contiguous(target, "out")
    quantized = target.dtype == "float8_e4m3"
    if quantized != (output_scale is not None):
        need = "a float8_e4m3 out needs one" if quantized else "only a float8_e4m3 out takes one"
        raise PluginError(f"output_scale is {'missing' if quantized else 'given'}: {need}")
    factor = _vector(output_scale, "output_scale", (1,), source, "float32") if quantized else 0
    scale_view, shift_view = _groups(scale, "scale", source), _groups(shift, "shift", source)
    if scale_view.shape != shift_view.shape or scale_view.strides[0] != shift_view.strides[0]:
        raise PluginError("scale and shift differ in shape or in the stride of their groups")
    if rows == 0:
        return
    parameters = struct.pack(
        "<6Q2if4x",
        *(source.pointer, target.pointer, scale_view.pointer, shift_view.pointer, factor),
        scale_view.strides[0] * scale_view.item_bytes,
        *(rows, rows // scale_view.shape[0]),
        epsilon,
    )
    constants = _constants(
        source.dtype, dim, LL_MODULATE=int(not affine), LL_QUANTIZE=2 if quantized else 0
    )
    _launch_rows("norm_modulate", constants, source, rows, parameters, stream_handle(stream, x))


def gated_residual(residual: Any, update: Any, gate: Any, out: Any, *, stream: Any = None) -> None:
    """``residual + gate * update`` by rows; ``gate`` is [groups, dim].

    ``out`` may be ``residual``.
    """
    source = _matrix(residual, "residual")
    rows, dim = source.shape
    _check_row(source, "residual", dim)
    views = []
    for name, value in (("update", update), ("out", out)):
        view = _matrix(value, name)
        require_dtype(view, name, [source.dtype])
        require_shape(view, name, source.shape, "rows, dim")
        require_device(view, name, source.device)
        views.append(view)
    gates = _groups(gate, "gate", source)
    if rows == 0:
        return
    parameters = struct.pack(
        "<5Q2i",
        *(source.pointer, views[0].pointer, gates.pointer, views[1].pointer),
        gates.strides[0] * gates.item_bytes,
        *(rows, rows // gates.shape[0]),
    )
    constants = _constants(source.dtype, dim, LL_MODULATE=1, LL_QUANTIZE=0)
    handle = stream_handle(stream, residual)
    _launch_rows("gated_residual", constants, source, rows, parameters, handle)


def quantize_values(
    v: Any, scale: Any, out: Any, *, first_token: int = 0, stream: Any = None
) -> None:
    """Values to float8_e4m3 in the transposed layout of 8-bit attention, from ``first_token`` on.

    ``v`` is [batch, tokens, heads, head_dim]; ``out`` is [batch, heads, head_dim, pitch] with a
    pitch that is a multiple of 16; ``scale`` is float32 [heads], or None if ``v`` is float8_e4m3.
    """
    source = as_device_tensor(v, "v")
    narrow = scale is None
    require_dtype(source, "v", ["float8_e4m3"] if narrow else _HALVES)
    require_rank(source, "v", _BSHD)
    batch, tokens, heads, head_dim = source.shape
    if head_dim not in (64, 128):
        raise PluginError(f"v has head_dim {head_dim}: allowed is 64 or 128")
    if math.prod(source.shape) == 0:
        return
    require_alignment(source, "v")
    target = as_device_tensor(out, "out")
    require_dtype(target, "out", ["float8_e4m3"])
    require_shape(target, "out", (batch, heads, head_dim, None), "batch, heads, head_dim, pitch")
    require_device(target, "out", source.device)
    require_alignment(target, "out")
    pitch = target.shape[3]
    if pitch % VALUE_GROUP or not 0 <= first_token <= pitch - tokens:
        raise PluginError(
            f"out holds {pitch} tokens and first_token is {first_token}: the pitch must be a "
            f"multiple of {VALUE_GROUP} that holds first_token + {tokens}"
        )
    factor = 0 if narrow else _vector(scale, "scale", (heads,), source, "float32")
    _require_eight_bit(source.device)
    item = source.item_bytes
    parameters = struct.pack(
        "<9Q3i4x",
        *(source.pointer, target.pointer, factor),
        *(source.strides[0] * item, source.strides[1] * item, source.strides[2] * item),
        *(target.strides[0], target.strides[1], target.strides[2]),
        *(heads, tokens, first_token),
    )
    element = "bfloat16" if narrow else source.dtype
    constants = _constants(element, 1536, LL_HEAD_DIM=head_dim, LL_BYTES=int(narrow))
    kernel = driver.load_kernel(
        "quantize_values.cu", "quantize_values", constants, 0, source.device
    )
    blocks = (first_token + tokens - 1) // _VALUE_TOKENS - first_token // _VALUE_TOKENS + 1
    kernel.launch((blocks, batch * heads), 256, 0, stream_handle(stream, v), parameters)


def _launch_rows(
    entry: str,
    constants: tuple[tuple[str, int], ...],
    source: DeviceTensor,
    rows: int,
    parameters: bytes,
    stream: int,
) -> None:
    kernel = driver.load_kernel("norm_modulate.cu", entry, constants, 0, source.device)
    blocks = -(-rows // _ROWS_PER_BLOCK)
    kernel.launch((blocks,), _ROW_THREADS, 0, stream, parameters)


def _constants(dtype: str, dim: int, **others: int) -> tuple[tuple[str, int], ...]:
    return (("LL_ELEMENT", ELEMENTS[dtype]), ("LL_DIM", dim), *sorted(others.items()))


def _check_row(tensor: DeviceTensor, name: str, dim: int) -> None:
    require_dtype(tensor, name, _HALVES)
    if dim % 8 or not 8 <= dim <= _MAX_DIM:
        raise PluginError(
            f"{name} has rows of {dim} values: allowed are multiples of 8 up to {_MAX_DIM}"
        )


def _matrix(value: Any, name: str) -> DeviceTensor:
    tensor = as_device_tensor(value, name)
    require_rank(tensor, name, "rows, dim")
    require_contiguous(tensor, name)
    require_alignment(tensor, name)
    return tensor


def _groups(value: Any, name: str, source: DeviceTensor) -> DeviceTensor:
    tensor = as_device_tensor(value, name)
    require_dtype(tensor, name, [source.dtype])
    require_shape(tensor, name, (None, source.shape[1]), "groups, dim")
    require_device(tensor, name, source.device)
    require_alignment(tensor, name)
    if tensor.shape[0] == 0 or source.shape[0] % tensor.shape[0]:
        raise PluginError(
            f"{name} has {tensor.shape[0]} groups: they must divide the {source.shape[0]} rows"
        )
    return tensor


def _require_rows(tensor: DeviceTensor, name: str, device: int) -> None:
    """Rows may be far apart (a slice of q, k and v together), but follow each other evenly."""
    require_device(tensor, name, device)
    require_alignment(tensor, name)
    batch, tokens, _ = tensor.shape
    if batch > 1 and tensor.strides[0] != tokens * tensor.strides[1]:
        raise PluginError(f"{name} has strides {list(tensor.strides)}: batches must follow evenly")


def _require_slot(tensor: DeviceTensor, name: str, device: int) -> None:
    require_device(tensor, name, device)
    require_alignment(tensor, name, 8 if tensor.item_bytes == 1 else 16)
    if tensor.strides[2] != tensor.shape[3]:
        raise PluginError(
            f"{name} has stride {tensor.strides[2]} between heads: they must be dense"
        )


def _vector(
    value: Any,
    name: str,
    shape: tuple[int, ...],
    source: DeviceTensor,
    dtype: str | None = None,
) -> int:
    tensor = as_device_tensor(value, name)
    require_dtype(tensor, name, [dtype or source.dtype])
    require_shape(tensor, name, shape, ", ".join(f"axis {i}" for i in range(len(shape))))
    require_device(tensor, name, source.device)
    require_contiguous(tensor, name)
    alignment = 4 if tensor.dtype == "float32" else 16
    if tensor.pointer % alignment:
        raise PluginError(f"{name} must be aligned to {alignment} bytes")
    return tensor.pointer


def _table(value: Any, name: str, shape: tuple[int, int], source: DeviceTensor) -> int:
    pointer = _vector(value, name, shape, source, "float32")
    if pointer % 16:
        raise PluginError(f"{name} must be aligned to 16 bytes")
    return pointer


def _rope_scales(
    quantize: str, query_scale: Any, key_scale: Any, source: DeviceTensor, heads: int
) -> tuple[int, int, int]:
    """The given scales of queries and keys, and where those of int8 queries are written."""
    batch, tokens, _ = source.shape
    if quantize == "none":
        if query_scale is not None or key_scale is not None:
            raise PluginError("query_scale or key_scale was given: quantize is none")
        return 0, 0, 0
    _require_eight_bit(source.device)
    keys = _vector(key_scale, "key_scale", (heads,), source, "float32")
    if quantize == "int8":
        shape = (batch, heads, tokens)
        return 0, keys, _vector(query_scale, "query_scale", shape, source, "float32")
    return _vector(query_scale, "query_scale", (heads,), source, "float32"), keys, 0


def _require_eight_bit(device: int) -> None:
    facts = driver.device_facts(device)
    if facts.capability < (8, 9):
        major, minor = facts.capability
        raise PluginError(
            f"{facts.name} has compute capability {major}.{minor}: 8-bit types need 8.9 or newer"
        )
