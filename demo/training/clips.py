"""Clips to train on, as pictures and as latents."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from longlive_trt.configs import ModelConfig, VaeConfig
from longlive_trt.demo.autoencoder import AutoEncoder
from longlive_trt.demo.captions import caption, caption_pair
from longlive_trt.demo.geometry import raw, video_frames
from longlive_trt.demo.scenes import SceneSource
from longlive_trt.demo.words import encode
from longlive_trt.demo.world.clips import NEVER, render_clips

_FAMILIES = 60
_UNCHANGED = 0.35
_AFTER = 0.75
_LOST_WORDS = 0.03
_RENDERED, _ENCODED = 1024, 16
"""Clips at once."""


def random_clips(
    count: int, frames: int, seed: int, device: torch.device, size: tuple[int, int]
) -> Tensor:
    """Half of the clips turn into another scene somewhere."""
    source = SceneSource(seed, device)
    first, second = source.journeys(count, _FAMILIES)
    change_at = source.integers(count, -10, 2 * frames)
    return render_clips(first, second, change_at, frames, size)


def to_unit(clips: Tensor) -> Tensor:
    """uint8 [B, T, H, W, 3] -> [B, T, 3, H, W] in [-1, 1]."""
    return clips.permute(0, 1, 4, 2, 3).float() / 127.5 - 1


def to_bytes(frames: Tensor) -> Tensor:
    unit = frames.float().clamp(-1, 1) * 127.5 + 128
    return unit.clamp(0, 255).to(torch.uint8).permute(0, 1, 3, 4, 2)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Of each clip; uint8 in."""
    error = (a.float() - b.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(255.0**2 / error.clamp_min(1e-3))


def load_autoencoder(weights: Path, device: torch.device, config: ModelConfig) -> AutoEncoder:
    assert isinstance(config.vae, VaeConfig)
    model = AutoEncoder(raw(config.vae))
    model.load_state_dict(load_file(weights))
    return model.float().to(device).eval().requires_grad_(False)


@dataclass(frozen=True)
class Batch:
    latents: Tensor
    """Normalized, [blocks, B, frames, C, h, w]."""
    ids: Tensor
    silent_ids: Tensor
    """The caption without what it says of ``captions.STEERING``."""
    counts: Tensor
    """Which blocks the caption is about, [blocks, B]."""
    earlier_ids: Tensor
    """The caption of what was there before a change; of other clips the same again."""
    changes: Tensor
    """Whether the caption is about what a change leads to, [B]."""


class LatentPool:
    """Encoded clips with what they show before and after their change."""

    def __init__(
        self, config: ModelConfig, blocks: int, codec: AutoEncoder, ids: dict[str, int], seed: int
    ) -> None:
        assert config.vae is not None
        self.config, self.blocks, self.codec, self.ids = config, blocks, codec, ids
        self.vae, factor = config.vae, config.vae.spatial_factor
        self.size = (factor * config.latent.height, factor * config.latent.width)
        self.device = codec.conv1.weight.device
        self.source = SceneSource(seed, self.device)
        self.rng = random.Random(seed)  # noqa: S311
        self.latents: list[Tensor] = []
        self.scenes: list[tuple[dict[str, int], dict[str, int], int]] = []

    def __len__(self) -> int:
        return len(self.scenes)

    @torch.no_grad()
    def add(self, count: int) -> None:
        for at in range(0, count, _RENDERED):
            self._add(min(_RENDERED, count - at))

    def _add(self, count: int) -> None:
        per_block = self.config.rollout.frames_per_block
        first, second = self.source.journeys(count, _FAMILIES)
        change = self.source.integers(count, 1, self.blocks)
        change[self.source.uniform(count) < _UNCHANGED] = NEVER
        # The first video frame of a block: all latents but the first are worth four frames.
        at = torch.where(change == NEVER, NEVER, video_frames(1) + 4 * (per_block * change - 1))
        frames = video_frames(per_block * self.blocks)
        clips = render_clips(first, second, at, frames, self.size)
        mean, std = (
            torch.tensor(v, device=self.device).reshape(-1, 1, 1)
            for v in (self.vae.mean, self.vae.std)
        )
        for part in clips.split(_ENCODED):
            latents = (self.codec.encode(to_unit(part))[0] - mean) / std
            kept = latents.half() if self.device.type == "cuda" else latents
            self.latents.append(kept.unflatten(1, (self.blocks, per_block)))
        self.latents = [torch.cat(self.latents)]
        self.scenes += list(zip(first.rows(), second.rows(), change.tolist(), strict=True))

    def batch(self, count: int) -> Batch:
        """Random clips, each under one caption.

        A clip that changes is shown up to its change under its first caption, or as after a
        re-cache: all of its history under the second caption, and only what follows counts.
        """
        index = [self.rng.randrange(len(self)) for _ in range(count)]
        ids, silent_ids, earlier_ids, counts, changes = [], [], [], [], []
        for i in index:
            first, second, change = self.scenes[i]
            after = change < self.blocks and self.rng.random() < _AFTER
            text, silent, _ = caption_pair(second if after else first, self.rng)
            ids.append(self._encoded(text))
            silent_ids.append(self._encoded(silent))
            earlier_ids.append(self._encoded(caption(first, self.rng)) if after else ids[-1])
            counts.append([(block >= change) == after for block in range(self.blocks)])
            changes.append(after)
        picked = self.latents[0][torch.tensor(index, device=self.device)]
        return Batch(
            latents=picked.transpose(0, 1),
            ids=torch.tensor(ids),
            silent_ids=torch.tensor(silent_ids),
            counts=torch.tensor(counts).T.float(),
            earlier_ids=torch.tensor(earlier_ids),
            changes=torch.tensor(changes),
        )

    def _encoded(self, text: str) -> list[int]:
        """Some words are lost, so that unknown ones do no harm."""
        kept = [w for w in text.split() if self.rng.random() >= _LOST_WORDS * 0.5]
        heard = ["hm" if self.rng.random() < _LOST_WORDS * 0.5 else w for w in kept]
        return encode(" ".join(heard), self.ids, self.config.transformer.text_len)
