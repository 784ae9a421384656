"""The VAE's decoder as graphs for a GPU: convolutions of stacked frames, our kernels between them.

Activations are [batch * frames, height, width, channels]. A causal convolution is a 2-D one over
three frames side by side in the channels. What it leaves to be done (its bias, a residual) stays
pending until the next kernel, which adds it on the way.

Doubling height and width by repetition, and the 3x3 convolution after it, are one 2x2 convolution
of the small image: of the nine pixels that an output sees, at most four differ. It makes the four
outputs of a place at once, side by side in the channels, with 4/9 of the work; the next kernel
reads them so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from longlive_trt import contract
from longlive_trt.configs import ModelConfig, VaeConfig
from longlive_trt.contract import (
    VAE,
    VAE_FIRST,
    VAE_NEXT,
    multiple_of,
    numbered,
    weight_prefix,
    weights_file,
)
from longlive_trt.dtypes import FLOAT32, UINT8, ElementType
from longlive_trt.engines.graphs.builder import GraphBuilder, GraphWeights, Size
from longlive_trt.errors import UsageError
from longlive_trt.plugins.kernels.vae import HISTORY_FRAMES, MAX_HEAD_CHANNELS
from longlive_trt.precision import Precision

WEIGHTS_NAME = weights_file(VAE)
_INLINE_BYTES = 1024
_CHANNEL_MULTIPLE = 8
_COLORS = 3

Array = np.ndarray[Any, np.dtype[Any]]


def build_vae_graphs(
    config: ModelConfig,
    export_folder: Path,
    precision: Precision,
    out: Path,
    *,
    batch: int = 1,
    latents: Precision | None = None,
) -> None:
    """Write both graphs of the decoder, and the weights that they share.

    The latents come in a precision of their own: the transformer's.
    """
    vae = _require_supported(config, precision)
    exported = ir.load(export_folder / f"{VAE_NEXT}.onnx")
    weights = GraphWeights(exported, weight_prefix(VAE), precision)
    graphs = {}
    for name, first in ((VAE_NEXT, False), (VAE_FIRST, True)):
        builder = GraphBuilder(name, precision)
        decoder = _DecoderWriter(builder, weights, config, vae, batch=batch, first=first)
        decoder.build(latents or precision)
        graphs[name] = builder.model()
    ir.external_data.unload_from_model(
        graphs[VAE_NEXT], out, WEIGHTS_NAME, size_threshold_bytes=_INLINE_BYTES
    )
    _share_weights(graphs[VAE_NEXT], graphs[VAE_FIRST])
    for name, model in graphs.items():
        ir.save(model, out / f"{name}.onnx")


def _require_supported(config: ModelConfig, precision: Precision) -> VaeConfig:
    if precision.name != "fp16":
        raise UsageError(
            f"the VAE's graphs for a GPU cannot be {precision.name}: ONNX Runtime convolves in "
            "fp16 only there; build them with fp16"
        )
    vae = config.vae
    if vae is None:
        raise UsageError(f"{config.name} has no VAE: add a section vae to its configuration")
    if vae.temporal_taps != 3:
        raise UsageError(
            f"{config.name}: vae.temporal_taps is {vae.temporal_taps}, and the VAE's kernels for a "
            "GPU take 3; build this model for the CPU"
        )
    widths = _widths(vae)
    halves = [width // 2 for width in widths[:-1]]
    odd = [c for c in (vae.channels, *widths, *halves) if c % _CHANNEL_MULTIPLE]
    if odd:
        raise UsageError(
            f"{config.name}: the VAE has layers of {odd[0]} channels, and its kernels take "
            f"multiples of {_CHANNEL_MULTIPLE}; choose vae.dim and vae.channels accordingly"
        )
    return vae


def _widths(vae: VaeConfig) -> list[int]:
    return [vae.dim * multiplier for multiplier in reversed(vae.multipliers)]


def _share_weights(written: ir.Model, other: ir.Model) -> None:
    """Weights have the same name in both; constants may not, and stay inside."""
    for name, value in other.graph.initializers.items():
        stored = written.graph.initializers.get(name)
        if stored is not None and isinstance(stored.const_value, ir.ExternalTensor):
            value.const_value = stored.const_value


@dataclass(frozen=True)
class _Pending:
    """The sum of x, perhaps y, and biases (by name), which nobody has computed yet."""

    x: ir.Value
    channels: int
    biases: tuple[str, ...] = ()
    y: ir.Value | None = None
    is_spread: bool = False
    """x holds four pixels at each of its places; ``vae_tensors.gathered`` says which."""

    @property
    def addends(self) -> int:
        return 1 if self.y is None else 2


class _DecoderWriter:
    """Adds the nodes of one graph in running order, in which the caches are counted too."""

    def __init__(
        self,
        builder: GraphBuilder,
        weights: GraphWeights,
        config: ModelConfig,
        vae: VaeConfig,
        *,
        batch: int,
        first: bool,
    ) -> None:
        self._builder, self._weights = builder, weights
        self._vae, self._batch, self._first = vae, batch, first
        self._height, self._width = config.latent.height, config.latent.width
        self._renewed: list[tuple[ir.Value, tuple[int, ...]]] = []

    def build(self, latents: Precision) -> None:
        widths = _widths(self._vae)
        hidden = self._causal_conv(self._latents(latents), "decoder.conv1", widths[0])
        hidden = self._res_block(hidden, "decoder.middle.0", widths[0])
        hidden = self._attention(hidden, "decoder.middle.1")
        hidden = self._res_block(hidden, "decoder.middle.2", widths[0])
        stages = (f"decoder.upsamples.{stage}" for stage in count())
        for level, width in enumerate(widths):
            for _ in range(self._vae.res_blocks + 1):
                hidden = self._res_block(hidden, next(stages), width)
            if level < len(self._vae.temporal_upsample):
                temporal = self._vae.temporal_upsample[level]
                hidden = self._upsample(hidden, next(stages), temporal=temporal)
        self._finish(self._head(hidden))

    def _latents(self, precision: Precision) -> _Pending:
        add, vae = self._builder.op, self._vae
        frames: Size = 1 if self._first else contract.LATENT_FRAMES
        size = (self._height, self._width)
        shape = (self._batch, frames, vae.channels, *size)
        latents = self._builder.input(contract.LATENTS, shape, precision.onnx)
        std, mean = (
            self._builder.constant(np.reshape(values, (-1, 1, 1)), np.float32)
            for values in (vae.std, vae.mean)
        )
        wide = add("Add", add("Mul", add("Cast", latents, to=ir.DataType.FLOAT), std), mean)
        half = add("Cast", wide, to=self._builder.precision.onnx)
        last = add("Transpose", half, perm=(0, 1, 3, 4, 2))
        rows = self._builder.constant((-1, *size, vae.channels), np.int64)
        mixed = self._linear(add("Reshape", last, rows), "conv2", vae.channels, vae.channels)
        return _Pending(mixed, vae.channels, ("conv2.bias",))

    def _res_block(self, before: _Pending, name: str, channels: int) -> _Pending:
        shortcut = channels != before.channels
        # A sum of two is computed once, and what is spread comes together; what is only short of
        # biases stays as it is.
        keep = shortcut or before.addends == 2 or before.is_spread
        first, last = f"{name}.residual.2", f"{name}.residual.6"
        stacked, residual = self._stack(before, f"{name}.residual.0", keep=keep)
        hidden = self._conv(stacked, first, before.channels, channels)
        inner = _Pending(hidden, channels, (f"{first}.bias",))
        hidden = self._causal_conv(inner, last, channels, f"{name}.residual.3").x
        biases: tuple[str, ...] = (f"{last}.bias",)
        if shortcut:
            residual = self._linear(residual, f"{name}.shortcut", before.channels, channels)
            biases = (*biases, f"{name}.shortcut.bias")
        elif not keep:
            biases = (*before.biases, *biases)
        return _Pending(residual, channels, biases, hidden)

    def _attention(self, before: _Pending, name: str) -> _Pending:
        add, channels = self._builder.op, before.channels
        normed, total = self._stack(before, f"{name}.norm", silu=False, form="alone", keep=True)
        positions = add("Reshape", normed, self._builder.constant((0, -1, channels), np.int64))
        qkv = self._linear(positions, f"{name}.to_qkv", channels, 3 * channels, self._scaled)
        bias = self._weight(
            f"{name}.to_qkv.bias",
            (3 * channels,),
            lambda: self._scaled(self._weights.array(f"{name}.to_qkv.bias")),
        )
        query, key, value = add("Split", add("Add", qkv, bias), outputs=3, axis=-1, num_outputs=3)
        logits = add("MatMul", query, add("Transpose", key, perm=(0, 2, 1)))
        attended = add("MatMul", add("Softmax", logits, axis=-1), value)
        projected = self._linear(attended, f"{name}.proj", channels, channels)
        shape = self._builder.constant((0, self._height, self._width, channels), np.int64)
        update = add("Reshape", projected, shape)
        return _Pending(total, channels, (f"{name}.proj.bias",), update)

    def _scaled(self, values: Array) -> Array:
        """Queries, the first third of the outputs, come scaled for their attention's logits."""
        channels = values.shape[0] // 3
        scale = np.ones((values.shape[0], *[1] * (values.ndim - 1)), np.float32)
        scale[:channels] = channels**-0.5
        return values.astype(np.float32) * scale

    def _upsample(self, before: _Pending, name: str, *, temporal: bool) -> _Pending:
        channels = before.channels
        if temporal and self._first:
            self._renew(self._builder.kernel("vae_zeros", before.x, batch=self._batch), channels)
        if temporal and not self._first:
            stacked, _ = self._stack(before, None, silu=False)
            paired = self._linear(stacked, f"{name}.time_conv", 3 * channels, 2 * channels)
            before = _Pending(paired, 2 * channels, (f"{name}.time_conv.bias",))
        inputs = [before.x, *self._addends(before)]
        summed = self._builder.kernel(
            "vae_sum",
            *inputs,
            residual=before.y is not None,
            bias=bool(before.biases),
            interleave=before.channels != channels,
        )
        self._height, self._width = 2 * self._height, 2 * self._width
        resample = f"{name}.resample.1"
        hidden = self._doubling_conv(summed, resample, channels, channels // 2)
        return _Pending(hidden, channels // 2, (f"{resample}.bias",), is_spread=True)

    def _head(self, before: _Pending) -> _Pending:
        name, channels = "decoder.head.2", before.channels
        if channels > MAX_HEAD_CHANNELS:
            return self._causal_conv(before, name, _COLORS, "decoder.head.0")
        extended, _ = self._stack(before, "decoder.head.0", form="extended")
        weight = f"{name}.weight"
        shape = (3, 9 * _COLORS, channels)
        # By row of taps, frame, column and color.
        kernel = self._weight(
            weight, shape, lambda: self._weights.array(weight).transpose(3, 2, 4, 0, 1)
        )
        hidden = self._builder.kernel("vae_head", extended, kernel, batch=self._batch)
        return _Pending(hidden, _COLORS, (f"{name}.bias",))

    def _finish(self, colors: _Pending) -> None:
        factor = self._vae.temporal_factor
        frames: Size = 1 if self._first else multiple_of(contract.LATENT_FRAMES, factor)
        size = (self._height, self._width)
        shapes = (self._batch, frames, _COLORS, *size), (self._batch, frames, *size, _COLORS)
        self._present("vae_frames", contract.FRAMES, colors, shapes[0], FLOAT32)
        self._present("vae_pixels", contract.PIXELS, colors, shapes[1], UINT8)
        for index, (history, shape) in enumerate(self._renewed):
            self._builder.output(numbered(contract.HISTORY_NEXT, index), history, shape)

    def _present(
        self, kernel: str, name: str, colors: _Pending, shape: Sequence[Size], element: ElementType
    ) -> None:
        inputs = [colors.x, *self._addends(colors)]
        value = self._builder.kernel(kernel, *inputs, dtype=element.name, batch=self._batch)
        self._builder.output(name, value, shape, ir.DataType(element.onnx))

    def _causal_conv(
        self, before: _Pending, name: str, channels: int, norm: str | None = None
    ) -> _Pending:
        stacked, _ = self._stack(before, norm, silu=norm is not None)
        hidden = self._conv(stacked, name, before.channels, channels)
        return _Pending(hidden, channels, (f"{name}.bias",))

    def _stack(
        self,
        before: _Pending,
        norm: str | None,
        *,
        silu: bool = True,
        form: str = "stacked",
        keep: bool = False,
    ) -> tuple[ir.Value, ir.Value]:
        """What a convolution reads; and the sum itself if it is to be kept, else x alone."""
        inputs = [before.x, *self._addends(before)]
        if norm is not None:
            gamma = f"{norm}.gamma"
            inputs.append(
                self._weight(gamma, (before.channels,), lambda: self._weights.array(gamma))
            )
        remembers = form != "alone"
        history = remembers and not self._first
        if history:
            shape = self._history_shape(before.channels)
            inputs.append(self._builder.input(self._next_history(), shape))
        outputs = self._builder.kernel(
            "vae_stack",
            *inputs,
            outputs=1 + remembers + keep,
            batch=self._batch,
            form=form,
            residual=before.y is not None,
            bias=bool(before.biases),
            norm=norm is not None,
            silu=silu,
            history=history,
            total=keep,
            spread=before.is_spread,
        )
        values = list(outputs) if isinstance(outputs, tuple) else [outputs]
        if remembers:
            self._renew(values[1], before.channels)
        return values[0], values[-1] if keep else before.x

    def _next_history(self) -> str:
        return numbered(contract.HISTORY, len(self._renewed))

    def _addends(self, pending: _Pending) -> list[ir.Value]:
        """What a kernel adds to x: y and the sum of the biases, as far as there are any."""
        added = [] if pending.y is None else [pending.y]
        names = pending.biases
        if names:
            bias = self._weight(
                "+".join(names),
                (pending.channels,),
                lambda: sum(self._weights.array(name).astype(np.float32) for name in names),
            )
            added.append(bias)
        return added

    def _conv(self, stacked: ir.Value, name: str, channels: int, channels_out: int) -> ir.Value:
        weight = f"{name}.weight"
        shape = (channels_out, (1 + HISTORY_FRAMES) * channels, 3, 3)
        kernel = self._weight(weight, shape, lambda: _stacked_taps(self._weights.array(weight)))
        return self._convolved(stacked, kernel, 3)

    def _doubling_conv(
        self, small: ir.Value, name: str, channels: int, channels_out: int
    ) -> ir.Value:
        weight = f"{name}.weight"
        shape = (4 * channels_out, channels, 2, 2)
        kernel = self._weight(weight, shape, lambda: _folded_taps(self._weights.array(weight)))
        return self._convolved(small, kernel, 2)

    def _convolved(self, x: ir.Value, kernel: ir.Value, taps: int) -> ir.Value:
        """Over NHWC; ONNX Runtime takes the transposes away where it convolves in NHWC."""
        add = self._builder.op
        planes = add("Transpose", x, perm=(0, 3, 1, 2))
        size, pads = (taps, taps), (1, 1, 1, 1)
        convolved = add("Conv", planes, kernel, kernel_shape=size, pads=pads)
        result: ir.Value = add("Transpose", convolved, perm=(0, 2, 3, 1))
        return result

    def _linear(
        self,
        x: ir.Value,
        name: str,
        channels: int,
        channels_out: int,
        change: Callable[[Array], Array] = lambda values: values,
    ) -> ir.Value:
        """A convolution without neighbors in space; ``channels`` counts those of all taps."""
        weight = f"{name}.weight"
        taps = self._weights.array(weight)[0, 0].size

        def matrix() -> Array:
            values = change(self._weights.array(weight)).reshape(channels_out, -1, taps)
            return values.transpose(0, 2, 1).reshape(channels_out, channels).T

        value = self._weight(weight, (channels, channels_out), matrix)
        result: ir.Value = self._builder.op("MatMul", x, value)
        return result

    def _weight(self, name: str, shape: tuple[int, ...], make: Callable[[], Any]) -> ir.Value:
        return self._builder.weight(name, self._weights.lazy(name, shape, make))

    def _history_shape(self, channels: int) -> tuple[int, ...]:
        return (self._batch, HISTORY_FRAMES, self._height, self._width, channels)

    def _renew(self, history: ir.Value, channels: int) -> None:
        self._renewed.append((history, self._history_shape(channels)))


def _stacked_taps(kernel: Array) -> Array:
    """[out, in, 3, 3, 3] as [out, 3 * in, 3, 3], in the order of the stack: earliest first."""
    return kernel.transpose(0, 2, 1, 3, 4).reshape(kernel.shape[0], -1, *kernel.shape[3:])


def _folded_taps(kernel: Array) -> Array:
    """[out, in, 3, 3] after doubling as [4 * out, in, 2, 2] in its place, for outputs 0 and 1 of
    each row and column: what falls on the same pixel is added."""
    both = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)
    folded = np.einsum("apy,bqx,oiyx->aboipq", both, both, kernel.astype(np.float32))
    result: Array = folded.reshape(-1, *folded.shape[3:])
    return result
