"""The same attention for every GPU since compute capability 8.0: slower, 16-bit types only."""

from collections.abc import Sequence
from typing import Any

from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.arguments import CheckedCall, KVPiece, check_call, check_scale
from longlive_trt.plugins.attention.hopper import LOG2_E
from longlive_trt.plugins.attention.variants import ELEMENTS, MAX_PIECES, REST_ALIKE, check_kind
from longlive_trt.plugins.cuda.driver import LoadedKernel
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.parameters import FLOAT, INT, LONG, POINTER, ParameterStruct
from longlive_trt.plugins.cuda.tensors import DeviceTensor, stream_handle

_TILE_ROWS = 128
_TILE_KEYS = 64
_THREADS = 256
DTYPES = ("bfloat16", "float16")

TENSOR = ParameterStruct(data=POINTER, batch_bytes=LONG, token_bytes=LONG, head_bytes=LONG)
KERNEL = CudaKernel(
    "attention/attention_sm80.cu",
    ParameterStruct(
        q=TENSOR.as_field,
        out=TENSOR.as_field,
        k=TENSOR.as_field * MAX_PIECES,
        v=TENSOR.as_field * MAX_PIECES,
        lengths=POINTER * MAX_PIECES,
        capacities=INT * MAX_PIECES,
        batch=INT,
        heads=INT,
        queries=INT,
        scale_log2=FLOAT,
    ),
)
_NO_TENSOR = bytes(TENSOR.size_bytes)


def portable_constants(dtype: str, head_dim: int, *, rest_alike: bool = False) -> dict[str, int]:
    return {
        "LL_ELEMENT": ELEMENTS[dtype],
        "LL_HEAD_DIM": head_dim,
        **({REST_ALIKE: 1} if rest_alike else {}),
    }


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
        self._kernel(rest_alike=False)

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
        self._kernel(rest_alike=call.rest_alike).launch(
            (tiles,),
            _THREADS,
            self._shared_bytes,
            stream_handle(stream, q, out),
            _pack(call, scale_log2),
        )

    def _kernel(self, *, rest_alike: bool) -> LoadedKernel:
        constants = portable_constants(self.dtype, self.head_dim, rest_alike=rest_alike)
        return KERNEL.load(constants, self.device, self._shared_bytes)


def _pack(call: CheckedCall, scale_log2: float) -> bytes:
    pieces = call.padded_pieces()
    batch, tokens, heads, _ = call.q.shape
    return KERNEL.parameters.pack(
        q=_pack_tensor(call.q),
        out=_pack_tensor(call.out),
        k=[_pack_tensor(p.k) if p else _NO_TENSOR for p in pieces],
        v=[_pack_tensor(p.v) if p else _NO_TENSOR for p in pieces],
        lengths=[p.length_pointer if p else 0 for p in pieces],
        capacities=[p.tokens if p else 0 for p in pieces],
        batch=batch,
        heads=heads,
        queries=tokens,
        scale_log2=scale_log2,
    )


def _pack_tensor(tensor: DeviceTensor) -> bytes:
    batch, token, head, _ = (stride * tensor.item_bytes for stride in tensor.strides)
    return TENSOR.pack(data=tensor.pointer, batch_bytes=batch, token_bytes=token, head_bytes=head)
