"""The VAE's decoder: latents into video frames, in one go or as a stream."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longlive_trt.configs import VaeConfig
from longlive_trt.export.models.vae_layers import (
    HISTORY_FRAMES,
    CausalConv,
    ChannelNorm,
    FrameAttention,
    Histories,
    KeepsHistory,
    ResBlock,
    Upsample,
    block_conv,
    denormalized,
)

CacheShape = tuple[int, int, int, int]
"""Channels, frames, height and width of one convolution's history."""


class VaeDecoder(nn.Module):
    """The state dict's keys are those of ``Wan2.1_VAE.pth`` without its encoder."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.conv2 = nn.Conv3d(config.channels, config.channels, 1)
        self.decoder = _Decoder(config)

    def forward(self, latents: Tensor) -> Tensor:
        return self.decode(latents)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, T, C, h, w] of a whole video into unclamped frames [B, n, 3, H, W]."""
        frames, _ = self._run(latents, Histories(None))
        return frames

    def decode_first(self, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The first latent frame of a video into its first frame, and the stream's caches."""
        if latents.shape[1] != 1:
            raise ValueError(f"decode_first takes 1 latent frame, not {latents.shape[1]}")
        return self._run(latents, Histories(None))

    def decode_next(self, latents: Tensor, caches: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One or more further latent frames, and the caches for those after them."""
        expected = len(self.cache_shapes(1, 1))
        if len(caches) != expected:
            raise ValueError(f"decode_next takes {expected} caches, not {len(caches)}")
        return self._run(latents, Histories(caches))

    def cache_shapes(self, latent_height: int, latent_width: int) -> list[CacheShape]:
        """The shapes of the caches in their order, without the batch."""
        shapes, scale = [], 1
        for stage in self.decoder.stages():
            height, width = latent_height * scale, latent_width * scale
            shapes += [
                (layer.in_channels, HISTORY_FRAMES, height, width)
                for layer in stage.modules()
                if isinstance(layer, KeepsHistory)
            ]
            scale *= 2 if isinstance(stage, Upsample) else 1
        return shapes

    def base(self, latents: Tensor, caches: Sequence[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """The part that sees whole frames: latents into features [B, C, n, h, w]."""
        histories = Histories(caches)
        return self.decoder.base(self._entered(latents), histories), histories.renewed

    def rest(
        self, features: Tensor, caches: Sequence[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The part that tiles may do one by one: features into unclamped frames."""
        histories = Histories(caches)
        return self.decoder.rest(features, histories).transpose(1, 2), histories.renewed

    @property
    def feature_channels(self) -> int:
        """Of what the second part reads."""
        doubling = self.decoder.upsamples[self.decoder.cut]
        assert isinstance(doubling, Upsample)
        return doubling.channels

    def base_caches(self) -> int:
        """How many of the caches, the first ones, belong to the part that sees whole frames."""
        stages = [*self.decoder.stages()][: -len(self.decoder.upsamples) - 1 + self.decoder.cut]
        layers = (layer for stage in stages for layer in stage.modules())
        return sum(isinstance(layer, KeepsHistory) for layer in layers)

    def _run(self, latents: Tensor, histories: Histories) -> tuple[Tensor, list[Tensor]]:
        frames = self.decoder(self._entered(latents), histories)
        return frames.transpose(1, 2), histories.renewed

    def _entered(self, latents: Tensor) -> Tensor:
        hidden: Tensor = self.conv2(self._denormalize(latents).transpose(1, 2))
        return hidden

    def _denormalize(self, latents: Tensor) -> Tensor:
        return denormalized(latents, self.config.mean, self.config.std).to(latents.dtype)


class _Decoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.dim * multiplier for multiplier in reversed(config.multipliers)]
        widest, taps = widths[0], config.temporal_taps
        self.conv1 = CausalConv(config.channels, widest)
        self.middle = nn.ModuleList(
            [
                ResBlock(widest, widest, taps),
                FrameAttention(widest),
                ResBlock(widest, widest, taps),
            ]
        )
        self.upsamples = nn.ModuleList(_upsampling_stages(widths, config))
        # The first doubling of the part that may be done in tiles.
        self.cut = config.whole_stages
        self.head = nn.ModuleDict(
            {"0": ChannelNorm(widths[-1]), "2": block_conv(widths[-1], 3, taps)}
        )

    def stages(self) -> Iterator[nn.Module]:
        yield self.conv1
        yield from self.middle
        yield from self.upsamples
        yield self.head

    def forward(self, hidden: Tensor, histories: Histories) -> Tensor:
        return self.rest(self.base(hidden, histories), histories)

    def base(self, hidden: Tensor, histories: Histories) -> Tensor:
        before, attention, after = self.middle
        hidden = before(self.conv1(hidden, histories), histories)
        hidden = after(attention(hidden), histories)
        for stage in list(self.upsamples)[: self.cut]:
            hidden = stage(hidden, histories)
        return hidden

    def rest(self, hidden: Tensor, histories: Histories) -> Tensor:
        for stage in list(self.upsamples)[self.cut :]:
            hidden = stage(hidden, histories)
        result: Tensor = self.head["2"](F.silu(self.head["0"](hidden)), histories)
        return result


def _upsampling_stages(widths: list[int], config: VaeConfig) -> Iterator[nn.Module]:
    channels = widths[0]
    taps = config.temporal_taps
    for level, width in enumerate(widths):
        for _ in range(config.res_blocks + 1):
            yield ResBlock(channels, width, taps)
            channels = width
        if level < len(config.temporal_upsample):
            temporal = config.temporal_upsample[level]
            yield Upsample(width, temporal=temporal, still=taps == 1)
            channels = width // 2


def to_pixels(frames: Tensor) -> Tensor:
    """Raw frames [B, n, 3, H, W] as 8-bit pictures [B, n, H, W, 3]."""
    return in_eight_bits(frames.float().clamp(-1, 1) / 2 + 0.5)


def in_eight_bits(unit: Tensor) -> Tensor:
    """Frames from 0 to 1 as pictures."""
    return (unit * 255).to(torch.uint8).permute(0, 1, 3, 4, 2)
