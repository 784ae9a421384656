"""What a call of attention consists of, and the checks that come before any launch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.variants import EIGHT_BIT, MAX_PIECES, default_output
from longlive_trt.plugins.cuda.tensors import (
    DeviceTensor,
    as_device_tensor,
    require_alignment,
    require_contiguous,
    require_device,
    require_dtype,
    require_shape,
)

BSHD = "batch, tokens, heads, head_dim"


@dataclass(frozen=True)
class KVPiece:
    """Keys and values of one stretch of the cache.

    ``length`` counts the valid tokens, a prefix of the piece: an int that is checked now, a
    one-element int64 device tensor that the kernel reads (and clamps to the capacity), or None
    for all of them.
    In 8 bits, ``v`` is the transposed layout that ``value_layout.value_position`` describes.
    ``rest_alike``: all tokens behind the valid ones are like the last of these, as those that pad a
    prompt. They take part, and that one counts for them: the result is that of all, but for
    rounding. It needs a length on the device, 16 bits, and to be the only piece.
    """

    k: Any
    v: Any
    length: Any = None
    rest_alike: bool = False


@dataclass(frozen=True)
class Scales:
    """What 8-bit tensors must be multiplied by, as float32 device tensors.

    ``k`` and ``v`` are [heads]; ``q`` is [heads] or [batch, heads, tokens].
    """

    q: Any
    k: Any
    v: Any


@dataclass(frozen=True)
class CheckedPiece:
    k: DeviceTensor
    v: DeviceTensor
    tokens: int  # that may be read; fewer if the device says so
    length_pointer: int


@dataclass(frozen=True)
class CheckedScales:
    pointers: tuple[int, int, int] = (0, 0, 0)
    q_strides: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class CheckedCall:
    q: DeviceTensor
    out: DeviceTensor
    pieces: tuple[CheckedPiece, ...]
    rest_alike: bool = False

    @property
    def is_empty(self) -> bool:
        return math.prod(self.q.shape) == 0

    def padded_pieces(self) -> list[CheckedPiece | None]:
        """As many as a kernel has room for; pieces without a single token are left out."""
        used = [piece if piece.tokens else None for piece in self.pieces]
        return [*used, *[None] * (MAX_PIECES - len(used))]


def check_call(
    q: Any,
    pieces: Sequence[KVPiece],
    out: Any,
    *,
    dtype: str,
    head_dim: int,
    device: int,
    out_dtype: str | None = None,
) -> CheckedCall:
    queries = as_device_tensor(q, "q")
    require_dtype(queries, "q", [dtype])
    require_shape(queries, "q", (None, None, None, head_dim), BSHD)
    _require_place(queries, "q", device)
    target = as_device_tensor(out, "out")
    require_dtype(target, "out", [out_dtype or default_output(dtype)])
    require_shape(target, "out", queries.shape, BSHD)
    _require_place(target, "out", device)
    if not 1 <= len(pieces) <= MAX_PIECES:
        raise PluginError(f"pieces has {len(pieces)} entries: allowed is 1 to {MAX_PIECES}")
    checked = tuple(_check_piece(p, f"pieces[{i}]", queries) for i, p in enumerate(pieces))
    rest_alike = any(piece.rest_alike for piece in pieces)
    if rest_alike:
        _check_rest(checked, dtype)
    return CheckedCall(queries, target, checked, rest_alike)


def check_scales(scales: Scales | None, queries: DeviceTensor) -> CheckedScales:
    if queries.dtype not in EIGHT_BIT:
        if scales is not None:
            raise PluginError(f"scales were given: {queries.dtype} attention takes none")
        return CheckedScales()
    if scales is None:
        raise PluginError(f"scales is None: {queries.dtype} attention needs those of q, k and v")
    batch, tokens, heads, _ = queries.shape
    q = _scale_tensor(scales.q, "scales.q", queries.device)
    if len(q.shape) == 1:
        require_shape(q, "scales.q", (heads,), "heads")
        q_strides = (0, q.strides[0], 0)
    else:
        require_shape(q, "scales.q", (batch, heads, tokens), "batch, heads, tokens")
        q_strides = (q.strides[0], q.strides[1], q.strides[2])
    pointers = [q.pointer]
    for name, value in (("scales.k", scales.k), ("scales.v", scales.v)):
        tensor = _scale_tensor(value, name, queries.device)
        require_shape(tensor, name, (heads,), "heads")
        require_contiguous(tensor, name)
        pointers.append(tensor.pointer)
    return CheckedScales((pointers[0], pointers[1], pointers[2]), q_strides)


def check_scale(scale: float | None, head_dim: int) -> float:
    if scale is None:
        return 1.0 / math.sqrt(head_dim)
    if not math.isfinite(scale) or scale <= 0.0:
        raise PluginError(f"scale is {scale}: it must be a positive finite number")
    return scale


def check_length(length: Any, capacity: int, name: str, device: int) -> tuple[int, int]:
    """A device pointer (or 0) and the number of tokens that may be read."""
    if length is None:
        return 0, capacity
    if isinstance(length, int):
        if not 0 <= length <= capacity:
            raise PluginError(
                f"{name}.length is {length}: allowed is 0 to {capacity}, its capacity"
            )
        return 0, length
    tensor = as_device_tensor(length, f"{name}.length")
    require_dtype(tensor, f"{name}.length", ["int64"])
    if math.prod(tensor.shape) != 1:
        raise PluginError(f"{name}.length has shape {list(tensor.shape)}: it must be one number")
    require_device(tensor, f"{name}.length", device)
    if tensor.pointer % 8:
        raise PluginError(f"{name}.length is not aligned to 8 bytes")
    return tensor.pointer, capacity


def _check_rest(pieces: Sequence[CheckedPiece], dtype: str) -> None:
    if dtype in EIGHT_BIT:
        raise PluginError(f"pieces[0].rest_alike is true: {dtype} attention does not take that")
    if len(pieces) > 1:
        raise PluginError(f"pieces has {len(pieces)} entries: with rest_alike, allowed is 1")
    if not pieces[0].length_pointer:
        raise PluginError("pieces[0].rest_alike is true: its length must lie on the device")


def _check_piece(piece: KVPiece, name: str, queries: DeviceTensor) -> CheckedPiece:
    batch, _, heads, head_dim = queries.shape
    eight_bit = queries.dtype in EIGHT_BIT
    k = as_device_tensor(piece.k, f"{name}.k")
    require_dtype(k, f"{name}.k", [queries.dtype])
    require_shape(k, f"{name}.k", (batch, None, heads, head_dim), BSHD)
    _require_place(k, f"{name}.k", queries.device)
    capacity = k.shape[1]
    v = as_device_tensor(piece.v, f"{name}.v")
    require_dtype(v, f"{name}.v", ["float8_e4m3" if eight_bit else queries.dtype])
    if eight_bit:
        axes = "batch, heads, head_dim, padded tokens"
        require_shape(v, f"{name}.v", (batch, heads, head_dim, None), axes)
        if v.shape[3] < capacity:
            raise PluginError(
                f"{name}.v holds {v.shape[3]} tokens: it must hold at least the {capacity} of "
                f"{name}.k"
            )
    else:
        require_shape(v, f"{name}.v", k.shape, BSHD)
    _require_place(v, f"{name}.v", queries.device)
    pointer, tokens = check_length(piece.length, capacity, name, queries.device)
    return CheckedPiece(k, v, tokens, pointer)


def _require_place(tensor: DeviceTensor, name: str, device: int) -> None:
    require_device(tensor, name, device)
    if math.prod(tensor.shape):
        require_alignment(tensor, name)


def _scale_tensor(value: Any, name: str, device: int) -> DeviceTensor:
    tensor = as_device_tensor(value, name)
    require_dtype(tensor, name, ["float32"])
    require_device(tensor, name, device)
    return tensor
