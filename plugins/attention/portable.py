"""The same attention for every GPU since compute capability 8.0: slower, 16-bit types only."""

import struct
from collections.abc import Sequence
from typing import Any

from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.arguments import CheckedCall, KVPiece, check_call, check_scale
from longlive_trt.plugins.attention.hopper import LOG2_E
from longlive_trt.plugins.attention.variants import ELEMENTS, check_kind
from longlive_trt.plugins.cuda import driver
from longlive_trt.plugins.cuda.tensors import DeviceTensor, stream_handle

_TILE_ROWS = 128
_TILE_KEYS = 64
_THREADS = 256
DTYPES = ("bfloat16", "float16")


def portable_constants(dtype: str, head_dim: int) -> tuple[tuple[str, int], ...]:
    return (("LL_ELEMENT", ELEMENTS[dtype]), ("LL_HEAD_DIM", head_dim))


class PortableAttention:
    """As ``SinkWindowAttention``, without a workspace and without 8-bit types."""

    def __init__(self, dtype: str = "bfloat16", head_dim: int = 128, *, device: int = 0) -> None:
        if dtype not in DTYPES:
            raise PluginError(f"dtype is {dtype}: allowed is {' or '.join(DTYPES)}")
        check_kind(dtype, head_dim)
        self.dtype = dtype
        self.head_dim = head_dim
        self.device = device
        self._shared_bytes = (_TILE_ROWS + 4 * _TILE_KEYS) * head_dim * 2
        self._kernel = driver.load_kernel(
            "attention_sm80.cu",
            "sink_window_attention_portable",
            portable_constants(dtype, head_dim),
            self._shared_bytes,
            device,
        )

    def __call__(
        self,
        q: Any,
        pieces: Sequence[KVPiece],
        out: Any,
        *,
        scale: float | None = None,
        stream: Any = None,
    ) -> None:
        call = check_call(
            q, pieces, out, dtype=self.dtype, head_dim=self.head_dim, device=self.device
        )
        scale_log2 = check_scale(scale, self.head_dim) * LOG2_E
        if call.is_empty:
            return
        batch, tokens, heads, _ = call.q.shape
        tiles = batch * heads * -(-tokens // _TILE_ROWS)
        self._kernel.launch(
            (tiles,),
            _THREADS,
            self._shared_bytes,
            stream_handle(stream, q, out),
            _pack(call, scale_log2),
        )


def _pack(call: CheckedCall, scale_log2: float) -> bytes:
    pieces = call.padded_pieces()
    tensors = [call.q, call.out]
    parts = [_pack_tensor(tensor) for tensor in tensors]
    parts += [_pack_tensor(p.k) if p else bytes(32) for p in pieces]
    parts += [_pack_tensor(p.v) if p else bytes(32) for p in pieces]
    batch, tokens, heads, _ = call.q.shape
    parts.append(
        struct.pack(
            "<3Q6if",
            *(p.length_pointer if p else 0 for p in pieces),
            *(p.tokens if p else 0 for p in pieces),
            *(batch, heads, tokens),
            scale_log2,
        )
    )
    packed = b"".join(parts)
    return packed.ljust(-(-len(packed) // 8) * 8, b"\0")


def _pack_tensor(tensor: DeviceTensor) -> bytes:
    batch, token, head, _ = (stride * tensor.item_bytes for stride in tensor.strides)
    return struct.pack("<4Q", tensor.pointer, batch, token, head)
