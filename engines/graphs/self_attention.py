"""Self-attention in the hand-written step graph: as the exported graph is, in the compute type or
quantized, from a cache in the compute type or quantized.
"""

from enum import Enum
from typing import Any

import numpy as np
import onnx_ir as ir

from longlive_trt import contract
from longlive_trt.dtypes import FLOAT8, FLOAT32, INT8
from longlive_trt.engines.graphs.writer import GraphWriter


class Kind(Enum):
    """What is in eight bits, and how values lie in the cache for it."""

    INTEGER = "queries and keys in int8, values in FP8"
    FLOAT8 = "all of it in FP8, and so the cache"
    FLOAT8_ROUNDED = "all of it in FP8, rounded in every pass"
    COMPUTE = "nothing but, perhaps, what the cache keeps"

    @property
    def reads_kept_values(self) -> bool:
        """From where they lie, in the layout that attention in eight bits reads."""
        return self in (Kind.INTEGER, Kind.FLOAT8)


def kind_of(writer: GraphWriter) -> Kind:
    if writer.weights.has(contract.HADAMARD_SIGNS) and writer.has_narrow_attention:
        return Kind.INTEGER
    if not writer.weights.has(contract.attention_scale("q", 0)):
        return Kind.COMPUTE
    is_kept = writer.kept_dtype("k") == FLOAT8.name and writer.config.rollout.rope != "relative"
    return Kind.FLOAT8 if is_kept else Kind.FLOAT8_ROUNDED


