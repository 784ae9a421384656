"""The autoencoder as it is trained: the product's encoder and decoder, frame by frame.

Activations are pictures [clips * frames, channels, height, width] in the channels' last layout, so
that every convolution is a 2-D one; what looks back in time stacks neighboring frames. Weights have
the keys and shapes of ``Wan2.1_VAE.pth``, with one tap in time where ``temporal_taps`` is 1.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longlive_trt.configs import VaeConfig
from longlive_trt.demo.fused import add_bias, norm, norm_silu
from longlive_trt.export.models.vae import VaeDecoder
from longlive_trt.export.models.vae_encoder import VaeEncoder
from longlive_trt.export.models.vae_layers import (
    CausalConv,
    ChannelNorm,
    Downsample,
    FrameAttention,
    FrameConv,
    ResBlock,
    Upsample,
)


class _Decodes(nn.Module):
    conv2: nn.Conv3d
    decoder: Any

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.conv2.weight.is_cuda else self.conv2.weight.dtype

    def decode(self, latents: Tensor) -> Tensor:
        """Unclamped frames of latents that are not normalized."""
        batch, net = len(latents), self.decoder
        x = _pointwise(_pictures(latents, self.dtype), self.conv2)
        x = _middle(_convolve_back(x, net.conv1, batch), net.middle)
        for stage in net.upsamples:
            x = _upsample(x, stage, batch) if isinstance(stage, Upsample) else _block(x, stage)
        frames: Tensor = _head(x, net.head).unflatten(0, (batch, -1)).float()
        return frames


class Decoder(_Decodes):
    """Raw latents to clips, without an encoder."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        decoder = VaeDecoder(config)
        self.conv2, self.decoder = decoder.conv2, decoder.decoder


class AutoEncoder(_Decodes):
    """Clips [B, 1 + 4n, 3, H, W] in [-1, 1] to raw latents [B, 1 + n, C, h, w] and back."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        encoder = VaeEncoder(config)
        self.encoder, self.conv1 = encoder.encoder, encoder.conv1
        decoder = VaeDecoder(config)
        self.conv2, self.decoder = decoder.conv2, decoder.decoder

    def encode(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """The means and the logarithms of the variances of a clip's latents."""
        batch, net = len(clips), self.encoder
        x = _convolve_back(_pictures(clips, self.dtype), net.conv1, batch)
        for stage in net.downsamples:
            x = _downsample(x, stage, batch) if isinstance(stage, Downsample) else _block(x, stage)
        x = _head(_middle(x, net.middle), net.head)
        moments = _pointwise(x, self.conv1).unflatten(0, (batch, -1)).float()
        mean, log_variance = moments.chunk(2, dim=2)
        return mean, log_variance.clamp(-14, 4)


def _pictures(clips: Tensor, dtype: torch.dtype) -> Tensor:
    return clips.flatten(0, 1).to(dtype).contiguous(memory_format=torch.channels_last)


def _convolve(x: Tensor, weight: Tensor, padding: int = 1, stride: int = 1) -> Tensor:
    weight = weight.to(x.dtype).contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, None, stride, padding)


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer, (nn.Conv2d, nn.Conv3d))
    return layer.weight


def _bias(layer: nn.Module) -> Tensor:
    assert isinstance(layer, (nn.Conv2d, nn.Conv3d)) and layer.bias is not None
    return layer.bias


def _pointwise(x: Tensor, layer: nn.Module) -> Tensor:
    assert isinstance(layer, (nn.Conv2d, nn.Conv3d))
    weight = layer.weight.flatten(2)[..., None]
    return add_bias(_convolve(x, weight, padding=0), _bias(layer))


def _stacked(x: Tensor, batch: int) -> Tensor:
    """Each frame with the two before it, earliest first, as channels; zeros before the first."""
    frames = x.unflatten(0, (batch, -1))
    padded = F.pad(frames, (0, 0, 0, 0, 0, 0, 2, 0))
    count = frames.shape[1]
    shifted = [padded[:, i : i + count].flatten(0, 1) for i in range(3)]
    return torch.cat(shifted, dim=1).contiguous(memory_format=torch.channels_last)


