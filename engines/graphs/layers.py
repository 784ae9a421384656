"""What graphs of decoders share: sizes that double, convolutions, histories that are renewed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from longlive_trt import contract
from longlive_trt.configs import DecoderConfig
from longlive_trt.contract import multiple_of, numbered
from longlive_trt.engines.graphs.builder import GraphBuilder, GraphWeights, Size
from longlive_trt.errors import UsageError
from longlive_trt.precision import Precision

_INLINE_BYTES = 1024


class PictureLayers:
    """Adds the nodes of one graph in running order, in which the histories are counted too.

    Activations are [batch * frames, height, width, channels].
    """

    def __init__(
        self,
        builder: GraphBuilder,
        weights: GraphWeights,
        *,
        history_frames: int,
        sides: tuple[Size, Size],
        batch: int,
        first: bool,
    ) -> None:
        """``sides``: height and width of what the graph reads."""
        self.builder, self.weights = builder, weights
        self.batch, self.first = batch, first
        self._history_frames, self._sides, self.scale = history_frames, sides, 1
        self.renewed: list[tuple[ir.Value, tuple[Size, ...]]] = []

    @property
    def size(self) -> tuple[Size, Size]:
        """Height and width, after as many doublings as there were."""
        height, width = (times(side, self.scale) for side in self._sides)
        return height, width

    def wide_latents(self, channels: int, precision: Precision) -> ir.Value:
        """The graph's input, in float32."""
        frames: Size = 1 if self.first else contract.LATENT_FRAMES
        shape = (self.batch, frames, channels, *self.size)
        latents = self.builder.input(contract.LATENTS, shape, precision.onnx)
        wide: ir.Value = self.builder.op("Cast", latents, to=ir.DataType.FLOAT)
        return wide

    def denormalized(self, wide: ir.Value, vae: DecoderConfig) -> ir.Value:
        add = self.builder.op
        std, mean = (
            self.builder.constant(np.reshape(values, (-1, 1, 1)), np.float32)
            for values in (vae.std, vae.mean)
        )
        result: ir.Value = add("Add", add("Mul", wide, std), mean)
        return result

    def pixels(self, wide: ir.Value, channels: int) -> ir.Value:
        """Latents as activations."""
        add = self.builder.op
        half = add("Cast", wide, to=self.builder.precision.onnx)
        last = add("Transpose", half, perm=(0, 1, 3, 4, 2))
        rows = self.builder.constant((-1, *self.size, channels), np.int64)
        result: ir.Value = add("Reshape", last, rows)
        return result

    def conv(self, x: ir.Value, kernel: ir.Value, taps: int) -> ir.Value:
        """Over NHWC; ONNX Runtime takes the transposes away where it convolves in NHWC."""
        add = self.builder.op
        planes = add("Transpose", x, perm=(0, 3, 1, 2))
        size, pads = (taps, taps), (1, 1, 1, 1)
        convolved = add("Conv", planes, kernel, kernel_shape=size, pads=pads)
        result: ir.Value = add("Transpose", convolved, perm=(0, 2, 3, 1))
        return result

    def weight(self, name: str, shape: tuple[int, ...], make: Callable[[], Any]) -> ir.Value:
        return self.builder.weight(name, self.weights.lazy(name, shape, make))

    def history(self, channels: int, dtype: ir.DataType | None = None) -> ir.Value | None:
        """What the next convolution remembers; nothing, at a video's start."""
        if self.first:
            return None
        name = numbered(contract.HISTORY, len(self.renewed))
        return self.builder.input(name, self._history_shape(channels), dtype)

    def renew(self, history: ir.Value, channels: int) -> None:
        self.renewed.append((history, self._history_shape(channels)))

    def remember(self) -> None:
        for index, (history, shape) in enumerate(self.renewed):
            name = numbered(contract.HISTORY_NEXT, index)
            self.builder.output(name, history, shape, history.dtype)

    def counted(self, frames: str, factor: int) -> Size:
        """So many for each of these frames; of a first latent frame there is one of all."""
        return 1 if self.first else multiple_of(frames, factor)

    def _history_shape(self, channels: int) -> tuple[Size, ...]:
        return (self.batch, self._history_frames, *self.size, channels)


def times(size: Size, factor: int) -> Size:
    if isinstance(size, int):
        return size * factor
    return size if factor == 1 else multiple_of(size, factor)


def require_half(precision: Precision) -> None:
    if precision.name != "fp16":
        raise UsageError(
            f"the VAE's graphs for a GPU cannot be {precision.name}: ONNX Runtime convolves in "
            "fp16 only there; build them with fp16"
        )


def save_sharing(graphs: Mapping[str, ir.Model], out: Path, weights_name: str) -> None:
    """Write graphs whose weights lie in one file: the first graph's, which the others use too."""
    first, *others = graphs.values()
    ir.external_data.unload_from_model(first, out, weights_name, size_threshold_bytes=_INLINE_BYTES)
    for other in others:
        _share_weights(first, other)
    for name, model in graphs.items():
        ir.save(model, out / f"{name}.onnx")


def _share_weights(written: ir.Model, other: ir.Model) -> None:
    """Weights have the same name in both; constants may not, and stay inside."""
    for name, value in other.graph.initializers.items():
        stored = written.graph.initializers.get(name)
        if stored is not None and isinstance(stored.const_value, ir.ExternalTensor):
            value.const_value = stored.const_value
