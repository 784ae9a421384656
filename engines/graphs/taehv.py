"""The tiny decoder's graphs for a GPU: 2-D convolutions of all frames, our kernels between them.

Activations are [batch * frames, height, width, channels], of as many channels as are a multiple of
eight: those that fill up are zeros. What a layer leaves to be done (a bias, a sum, ReLU) stays
pending until the next kernel, which does it on the way.

Making one frame into two, doubling height and width, and the 3x3 convolution after them have
nothing between them, so they are one 2x2 convolution of the small image (``folded_taps``): it makes
the four outputs of a place, of one frame and then of the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from longlive_trt import contract
from longlive_trt.configs import ModelConfig, TaehvConfig
from longlive_trt.contract import DECODER_GRAPHS, weight_prefix, weights_file
from longlive_trt.dtypes import FLOAT32, UINT8
from longlive_trt.engines.graphs.builder import GraphBuilder, GraphWeights
from longlive_trt.engines.graphs.layers import PictureLayers, require_half, save_sharing
from longlive_trt.engines.graphs.vae_convolutions import Array, folded_taps
from longlive_trt.errors import UsageError
from longlive_trt.plugins.kernels.vae_colors import MAX_COLORS_CHANNELS, SUMS
from longlive_trt.plugins.kernels.vae_tensors import COLORS
from longlive_trt.precision import Precision

_SQUASH = 3.0
_BLOCKS = 3
_ENTRANCE, _FIRST_STAGE = 1, 3
"""Numbers in a checkpoint, where activations and doublings are layers too."""
_TAPS = 2
"""Frames that a memory block sees."""
_MULTIPLE = 8


def build_taehv_graphs(
    config: ModelConfig,
    component: str,
    export_folder: Path,
    precision: Precision,
    out: Path,
    *,
    batch: int,
    latents: Precision,
) -> None:
    """Write both graphs of the decoder, and the weights that they share.

    The latents come in a precision of their own: the transformer's.
    """
    vae = config.decoder(component)
    assert isinstance(vae, TaehvConfig)
    require_half(precision)
    if vae.widths[-1] > MAX_COLORS_CHANNELS:
        raise UsageError(
            f"{config.name}: the last of vae.widths is {vae.widths[-1]}, and the kernel that makes "
            f"pictures takes up to {MAX_COLORS_CHANNELS}; build this model for the CPU"
        )
    names = DECODER_GRAPHS[component]
    exported = ir.load(export_folder / f"{names[1]}.onnx")
    weights = GraphWeights(exported, weight_prefix(component), precision)
    graphs = {}
    for name, first in zip(names, (True, False), strict=True):
        builder, size = GraphBuilder(name, precision), config.latent.size
        writer = _Writer(builder, weights, vae, sides=size, batch=batch, first=first)
        writer.write(latents)
        graphs[name] = builder.model()
    save_sharing(graphs, out, weights_file(component))


@dataclass(frozen=True)
class _Pending:
    """x, a bias (by name) and perhaps y, their sum and its ReLU, which nobody has computed yet."""

    x: ir.Value
    channels: int
    bias: str | None = None
    y: ir.Value | None = None
    """Frames behind those before them, side by side, as a memory block has read them."""
    relu: bool = True
    frames_of_place: int = 0
    """x holds four pixels of so many frames at each of its places, if it is spread at all."""


class _Writer(PictureLayers):
    def __init__(
        self,
        builder: GraphBuilder,
        weights: GraphWeights,
        vae: TaehvConfig,
        *,
        sides: tuple[int, int],
        batch: int,
        first: bool,
    ) -> None:
        super().__init__(
            *(builder, weights), history_frames=_TAPS - 1, sides=sides, batch=batch, first=first
        )
        self._vae = vae

    def write(self, latents: Precision) -> None:
        hidden, number = self._entrance(latents), _FIRST_STAGE
        stages = zip(pairwise(self._vae.widths), self._vae.temporal_upsample, strict=True)
        for (width, next_width), temporal in stages:
            for _ in range(_BLOCKS):
                hidden = self._memory_block(hidden, f"decoder.{number}", width)
                number += 1
            frames = 2 if temporal else 1
            hidden = self._doubled(hidden, number + 1, width, next_width, frames)
            number += 3
        self._present(hidden, f"decoder.{number + 1}")
        self.remember()
        # A run wants either, and leaves the other's convolution out.
        for output in (contract.FRAMES, contract.PIXELS):
            self.builder.mark_servants(output)

    def _entrance(self, latents: Precision) -> _Pending:
        add, vae, name = self.builder.op, self._vae, f"decoder.{_ENTRANCE}"
        wide = self.wide_latents(vae.channels, latents)
        if vae.latents == "raw":
            wide = self.denormalized(wide, vae)
        limit = self.builder.constant(_SQUASH, np.float32)
        squashed = add("Mul", add("Tanh", add("Div", wide, limit)), limit)
        pixels = self.pixels(squashed, vae.channels)
        return self._convolved(pixels, name, vae.widths[0], vae.channels)

    def _memory_block(self, before: _Pending, name: str, width: int) -> _Pending:
        seen, channels = self._seen(before), filled(width)
        hidden = self._convolved(seen, f"{name}.conv.0", width, channels, taps=_TAPS)
        for layer in (2, 4):
            inner = self._computed(hidden)
            hidden = self._convolved(inner, f"{name}.conv.{layer}", width, channels)
        return replace(hidden, y=seen)

    def _doubled(
        self, before: _Pending, number: int, width: int, next_width: int, frames: int
    ) -> _Pending:
        """Each frame as one or two, of twice the height and width."""
        small, name = self._computed(before), f"decoder.{number + 1}"
        channels = filled(next_width)

        def taps() -> Array:
            grown = self._array(f"decoder.{number}.conv.weight")
            spatial = self._array(f"{name}.weight")
            each = grown.reshape(frames, width, width)
            kernels = np.einsum("omyx,fmi->foiyx", spatial, each)
            sizes = {0: channels, 1: filled(width)}
            return np.concatenate([folded_taps(_filled(kernel, sizes)) for kernel in kernels])

        shape = (4 * frames * channels, filled(width), 2, 2)
        spread = self.conv(small, self.weight(f"{name}.weight", shape, taps), 2)
        self.scale *= 2
        return _Pending(spread, next_width, relu=False, frames_of_place=frames)

    def _present(self, colors: _Pending, name: str) -> None:
        channels, vae = filled(colors.channels), self._vae
        # By row, column and color.
        kernel = self.weight(
            f"{name}.weight",
            (SUMS, channels),
            lambda: _filled(self._array(f"{name}.weight").transpose(2, 3, 0, 1), {3: channels}),
        )
        bias = self._bias(f"{name}.bias", COLORS)
        made = self.batch, self.counted(contract.LATENT_FRAMES, vae.temporal_factor)
        for output, pictures, element, frame in (
            (contract.FRAMES, False, FLOAT32, (COLORS, *self.size)),
            (contract.PIXELS, True, UINT8, (*self.size, COLORS)),
        ):
            value = self.builder.kernel(
                "vae_colors",
                *(colors.x, kernel, bias),
                dtype=element.name,
                pictures=pictures,
                batch=self.batch,
                frames_of_place=colors.frames_of_place,
                # A video's first pictures are no whole number of latent frames.
                skipped=vae.temporal_factor - 1 if self.first else 0,
            )
            self.builder.output(output, value, (*made, *frame), value.dtype)

    def _convolved(
        self, x: ir.Value, name: str, width: int, channels: int, *, taps: int = 1
    ) -> _Pending:
        """Of so many frames, of so many channels each, side by side in x, the newest last."""
        weight, outputs = f"{name}.weight", filled(width)

        def kernel() -> Array:
            values = self._array(weight)
            # In a checkpoint the newest comes first.
            frames = values.reshape(len(values), taps, -1, *values.shape[2:])[:, ::-1]
            return _filled(frames, {0: outputs, 2: channels})

        shape = (outputs, taps * channels, 3, 3)
        return _Pending(self.conv(x, self.weight(weight, shape, kernel), 3), width, f"{name}.bias")

    def _seen(self, before: _Pending) -> ir.Value:
        """Each frame behind the one before it, and the memory renewed."""
        history = self.history(filled(before.channels))
        outputs = self._stacked(before, "stacked", history)
        seen: ir.Value = outputs[0]
        self.renew(outputs[1], filled(before.channels))
        return seen

    def _computed(self, before: _Pending) -> ir.Value:
        value: ir.Value = self._stacked(before, "alone", None)
        return value

    def _stacked(self, before: _Pending, form: str, history: ir.Value | None) -> Any:
        channels = filled(before.channels)
        bias = None if before.bias is None else self._bias(before.bias, channels)
        inputs = (before.x, before.y, bias, history)
        return self.builder.kernel(
            "vae_stack",
            *(value for value in inputs if value is not None),
            outputs=1 if form == "alone" else 2,
            form=form,
            batch=self.batch,
            taps=_TAPS,
            residual=before.y is not None,
            beside=before.y is not None,
            bias=bias is not None,
            relu=before.relu,
            history=history is not None,
            spread=before.frames_of_place > 0,
            frames_of_place=before.frames_of_place or 1,
        )

    def _bias(self, name: str, channels: int) -> ir.Value:
        return self.weight(name, (channels,), lambda: _filled(self._array(name), {0: channels}))

    def _array(self, name: str) -> Array:
        values: Array = self.weights.array(name).astype(np.float32)
        return values


def filled(channels: int) -> int:
    """With those that make them a whole number of vectors."""
    return -(-channels // _MULTIPLE) * _MULTIPLE


def _filled(values: Array, sizes: Mapping[int, int]) -> Array:
    """With zeros up to these sizes, by axis."""
    missing = [(0, sizes.get(axis, size) - size) for axis, size in enumerate(values.shape)]
    return np.pad(values, missing)
