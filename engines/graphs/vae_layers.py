"""Layers of the VAE's decoder as nodes of a graph for a GPU.

What a layer leaves to be done (a bias, a residual) stays pending until the next kernel, which adds
it on the way. A convolution in eight bits is a kernel of ours: it stays pending itself, until it is
known what follows, and does that too.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from longlive_trt.configs import VaeConfig
from longlive_trt.engines.graphs.builder import GraphBuilder, GraphWeights, Size
from longlive_trt.engines.graphs.layers import PictureLayers
from longlive_trt.engines.graphs.vae_convolutions import (
    Array,
    Convolution,
    Convolutions,
    QuantizedFrames,
    folded_taps,
    stacked_taps,
)
from longlive_trt.plugins.kernels.vae import HISTORY_FRAMES


@dataclass(frozen=True)
class Pending:
    """The sum of x, perhaps y, and biases (by name), which nobody has computed yet."""

    x: ir.Value | Convolution
    channels: int
    biases: tuple[str, ...] = ()
    y: ir.Value | None = None
    is_spread: bool = False
    """x holds four pixels at each of its places; ``vae_tensors.gathered`` says which."""

    @property
    def is_short_of_biases_only(self) -> bool:
        return isinstance(self.x, ir.Value) and self.y is None and not self.is_spread


class DecoderLayers(PictureLayers):
    def __init__(
        self,
        builder: GraphBuilder,
        weights: GraphWeights,
        convolutions: Convolutions,
        vae: VaeConfig,
        *,
        sides: tuple[Size, Size],
        batch: int,
        first: bool,
    ) -> None:
        super().__init__(
            builder,
            weights,
            history_frames=HISTORY_FRAMES,
            sides=sides,
            batch=batch,
            first=first,
        )
        self.convolutions, self.vae = convolutions, vae

    def summed(self, before: Pending, *, interleave: bool) -> ir.Value:
        inputs = [self.value(before), *self.addends(before)]
        if len(inputs) == 1 and not interleave:
            return inputs[0]
        summed: ir.Value = self.builder.kernel(
            "vae_sum",
            *inputs,
            residual=before.y is not None,
            bias=bool(before.biases),
            interleave=interleave,
        )
        return summed

    def causal_conv(
        self, before: Pending, name: str, channels: int, norm: str | None = None
    ) -> Pending:
        read, _ = self.read(before, norm, into=name)
        return self.convolved(read, name, before.channels, channels)

    def read(
        self, before: Pending, norm: str | None, *, into: str, keep: bool = False
    ) -> tuple[ir.Value | QuantizedFrames, Pending]:
        """What a causal convolution reads; and what is pending then: with ``keep``, nothing."""
        if norm is not None and self.convolutions.takes(into):
            return self._quantized(before, norm, into, keep=keep)
        return self.stack(before, norm, silu=norm is not None, keep=keep)

    def _quantized(
        self, before: Pending, norm: str, into: str, *, keep: bool
    ) -> tuple[QuantizedFrames, Pending]:
        history = self.history(before.channels, self.convolutions.dtype(into))
        gamma = self._gamma(norm, before.channels)
        if self.convolutions.can_follow(before.x, into):
            assert isinstance(before.x, Convolution)
            *total, frames, renewed = self.convolutions.compute_into(
                before.x,
                self._bias(before),
                before.y,
                gamma=gamma,
                into=into,
                history=history,
                total=keep,
            )
        else:
            before = self.computed(before)
            *total, frames, renewed = self.convolutions.quantize(
                *([self.value(before), *self.addends(before), gamma], into, history),
                residual=before.y is not None,
                bias=bool(before.biases),
                total=keep,
                spread=before.is_spread,
            )
        self.renew(renewed, before.channels)
        kept = Pending(total[0], before.channels) if total else before
        return QuantizedFrames(frames, history), kept

    def computed(self, before: Pending) -> Pending:
        """With a convolution in eight bits that is pending, all that is pending is computed."""
        if not isinstance(before.x, Convolution):
            return before
        value = self.convolutions.compute(before.x, self._bias(before), before.y)
        return Pending(value, before.channels)

    def value(self, pending: Pending) -> ir.Value:
        assert isinstance(pending.x, ir.Value)
        return pending.x

    def stack(
        self,
        before: Pending,
        norm: str | None,
        *,
        silu: bool = True,
        form: str = "stacked",
        keep: bool = False,
    ) -> tuple[ir.Value, Pending]:
        """The same in the compute type."""
        before = self.computed(before)
        inputs = [self.value(before), *self.addends(before)]
        if norm is not None:
            inputs.append(self._gamma(norm, before.channels))
        remembers = form != "alone"
        history = self.history(before.channels) if remembers else None
        if history is not None:
            inputs.append(history)
        outputs = self.builder.kernel(
            "vae_stack",
            *inputs,
            outputs=1 + remembers + keep,
            batch=self.batch,
            form=form,
            residual=before.y is not None,
            bias=bool(before.biases),
            norm=norm is not None,
            silu=silu,
            history=history is not None,
            total=keep,
            spread=before.is_spread,
        )
        values = list(outputs) if isinstance(outputs, tuple) else [outputs]
        if remembers:
            self.renew(values[1], before.channels)
        return values[0], Pending(values[-1], before.channels) if keep else before

    def _gamma(self, norm: str, channels: int) -> ir.Value:
        name = f"{norm}.gamma"
        return self.weight(name, (channels,), lambda: self.weights.array(name))

    def addends(self, pending: Pending) -> list[ir.Value]:
        """What a kernel adds to x: y and the sum of the biases, as far as there are any."""
        added = [] if pending.y is None else [pending.y]
        return [*added, self._bias(pending)] if pending.biases else added

    def _bias(self, pending: Pending) -> ir.Value:
        names = pending.biases
        return self.weight(
            "+".join(names),
            (pending.channels,),
            lambda: sum(self.weights.array(name).astype(np.float32) for name in names),
        )

    def convolved(
        self, read: ir.Value | QuantizedFrames, name: str, channels: int, channels_out: int
    ) -> Pending:
        biases = (f"{name}.bias",)
        if isinstance(read, QuantizedFrames):
            return Pending(Convolution(name, read, channels_out), channels_out, biases)
        shape = (channels_out, (1 + HISTORY_FRAMES) * channels, 3, 3)
        kernel = self.weight(
            f"{name}.weight", shape, lambda: stacked_taps(self.convolutions.weight(name))
        )
        return Pending(self.conv(read, kernel, 3), channels_out, biases)

    def doubling_conv(
        self, small: ir.Value, name: str, channels: int, channels_out: int
    ) -> ir.Value:
        shape = (4 * channels_out, channels, 2, 2)
        kernel = self.weight(
            f"{name}.weight", shape, lambda: folded_taps(self.convolutions.weight(name))
        )
        return self.conv(small, kernel, 2)

    def linear(
        self,
        x: ir.Value,
        name: str,
        channels: int,
        channels_out: int,
        change: Callable[[Array], Array] = lambda values: values,
    ) -> ir.Value:
        """A convolution without neighbors in space; ``channels`` counts those of all taps."""
        weight = f"{name}.weight"
        taps = int(np.prod(self.weights.shape(weight)[2:]))

        def matrix() -> Array:
            values = change(self.convolutions.weight(name)).reshape(channels_out, -1, taps)
            return values.transpose(0, 2, 1).reshape(channels_out, channels).T

        value = self.weight(weight, (channels, channels_out), matrix)
        result: ir.Value = self.builder.op("MatMul", x, value)
        return result
