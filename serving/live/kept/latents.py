"""The latents of what was shown, on disk: another decoder may make its pictures later."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from longlive_trt.basics import Array
from longlive_trt.serving.live.kept.segments import Places, Segments


@dataclass(frozen=True)
class KeptBlocks:
    """Blocks that follow each other; they can be read whatever becomes of the session."""

    begin: int
    end: int
    """The block after the last."""
    _shape: tuple[int, ...]
    _places: tuple[Places, ...] = field(repr=False)

    def read(self) -> Iterator[Array]:
        """Each block's latents, in order."""
        for one in self._places:
            for number in range(len(one.sizes)):
                yield np.frombuffer(one.read(number), np.float32).reshape(self._shape)


class KeptLatents:
    """By block, in float32; of a long video the newest stay."""

    def __init__(self, path: Path, begin: int, most_bytes: int) -> None:
        """``begin`` is the first block."""
        self._kept = Segments(path, begin, most_bytes)
        self._shape: tuple[int, ...] = ()

    @property
    def failure(self) -> str | None:
        return self._kept.failure

    def add(self, block: int, latents: Array) -> None:
        """Of the block that follows; one that does not is left out."""
        with self._kept.lock:
            self._shape = latents.shape
            self._kept.add(block, latents.astype(np.float32).tobytes(), is_key=True)

    def cut(self, block: int) -> None:
        """Blocks from here on were taken back."""
        with self._kept.lock:
            self._kept.cut(block)

    def restart(self) -> None:
        with self._kept.lock:
            self._kept.restart()

    def blocks(self, first: int, end: int) -> KeptBlocks:
        """Those of them that are there."""
        with self._kept.lock:
            first, end = max(first, self._kept.begin), min(end, self._kept.end)
            places = tuple(self._kept.places(first, end)) if first < end else ()
            return KeptBlocks(first, max(first, end), self._shape, places)

    def close(self) -> None:
        """What is being read already stays readable; the files are gone."""
        with self._kept.lock:
            self._kept.close()
