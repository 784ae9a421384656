"""Attention as nodes of graphs: the Hopper kernel, or the portable one where it does not run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from longlive_trt.architectures import Architecture
from longlive_trt.basics import Array
from longlive_trt.plugins.attention import hopper, portable
from longlive_trt.plugins.attention.arguments import KVPiece, Scales
from longlive_trt.plugins.attention.hopper import SinkWindowAttention
from longlive_trt.plugins.attention.portable import PortableAttention
from longlive_trt.plugins.attention.value_layout import plain_values
from longlive_trt.plugins.attention.variants import check_kind
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.tensors import DeviceTensor
from longlive_trt.plugins.kernels.base import Shape
from longlive_trt.plugins.kernels.rows import Float32, narrowed, single


@dataclass(frozen=True)
class Attending:
    """The result is [B, tokens, heads * head_dim]; with ``output_scale`` in float8_e4m3, in units
    of it."""

    scale: float | None = None
    output_scale: float | None = None

    @classmethod
    def cuda_kernels(cls, architecture: Architecture) -> Sequence[CudaKernel]:
        return (hopper.KERNEL if architecture.has_hopper_attention else portable.KERNEL,)

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        *outer, heads, head_dim = inputs[0]
        return [(*outer, heads * head_dim)]

    def attend(
        self,
        q: DeviceTensor,
        pieces: Sequence[KVPiece],
        out: DeviceTensor,
        place: Placement,
        scales: Scales | None = None,
    ) -> None:
        dtype, head_dim = q.dtype, q.shape[-1]
        check_kind(dtype, head_dim)
        target = DeviceTensor.contiguous(out.pointer, q.shape, out.dtype, out.device)
        if not place.gpu.facts.architecture.has_hopper_attention:
            attention = PortableAttention(dtype, head_dim, device=place.device)
            attention(q, pieces, target, scale=self.scale, stream=place.stream)
            return
        _hopper_attention(dtype, out.dtype, head_dim, place)(
            *(q, pieces, target),
            scale=self.scale,
            scales=scales,
            out_scale=self.output_scale or 1.0,
            stream=place.stream,
        )

    def store(self, out: Array, values: Float32) -> None:
        values = values.reshape(out.shape)
        out[...] = values if self.output_scale is None else narrowed(values, self.output_scale)


@dataclass(frozen=True)
class Attention(Attending):
    """Queries against this pass's own keys and the valid prefix of the cache.

    Inputs: q, k, v, cached k and v, each [B, tokens, heads, head_dim], and how many cached tokens
    are valid, int64 [1].
    """

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        q, k, v, k_cache, v_cache, length = inputs
        pieces = [KVPiece(k_cache, v_cache, length), KVPiece(k, v)]
        self.attend(q, pieces, outputs[0], place)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        q, k, v, k_cache, v_cache = map(single, inputs[:5])
        valid = max(0, min(int(inputs[5][0]), k_cache.shape[1]))
        keys = np.concatenate([k_cache[:, :valid], k], axis=1)
        values = np.concatenate([v_cache[:, :valid], v], axis=1)
        self.store(outputs[0], attended(q, keys, values, self.scale))


@dataclass(frozen=True)
class CrossAttention(Attending):
    """Queries against all of some keys: q, k, v [B, tokens, heads, head_dim].

    A fourth input, int64 [1, 1], is how many keys there are to tell apart: those that follow are
    like the last of these, which counts for them.
    """

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        q, k, v, *count = inputs
        piece = KVPiece(k, v, count[0], rest_alike=True) if count else KVPiece(k, v)
        self.attend(q, [piece], outputs[0], place)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        q, k, v = map(single, inputs[:3])
        rest = 1
        if len(inputs) > 3:
            valid = max(0, min(int(inputs[3].item()), k.shape[1]))
            rest = k.shape[1] - valid + 1
            k, v = k[:, :valid], v[:, :valid]
        self.store(outputs[0], attended(q, k, v, self.scale, rest))


@dataclass(frozen=True)
class NarrowAttention(Attending):
    """Attention in eight bits: values in float8_e4m3, queries and keys in that or int8.

    Inputs: q, k, cached k [B, tokens, heads, head_dim]; v and cached v as ``TransposedValues``
    makes them; how many cached tokens are valid, int64 [1]; the scales of q, k and v, float32
    [heads], or of q [B, tokens, heads]. The order is q, k, v, cached k, cached v, valid, scales.
    """

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        q, k, v, k_cache, v_cache, length, q_scale, *others = inputs
        pieces = [KVPiece(k_cache, v_cache, length), KVPiece(k, v)]
        scales = Scales(_by_head(q_scale), *others)
        self.attend(q, pieces, outputs[0], place, scales)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        q, k, k_cache = (single(inputs[index]) for index in (0, 1, 3))
        q_scale, k_scale, v_scale = (single(scale)[..., None] for scale in inputs[6:])
        valid = max(0, min(int(inputs[5][0]), k_cache.shape[1]))
        values = [
            single(plain_values(v, k.shape[1])) for v, k in ((inputs[2], k), (inputs[4], k_cache))
        ]
        keys = np.concatenate([k_cache[:, :valid], k], axis=1)
        joined = np.concatenate([values[1][:, :valid], values[0]], axis=1)
        result = attended(q * q_scale, keys * k_scale, joined * v_scale, self.scale)
        self.store(outputs[0], result)


def attended(q: Float32, k: Float32, v: Float32, scale: float | None, last: int = 1) -> Float32:
    """The last key counts as so many. Without any the result is zero."""
    if not k.shape[1]:
        return np.zeros(q.shape, np.float32)
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = q @ k.swapaxes(-1, -2) * np.float32(scale or q.shape[-1] ** -0.5)
    scores[..., -1:] += np.float32(np.log(last))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    sums = weights.sum(-1, keepdims=True)
    result: Float32 = (weights @ v / sums).transpose(0, 2, 1, 3)
    return result


def _hopper_attention(
    dtype: str, out_dtype: str, head_dim: int, place: Placement
) -> SinkWindowAttention:
    """One of a kind: calls on an object share its workspace."""
    make = partial(SinkWindowAttention, dtype, head_dim, out_dtype=out_dtype, gpu=place.gpu)
    return place.shared((SinkWindowAttention, dtype, out_dtype, head_dim), make)


def _by_head(scale: DeviceTensor) -> DeviceTensor:
    """Of rows, as attention takes them: [batch, heads, tokens]."""
    if len(scale.shape) == 1:
        return scale
    (batch, tokens, heads), (of_batch, of_token, of_head) = scale.shape, scale.strides
    strides = (of_batch, of_head, of_token)
    return replace(scale, shape=(batch, heads, tokens), strides=strides)