class SelfAttention:
    """Rotations and lengths are those of the pass: they are made once, for all layers."""

    def __init__(self, writer: GraphWriter) -> None:
        self._writer, self._graph, self._linear = writer, writer.graph, writer.linear
        self._sizes = writer.sizes
        self._caches = {part: writer.per_layer(stem) for part, stem in contract.CACHE_OF.items()}
        self._is_relative = writer.config.rollout.rope == "relative"
        self._turn = self._rope(contract.FRAME_INDEX)
        self._turn_cached = self._rope(contract.CACHE_INDEX) if self._is_relative else None
        self._cached_tokens = self._valid_tokens()
        self._kind = kind_of(writer)
        self._is_integer = writer.weights.has(contract.HADAMARD_SIGNS)

    def __call__(self, layer: int, normed: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The update of the residual stream, and what the cache keeps of this pass."""
        name = f"blocks.{layer}.self_attn"
        projections = (f"{name}.{part}" for part in "qkv")
        qkv = self._linear(normed, *projections, joined=f"{name}.qkv")
        if self._kind is Kind.INTEGER:
            attended, key, value = self._in_integers(layer, name, qkv)
        elif self._kind is Kind.FLOAT8:
            attended, key, value = self._all_quantized(layer, name, qkv)
        else:
            q, key, value, kept_key = self._split(name, qkv)
            attended = self._attend(layer, name, q, key, value)
            key = self._kept(layer, "k", kept_key)
            value = self._kept(layer, "v", value)
        return self._linear(attended, f"{name}.o"), key, value

    def _valid_tokens(self) -> ir.Value:
        """Of the cache."""
        counts = (self._writer.inputs[n] for n in (contract.SINK_FRAMES, contract.WINDOW_FRAMES))
        frames = self._graph.op("Add", *counts)
        per_frame = self._graph.constant([self._writer.config.tokens_per_frame], np.int64)
        tokens: ir.Value = self._graph.op("Mul", frames, per_frame)
        return tokens

    def _rope(self, positions: str) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines [F * P, head_dim / 2] of the frames at these positions."""
        cosine = self._rope_table(contract.FRAME_COS, contract.GRID_COS, positions)
        sine = self._rope_table(contract.FRAME_SIN, contract.GRID_SIN, positions)
        return cosine, sine

    def _rope_table(self, frame_name: str, grid_name: str, positions: str) -> ir.Value:
        """By frame [frames, ...] and by place in it [1, P, ...]; each is zero where the other is
        not.
        """
        op, writer, half = self._graph.op, self._writer, self._sizes.head_dim // 2
        by_frame, by_place = writer.table(frame_name)[:, None], writer.table(grid_name)
        by_frame = np.pad(by_frame, ((0, 0), (0, 0), (0, half - by_frame.shape[-1])))
        by_place = np.pad(by_place, ((0, 0), (0, 0), (half - by_place.shape[-1], 0)))
        table = writer.constant_table(frame_name, by_frame)
        frames = op("Gather", table, writer.inputs[positions])
        both = op("Add", frames, writer.constant_table(grid_name, by_place))
        return writer.reshape(both, -1, half)

    def _all_quantized(
        self, layer: int, name: str, qkv: ir.Value
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """All of this pass but its sums is quantized, and so is the cache."""
        scales = [self._attention_scale(layer, part) for part in "qkv"]
        q, key, value = self._norm_and_turn(name, qkv, *scales, dtype=FLOAT8.name, transposed=True)
        k_cache, v_cache = (self._caches[part][layer] for part in "kv")
        attended = self._quantized_attention(name, q, key, [value, v_cache], k_cache, scales)
        return attended, key, value

    def _in_integers(
        self, layer: int, name: str, qkv: ir.Value
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Queries and keys in int8, values in FP8, and so is the cache.

        Keys that are turned in every pass are kept in the compute type, and rounded then.
        """
        scales = [self._cache_scale(layer, part) for part in "kv"]
        types = [INT8.name, INT8.name, FLOAT8.name, FLOAT32.name]
        parameters = {"hadamard": True, "transposed": True}
        if self._is_relative:
            types.append(self._graph.compute_name)
            parameters["plain_key"] = True
        q, key, value, q_scale, *plain = self._norm_and_turn(
            name, qkv, *scales, dtype=", ".join(types), outputs=len(types), **parameters
        )
        k_cache, v_cache = (self._caches[part][layer] for part in "kv")
        if self._turn_cached is not None:
            k_cache = self._graph.kernel(
                "rotate", k_cache, *self._turn_cached, scales[0], dtype=INT8.name
            )
        by_row = [q_scale, *scales]
        attended = self._quantized_attention(name, q, key, [value, v_cache], k_cache, by_row)
        return attended, plain[0] if plain else key, value

    def _attend(
        self, layer: int, name: str, q: ir.Value, key: ir.Value, value: ir.Value
    ) -> ir.Value:
        cached_key, cached_value = self._cached(layer, "k"), self._cached(layer, "v")
        if self._turn_cached is not None:
            cached_key = self._graph.kernel("rotate", cached_key, *self._turn_cached)
        if self._kind is Kind.COMPUTE:
            attended: ir.Value = self._graph.kernel(
                *("attention", q, key, value, cached_key, cached_value, self._cached_tokens),
                **self._writer.quantized_attention(f"{name}.o"),
            )
            return attended
        scales = [self._attention_scale(layer, part) for part in "qkv"]
        q, key, cached_key = (
            self._graph.kernel("narrow_heads", x, scale, dtype=FLOAT8.name)
            for x, scale in ((q, scales[0]), (key, scales[1]), (cached_key, scales[1]))
        )
        values = [
            self._graph.kernel("transposed_values", x, scales[2], dtype=FLOAT8.name)
            for x in (value, cached_value)
        ]
        return self._quantized_attention(name, q, key, values, cached_key, scales)

    def _quantized_attention(
        self,
        name: str,
        q: ir.Value,
        key: ir.Value,
        values: list[ir.Value],
        cached_key: ir.Value,
        scales: list[ir.Value],
    ) -> ir.Value:
        own_values, cached_values = values
        attended: ir.Value = self._graph.kernel(
            "narrow_attention",
            *(q, key, own_values, cached_key, cached_values, self._cached_tokens, *scales),
            **self._writer.quantized_attention(f"{name}.o"),
        )
        return attended

    def _cached(self, layer: int, part: str) -> ir.Value:
        cached: ir.Value = self._caches[part][layer]
        if self._writer.kept_dtype(part) is not None:
            cached = self._graph.kernel("widen_heads", cached, self._cache_scale(layer, part))
        return cached

    def _kept(self, layer: int, part: str, x: ir.Value) -> ir.Value:
        if self._writer.kept_dtype(part) is not None:
            x = self._graph.kernel(
                "narrow_heads",
                x,
                self._cache_scale(layer, part),
                dtype=self._writer.kept_dtype(part),
            )
        return x

    def _cache_scale(self, layer: int, part: str) -> ir.Value:
        return self._scale(contract.cache_scale(part, layer))

    def _attention_scale(self, layer: int, part: str) -> ir.Value:
        """What is cached in FP8 has the cache's scales, for the kernel has one for all keys."""
        if part != "q" and self._writer.kept_dtype("k") == FLOAT8.name:
            return self._cache_scale(layer, part)
        return self._scale(contract.attention_scale(part, layer))

    def _scale(self, name: str) -> ir.Value:
        """One for each head, also where the export has one for all."""
        stored = self._writer.weights.array(name).astype(np.float32)
        scales = np.broadcast_to(stored, self._sizes.heads)
        return self._writer.constant_table(name, scales)

    def _split(self, name: str, qkv: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
        """q, k and v as attention wants them, and the key as the cache keeps it."""
        parameters = {"outputs": 4 if self._is_relative else 3, "plain_key": self._is_relative}
        if self._is_integer and not self._is_relative:
            # Keys are kept so, whatever attends to them.
            parameters["hadamard"] = True
        q, key, value, *plain = self._norm_and_turn(name, qkv, **parameters)
        return q, key, value, plain[0] if plain else key

    def _norm_and_turn(self, name: str, qkv: ir.Value, *scales: ir.Value, **parameters: Any) -> Any:
        norms = [self._linear.vector(f"{name}.norm_{part}.weight") for part in "qk"]
        sizes = {"heads": self._sizes.heads, "epsilon": self._sizes.eps}
        parameters = {"outputs": 3, **sizes, **parameters}
        return self._graph.kernel("qkv_norm_rope", qkv, *norms, *self._turn, *scales, **parameters)
