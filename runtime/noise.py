"""Noise by number: (seed, block, pass) gives the same values on every engine and in any order."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from longlive_trt.configs.replay import Replay
from longlive_trt.plugins.cuda.marks import mark
from longlive_trt.runtime.memory.base import Inlet

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class BlockNoise:
    initial: FloatArray
    renoise: Sequence[FloatArray]
    """One for every pass but the last."""

    @property
    def draws(self) -> list[FloatArray]:
        return [self.initial, *self.renoise]


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


class NoiseFeed:
    """Draws noise, and brings it to its place, on a thread of its own: ahead of what reads it."""

    def __init__(
        self, source: NoiseSource, places: Sequence[Inlet], *, end: int | None = None
    ) -> None:
        """``end``: the block after the last one."""
        self._source, self._places, self._end = source, places, end
        self._thread = ThreadPoolExecutor(1, "noise")
        self._coming: dict[int, tuple[int, Future[None]]] = {}

    def prepare(self, block: int, place: int) -> None:
        """Begin to draw, unless that was begun, or there is no such block."""
        if self._end is None or block < self._end:
            self._begin(block, place)

    def require(self, block: int, place: int) -> None:
        """The noise is there, or on its way, for whatever reads the place from now on."""
        self._begin(block, place)
        # Whatever becomes of it: the next time, it is brought anew.
        _, coming = self._coming.pop(place)
        coming.result()

    def _begin(self, block: int, place: int) -> None:
        if place not in self._coming or self._coming[place][0] != block:
            self._coming[place] = block, self._thread.submit(self._bring, block, place)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _bring(self, block: int, place: int) -> None:
        with mark(f"noise of block {block}"):
            self._places[place].fill(self._source.block(block).draws)
