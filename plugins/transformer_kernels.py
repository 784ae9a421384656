"""The transformer's kernels by name, and those that are neither norms nor rotations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from ..errors import PluginError
from . import driver
from .arguments import KVPiece
from .attention import SinkWindowAttention
from .cublaslt import Matmul, Product, alignment_of
from .graph_kernels import Array, GraphKernel, Parameters, Shape
from .portable import PortableAttention
from .tensors import DeviceTensor
from .transformer_rows import (
    Float32,
    LayerNorm,
    QkvNormRope,
    ResidualNorm,
    RmsNorm,
    Rotate,
    single,
    split_shape,
)
from .variants import check_kind

_ACTIVATIONS = ("none", "gelu")


@dataclass(frozen=True)
class Gemm:
    """x [..., in] times weight [in, out], plus bias [out] if there is one, then the activation.

    With ``heads`` the last axis of the result is split into heads.
    """

    activation: str = "none"
    heads: int | None = None
    matmuls: dict[Product, Matmul] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.activation not in _ACTIVATIONS:
            raise PluginError(
                f"activation is {self.activation!r}: choose one of {', '.join(_ACTIVATIONS)}"
            )

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        x, weight = inputs[:2]
        if len(weight) != 2 or x[-1] != weight[0]:
            raise PluginError(f"rows of {x[-1]} values do not fit a weight of shape {list(weight)}")
        shape = (*x[:-1], weight[1])
        return [split_shape(shape, self.heads) if self.heads else shape]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], stream: int
    ) -> None:
        x, weight, *bias = inputs
        product = self._product(inputs, outputs[0])
        if product.rows == 0:
            return
        if product not in self.matmuls:
            self.matmuls[product] = Matmul(product, device=x.device)
        self.matmuls[product](
            x.pointer,
            weight.pointer,
            outputs[0].pointer,
            bias=bias[0].pointer if bias else 0,
            stream=stream,
        )

    def _product(self, inputs: Sequence[DeviceTensor], out: DeviceTensor) -> Product:
        x, weight, *bias = inputs
        inner, columns = weight.shape
        return Product(
            rows=int(np.prod(x.shape[:-1])),
            inner=inner,
            columns=columns,
            dtype=x.dtype,
            out_dtype=out.dtype,
            bias=bool(bias),
            activation=self.activation,
            alignment_bytes=alignment_of(*(tensor.pointer for tensor in (*inputs, out))),
        )

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        x, weight, *bias = map(single, inputs)
        product = x @ weight
        if bias:
            product += bias[0]
        if self.activation == "gelu":
            product = gelu(product)
        outputs[0][...] = product.reshape(outputs[0].shape)


@dataclass(frozen=True)
class Attention:
    """Queries against this pass's own keys and the valid prefix of the cache.

    Inputs: q, k, v, cached k and v, each [B, tokens, heads, head_dim], and how many cached tokens
    are valid, int64 [1]. The result is [B, tokens, heads * head_dim].
    """

    scale: float | None = None

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        return [_joined_shape(inputs[0])]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], stream: int
    ) -> None:
        q, k, v, k_cache, v_cache, length = inputs
        pieces = [KVPiece(k_cache, v_cache, length), KVPiece(k, v)]
        _attend(q, pieces, outputs[0], self.scale, stream)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        q, k, v, k_cache, v_cache = map(single, inputs[:5])
        valid = max(0, min(int(inputs[5][0]), k_cache.shape[1]))
        keys = np.concatenate([k_cache[:, :valid], k], axis=1)
        values = np.concatenate([v_cache[:, :valid], v], axis=1)
        outputs[0][...] = attended(q, keys, values, self.scale).reshape(outputs[0].shape)


@dataclass(frozen=True)
class CrossAttention:
    """Queries against all of some keys: q, k, v [B, tokens, heads, head_dim]."""

    scale: float | None = None

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        return [_joined_shape(inputs[0])]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], stream: int
    ) -> None:
        q, k, v = inputs
        _attend(q, [KVPiece(k, v)], outputs[0], self.scale, stream)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        q, k, v = map(single, inputs)
        outputs[0][...] = attended(q, k, v, self.scale).reshape(outputs[0].shape)


def _maker(kind: Callable[..., GraphKernel]) -> Callable[[Parameters], GraphKernel]:
    return lambda parameters: kind(**parameters)


TRANSFORMER_KERNELS: dict[str, Callable[[Parameters], GraphKernel]] = {
    "attention": _maker(Attention),
    "cross_attention": _maker(CrossAttention),
    "gemm": _maker(Gemm),
    "norm_modulate": _maker(LayerNorm),
    "qkv_norm_rope": _maker(QkvNormRope),
    "residual_norm": _maker(ResidualNorm),
    "rms_norm": _maker(RmsNorm),
    "rotate": _maker(Rotate),
}


def gelu(x: Float32) -> Float32:
    """The form with the hyperbolic tangent."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)
    result: Float32 = np.float32(0.5) * x * (1 + np.tanh(inner))
    return result


def attended(q: Float32, k: Float32, v: Float32, scale: float | None) -> Float32:
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = q @ k.swapaxes(-1, -2) * np.float32(scale or q.shape[-1] ** -0.5)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    sums = weights.sum(-1, keepdims=True)
    result: Float32 = (weights @ v / sums).transpose(0, 2, 1, 3)
    return result


@cache
def _attention(
    dtype: str, head_dim: int, device: int, stream: int
) -> SinkWindowAttention | PortableAttention:
    """One for each stream: calls on an object share its workspace."""
    if driver.device_facts(device).capability == (9, 0):
        return SinkWindowAttention(dtype, head_dim, device=device)
    return PortableAttention(dtype, head_dim, device=device)


def _attend(
    q: DeviceTensor,
    pieces: Sequence[KVPiece],
    out: DeviceTensor,
    scale: float | None,
    stream: int,
) -> None:
    check_kind(q.dtype, q.shape[-1])
    target = DeviceTensor.contiguous(out.pointer, q.shape, out.dtype, out.device)
    attention = _attention(q.dtype, q.shape[-1], q.device, stream)
    attention(q, pieces, target, scale=scale, stream=stream)


def _joined_shape(shape: Shape) -> Shape:
    *outer, heads, head_dim = shape
    return (*outer, heads * head_dim)
