"""The VAE's encoder: video frames into latents, a latent frame at a time."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longlive_trt.configs import VaeConfig
from longlive_trt.export.models.vae_layers import (
    CausalConv,
    ChannelNorm,
    Downsample,
    FrameAttention,
    Histories,
    KeepsHistory,
    ResBlock,
    block_conv,
)

CacheShape = tuple[int, int, int, int]
"""Channels, frames, height and width of one convolution's history."""


class VaeEncoder(nn.Module):
    """The state dict's keys are those of ``Wan2.1_VAE.pth`` without its decoder.

    A video's first frame becomes a latent frame of its own, and then every ``temporal_factor``
    frames become one.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = nn.Conv3d(2 * config.channels, 2 * config.channels, 1)

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [B, 1 + 4n, 3, H, W] of a whole video, -1 to 1, into latents [B, 1 + n, ...]."""
        latents, caches = self.encode_first(frames[:, :1])
        made, factor = [latents], self.config.temporal_factor
        for start in range(1, frames.shape[1], factor):
            latents, caches = self.encode_next(frames[:, start : start + factor], caches)
            made.append(latents)
        return torch.cat(made, dim=1)

    def encode_first(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The first frame of a video into its first latent frame, and the stream's caches."""
        return self._run(frames, Histories(None))

    def encode_next(self, frames: Tensor, caches: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The frames of one or more further latent frames, and the caches for those after them."""
        return self._run(frames, Histories(caches))

    def cache_shapes(self, height: int, width: int) -> list[CacheShape]:
        """The shapes of the caches in their order, for pictures of this size, without the batch."""
        shapes = []
        for stage in self.encoder.stages():
            if isinstance(stage, Downsample):
                height, width = height // 2, width // 2
            shapes += [
                (layer.in_channels, layer.history_frames, height, width)
                for layer in stage.modules()
                if isinstance(layer, KeepsHistory)
            ]
        return shapes

    def _run(self, frames: Tensor, histories: Histories) -> tuple[Tensor, list[Tensor]]:
        moments = self.conv1(self.encoder(frames.transpose(1, 2), histories))
        # The second half of the channels says how sure the encoder is.
        mean = moments.transpose(1, 2)[:, :, : self.config.channels]
        return self._normalize(mean), histories.renewed

    def _normalize(self, latents: Tensor) -> Tensor:
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=latents.device).reshape(-1, 1, 1)
            for values in (self.config.mean, self.config.std)
        )
        return (latents.float() - mean) / std


class Encoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.dim * multiplier for multiplier in config.multipliers]
        widest, taps = widths[-1], config.temporal_taps
        self.conv1 = CausalConv(3, config.dim)
        self.downsamples = nn.ModuleList(_downsampling_stages(widths, config))
        self.middle = nn.ModuleList(
            [
                ResBlock(widest, widest, taps),
                FrameAttention(widest),
                ResBlock(widest, widest, taps),
            ]
        )
        head = block_conv(widest, 2 * config.channels, taps)
        self.head = nn.ModuleDict({"0": ChannelNorm(widest), "2": head})

    def stages(self) -> Iterator[nn.Module]:
        yield self.conv1
        yield from self.downsamples
        yield from self.middle
        yield self.head

    def forward(self, frames: Tensor, histories: Histories) -> Tensor:
        hidden = self.conv1(frames, histories)
        for stage in self.downsamples:
            hidden = stage(hidden, histories)
        before, attention, after = self.middle
        hidden = after(attention(before(hidden, histories)), histories)
        result: Tensor = self.head["2"](F.silu(self.head["0"](hidden)), histories)
        return result


def _downsampling_stages(widths: list[int], config: VaeConfig) -> Iterator[nn.Module]:
    channels, taps = config.dim, config.temporal_taps
    for level, width in enumerate(widths):
        for _ in range(config.res_blocks):
            yield ResBlock(channels, width, taps)
            channels = width
        if level < len(config.temporal_upsample):
            # Of the decoder's doublings, the last is undone first.
            temporal = config.temporal_upsample[-1 - level]
            yield Downsample(width, temporal=temporal, still=taps == 1)
