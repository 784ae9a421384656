"""Self-attention in the hand-written step graph: in the compute type or in FP8, from a cache that
is in the compute type or in eight bits. What an exported graph is, this one is.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from longlive_trt.plugins.kernels.rows import FLOAT8

if TYPE_CHECKING:
    from longlive_trt.engines.graphs.step import StepWriter

_KERNEL_NAMES = {ir.DataType.FLOAT8E4M3FN: FLOAT8, ir.DataType.INT8: "int8"}
CACHE_SCALE = "cache_format.scales.{part}{layer}"
ATTENTION_SCALE = "attention_format.by_layer.{part}{layer}"


class SelfAttention:
    """Rotations and lengths are those of the pass: they are made once, for all layers."""

    def __init__(self, writer: "StepWriter") -> None:
        self.writer, self.graph = writer, writer.graph
        self.relative = writer.config.rollout.rope == "relative"
        self.caches = {part: writer.per_layer(f"{part}_cache") for part in "kv"}
        self.turn = writer.rope(writer.inputs["frame_index"])
        self.turn_cached = writer.rope(writer.inputs["cache_index"]) if self.relative else None
        frames = self.graph.op("Add", *(writer.inputs[f"{x}_frames"] for x in ("sink", "window")))
        per_frame = self.graph.constant([writer.config.tokens_per_frame], np.int64)
        self.cached_tokens = self.graph.op("Mul", frames, per_frame)
        self.cache_type = _KERNEL_NAMES.get(self.caches["k"][0].dtype or ir.DataType.UNDEFINED)
        self.narrow = writer.weights.has(ATTENTION_SCALE.format(part="q", layer=0))

    def __call__(self, layer: int, normed: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The update of the residual stream, and what the cache keeps of this pass."""
        name = f"blocks.{layer}.self_attn"
        projections = (f"{name}.{part}" for part in "qkv")
        qkv = self.writer.linear(normed, *projections, joined=f"{name}.qkv")
        if self.narrow and self.cache_type == FLOAT8 and not self.relative:
            attended, key, value = self._all_narrow(layer, name, qkv)
        else:
            q, key, value, kept_key = self._split(name, qkv)
            attended = self._attend(layer, name, q, key, value)
            key = self._kept(layer, "k", kept_key)
            value = self._kept(layer, "v", value)
        return self.writer.linear(attended, f"{name}.o"), key, value

    def _all_narrow(
        self, layer: int, name: str, qkv: ir.Value
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Nothing of this pass but its sums is in more than eight bits, nor is the cache."""
        scales = [self._attention_scale(layer, part) for part in "qkv"]
        q, key, value = self._norm_and_turn(name, qkv, *scales, dtype=FLOAT8)
        k_cache, v_cache = (self.caches[part][layer] for part in "kv")
        values = [self._transposed(value), self._transposed(v_cache)]
        attended = self._narrow_attention(name, q, key, values, k_cache, scales)
        return attended, key, value

    def _attend(
        self, layer: int, name: str, q: ir.Value, key: ir.Value, value: ir.Value
    ) -> ir.Value:
        cached_key, cached_value = self._cached(layer, "k"), self._cached(layer, "v")
        if self.turn_cached is not None:
            cached_key = self.graph.kernel("rotate", cached_key, *self.turn_cached)
        if not self.narrow:
            attended: ir.Value = self.graph.kernel(
                *("attention", q, key, value, cached_key, cached_value, self.cached_tokens),
                **self.writer.narrow_attention(f"{name}.o"),
            )
            return attended
        scales = [self._attention_scale(layer, part) for part in "qkv"]
        q, key, cached_key = (
            self.graph.kernel("narrow_heads", x, scale, dtype=FLOAT8)
            for x, scale in ((q, scales[0]), (key, scales[1]), (cached_key, scales[1]))
        )
        values = [self._transposed(x, scales[2]) for x in (value, cached_value)]
        return self._narrow_attention(name, q, key, values, cached_key, scales)

    def _narrow_attention(
        self,
        name: str,
        q: ir.Value,
        key: ir.Value,
        values: list[ir.Value],
        cached_key: ir.Value,
        scales: list[ir.Value],
    ) -> ir.Value:
        own_values, cached_values = values
        attended: ir.Value = self.graph.kernel(
            "narrow_attention",
            *(q, key, own_values, cached_key, cached_values, self.cached_tokens, *scales),
            **self.writer.narrow_attention(f"{name}.o"),
        )
        return attended

    def _transposed(self, *value_and_scale: ir.Value) -> ir.Value:
        value: ir.Value = self.graph.kernel("transposed_values", *value_and_scale, dtype=FLOAT8)
        return value

    def _cached(self, layer: int, part: str) -> ir.Value:
        cached: ir.Value = self.caches[part][layer]
        if self.cache_type is not None:
            cached = self.graph.kernel("widen_heads", cached, self._cache_scale(layer, part))
        return cached

    def _kept(self, layer: int, part: str, x: ir.Value) -> ir.Value:
        if self.cache_type is not None:
            x = self.graph.kernel(
                "narrow_heads", x, self._cache_scale(layer, part), dtype=self.cache_type
            )
        return x

    def _cache_scale(self, layer: int, part: str) -> ir.Value:
        return self._scale(CACHE_SCALE.format(part=part, layer=layer))

    def _attention_scale(self, layer: int, part: str) -> ir.Value:
        """What is cached in FP8 has the cache's scales, for the kernel has one for all keys."""
        if part != "q" and self.cache_type == FLOAT8:
            return self._cache_scale(layer, part)
        return self._scale(ATTENTION_SCALE.format(part=part, layer=layer))

    def _scale(self, name: str) -> ir.Value:
        """One for each head, also where the export has one for all."""
        stored = self.writer.weights.array(name).astype(np.float32)
        scales = np.broadcast_to(stored, self.writer.sizes.heads)
        return self.graph.weight(name, ir.tensor(np.ascontiguousarray(scales), name=name))

    def _split(self, name: str, qkv: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
        """q, k and v as attention wants them, and the key as the cache keeps it."""
        parameters = {"outputs": 4 if self.relative else 3, "plain_key": self.relative}
        q, key, value, *plain = self._norm_and_turn(name, qkv, **parameters)
        return q, key, value, plain[0] if plain else key

    def _norm_and_turn(self, name: str, qkv: ir.Value, *scales: ir.Value, **parameters: Any) -> Any:
        norms = [self.writer.linear.vector(f"{name}.norm_{part}.weight") for part in "qk"]
        sizes = {"heads": self.writer.sizes.heads, "epsilon": self.writer.sizes.eps}
        parameters = {"outputs": 3, **sizes, **parameters}
        return self.graph.kernel("qkv_norm_rope", qkv, *norms, *self.turn, *scales, **parameters)
