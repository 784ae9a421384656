"""Sink-window attention: every query against one to three pieces of keys and values, in place.

The pieces are what the cache of a rolling window consists of: the sink, the past window, and this
pass's own keys and values. Nothing is concatenated, copied or masked; a piece's valid length may
lie in device memory, so that a captured graph can be replayed while the cache fills.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from longlive_trt.architectures import HOPPER
from longlive_trt.basics import Closing
from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.arguments import (
    CheckedCall,
    CheckedScales,
    KVPiece,
    Scales,
    check_call,
    check_scale,
    check_scales,
)
from longlive_trt.plugins.attention.variants import (
    EIGHT_BIT,
    MAX_PIECES,
    Variant,
    check_kind,
    check_output,
    choose_variant,
    default_output,
)
from longlive_trt.plugins.cuda import driver
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.parameters import FLOAT, INT, POINTER, ParameterStruct, opaque
from longlive_trt.plugins.cuda.streams import Gpu
from longlive_trt.plugins.cuda.tensors import DeviceTensor, stream_handle

LOG2_E = 1.4426950408889634

_MAP_BYTES = 128
_MAP = opaque(_MAP_BYTES, alignment_bytes=64)
PROBLEM = ParameterStruct(
    lengths=POINTER * MAX_PIECES,
    q_scale=POINTER,
    k_scale=POINTER,
    v_scale=POINTER,
    partials=POINTER,
    arrivals=POINTER,
    capacities=INT * MAX_PIECES,
    batch=INT,
    heads=INT,
    queries=INT,
    q_scale_batch_stride=INT,
    q_scale_head_stride=INT,
    q_scale_token_stride=INT,
    scale_log2=FLOAT,
    out_factor=FLOAT,
)
KERNEL = CudaKernel(
    "attention/attention_sm90.cu",
    ParameterStruct(
        q=_MAP, out=_MAP, k=_MAP * MAX_PIECES, v=_MAP * MAX_PIECES, problem=PROBLEM.as_field
    ),
)
_NO_MAP = bytes(_MAP_BYTES)


class SinkWindowAttention(Closing):
    """The Hopper kernel for one dtype and head size, with the workspace that its calls share.

    ``dtype`` is that of queries and keys: bfloat16, float16, float8_e4m3 or int8 (the 8-bit kinds
    take float8_e4m3 values and scales). ``out_dtype`` is by default the same, or bfloat16 for the
    8-bit kinds, which can write float16 too; with head_dim 128, all can write float8_e4m3. Calls on
    one object must be ordered (one stream, or events): they use the same workspace.
    """

    def __init__(
        self,
        dtype: str = "bfloat16",
        head_dim: int = 128,
        *,
        out_dtype: str | None = None,
        gpu: Gpu | None = None,
        variant: Variant | None = None,
        split: bool = True,
    ) -> None:
        check_kind(dtype, head_dim)
        self.out_dtype = out_dtype or default_output(dtype)
        check_output(dtype, self.out_dtype, head_dim)
        gpu = gpu or Gpu()
        facts = gpu.facts
        architecture = facts.architecture
        if not architecture.has_hopper_attention:
            raise PluginError(
                f"{facts.name} has compute capability {architecture.capability}: this kernel "
                f"needs {HOPPER.capability} (use PortableAttention)"
            )
        self.dtype = dtype
        self.head_dim = head_dim
        self.device = gpu.ordinal
        self._variant = variant
        self._blocks = facts.multiprocessors
        largest = variant or choose_variant(dtype, head_dim, keys=1 << 20)
        partial_bytes = largest.partial_bytes(head_dim, self._blocks) if split else 0
        counters_bytes = 4 * self._blocks * largest.warpgroups
        self._workspace = gpu.reserve(
            partial_bytes + counters_bytes, "a workspace of attention", zeroed=True
        )
        self._partials = self._workspace.pointer if split else 0
        self._arrivals = self._workspace.pointer + partial_bytes
        self._kernel(largest)

    def __call__(
        self,
        q: Any,
        pieces: Sequence[KVPiece],
        out: Any,
        *,
        scale: float | None = None,
        scales: Scales | None = None,
        out_scale: float = 1.0,
        stream: Any = None,
    ) -> None:
        """Writes softmax(scale q k^T) v into ``out``, or 1 / ``out_scale`` of it in 8 bits.

        All tensors are [batch, tokens, heads, dim].
        """
        call = check_call(
            *(q, pieces, out),
            dtype=self.dtype,
            out_dtype=self.out_dtype,
            head_dim=self.head_dim,
            device=self.device,
        )
        factors = check_scales(scales, call.q)
        scale_log2 = check_scale(scale, self.head_dim) * LOG2_E
        if call.is_empty:
            return
        keys = sum(piece.tokens for piece in call.pieces)
        variant = self._variant or choose_variant(self.dtype, self.head_dim, keys)
        variant = replace(variant, rest_alike=call.rest_alike)
        parameters = self._pack(call, factors, (scale_log2, 1.0 / out_scale), variant)
        self._kernel(variant).launch(
            (self._blocks,),
            variant.threads,
            variant.shared_bytes(self.dtype, self.head_dim),
            stream_handle(stream, q, out),
            parameters,
        )

    def close(self) -> None:
        self._workspace.close()

    def _kernel(self, variant: Variant) -> driver.LoadedKernel:
        constants = dict(variant.constants(self.dtype, self.head_dim, self.out_dtype))
        shared_bytes = variant.shared_bytes(self.dtype, self.head_dim)
        return KERNEL.load(constants, self.device, shared_bytes)

    def _pack(
        self,
        call: CheckedCall,
        factors: CheckedScales,
        in_and_out: tuple[float, float],
        variant: Variant,
    ) -> bytes:
        pieces = call.padded_pieces()
        return KERNEL.parameters.pack(
            q=token_map(call.q, variant.tile_rows),
            out=token_map(call.out, 64),
            k=[token_map(p.k, variant.tile_keys) if p else _NO_MAP for p in pieces],
            v=[self._value_map(p.v, variant) if p else _NO_MAP for p in pieces],
            problem=self._problem(call, factors, in_and_out),
        )

    def _problem(
        self, call: CheckedCall, factors: CheckedScales, in_and_out: tuple[float, float]
    ) -> bytes:
        """Everything but the tensors themselves."""
        pieces = call.padded_pieces()
        batch, tokens, heads, _ = call.q.shape
        scales = dict(zip(("q_scale", "k_scale", "v_scale"), factors.pointers, strict=True))
        axes = (f"q_scale_{axis}_stride" for axis in ("batch", "head", "token"))
        strides = dict(zip(axes, factors.q_strides, strict=True))
        scale_log2, out_factor = in_and_out
        return PROBLEM.pack(
            lengths=[p.length_pointer if p else 0 for p in pieces],
            **scales,
            partials=self._partials,
            arrivals=self._arrivals,
            capacities=[p.tokens if p else 0 for p in pieces],
            batch=batch,
            heads=heads,
            queries=tokens,
            **strides,
            scale_log2=scale_log2,
            out_factor=out_factor,
        )

    def _value_map(self, v: DeviceTensor, variant: Variant) -> bytes:
        if self.dtype not in EIGHT_BIT:
            return token_map(v, variant.tile_keys)
        batch, heads, dim, tokens = v.shape
        return driver.tensor_map(
            1,
            v.pointer,
            (tokens, dim, heads, batch),
            (v.strides[2], v.strides[1], v.strides[0]),
            (variant.value_panel, dim, 1, 1),
        )


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
