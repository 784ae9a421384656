"""What decoding in tiles keeps and copies, wherever its memory is: sizes and places, no values."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from longlive_trt.configs import VaeConfig
from longlive_trt.configs.tiles import CORE, Tile, TileGrid, reaches
from longlive_trt.contract import (
    BATCH,
    FEATURE_FRAMES,
    FEATURES,
    HISTORY,
    LATENT_FRAMES,
    LATENTS,
    TILE_HEIGHT,
    latent_sizes,
    tile_sizes,
)
from longlive_trt.engines.base import TensorSpec
from longlive_trt.runtime.memory.base import Buffer, Patch, Tensor, named, size_bytes

Specs = Mapping[str, TensorSpec]
Places = dict[str, Buffer]


@dataclass(frozen=True)
class PartSpecs:
    """All tensors of both graphs of a part: of a video's first latent frame, and of others."""

    first: Specs
    following: Specs
    in_place: Collection[str]
    """Histories that may be renewed where they lie."""

    @property
    def histories(self) -> list[TensorSpec]:
        return named(self.following, HISTORY)

    @property
    def both(self) -> tuple[Specs, Specs]:
        return self.first, self.following


@dataclass(frozen=True)
class TilePlan:
    vae: VaeConfig
    batch: int
    latents: tuple[int, int]
    core: int = CORE
    """Places of the features, on a side, that a tile makes at most."""

    @cached_property
    def grid(self) -> TileGrid:
        return TileGrid.of(self.vae, self.latents, self.core)

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {
            BATCH: self.batch,
            LATENT_FRAMES: 1,
            FEATURE_FRAMES: self.vae.feature_frames,
            **latent_sizes(*self.latents),
        }

    @cached_property
    def tile_sizes(self) -> dict[str, int]:
        rows, columns = self.grid.rows, self.grid.columns
        return {**self.sizes, **tile_sizes(rows.size, columns.size)}

    @cached_property
    def frame_sizes(self) -> dict[str, int]:
        """Of a tile that is the whole frame."""
        rows, columns = self.grid.rows, self.grid.columns
        return {**self.sizes, **tile_sizes(rows.length, columns.length)}

    def of_tile(self, spec: TensorSpec) -> Buffer:
        return Buffer.of(spec, **self.tile_sizes)

    def of_frame(self, spec: TensorSpec) -> Buffer:
        return Buffer.of(spec, **self.frame_sizes)

    def scale(self, history: TensorSpec) -> int:
        """Places on a side for each place of the features."""
        return self.of_tile(history).shape[rows_axis(history)] // self.grid.rows.size

    def reach(self, history: TensorSpec) -> int:
        """Places beyond it do not matter for what a tile makes."""
        level = self.scale(history).bit_length()
        return reaches(self.vae)[-level]

    def strips(self, history: TensorSpec) -> dict[str, Buffer]:
        """What was renewed, and a later tile still reads as it was: two rows of tiles take turns
        with what lies above the next, and there is one strip left of a tile."""
        axis, reach = rows_axis(history), self.reach(history)
        rows, columns = self.grid.rows, self.grid.columns
        shape, dtype = list(self.of_frame(history).shape), history.dtype
        above, left = [*shape], [*shape]
        above[axis] = reach if len(rows.tiles) > 1 else 0
        highest = max(tile.core_end - tile.core_start for tile in rows.tiles)
        left[axis] = highest * self.scale(history)
        left[axis + 1] = reach if len(columns.tiles) > 1 else 0
        return {
            **{f"above.{turn}": Buffer(tuple(above), dtype) for turn in range(2)},
            "left": Buffer(tuple(left), dtype),
        }

    def places(self, base: PartSpecs, tile: PartSpecs, output: str) -> Places:
        """All but histories."""
        return {
            LATENTS: self.of_frame(base.following[LATENTS]),
            **{f"{FEATURES}.{i}": self.of_frame(s[FEATURES]) for i, s in enumerate(base.both)},
            **{f"seen.{i}": self.of_tile(specs[FEATURES]) for i, specs in enumerate(tile.both)},
            **{f"made.{i}": self.of_tile(specs[output]) for i, specs in enumerate(tile.both)},
            **{f"pictures.{i}": self.of_frame(specs[output]) for i, specs in enumerate(tile.both)},
            **{
                f"{spec.name}.{name}": buffer
                for spec in tile.histories
                for name, buffer in self.strips(spec).items()
            },
        }

    def size_bytes(self, base: PartSpecs, tile: PartSpecs, output: str) -> int:
        """Of all that is reserved; activations are the engines' own."""
        once = [self.of_frame(spec) for spec in (*base.histories, *tile.histories)]
        windows = [self.of_tile(spec) for spec in tile.histories]
        turns = [self.of_frame(s) for s in base.histories if s.name not in base.in_place]
        turns += [self.of_tile(s) for s in tile.histories if s.name not in tile.in_place]
        places = self.places(base, tile, output).values()
        return size_bytes([*once, *windows, *turns, *places])


