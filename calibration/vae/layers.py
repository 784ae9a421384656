"""Convolutions of the VAE that hold real FP8 or INT8 weights."""

import torch.nn.functional as F
from torch import Tensor, nn

from longlive_trt.calibration.layers import dequantized, empty_constant, fake_quantize
from longlive_trt.calibration.recipes import INT8, Format
from longlive_trt.export.models.vae_layers import (
    CausalConv,
    FrameConv,
    Histories,
    KeepsHistory,
    StillConv,
)


def scales_by_channel(format_: Format) -> bool:
    """Whether weights have a scale for each output channel, or one for all.

    FP8 loses nothing with one, and compilers then finish a convolution in one kernel: with many
    they write its sums in float32 and scale them in another.
    """
    return format_ == INT8


class _QuantizedConv(nn.Module):
    """Weights [out, in, time, height, width] of ``conv``, and how to apply them."""

    def __init__(self, conv: nn.Conv3d | nn.Conv2d, format_: Format) -> None:
        super().__init__()
        self.format = format_
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        *_, height, width = conv.kernel_size
        time = conv.kernel_size[0] if isinstance(conv, nn.Conv3d) else 1
        shape = (conv.out_channels, conv.in_channels, time, height, width)
        scales = (conv.out_channels,) if scales_by_channel(format_) else ()
        self.weight = empty_constant(*shape, dtype=format_.dtype)
        self.weight_scale = empty_constant(*scales)
        self.input_scale = empty_constant()
        self.bias = empty_constant(conv.out_channels)
        self._padding = (0, height // 2, width // 2)

    def _convolved(self, frames: Tensor) -> Tensor:
        rounded = fake_quantize(frames, self.input_scale, self.format)
        axis = 0 if scales_by_channel(self.format) else None
        weight = dequantized(self.weight, self.weight_scale, axis)
        return F.conv3d(rounded, weight, self.bias, padding=self._padding)


class QuantizedFrameConv(_QuantizedConv):
    """Of one frame: spatial, or of single pixels."""

    def forward(self, frames: Tensor) -> Tensor:
        return self._convolved(frames)


class QuantizedStillConv(_QuantizedConv):
    """Of one frame, in the place of a causal one."""

    def forward(self, frames: Tensor, _histories: Histories) -> Tensor:
        return self._convolved(frames)


class QuantizedCausalConv(_QuantizedConv, KeepsHistory):
    def forward(self, frames: Tensor, histories: Histories) -> Tensor:
        return self._convolved(histories.prepend(frames))


def quantized_conv(conv: nn.Module, format_: Format) -> nn.Module:
    assert isinstance(conv, (nn.Conv3d, nn.Conv2d))
    if isinstance(conv, StillConv):
        return QuantizedStillConv(conv, format_)
    kind = QuantizedCausalConv if isinstance(conv, CausalConv) else QuantizedFrameConv
    return kind(conv, format_)


def is_convolution(module: nn.Module) -> bool:
    return isinstance(module, (CausalConv, FrameConv, nn.Conv3d))
