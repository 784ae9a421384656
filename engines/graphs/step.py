"""The transformer's graphs, written by hand for a GPU: every heavy node is a kernel of our own.

They have the inputs and outputs of the exported graphs, and their weights. A pass also reads how
many tokens of its prompt differ: attention need not read what pads it. What is not a kernel of ours
are standard operators on small tensors, none of which needs the host.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from longlive_trt import contract
from longlive_trt.configs import ModelConfig
from longlive_trt.contract import numbered
from longlive_trt.dtypes import FLOAT8
from longlive_trt.engines.graphs.builder import GraphBuilder, Size
from longlive_trt.engines.graphs.self_attention import SelfAttention, kind_of
from longlive_trt.engines.graphs.writer import GraphWriter
from longlive_trt.errors import UsageError
from longlive_trt.plugins.attention.value_layout import VALUE_GROUP
from longlive_trt.plugins.attention.variants import HEAD_DIMS
from longlive_trt.precision import Precision

_MODULATIONS, _HEAD_MODULATIONS = 6, 2
# Rows of a layer's modulations, in the checkpoint's order.
_SHIFT, _SCALE, _GATE, _FFN_SHIFT, _FFN_SCALE, _FFN_GATE = range(_MODULATIONS)


def build_step_graphs(
    config: ModelConfig,
    export_folder: Path,
    precision: Precision,
    out: Path,
    *,
    hopper: bool = True,
    is_separate: Callable[[str], bool] = lambda _name: False,
) -> dict[str, dict[str, tuple[str, ...]]]:
    """The graphs of a pass and of a prompt with their weights, from an export's folder.

    Other GPUs have a portable attention, which writes the compute type only. Of each graph's inputs
    that are matrices of maps which are ``is_separate``, the result says which lie there.
    """
    _require_supported(config)
    separate = {}
    for write, name in ((StepWriter, contract.STEP), (PromptWriter, contract.PROMPT)):
        source = export_folder / f"{name}.onnx"
        writer = write(config, source, precision, hopper=hopper, is_separate=is_separate)
        writer.write().save(out)
        separate[name] = writer.linear.separate
    return separate


def _require_supported(config: ModelConfig) -> None:
    head_dim = config.transformer.head_dim
    if head_dim not in HEAD_DIMS:
        allowed = " or ".join(map(str, HEAD_DIMS))
        raise UsageError(
            f"transformer.dim / transformer.heads is {head_dim}: the GPU kernels are for heads of "
            f"{allowed}; build without --gpu"
        )


class StepWriter(GraphWriter):
    def sizes_of(self, value: ir.Value) -> Sequence[Size]:
        """What is remembered as attention reads it need not be transposed in every pass."""
        sizes = super().sizes_of(value)
        is_kept = contract.stem_of(str(value.name)) in (contract.V_CACHE, contract.V_NEW)
        if is_kept and kind_of(self).reads_kept_values:
            return contract.transposed(sizes, VALUE_GROUP)
        return sizes

    def write(self) -> GraphBuilder:
        tokens = self.graph.input(contract.CONTEXT_TOKENS, (1, 1), ir.DataType.INT64)
        self.inputs[contract.CONTEXT_TOKENS] = tokens
        time, block_time = self._time()
        table = self._modulations(time, block_time)
        flow, keys, values = self._layers(self._patchify(), table)
        outputs = {contract.LATENTS_NEXT: self._latents_next(self._unpatchify(flow))}
        for layer in range(self.sizes.layers):
            outputs[numbered(contract.K_NEW, layer)] = keys[layer]
            outputs[numbered(contract.V_NEW, layer)] = values[layer]
        graph = self.finish(outputs)
        # The clean pass and the re-cache want keys and values alone: what follows the last layer's
        # projections is nothing to them.
        graph.mark_servants(contract.LATENTS_NEXT)
        return graph

    def _layers(
        self, tokens: ir.Value, table: ir.Value
    ) -> tuple[ir.Value, list[ir.Value], list[ir.Value]]:
        """The flow's tokens, and every layer's new keys and values."""
        x, keys, values = tokens, [], []
        normed = self._first_norm(x, table)
        attend = SelfAttention(self)
        for layer in range(self.sizes.layers):
            update, key, value = attend(layer, normed)
            keys.append(key)
            values.append(value)
            x, normed = self._normed_sum(
                *(x, update, table, self._block(layer, "norm3.weight")),
                self._block(layer, "norm3.bias"),
                into=[f"blocks.{layer}.cross_attn.q"],
                norm="affine",
                gate_row=_MODULATIONS * layer + _GATE,
            )
            update = self._cross_attention(layer, normed)
            x, normed = self._normed_sum(
                *(x, update, table),
                into=[f"blocks.{layer}.ffn.0"],
                **self._modulated(layer, _FFN_SCALE, _FFN_SHIFT),
            )
            update = self._feed_forward(layer, normed)
            gate_row = _MODULATIONS * layer + _FFN_GATE
            x, normed = self._normed_sum(
                *(x, update, table),
                into=self._next_maps(layer + 1),
                gate_row=gate_row,
                **self._next_norm(layer + 1),
            )
        return self.linear(normed, "head.head"), keys, values

    def _first_norm(self, x: ir.Value, table: ir.Value) -> ir.Value:
        into = self.quantized_rows(self._next_maps(0))
        value: ir.Value = self.graph.kernel("layer_norm", x, table, **self._next_norm(0), **into)
        return value

    def _next_maps(self, layer: int) -> list[str]:
        """What reads the rows that begin a layer, or the head."""
        if layer == self.sizes.layers:
            return ["head.head"]
        return [f"blocks.{layer}.self_attn.{part}" for part in "qkv"]

    def _cross_attention(self, layer: int, normed: ir.Value) -> ir.Value:
        name = f"blocks.{layer}.cross_attn"
        q = self.rms_norm(self.linear(normed, f"{name}.q"), f"{name}.norm_q.weight")
        context = [self.inputs[numbered(stem, layer)] for stem in contract.CONTEXT_OF.values()]
        context.append(self.inputs[contract.CONTEXT_TOKENS])
        into = self.quantized_attention(f"{name}.o")
        attended = self.graph.kernel("cross_attention", q, *context, **into)
        return self.linear(attended, f"{name}.o")

    def _feed_forward(self, layer: int, normed: ir.Value) -> ir.Value:
        name = f"blocks.{layer}.ffn"
        hidden = self.linear(normed, f"{name}.0", activation="gelu", into=f"{name}.2")
        return self.linear(hidden, f"{name}.2")

    def _block(self, layer: int, name: str) -> ir.Value:
        return self.linear.vector(f"blocks.{layer}.{name}")

    def _normed_sum(
        self, *inputs: ir.Value, into: Sequence[str], **parameters: Any
    ) -> tuple[ir.Value, ir.Value]:
        """The sum, and its norm for the maps that read it."""
        parameters = {"epsilon": self.sizes.eps, **parameters, **self.quantized_rows(into)}
        if "dtype" in parameters:
            parameters["dtype"] = f"{self.graph.compute_name}, {FLOAT8.name}"
        total, normed = self.graph.kernel("residual_norm", *inputs, outputs=2, **parameters)
        return total, normed

    def _modulated(self, layer: int, scale: int, shift: int) -> dict[str, Any]:
        first = _MODULATIONS * layer
        return {
            "norm": "modulate",
            "scale_row": first + scale,
            "shift_row": first + shift,
            "epsilon": self.sizes.eps,
        }

    def _next_norm(self, layer: int) -> dict[str, Any]:
        """What begins a layer, or, after the last one, the head: its rows have the same order."""
        return self._modulated(layer, _SCALE, _SHIFT)

    def _time(self) -> tuple[ir.Value, ir.Value]:
        """The level's embedding [1, dim], and all modulations that it makes [6, dim]."""
        hidden = self._silu(self.linear(self._time_features(), "time_embedding.0"))
        time = self.linear(hidden, "time_embedding.2")
        projected = self.linear(self._silu(time), "time_projection.1")
        return time, self.reshape(projected, _MODULATIONS, self.sizes.dim)

    def _time_features(self) -> ir.Value:
        """The sinusoid's table of whole timesteps, turned by the fraction."""
        op, timestep = self.graph.op, self.inputs[contract.TIMESTEP]
        whole = op("Floor", timestep)
        angle = op("Mul", op("Sub", timestep, whole), self._level_table(contract.LEVEL_RATES))
        index = op("Cast", whole, to=ir.DataType.INT64.value)
        cosine, sine = (
            op("Gather", self._level_table(name), index)
            for name in (contract.LEVEL_COS, contract.LEVEL_SIN)
        )
        turn_cosine, turn_sine = op("Cos", angle), op("Sin", angle)
        features = op(
            "Concat",
            op("Sub", op("Mul", cosine, turn_cosine), op("Mul", sine, turn_sine)),
            op("Add", op("Mul", sine, turn_cosine), op("Mul", cosine, turn_sine)),
            axis=-1,
        )
        return self._compute(features)

    def _silu(self, x: ir.Value) -> ir.Value:
        single = self._single(x)
        product = self.graph.op("Mul", single, self.graph.op("Sigmoid", single))
        return self._compute(product)

    def _modulations(self, time: ir.Value, block_time: ir.Value) -> ir.Value:
        """Six rows for each layer, then the head's two."""
        layers, dim = self.sizes.layers, self.sizes.dim
        of_layers = self.linear.weight(
            "blocks.modulation",
            (layers, _MODULATIONS, dim),
            lambda: np.concatenate(
                [self.weights.array(f"blocks.{layer}.modulation") for layer in range(layers)]
            ),
        )
        of_head = self.linear.weight(
            "head.modulation",
            (_HEAD_MODULATIONS, dim),
            lambda: self.weights.array("head.modulation"),
        )
        op = self.graph.op
        blocks = op("Add", self._single(of_layers), self._single(block_time))
        rows = self.reshape(blocks, _MODULATIONS * layers, dim)
        head = op("Add", self._single(of_head), self._single(time))
        return self._compute(op("Concat", rows, head, axis=0))

    def _patchify(self) -> ir.Value:
        """[B, F, C, H, W] to tokens [B, F * P, dim]: frame, row, column."""
        (rows, columns), (_, height, width) = self.config.token_grid, self.sizes.patch
        channels = self.sizes.channels
        split = self.reshape(
            self.inputs[contract.LATENTS], *(0, 0, channels), *(rows, height), *(columns, width)
        )
        patches = self.graph.op("Transpose", split, perm=[0, 1, 3, 5, 2, 4, 6])
        values = self.reshape(patches, 0, -1, channels * height * width)
        return self.linear(values, "patch_embedding")

    def _unpatchify(self, tokens: ir.Value) -> ir.Value:
        (rows, columns), (_, height, width) = self.config.token_grid, self.sizes.patch
        channels = self.sizes.channels
        split = self.reshape(tokens, 0, -1, rows, columns, height, width, channels)
        frames = self.graph.op("Transpose", split, perm=[0, 1, 6, 2, 4, 3, 5])
        return self.reshape(frames, 0, 0, channels, rows * height, columns * width)

    def _latents_next(self, flow: ir.Value) -> ir.Value:
        """x0 = x_t - sigma flow, rounded; then (1 - sigma_next) x0 + sigma_next noise."""
        op, single = self.graph.op, self._single
        sigma_next = self.inputs[contract.SIGMA_NEXT]
        step = op("Mul", self.inputs[contract.SIGMA], single(flow))
        x0 = self._compute(op("Sub", single(self.inputs[contract.LATENTS]), step))
        rest = op("Sub", self.graph.constant([1], np.float32), sigma_next)
        noise = op("Mul", sigma_next, single(self.inputs[contract.NOISE]))
        return self._compute(op("Add", op("Mul", rest, single(x0)), noise))

    def _single(self, x: ir.Value) -> ir.Value:
        value: ir.Value = self.graph.op("Cast", x, to=ir.DataType.FLOAT.value)
        return value

    def _compute(self, x: ir.Value) -> ir.Value:
        value: ir.Value = self.graph.op("Cast", x, to=self.graph.precision.onnx.value)
        return value

    def _level_table(self, name: str) -> ir.Value:
        return self.constant_table(name, self.table(name))


class PromptWriter(GraphWriter):
    def write(self) -> GraphBuilder:
        states = self.inputs[contract.TEXT_STATES]
        hidden = self.linear(states, "text_embedding.0", activation="gelu")
        embedded = self.linear(hidden, "text_embedding.2")
        outputs = {}
        for layer in range(self.sizes.layers):
            name = f"blocks.{layer}.cross_attn"
            key = self.rms_norm(self.linear(embedded, f"{name}.k"), f"{name}.norm_k.weight")
            value = self.linear(embedded, f"{name}.v", heads=self.sizes.heads)
            outputs[numbered(contract.CONTEXT_K, layer)] = key
            outputs[numbered(contract.CONTEXT_V, layer)] = value
        return self.finish(outputs)