def rows_axis(spec: TensorSpec) -> int:
    """Of a tensor of a tile; its columns come next. Channels are before or behind them."""
    return next(axis for axis, size in enumerate(spec.shape) if TILE_HEIGHT in str(size))


def within(tile: Tile, scale: int) -> tuple[int, int]:
    """Where what it makes begins in the tile, and how much that is."""
    return (tile.core_start - tile.start) * scale, (tile.core_end - tile.core_start) * scale


@dataclass(frozen=True, eq=False)
class SweptHistory:
    """One convolution's history of whole frames, renewed tile by tile in the order of reading."""

    whole: Tensor
    read: Tensor
    """Of one tile, as the next is."""
    renewed: Tensor
    above: tuple[Tensor, Tensor]
    left: Tensor
    axis: int
    scale: int
    reach: int

    def begin(self, row: Tile, turn: int) -> Iterator[Patch]:
        """Before the first tile of a row: what the next one is to read as it was."""
        end = row.core_end * self.scale
        kept = min(end, self.above[turn].shape[self.axis])
        if kept:
            width = self.whole.shape[self.axis + 1]
            target = (self.above[turn].shape[self.axis] - kept, 0)
            yield self._patch(self.above[turn], self.whole, target, (end - kept, 0), (kept, width))

    def load(self, row: Tile, column: Tile, turn: int) -> Iterator[Patch]:
        """A tile's window, as it was before any tile of this frame."""
        height, width = self.read.shape[self.axis : self.axis + 2]
        top, left = row.start * self.scale, column.start * self.scale
        yield self._patch(self.read, self.whole, (0, 0), (top, left), (height, width))
        (first_row, rows), (first_column, _) = within(row, self.scale), within(column, self.scale)
        above, before = min(first_row, self.reach), min(first_column, self.reach)
        if above:
            source = (self.reach - above, left)
            target = (first_row - above, 0)
            yield self._patch(self.read, self.above[1 - turn], target, source, (above, width))
        if before:
            target, source = (first_row, first_column - before), (0, self.reach - before)
            yield self._patch(self.read, self.left, target, source, (rows, before))

    def store(self, row: Tile, column: Tile) -> Iterator[Patch]:
        """What a tile has renewed; what its neighbor reads as it was is kept before."""
        (first_row, rows), (first_column, columns) = (within(t, self.scale) for t in (row, column))
        top, left = row.core_start * self.scale, column.core_start * self.scale
        kept = min(left + columns, self.left.shape[self.axis + 1])
        if kept:
            target, source = (0, self.reach - kept), (top, left + columns - kept)
            yield self._patch(self.left, self.whole, target, source, (rows, kept))
        source, size = (first_row, first_column), (rows, columns)
        yield self._patch(self.whole, self.renewed, (top, left), source, size)

    def _patch(
        self,
        target: Tensor,
        source: Tensor,
        target_start: tuple[int, int],
        source_start: tuple[int, int],
        size: tuple[int, int],
    ) -> Patch:
        return Patch(target, source, self.axis, target_start, source_start, size)
