"""Noise by number: (seed, block, pass) gives the same values on every engine and in any order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..configs.replay import Replay

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class BlockNoise:
    initial: FloatArray
    renoise: Sequence[FloatArray]
    """One for every pass but the last."""


class NoiseSource(Protocol):
    def block(self, index: int) -> BlockNoise: ...


@dataclass(frozen=True)
class SeededNoise:
    """Philox bits turned into normal numbers by Box and Muller's transform.

    The bits of a counter are fixed by the algorithm, unlike numpy's own normal numbers, which
    may change with its version.
    """

    seed: int
    shape: tuple[int, ...]
    """[B, frames_per_block, C, H, W]"""
    passes: int

    def block(self, index: int) -> BlockNoise:
        draws = [self._normal(index, number) for number in range(self.passes)]
        return BlockNoise(draws[0], draws[1:])

    def _normal(self, block: int, number: int) -> FloatArray:
        size = int(np.prod(self.shape))
        pairs = (size + 1) // 2
        bits = np.random.Philox(key=self.seed, counter=[0, 0, number, block])
        raw = bits.random_raw(2 * pairs) >> np.uint64(11)
        uniform = (raw.astype(np.float64) + 0.5) * 2.0**-53
        radius = np.sqrt(-2 * np.log(uniform[:pairs]))
        angle = 2 * np.pi * uniform[pairs:]
        normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        return normal[:size].astype(np.float32).reshape(self.shape)


@dataclass(frozen=True)
class ReplayNoise:
    replay: Replay
    block_frames: int

    def block(self, index: int) -> BlockNoise:
        start = index * self.block_frames
        initial = self.replay.noise[:, start : start + self.block_frames]
        return BlockNoise(initial, list(self.replay.renoise[index]))
