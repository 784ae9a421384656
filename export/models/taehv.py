"""TAEHV, the tiny decoder of Wan's latents: pictures in 2-D, each block with one past frame.

Activations are [batch * frames, channels, height, width], so that all frames of a layer run as one
batch. Time is met in two places: a memory block reads its own input of one frame before, and
``_Grow`` makes frames.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longlive_trt.configs import TaehvConfig
from longlive_trt.export.models.vae_layers import denormalized

Shape = tuple[int, int, int]
"""Channels, height and width of what a memory block remembers."""

_SQUASH = 3.0
_BLOCKS = 3
_FIRST = 1
"""The number of the first convolution in a checkpoint; an activation lies before it."""


class TaehvDecoder(nn.Module):
    """The state dict's keys are those of ``taew2_1`` without its encoder."""

    def __init__(self, config: TaehvConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = nn.ModuleDict(dict(_layers(config)))

    def forward(self, latents: Tensor) -> Tensor:
        return self.decode(latents)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, T, C, h, w] of a whole video into unclamped frames [B, n, 3, H, W]."""
        return self._run(latents, None)[0]

    def decode_first(self, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The first latent frame of a video into its first frame, and the stream's caches."""
        if latents.shape[1] != 1:
            raise ValueError(f"decode_first takes 1 latent frame, not {latents.shape[1]}")
        return self._run(latents, None)

    def decode_next(self, latents: Tensor, caches: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One or more further latent frames, and the caches for those after them."""
        expected = len(self.cache_shapes(1, 1))
        if len(caches) != expected:
            raise ValueError(f"decode_next takes {expected} caches, not {len(caches)}")
        return self._run(latents, caches)

    def cache_shapes(self, latent_height: int, latent_width: int) -> list[Shape]:
        """The shapes of the caches in their order, without the batch."""
        shapes, scale = [], 1
        for layer in self.decoder.values():
            if isinstance(layer, _MemoryBlock):
                shapes.append((layer.channels, latent_height * scale, latent_width * scale))
            scale *= 2 if isinstance(layer, _Grow) else 1
        return shapes

    def _run(self, latents: Tensor, caches: Sequence[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        batch, memory = latents.shape[0], _Memory(latents.shape[0], caches)
        # A video's first pictures are no whole number of latent frames: those before are dropped.
        surplus = 0 if caches is not None else self.config.temporal_factor - 1
        hidden = self._squashed(latents).flatten(0, 1)
        for number, layer in self.decoder.items():
            if isinstance(layer, _MemoryBlock):
                hidden = layer(hidden, memory)
            elif isinstance(layer, _Grow) and number == _LAST_GROWTH:
                hidden = _drop(hidden, batch, surplus // layer.frames)
                hidden = _drop(layer(hidden), batch, surplus % layer.frames)
            else:
                hidden = layer(hidden)
            if number in _ACTIVATED:
                hidden = F.relu(hidden)
        return hidden.unflatten(0, (batch, -1)), memory.renewed

    def _squashed(self, latents: Tensor) -> Tensor:
        wide = latents.float()
        if self.config.latents == "raw":
            wide = denormalized(wide, self.config.mean, self.config.std)
        return (_SQUASH * (wide / _SQUASH).tanh()).to(latents.dtype)


def _layers(config: TaehvConfig) -> Iterator[tuple[str, nn.Module]]:
    """By their numbers in a checkpoint, where activations and enlargements are layers too."""
    yield str(_FIRST), nn.Conv2d(config.channels, config.widths[0], 3, padding=1)
    number = _FIRST + 2
    stages = zip(pairwise(config.widths), config.temporal_upsample, strict=True)
    for (width, next_width), temporal in stages:
        for _ in range(_BLOCKS):
            yield str(number), _MemoryBlock(width)
            number += 1
        yield str(number + 1), _Grow(width, frames=2 if temporal else 1)
        yield str(number + 2), nn.Conv2d(width, next_width, 3, padding=1, bias=False)
        number += 3
    yield str(number + 1), nn.Conv2d(config.widths[-1], 3, 3, padding=1)


_ACTIVATED = (str(_FIRST), "20")
_LAST_GROWTH = "19"


class _Memory:
    """Every memory block's newest input frame, read and renewed in running order."""

    def __init__(self, batch: int, previous: Sequence[Tensor] | None) -> None:
        self._batch = batch
        self._previous = None if previous is None else iter(previous)
        self.renewed: list[Tensor] = []

    def before(self, pictures: Tensor) -> Tensor:
        """Of each picture, the one before it in its video; zeros before a video's first."""
        frames = pictures.unflatten(0, (self._batch, -1))
        past = torch.zeros_like(frames[:, 0]) if self._previous is None else next(self._previous)
        # A clone, because a view would keep the whole activation alive.
        self.renewed.append(frames[:, -1].clone())
        extended = torch.cat([past[:, None], frames], dim=1)
        return extended[:, :-1].flatten(0, 1)


class _MemoryBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = nn.ModuleDict(
            {
                "0": nn.Conv2d(2 * channels, channels, 3, padding=1),
                "2": nn.Conv2d(channels, channels, 3, padding=1),
                "4": nn.Conv2d(channels, channels, 3, padding=1),
            }
        )

    def forward(self, pictures: Tensor, memory: _Memory) -> Tensor:
        hidden = torch.cat([pictures, memory.before(pictures)], dim=1)
        hidden = F.relu(self.conv["0"](hidden))
        hidden = F.relu(self.conv["2"](hidden))
        result: Tensor = F.relu(self.conv["4"](hidden) + pictures)
        return result


class _Grow(nn.Module):
    """Doubles height and width, after each picture has become one or two.

    The pictures come first, where they are a quarter as large: repeating pixels changes nothing.
    """

    def __init__(self, channels: int, *, frames: int) -> None:
        super().__init__()
        self.channels, self.frames = channels, frames
        self.conv = nn.Conv2d(channels, frames * channels, 1, bias=False)

    def forward(self, pictures: Tensor) -> Tensor:
        # Two pictures' channels lie one behind the other, as two pictures do.
        grown: Tensor = self.conv(pictures)
        grown = grown.unflatten(1, (self.frames, self.channels)).flatten(0, 1)
        enlarged: Tensor = F.interpolate(grown, scale_factor=2.0, mode="nearest")
        return enlarged


def _drop(pictures: Tensor, batch: int, count: int) -> Tensor:
    """All but each video's first so many."""
    if not count:
        return pictures
    kept: Tensor = pictures.unflatten(0, (batch, -1))[:, count:].flatten(0, 1)
    return kept
