"""Blocks, pictures and seconds of one video. Pure arithmetic."""

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class VideoClock:
    fps: Fraction
    block_latents: int
    temporal_factor: int

    def first_frame(self, block: int) -> int:
        """The number of a block's first picture: a video's first latent gives one, others more."""
        latents = block * self.block_latents
        return 0 if latents == 0 else 1 + self.temporal_factor * (latents - 1)

    def frames_of(self, block: int) -> int:
        return self.first_frame(block + 1) - self.first_frame(block)

    def block_of(self, frame: int) -> int:
        latent = 0 if frame <= 0 else 1 + (frame - 1) // self.temporal_factor
        return latent // self.block_latents

    def block_from(self, frame: int) -> int:
        """The first block that begins at a picture or after it."""
        block = self.block_of(frame)
        return block if self.first_frame(block) == frame else block + 1

    def latent_frame(self, block: int) -> int:
        return block * self.block_latents

    @property
    def block_s(self) -> float:
        """How long a block is on screen."""
        return float(self.block_latents * self.temporal_factor / self.fps)

    def seconds(self, frame: int) -> float:
        return float(frame / self.fps)

    def pts_us(self, frame: int) -> int:
        return round(frame * 1_000_000 / self.fps)
