"""The transformer's graphs, written by hand for a GPU: every heavy node is a kernel of our own.

They have the inputs and outputs of the exported graphs, and their weights. What is not a kernel
of ours are standard operators on small tensors, none of which needs the host.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from longlive_trt.configs import ModelConfig
from longlive_trt.engines.graphs.builder import GraphBuilder, Size, Weights
from longlive_trt.engines.graphs.linear import Linears
from longlive_trt.engines.graphs.self_attention import SelfAttention
from longlive_trt.errors import UsageError
from longlive_trt.plugins.attention.variants import HEAD_DIMS, NARROW_HEAD_DIM
from longlive_trt.plugins.kernels.rows import FLOAT8
from longlive_trt.precision import Precision

PREFIX = "transformer."
_KEPT_TYPES = (ir.DataType.INT64, ir.DataType.FLOAT8E4M3FN, ir.DataType.INT8)
_FLOAT32_INPUTS = ("timestep", "sigma", "sigma_next")
_ROPE_BASE = 10_000.0
_MODULATIONS, _HEAD_MODULATIONS = 6, 2
# Rows of a layer's modulations, in the checkpoint's order.
_SHIFT, _SCALE, _GATE, _FFN_SHIFT, _FFN_SCALE, _FFN_GATE = range(_MODULATIONS)

Table = npt.NDArray[np.float32]


def build_step_graphs(
    config: ModelConfig,
    export_folder: Path,
    precision: Precision,
    out: Path,
    *,
    hopper: bool = True,
) -> None:
    """``step.onnx`` and ``prompt.onnx`` with their weights, from an export's folder.

    Other GPUs have a portable attention, which writes the compute type only.
    """
    _require_supported(config, export_folder)
    for write, name in ((StepWriter, "step"), (PromptWriter, "prompt")):
        exported = ir.load(export_folder / f"{name}.onnx")
        write(config, exported, precision, hopper=hopper).write().save(out)


def _require_supported(config: ModelConfig, export_folder: Path) -> None:
    head_dim = config.transformer.head_dim
    if head_dim not in HEAD_DIMS:
        allowed = " or ".join(map(str, HEAD_DIMS))
        raise UsageError(
            f"transformer.dim / transformer.heads is {head_dim}: the GPU kernels are for heads of "
            f"{allowed}; build without --gpu"
        )


class GraphWriter:
    """What both graphs need: their tensors, and linear maps by checkpoint names."""

    def __init__(
        self, config: ModelConfig, exported: ir.Model, precision: Precision, *, hopper: bool
    ) -> None:
        name = str(exported.graph.name)
        self.hopper = hopper
        self.config, self.sizes, self.exported = config, config.transformer, exported
        self.graph = GraphBuilder(name, precision)
        self.weights = Weights(exported, PREFIX, precision)
        self.linear = Linears(self.graph, exported, self.weights)
        self.inputs = {str(value.name): self._input(value) for value in exported.graph.inputs}

    def _input(self, value: ir.Value) -> ir.Value:
        name = str(value.name)
        plain = name in _FLOAT32_INPUTS or value.dtype in _KEPT_TYPES
        return self.graph.input(name, _sizes(value), value.dtype if plain else None)

    def finish(self, outputs: dict[str, ir.Value]) -> GraphBuilder:
        for value in self.exported.graph.outputs:
            name = str(value.name)
            dtype = value.dtype if value.dtype in _KEPT_TYPES else None
            self.graph.output(name, outputs[name], _sizes(value), dtype)
        return self.graph

    def per_layer(self, name: str) -> list[ir.Value]:
        return [self.inputs[f"{name}.{layer}"] for layer in range(self.sizes.layers)]

    def rms_norm(self, x: ir.Value, name: str) -> ir.Value:
        value: ir.Value = self.graph.kernel(
            "rms_norm", x, self.linear.vector(name), heads=self.sizes.heads, epsilon=self.sizes.eps
        )
        return value

    def reshape(self, x: ir.Value, *shape: int) -> ir.Value:
        """0 keeps a size, -1 finds it."""
        value: ir.Value = self.graph.op("Reshape", x, self.graph.constant(shape, np.int64))
        return value


class StepWriter(GraphWriter):
    def write(self) -> GraphBuilder:
        time, block_time = self._time()
        table = self._modulations(time, block_time)
        flow, keys, values = self._layers(self._patchify(), table)
        outputs = {"latents_next": self._latents_next(self._unpatchify(flow))}
        for layer in range(self.sizes.layers):
            outputs |= {f"k_new.{layer}": keys[layer], f"v_new.{layer}": values[layer]}
        return self.finish(outputs)

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
        into = self._narrow_rows(self._next_maps(0))
        value: ir.Value = self.graph.kernel("layer_norm", x, table, **self._next_norm(0), **into)
        return value

    def _next_maps(self, layer: int) -> list[str]:
        """What reads the rows that begin a layer, or the head."""
        if layer == self.sizes.layers:
            return ["head.head"]
        return [f"blocks.{layer}.self_attn.{part}" for part in "qkv"]

    def _narrow_rows(self, maps: Sequence[str]) -> dict[str, Any]:
        """What a kernel is told whose one result only these maps read."""
        scale = self.linear.input_scale(*maps)
        return {} if scale is None else {"dtype": FLOAT8, "output_scale": scale}

    def _cross_attention(self, layer: int, normed: ir.Value) -> ir.Value:
        name = f"blocks.{layer}.cross_attn"
        q = self.rms_norm(self.linear(normed, f"{name}.q"), f"{name}.norm_q.weight")
        context = (self.inputs[f"context_{part}.{layer}"] for part in "kv")
        into = self.narrow_attention(f"{name}.o")
        attended = self.graph.kernel("cross_attention", q, *context, **into)
        return self.linear(attended, f"{name}.o")

    def narrow_attention(self, into: str) -> dict[str, Any]:
        """Heads of 64 leave in the compute type: the kernel writes whole 128-byte rows."""
        writes_narrow = self.hopper and self.sizes.head_dim == NARROW_HEAD_DIM
        return self._narrow_rows([into]) if writes_narrow else {}

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
        parameters = {"epsilon": self.sizes.eps, **parameters, **self._narrow_rows(into)}
        if "dtype" in parameters:
            parameters["dtype"] = f"{self.graph.compute_name}, {FLOAT8}"
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
        op, timestep = self.graph.op, self.inputs["timestep"]
        whole = op("Floor", timestep)
        angle = op("Mul", op("Sub", timestep, whole), self._table("level_rates"))
        index = op("Cast", whole, to=ir.DataType.INT64.value)
        cosine, sine = (op("Gather", self._table(f"level_{f}"), index) for f in ("cos", "sin"))
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
            self.inputs["latents"], *(0, 0, channels), *(rows, height), *(columns, width)
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
        sigma_next = self.inputs["sigma_next"]
        step = op("Mul", self.inputs["sigma"], single(flow))
        x0 = self._compute(op("Sub", single(self.inputs["latents"]), step))
        rest = op("Sub", self.graph.constant([1], np.float32), sigma_next)
        noise = op("Mul", sigma_next, single(self.inputs["noise"]))
        return self._compute(op("Add", op("Mul", rest, single(x0)), noise))

    def _single(self, x: ir.Value) -> ir.Value:
        value: ir.Value = self.graph.op("Cast", x, to=ir.DataType.FLOAT.value)
        return value

    def _compute(self, x: ir.Value) -> ir.Value:
        value: ir.Value = self.graph.op("Cast", x, to=self.graph.precision.onnx.value)
        return value

    def _table(self, name: str) -> ir.Value:
        return self._named(name, self.weights.table(name))

    def rope(self, positions: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines [F * P, head_dim / 2] of frames at these positions."""
        op, half = self.graph.op, self.sizes.head_dim // 2
        tables = []
        for name, by_place in zip(("cos", "sin"), self._grid_tables(), strict=True):
            by_frame = self.weights.table(f"frame_{name}")
            by_frame = np.pad(by_frame, ((0, 0), (0, half - by_frame.shape[1])))
            by_place = np.pad(by_place, ((0, 0), (half - by_place.shape[1], 0)))
            frames = op("Gather", self._named(f"frame_{name}", by_frame[:, None]), positions)
            # Each is zero where the other is not.
            both = op("Add", frames, self._named(f"grid_{name}", by_place[None]))
            tables.append(self.reshape(both, -1, half))
        return tables[0], tables[1]

    def _named(self, name: str, table: Table) -> ir.Value:
        return self.graph.weight(name, ir.tensor(np.ascontiguousarray(table), name=name))

    def _grid_tables(self) -> tuple[Table, Table]:
        """Of a token's row and column; the exported graph has them under no name."""
        rows, columns = self.config.token_grid
        channels = 2 * (self.sizes.head_dim // 6)
        rates = _ROPE_BASE ** -(np.arange(0, channels, 2) / channels)
        row, column = (axis.reshape(-1, 1) for axis in np.mgrid[:rows, :columns])
        angles = np.concatenate([row * rates, column * rates], axis=1)
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


class PromptWriter(GraphWriter):
    def write(self) -> GraphBuilder:
        states = self.inputs["text_states"]
        hidden = self.linear(states, "text_embedding.0", activation="gelu")
        embedded = self.linear(hidden, "text_embedding.2")
        outputs = {}
        for layer in range(self.sizes.layers):
            name = f"blocks.{layer}.cross_attn"
            key = self.linear(embedded, f"{name}.k")
            outputs[f"context_k.{layer}"] = self.rms_norm(key, f"{name}.norm_k.weight")
            outputs[f"context_v.{layer}"] = self.linear(
                embedded, f"{name}.v", heads=self.sizes.heads
            )
        return self.finish(outputs)


def _sizes(value: ir.Value) -> list[Size]:
    assert value.shape is not None
    return [size if isinstance(size, int) else str(size.value) for size in value.shape]