def _convolve_back(x: Tensor, layer: nn.Module, batch: int) -> Tensor:
    """A convolution with three taps in time; its weight becomes one of stacked channels."""
    weight = _weight(layer).transpose(1, 2).flatten(1, 2)
    padding = weight.shape[-1] // 2
    return add_bias(_convolve(_stacked(x, batch), weight, padding), _bias(layer))


def _block(x: Tensor, block: nn.Module) -> Tensor:
    assert isinstance(block, ResBlock)
    first, last = block.residual["2"], block.residual["6"]
    hidden = norm_silu(x, _gamma(block.residual["0"]))
    hidden = _convolve(hidden, _weight(first).squeeze(2))
    hidden = norm_silu(hidden, _gamma(block.residual["3"]), _bias(first))
    hidden = _convolve(hidden, _weight(last).squeeze(2))
    same = isinstance(block.shortcut, nn.Identity)
    return add_bias(hidden, _bias(last), x if same else _pointwise(x, block.shortcut))


def _gamma(norm: nn.Module) -> Tensor:
    assert isinstance(norm, ChannelNorm)
    return norm.gamma.flatten()


def _middle(x: Tensor, stages: nn.ModuleList) -> Tensor:
    before, attention, after = stages
    return _block(_attend(_block(x, before), attention), after)


def _attend(x: Tensor, layer: nn.Module) -> Tensor:
    assert isinstance(layer, FrameAttention)
    height = x.shape[-2]
    qkv = _pointwise(norm(x, _gamma(layer.norm)), layer.to_qkv)
    query, key, value = qkv.flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
    attended = F.scaled_dot_product_attention(query, key, value).squeeze(1)
    attended = attended.transpose(1, 2).unflatten(2, (height, -1))
    return x + _pointwise(attended.contiguous(memory_format=torch.channels_last), layer.proj)


def _head(x: Tensor, head: nn.ModuleDict) -> Tensor:
    last = head["2"]
    return add_bias(
        _convolve(norm_silu(x, _gamma(head["0"])), _weight(last).squeeze(2)), _bias(last)
    )


def _downsample(x: Tensor, stage: Downsample, batch: int) -> Tensor:
    conv = stage.resample["1"]
    assert isinstance(conv, FrameConv)
    # Padding on the right and below alone, as Wan's.
    x = add_bias(_convolve(F.pad(x, (0, 1, 0, 1)), conv.weight, padding=0, stride=2), _bias(conv))
    if stage.time_conv is None:
        return x
    frames = x.unflatten(0, (batch, -1))
    first, count = frames[:, :1], (frames.shape[1] - 1) // 2
    taps = [frames[:, i : i + 2 * count : 2].flatten(0, 1) for i in range(3)]
    stacked = torch.cat(taps, dim=1).contiguous(memory_format=torch.channels_last)
    weight = stage.time_conv.weight.transpose(1, 2).flatten(1, 2)
    halved = add_bias(_convolve(stacked, weight, padding=0), _bias(stage.time_conv))
    return _joined(first, halved.unflatten(0, (batch, -1)))


def _upsample(x: Tensor, stage: Upsample, batch: int) -> Tensor:
    if stage.time_conv is not None:
        x = _double_frames(x, stage.time_conv, batch)
    conv = stage.resample["1"]
    assert isinstance(conv, FrameConv)
    enlarged = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return add_bias(_convolve(enlarged, conv.weight), _bias(conv))


def _double_frames(x: Tensor, time_conv: CausalConv, batch: int) -> Tensor:
    frames = x.unflatten(0, (batch, -1))
    if frames.shape[1] == 1:
        return x
    rest = frames[:, 1:].flatten(0, 1)
    pairs = _convolve_back(rest, time_conv, batch)
    doubled = torch.stack(pairs.chunk(2, dim=1), dim=1).flatten(0, 1)
    return _joined(frames[:, :1], doubled.unflatten(0, (batch, -1)))


def _joined(first: Tensor, rest: Tensor) -> Tensor:
    joined = torch.cat([first, rest], dim=1).flatten(0, 1)
    return joined.contiguous(memory_format=torch.channels_last)
