"""The VAE's decoder as graphs for a GPU: convolutions of stacked frames, our kernels between them.

Activations are [batch * frames, height, width, channels]. A causal convolution is a 2-D one over
three frames side by side in the channels, or, in eight bits, a kernel of ours.

Doubling height and width by repetition, and the 3x3 convolution after it, are one 2x2 convolution
of the small image: of the nine pixels that an output sees, at most four differ. It makes the four
outputs of a place at once, side by side in the channels, with 4/9 of the work; the next kernel
reads them so.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from longlive_trt import contract
from longlive_trt.configs import ModelConfig, VaeConfig
from longlive_trt.contract import (
    BASE_GRAPHS,
    DECODER_GRAPHS,
    TILE_GRAPHS,
    TILE_HEIGHT,
    TILE_WIDTH,
    VAE,
    weight_prefix,
    weights_file,
)
from longlive_trt.dtypes import FLOAT32, UINT8, ElementType
from longlive_trt.engines.graphs.builder import GraphBuilder, GraphWeights, Size
from longlive_trt.engines.graphs.layers import require_half, save_sharing, times
from longlive_trt.engines.graphs.vae_convolutions import (
    Array,
    Convolutions,
    tell_what_stays_wide,
)
from longlive_trt.engines.graphs.vae_layers import DecoderLayers, Pending
from longlive_trt.errors import UsageError
from longlive_trt.plugins.kernels.vae import MAX_HEAD_CHANNELS
from longlive_trt.precision import Precision

_CHANNEL_MULTIPLE, _TAPS = 8, 3
_COLORS = 3


def build_vae_graphs(
    config: ModelConfig,
    export_folder: Path,
    precision: Precision,
    out: Path,
    *,
    batch: int = 1,
    latents: Precision | None = None,
    hopper: bool = True,
    component: str = VAE,
    tiles: bool = False,
) -> None:
    """Write both graphs of the decoder, and the weights that they share; with ``tiles`` those of
    its two parts too.

    The latents come in a precision of their own: the transformer's. Convolutions in eight bits have
    a kernel on ``hopper`` only.
    """
    vae = _require_supported(config, precision, component)
    exported = ir.load(export_folder / f"{DECODER_GRAPHS[component][1]}.onnx")
    weights = GraphWeights(exported, weight_prefix(component), precision)
    written: list[tuple[tuple[str, str], tuple[Size, Size], _Write]] = [
        (DECODER_GRAPHS[component], config.latent.size, _DecoderWriter.write_whole)
    ]
    if tiles:
        written += [
            (BASE_GRAPHS[component], config.latent.size, _DecoderWriter.write_base),
            (TILE_GRAPHS[component], (TILE_HEIGHT, TILE_WIDTH), _DecoderWriter.write_tile),
        ]
    graphs = {}
    for names, sides, write in written:
        # The second one has all weights.
        for name, first in zip(reversed(names), (False, True), strict=True):
            builder = GraphBuilder(name, precision)
            convolutions = Convolutions(builder, weights, batch, in_eight_bits=hopper)
            write(
                _DecoderWriter(
                    builder, weights, convolutions, vae, sides=sides, batch=batch, first=first
                ),
                latents or precision,
            )
            graphs[name] = builder.model()
    tell_what_stays_wide(weights, hopper=hopper)
    save_sharing(graphs, out, weights_file(component))


def obstacle(vae: VaeConfig) -> str | None:
    """Why our kernels do not take such a decoder, if they do not."""
    if vae.temporal_taps != _TAPS:
        return (
            f"its residual blocks see {vae.temporal_taps} latent frame at a time "
            f"(vae.temporal_taps), and our kernels take {_TAPS}"
        )
    widths = _widths(vae)
    halves = [width // 2 for width in widths[:-1]]
    odd = [c for c in (vae.channels, *widths, *halves) if c % _CHANNEL_MULTIPLE]
    if odd:
        return (
            f"it has layers of {odd[0]} channels, and our kernels take multiples of "
            f"{_CHANNEL_MULTIPLE}"
        )
    return None


def _require_supported(config: ModelConfig, precision: Precision, component: str) -> VaeConfig:
    require_half(precision)
    vae = config.decoder(component)
    if not isinstance(vae, VaeConfig):
        raise UsageError(f"{config.name} has no VAE: add a section vae to its configuration")
    if reason := obstacle(vae):
        raise UsageError(f"{config.name}: its decoder has no graphs of our kernels: {reason}")
    return vae


def _widths(vae: VaeConfig) -> list[int]:
    return [vae.dim * multiplier for multiplier in reversed(vae.multipliers)]


class _DecoderWriter(DecoderLayers):
    """The decoder as it is put together."""

    def write_whole(self, latents: Precision) -> None:
        colors = self._head(self._staged(self._middle(latents), 0, None))
        self._finish(colors, self.counted(contract.LATENT_FRAMES, self.vae.temporal_factor))

    def write_base(self, latents: Precision) -> None:
        """Up to the part that tiles may do."""
        before = self._staged(self._middle(latents), 0, self.vae.whole_stages)
        features = self.summed(self.computed(before), interleave=False)
        frames = self.counted(contract.LATENT_FRAMES, self.vae.feature_frames)
        shape = (times(frames, self.batch), *self.size, before.channels)
        self.builder.output(contract.FEATURES, features, shape)
        self.remember()

    def write_tile(self, latents: Precision) -> None:
        """From there on, of a tile of any size."""
        del latents
        cut = self.vae.whole_stages
        channels = _widths(self.vae)[cut // (self.vae.res_blocks + 2)]
        frames = times(1 if self.first else contract.FEATURE_FRAMES, self.batch)
        features = self.builder.input(contract.FEATURES, (frames, *self.size, channels))
        colors = self._head(self._staged(Pending(features, channels), cut, None))
        factor = self.vae.temporal_factor // self.vae.feature_frames
        self._finish(colors, self.counted(contract.FEATURE_FRAMES, factor))

    def _middle(self, latents: Precision) -> Pending:
        widest = _widths(self.vae)[0]
        hidden = self.causal_conv(self._latents(latents), "decoder.conv1", widest)
        hidden = self._res_block(hidden, "decoder.middle.0", widest)
        hidden = self._attention(hidden, "decoder.middle.1")
        return self._res_block(hidden, "decoder.middle.2", widest)

    def _staged(self, hidden: Pending, begin: int, end: int | None) -> Pending:
        """Some of the residual blocks and doublings after the middle, by their numbers."""
        for stage in self._stages()[begin:end]:
            hidden = stage(hidden)
        return hidden

    def _stages(self) -> list[Callable[[Pending], Pending]]:
        stages: list[Callable[[Pending], Pending]] = []

        def add(stage: Callable[..., Pending], **options: Any) -> None:
            stages.append(partial(stage, name=f"decoder.upsamples.{len(stages)}", **options))

        for level, width in enumerate(_widths(self.vae)):
            for _ in range(self.vae.res_blocks + 1):
                add(self._res_block, channels=width)
            if level < len(self.vae.temporal_upsample):
                add(self._upsample, temporal=self.vae.temporal_upsample[level])
        return stages

    def _latents(self, precision: Precision) -> Pending:
        channels = self.vae.channels
        wide = self.denormalized(self.wide_latents(channels, precision), self.vae)
        mixed = self.linear(self.pixels(wide, channels), "conv2", channels, channels)
        return Pending(mixed, channels, ("conv2.bias",))

    def _res_block(self, before: Pending, name: str, channels: int) -> Pending:
        shortcut = channels != before.channels
        first, last = f"{name}.residual.2", f"{name}.residual.6"
        if not self.convolutions.can_follow(before.x, first):
            before = self.computed(before)
        # A sum of two is computed once, and what is spread comes together; what is only short of
        # biases stays as it is.
        keep = shortcut or not before.is_short_of_biases_only
        norms = [f"{name}.residual.{index}" for index in (0, 3)]
        read, kept = self.read(before, norms[0], into=first, keep=keep)
        inner = self.convolved(read, first, before.channels, channels)
        hidden = self.causal_conv(inner, last, channels, norms[1])
        residual, biases = self.value(kept), (*kept.biases, *hidden.biases)
        if shortcut:
            residual = self.linear(residual, f"{name}.shortcut", before.channels, channels)
            biases = (*biases, f"{name}.shortcut.bias")
        return replace(hidden, biases=biases, y=residual)

    def _attention(self, before: Pending, name: str) -> Pending:
        add, channels = self.builder.op, before.channels
        normed, kept = self.stack(before, f"{name}.norm", silu=False, form="alone", keep=True)
        positions = add("Reshape", normed, self.builder.constant((0, -1, channels), np.int64))
        qkv = self.linear(positions, f"{name}.to_qkv", channels, 3 * channels, self._scaled)
        bias = self.weight(
            f"{name}.to_qkv.bias",
            (3 * channels,),
            lambda: self._scaled(self.weights.array(f"{name}.to_qkv.bias")),
        )
        query, key, value = add("Split", add("Add", qkv, bias), outputs=3, axis=-1, num_outputs=3)
        logits = add("MatMul", query, add("Transpose", key, perm=(0, 2, 1)))
        attended = add("MatMul", add("Softmax", logits, axis=-1), value)
        projected = self.linear(attended, f"{name}.proj", channels, channels)
        shape = self.builder.constant((0, *self.size, channels), np.int64)
        update = add("Reshape", projected, shape)
        return replace(kept, biases=(f"{name}.proj.bias",), y=update)

    def _scaled(self, values: Array) -> Array:
        """Queries, the first third of the outputs, come scaled for their attention's logits."""
        channels = values.shape[0] // 3
        scale = np.ones((values.shape[0], *[1] * (values.ndim - 1)), np.float32)
        scale[:channels] = channels**-0.5
        return values.astype(np.float32) * scale

    def _upsample(self, before: Pending, name: str, *, temporal: bool) -> Pending:
        channels, before = before.channels, self.computed(before)
        if temporal and self.first:
            empty = self.builder.kernel("vae_zeros", self.value(before), batch=self.batch)
            self.renew(empty, channels)
        if temporal and not self.first:
            stacked, _ = self.stack(before, None, silu=False)
            paired = self.linear(stacked, f"{name}.time_conv", 3 * channels, 2 * channels)
            before = Pending(paired, 2 * channels, (f"{name}.time_conv.bias",))
        summed = self.summed(before, interleave=before.channels != channels)
        self.scale *= 2
        resample = f"{name}.resample.1"
        hidden = self.doubling_conv(summed, resample, channels, channels // 2)
        return Pending(hidden, channels // 2, (f"{resample}.bias",), is_spread=True)

    def _head(self, before: Pending) -> Pending:
        name, channels = "decoder.head.2", before.channels
        if channels > MAX_HEAD_CHANNELS:
            return self.causal_conv(before, name, _COLORS, "decoder.head.0")
        extended, _ = self.stack(before, "decoder.head.0", form="extended")
        weight = f"{name}.weight"
        shape = (3, 9 * _COLORS, channels)
        # By row of taps, frame, column and color.
        kernel = self.weight(
            weight, shape, lambda: self.convolutions.weight(name).transpose(3, 2, 4, 0, 1)
        )
        hidden = self.builder.kernel("vae_head", extended, kernel, batch=self.batch)
        return Pending(hidden, _COLORS, (f"{name}.bias",))

    def _finish(self, colors: Pending, frames: Size) -> None:
        """``frames``: of pictures, for each video."""
        shapes = (
            (self.batch, frames, _COLORS, *self.size),
            (self.batch, frames, *self.size, _COLORS),
        )
        self._present("vae_frames", contract.FRAMES, colors, shapes[0], FLOAT32)
        self._present("vae_pixels", contract.PIXELS, colors, shapes[1], UINT8)
        self.remember()

    def _present(
        self, kernel: str, name: str, colors: Pending, shape: Sequence[Size], element: ElementType
    ) -> None:
        inputs = [self.value(colors), *self.addends(colors)]
        value = self.builder.kernel(kernel, *inputs, dtype=element.name, batch=self.batch)
        self.builder.output(name, value, shape, ir.DataType(element.onnx))


_Write = Callable[[_DecoderWriter, Precision], None]
"""Of one graph; latents come in this precision."""
