"""Layers that hold real FP8 or INT8 weights.

Run by torch they compute what was calibrated; traced they become QuantizeLinear and
DequantizeLinear around the operator, which every compiler turns into a low-precision kernel.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from longlive_trt import hadamard
from longlive_trt.calibration.quantization import dequantize, quantize, rounded
from longlive_trt.calibration.recipes import FP8, INT8, Format
from longlive_trt.contract import INTEGER_ATTENTION_OP, QUANTIZED_ATTENTION_OP
from longlive_trt.export.attention_functions import PROBABILITY_EXPONENT
from longlive_trt.export.models.transformer import AttentionFormat, CacheFormat

OPSET = 24
_LEAST_RANGE = 1e-12
"""Of a row of queries: a unit is no zero."""


class QuantizedLinear(nn.Module):
    """The weight is [in, out], as MatMul takes it."""

    def __init__(self, linear: nn.Linear, format_: Format, *, smoothed: bool) -> None:
        super().__init__()
        self.format = format_
        self.weight = empty_constant(linear.in_features, linear.out_features, dtype=format_.dtype)
        self.weight_scale = empty_constant(linear.out_features)
        self.input_scale = empty_constant()
        self.pre_quant_scale = empty_constant(linear.in_features) if smoothed else None
        self.bias = empty_constant(linear.out_features) if linear.bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        if self.pre_quant_scale is not None:
            x = x * self.pre_quant_scale
        x = fake_quantize(x, self.input_scale, self.format)
        y = x @ dequantized(self.weight, self.weight_scale, axis=1)
        return y if self.bias is None else y + self.bias


def fake_quantize(x: Tensor, scale: Tensor, format_: Format) -> Tensor:
    return dequantized(quantized(x, scale, format_), scale)


def quantized(x: Tensor, scale: Tensor, format_: Format, axis: int | None = None) -> Tensor:
    """One scale for all, or one for each index of ``axis``."""
    if not torch.compiler.is_exporting():
        return quantize(x, _along(scale, axis, x.ndim), format_)
    attributes: dict[str, int] = {} if axis is None else {"axis": axis}
    values: Tensor = torch.onnx.ops.symbolic(
        "QuantizeLinear",
        (x, scale),
        {**attributes, "output_dtype": format_.element.onnx},
        dtype=format_.dtype,
        shape=x.shape,
        version=OPSET,
    )
    return values


def dequantized(values: Tensor, scale: Tensor, axis: int | None = None) -> Tensor:
    if not torch.compiler.is_exporting():
        return dequantize(values, _along(scale, axis, values.ndim))
    restored: Tensor = torch.onnx.ops.symbolic(
        "DequantizeLinear",
        (values, scale),
        {} if axis is None else {"axis": axis},
        dtype=scale.dtype,
        shape=values.shape,
        version=OPSET,
    )
    return restored


def _along(scale: Tensor, axis: int | None, dimensions: int) -> Tensor:
    if axis is None:
        return scale
    return scale.reshape([-1 if index == axis else 1 for index in range(dimensions)])


class QuantizedCache(CacheFormat):
    """Keys and values, with one scale for each head of each layer."""

    _HEAD_AXIS = 2

    def __init__(
        self, layers: int, heads: int, formats: Mapping[str, Format], plain: Collection[str] = ()
    ) -> None:
        """``formats``: of keys (``k``) and of values (``v``). ``plain``: what of them is kept as it
        is all the same, and rounded when it is attended to.
        """
        super().__init__()
        self.formats, self._plain = dict(formats), frozenset(plain)
        self.scales = nn.ParameterDict(
            {f"{part}{layer}": empty_constant(heads) for part in "kv" for layer in range(layers)}
        )

    def pack(self, layer: int, part: str, x: Tensor) -> Tensor:
        return x if part in self._plain else self._narrowed(layer, part, x)

    def unpack(self, layer: int, part: str, x: Tensor) -> Tensor:
        return x if part in self._plain else self._widened(layer, part, x)

    def rounded(self, layer: int, part: str, x: Tensor) -> Tensor:
        return self._widened(layer, part, self._narrowed(layer, part, x))

    def _narrowed(self, layer: int, part: str, x: Tensor) -> Tensor:
        scale = self.scales[f"{part}{layer}"]
        return quantized(x, scale, self.formats[part], self._HEAD_AXIS)

    def _widened(self, layer: int, part: str, x: Tensor) -> Tensor:
        return dequantized(x, self.scales[f"{part}{layer}"], self._HEAD_AXIS)


class QuantizedAttention(AttentionFormat):
    """Queries, keys, values and the softmax's output, with one scale for each tensor.

    Compilers have fused kernels for this form; with scales for each head they have none.
    """

    operator = QUANTIZED_ATTENTION_OP

    def __init__(self, layers: int, format_: Format) -> None:
        super().__init__()
        self.format = format_
        self.by_layer = nn.ParameterDict(
            {f"{part}{layer}": empty_constant() for part in "qkv" for layer in range(layers)}
        )
        self.softmax = empty_constant()

    def scales(self, layer: int) -> tuple[Tensor, ...]:
        return (*(self.by_layer[f"{part}{layer}"] for part in "qkv"), self.softmax)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tensors = zip((q, k, v), self.scales(layer), strict=False)
        q, k, v = (rounded(x.transpose(1, 2), scale, self.format) for x, scale in tensors)
        scaled = (q.float() * q.shape[-1] ** -0.5).to(q.dtype)
        logits = scaled @ k.transpose(-1, -2)
        weights = logits.softmax(dim=-1, dtype=torch.float32).to(v.dtype)
        attended: Tensor = rounded(weights, self.softmax, self.format) @ v
        return attended.transpose(1, 2)


class IntegerAttention(AttentionFormat):
    """Queries and keys in int8, multiplied by a Hadamard matrix; values in float8.

    Queries have a scale for each row of each head, which they themselves give; keys and values
    have those of the cache, and a pass sees its own as the cache keeps them. Keys that are turned
    in every pass are kept as they are, and rounded once they are turned. What probabilities are
    rounded to is float8.
    """

    operator = INTEGER_ATTENTION_OP
    sees_kept = True

    def __init__(self, head_dim: int, kept: QuantizedCache) -> None:
        super().__init__()
        self.signs = empty_constant(head_dim, head_dim)
        # Not a module of this one: its scales are the cache's.
        self._kept = (kept,)

    def mixed(self, x: Tensor) -> Tensor:
        product = x.float() @ self.signs.float() * hadamard.unit(x.shape[-1])
        return product.to(x.dtype)

    def query(self, x: Tensor) -> Tensor:
        wide = x.float()
        largest = wide.abs().amax(-1, keepdim=True).clamp_min(_LEAST_RANGE)
        scale = largest / INT8.largest
        rounded_rows: Tensor = (wide / scale).round() * scale
        return rounded_rows.to(x.dtype)

    def key(self, layer: int, x: Tensor) -> Tensor:
        (kept,) = self._kept
        return kept.rounded(layer, "k", x)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """All keys and values are rounded as the cache rounds them; a second time changes none."""
        (kept,) = self._kept
        q, k = self.query(self.mixed(q)), self.key(layer, self.mixed(k))
        return self.attend_given(layer, q, k, kept.rounded(layer, "v", v))

    def attend_given(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        wide_q, wide_k, wide_v = (x.transpose(1, 2).float() for x in (q, k, v))
        logits = (wide_q * q.shape[-1] ** -0.5) @ wide_k.transpose(-1, -2)
        powers = (logits - logits.amax(-1, keepdim=True)).exp()
        raised = powers * 2.0**PROBABILITY_EXPONENT
        products = rounded(raised, torch.ones((), device=q.device), FP8) @ wide_v
        attended: Tensor = products / raised.sum(-1, keepdim=True)
        return attended.transpose(1, 2).to(v.dtype)


def empty_constant(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
