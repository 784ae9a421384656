"""How the last part of Wan's decoder is cut into tiles: exactly the pictures of whole frames.

A tile reads more than what it makes: on each side as many places as its convolutions reach. All
tiles are of one size: those at a border lie against it, where the whole frame has zeros beyond too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from longlive_trt.configs.schema import VaeConfig

CORE = 64
"""Places of the features on a side that a tile makes at most: 256 pixels where there are two
doublings after them. Smaller ones would do much twice, and save little beside the histories."""


@dataclass(frozen=True)
class Tile:
    """One tile along one axis, in places of the features that it reads."""

    start: int
    core_start: int
    core_end: int


@dataclass(frozen=True)
class Axis:
    length: int
    size: int
    """Of every tile."""
    tiles: tuple[Tile, ...]

    @classmethod
    def of(cls, length: int, halo: int, core: int = CORE) -> "Axis":
        # None is narrower than the halo: a tile reads its neighbors, and nobody beyond them.
        most = max(1, length // max(1, halo))
        even = ceil(length / min(ceil(length / core), most))
        size = min(length, even + 2 * halo)
        return cls(length, size, tuple(_tiles(length, even, size, halo)))


def _tiles(length: int, core: int, size: int, halo: int) -> Iterator[Tile]:
    for begin in range(0, length, core):
        start = min(max(begin - halo, 0), length - size)
        yield Tile(start, begin, min(begin + core, length))


@dataclass(frozen=True)
class TileGrid:
    rows: Axis
    columns: Axis
    scale: int
    """Pixels for each place of the features."""

    @classmethod
    def of(cls, vae: VaeConfig, latent_size: tuple[int, int], core: int = CORE) -> "TileGrid":
        """Of frames whose latents are so high and wide."""
        scale = 2**vae.tiled_doublings
        height, width = (side * (vae.spatial_factor // scale) for side in latent_size)
        halo = reaches(vae)[-1]
        return cls(Axis.of(height, halo, core), Axis.of(width, halo, core), scale)

    @property
    def share(self) -> float:
        """Of the frame, that a tile reads."""
        rows, columns = self.rows, self.columns
        return rows.size * columns.size / (rows.length * columns.length)

    @property
    def count(self) -> int:
        return len(self.rows.tiles) * len(self.columns.tiles)


def reaches(vae: VaeConfig) -> list[int]:
    """How far what becomes of a place reads around it: in places of pictures, of features of half
    their size, and so on to those that tiles read. A 3x3 convolution reads one place."""
    blocks = 2 * (vae.res_blocks + 1)
    # The last convolution, and the residual blocks of the last level.
    found = [1 + blocks]
    for level in range(vae.tiled_doublings):
        # The convolution after a doubling, the doubling, and the blocks before it; the first
        # doubling's blocks are not in tiles.
        own = blocks if level + 1 < vae.tiled_doublings else 0
        found.append(ceil((found[-1] + 1) / 2) + own)
    return found
