"""Sink-window attention: every query against one to three pieces of keys and values, in place.

The pieces are what the cache of a rolling window consists of: the sink, the past window, and this
pass's own keys and values. Nothing is concatenated, copied or masked; a piece's valid length may lie
in device memory, so that a captured graph can be replayed while the cache fills.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import PluginError
from . import driver
from .tensors import (
    DeviceTensor,
    as_device_tensor,
    require_alignment,
    require_contiguous,
    require_device,
    require_dtype,
    require_shape,
    stream_handle,
)
from .variants import EIGHT_BIT, ELEMENTS, HEAD_DIMS, MAX_PIECES, Variant, default_variant

_LOG2_E = 1.4426950408889634
_PARAMETER_BYTES = 1152
_BSHD = "batch, tokens, heads, head_dim"


@dataclass(frozen=True)
class KVPiece:
    """Keys and values of one stretch of the cache.

    ``length`` counts the valid tokens, a prefix of the piece: an int that is checked now, a one-element
    int64 device tensor that is read by the kernel (and clamped to the capacity), or None for all.
    In float8_e4m3, ``v`` is the transposed layout that ``quantize_values`` documents.
    """

    k: Any
    v: Any
    length: Any = None


@dataclass(frozen=True)
class Scales:
    """What 8-bit tensors must be multiplied by, as float32 device tensors.

    ``k`` and ``v`` are [heads]; ``q`` is [heads] or [batch, heads, tokens].
    """

    q: Any
    k: Any
    v: Any


@dataclass(frozen=True)
class _ScaleArguments:
    pointers: tuple[int, int, int] = (0, 0, 0)
    q_strides: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class _Piece:
    k: DeviceTensor
    v: DeviceTensor
    capacity: int
    length_pointer: int


class SinkWindowAttention:
    """The Hopper kernel for one dtype and head size, with the workspace that its calls share.

    Calls on one object must be ordered (one stream, or events): they use the same workspace.
    """

    def __init__(
        self,
        dtype: str = "bfloat16",
        head_dim: int = 128,
        *,
        device: int = 0,
        variant: Variant | None = None,
        split: bool = True,
    ) -> None:
        chosen = default_variant(dtype, head_dim) if variant is None else variant
        facts = driver.device_facts(device)
        if facts.capability != (9, 0):
            raise PluginError(
                f"{facts.name} has compute capability {facts.capability[0]}.{facts.capability[1]}: "
                "this kernel needs 9.0 (use PortableAttention)"
            )
        self.dtype = dtype
        self.head_dim = head_dim
        self.device = device
        self.variant = chosen
        self._blocks = facts.multiprocessors
        self._shared_bytes = chosen.shared_bytes(dtype, head_dim)
        self._kernel = driver.load_kernel(
            "attention_sm90.cu",
            "sink_window_attention",
            chosen.constants(dtype, head_dim),
            self._shared_bytes,
            device,
        )
        partial_bytes = chosen.partial_bytes(head_dim, self._blocks) if split else 0
        counters_bytes = 4 * self._blocks * chosen.warpgroups
        self._workspace = driver.DeviceMemory(partial_bytes + counters_bytes, device)
        self._partials = self._workspace.pointer if split else 0
        self._arrivals = self._workspace.pointer + partial_bytes

    def __call__(
        self,
        q: Any,
        pieces: Sequence[KVPiece],
        out: Any,
        *,
        scale: float | None = None,
        scales: Scales | None = None,
        stream: Any = None,
    ) -> None:
        """Writes softmax(scale q k^T) v into ``out``; all tensors are [batch, tokens, heads, dim]."""
        queries, target, checked = self._check(q, pieces, out)
        batch, tokens, heads, _ = queries.shape
        if tokens == 0 or batch == 0:
            return
        factors = self._check_scales(scales, queries)
        used_scale = check_scale(scale, self.head_dim)
        parameters = self._pack(queries, target, checked, factors, used_scale * _LOG2_E)
        handle = stream_handle(stream, q, out)
        self._kernel.launch(
            (self._blocks,), self.variant.threads, self._shared_bytes, handle, parameters
        )

    def _check(
        self, q: Any, pieces: Sequence[KVPiece], out: Any
    ) -> tuple[DeviceTensor, DeviceTensor, list[_Piece]]:
        queries = as_device_tensor(q, "q")
        require_dtype(queries, "q", [self.dtype])
        require_shape(queries, "q", (None, None, None, self.head_dim), _BSHD)
        self._require_place(queries, "q")
        target = as_device_tensor(out, "out")
        out_dtype = "bfloat16" if self.dtype in EIGHT_BIT else self.dtype
        require_dtype(target, "out", [out_dtype])
        require_shape(target, "out", queries.shape, _BSHD)
        self._require_place(target, "out")
        if not 1 <= len(pieces) <= MAX_PIECES:
            raise PluginError(f"pieces has {len(pieces)} entries: allowed is 1 to {MAX_PIECES}")
        checked = [self._check_piece(piece, i, queries) for i, piece in enumerate(pieces)]
        return queries, target, checked

    def _check_piece(self, piece: KVPiece, index: int, queries: DeviceTensor) -> _Piece:
        name = f"pieces[{index}]"
        batch, _, heads, _ = queries.shape
        k = as_device_tensor(piece.k, f"{name}.k")
        require_dtype(k, f"{name}.k", [self.dtype])
        require_shape(k, f"{name}.k", (batch, None, heads, self.head_dim), _BSHD)
        self._require_place(k, f"{name}.k")
        capacity = k.shape[1]
        v = as_device_tensor(piece.v, f"{name}.v")
        require_dtype(v, f"{name}.v", ["float8_e4m3" if self.dtype in EIGHT_BIT else self.dtype])
        if self.dtype in EIGHT_BIT:
            wanted = (batch, heads, self.head_dim, None)
            require_shape(v, f"{name}.v", wanted, "batch, heads, head_dim, padded tokens")
            if v.shape[3] < capacity:
                raise PluginError(
                    f"{name}.v holds {v.shape[3]} tokens: it must hold at least the {capacity} "
                    f"of {name}.k"
                )
        else:
            require_shape(v, f"{name}.v", k.shape, _BSHD)
        self._require_place(v, f"{name}.v")
        pointer, valid = check_length(piece.length, capacity, name, self.device)
        return _Piece(k, v, valid, pointer)

    def _require_place(self, tensor: DeviceTensor, name: str) -> None:
        require_device(tensor, name, self.device)
        if math.prod(tensor.shape):
            require_alignment(tensor, name)

    def _check_scales(self, scales: Scales | None, queries: DeviceTensor) -> _ScaleArguments:
        if self.dtype not in EIGHT_BIT:
            if scales is not None:
                raise PluginError(f"scales were given: {self.dtype} attention takes none")
            return _ScaleArguments()
        if scales is None:
            raise PluginError(f"scales is None: {self.dtype} attention needs those of q, k and v")
        batch, tokens, heads, _ = queries.shape
        q = self._check_scale_tensor(scales.q, "scales.q")
        if len(q.shape) == 1:
            require_shape(q, "scales.q", (heads,), "heads")
            q_strides = (0, q.strides[0], 0)
        else:
            require_shape(q, "scales.q", (batch, heads, tokens), "batch, heads, tokens")
            q_strides = (q.strides[0], q.strides[1], q.strides[2])
        pointers = [q.pointer]
        for name, value in (("scales.k", scales.k), ("scales.v", scales.v)):
            tensor = self._check_scale_tensor(value, name)
            require_shape(tensor, name, (heads,), "heads")
            require_contiguous(tensor, name)
            pointers.append(tensor.pointer)
        return _ScaleArguments((pointers[0], pointers[1], pointers[2]), q_strides)

    def _check_scale_tensor(self, value: Any, name: str) -> DeviceTensor:
        tensor = as_device_tensor(value, name)
        require_dtype(tensor, name, ["float32"])
        require_device(tensor, name, self.device)
        return tensor

    def _pack(
        self,
        queries: DeviceTensor,
        target: DeviceTensor,
        pieces: list[_Piece],
        factors: _ScaleArguments,
        scale_log2: float,
    ) -> bytes:
        rows, keys = self.variant.tile_rows, self.variant.tile_keys
        padded = [*pieces, *[None] * (MAX_PIECES - len(pieces))]
        used = [piece if piece is not None and piece.capacity else None for piece in padded]
        maps = [token_map(queries, rows), token_map(target, 64)]
        maps += [token_map(p.k, keys) if p else bytes(128) for p in used]
        maps += [self._value_map(p.v) if p else bytes(128) for p in used]
        batch, tokens, heads, _ = queries.shape
        tail = struct.pack(
            "<8Q9if",
            *(p.length_pointer if p else 0 for p in used),
            *factors.pointers,
            self._partials,
            self._arrivals,
            *(p.capacity if p else 0 for p in used),
            *(batch, heads, tokens, *factors.q_strides),
            scale_log2,
        )
        return (b"".join(maps) + tail).ljust(_PARAMETER_BYTES, b"\0")

    def _value_map(self, v: DeviceTensor) -> bytes:
        if self.dtype not in EIGHT_BIT:
            return token_map(v, self.variant.tile_keys)
        batch, heads, dim, tokens = v.shape
        sizes = (tokens, dim, heads, batch)
        strides = (v.strides[2], v.strides[1], v.strides[0])
        return driver.tensor_map(1, v.pointer, sizes, strides, (self.variant.value_panel, dim, 1, 1))


def token_map(tensor: DeviceTensor, tokens_per_box: int) -> bytes:
    """Boxes of some tokens of one head, 128 bytes of it at a time."""
    batch, tokens, heads, dim = tensor.shape
    item = tensor.item_bytes
    natural = (tokens * heads * dim, heads * dim, dim)
    strides = tuple(
        item * (stride if size > 1 else default)
        for size, stride, default in zip(tensor.shape, tensor.strides, natural, strict=False)
    )
    return driver.tensor_map(
        item,
        tensor.pointer,
        (dim, heads, tokens, batch),
        (strides[2], strides[1], strides[0]),
        (128 // item, 1, tokens_per_box, 1),
    )


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
            raise PluginError(f"{name}.length is {length}: allowed is 0 to {capacity}, its capacity")
        return 0, length
    tensor = as_device_tensor(length, f"{name}.length")
    require_dtype(tensor, f"{name}.length", ["int64"])
    if math.prod(tensor.shape) != 1:
        raise PluginError(f"{name}.length has shape {list(tensor.shape)}: it must be one number")
    require_device(tensor, f"{name}.length", device)
    if tensor.pointer % 8:
        raise PluginError(f"{name}.length is not aligned to 8 bytes")
    return tensor.pointer, capacity


__all__ = [
    "ELEMENTS",
    "HEAD_DIMS",
    "Scales",
    "KVPiece",
    "SinkWindowAttention",
    "Variant",
    "check_length",
    "check_scale",
    "token_map",
]
