"""Wan's decoder in two parts: whole frames while they are small, then tiles of them, one by one.

The same pictures in less memory: activations are those of a tile, and there is one history of each
convolution, of whole frames. A tile reads a window of it and renews what is its own.
"""

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from longlive_trt.basics import Array
from longlive_trt.configs import VaeConfig
from longlive_trt.configs.tiles import CORE, Tile, TileGrid, reaches
from longlive_trt.contract import (
    BATCH,
    FEATURE_FRAMES,
    FEATURES,
    HISTORY,
    LATENT_FRAMES,
    LATENTS,
    PIXELS,
    latent_sizes,
    next_of,
    numbered,
    tile_sizes,
)
from longlive_trt.engines.base import Binding, Engine
from longlive_trt.runtime.decoding.host import RememberingDecoder, histories
from longlive_trt.runtime.memory.base import Buffer, HostMemory, Tensor, buffers, named


@dataclass(frozen=True)
class Part:
    first: Engine
    """Of a video's first latent frame."""
    following: Engine
    in_place: frozenset[str]
    """Histories that may be renewed where they lie."""

    @property
    def both(self) -> tuple[Engine, Engine]:
        return self.first, self.following


class TiledStream(RememberingDecoder):
    """Decodes one latent frame at a time, on a CPU. Its memory is that of the whole decoder."""

    def __init__(
        self,
        base: Part,
        tile: Part,
        vae: VaeConfig,
        batch: int,
        output: str = PIXELS,
        *,
        latents: tuple[int, int],
        core: int = CORE,
    ) -> None:
        """``core``: places of the features, on a side, that a tile makes at most."""
        self._grid, self._output = TileGrid.of(vae, latents, core), output
        self._memory = HostMemory()
        self._sizes = {
            BATCH: batch,
            LATENT_FRAMES: 1,
            FEATURE_FRAMES: vae.feature_frames,
            **latent_sizes(*latents),
        }
        self._of_tile = tile_sizes(self._grid.rows.size, self._grid.columns.size)
        self._of_frame = tile_sizes(self._grid.rows.length, self._grid.columns.length)
        self._bind_base(base)
        self._bind_tile(tile, vae)
        self.latent_frames = 0

    def decode(self, latents: Array) -> Array:
        """Latents [B, n, C, h, w] that follow the ones before; frames [B, m, ...] of your own."""
        pieces = []
        for index in range(latents.shape[1]):
            self._latents[...] = latents[:, index : index + 1]
            pieces.append(self._decode_frame())
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)

    @property
    def caches(self) -> Mapping[str, Tensor]:
        """What the next latent frame reads."""
        return ChainMap(self._sets[(self.latent_frames - 1) % 2], self._whole)  # type: ignore[arg-type]

    def close(self) -> None:
        self._memory.close()

    def _bind_base(self, base: Part) -> None:
        specs = named(base.following.inputs, HISTORY)
        self._sets = histories(self._memory, specs, base.in_place, self._sizes)
        self._latents = self._reserved(base.following, LATENTS)
        self._features = [self._reserved(engine, FEATURES) for engine in base.both]
        first, following = self._features
        given = {LATENTS: self._latents}
        self._base_first = base.first.bind(given, {FEATURES: first, **_renewed(self._sets[0])})
        self._base_following = [
            base.following.bind(
                {**given, **self._sets[i]}, {FEATURES: following, **_renewed(self._sets[1 - i])}
            )
            for i in range(2)
        ]

    def _bind_tile(self, tile: Part, vae: VaeConfig) -> None:
        specs = named(tile.following.inputs, HISTORY)
        sizes, count = {**self._sizes, **self._of_tile}, len(self._sets[0])
        read, renewed = histories(self._memory, specs, tile.in_place, sizes)
        whole = buffers(specs, **{**self._sizes, **self._of_frame})
        # As the whole decoder counts them.
        names = {spec.name: numbered(HISTORY, count + i) for i, spec in enumerate(specs)}
        reserved = {names[name]: buffer for name, buffer in whole.items()}
        self._whole = self._memory.reserve(reserved, "the decoder's memory of past frames")
        reach = {2**level: places for level, places in enumerate(reversed(reaches(vae)))}
        self._swept = [
            SweptHistory(self._whole[names[name]], read[name], renewed[name], scale, reach[scale])
            for name in whole
            for scale in [read[name].shape[-2] // self._grid.rows.size]
        ]
        self._seen = [self._reserved(engine, FEATURES) for engine in tile.both]
        self._made = [self._reserved(engine, self._output) for engine in tile.both]
        self._tile: list[Binding] = [
            engine.bind({FEATURES: seen, **past}, {self._output: made, **_renewed(renewed)})
            for engine, seen, made, past in zip(
                tile.both, self._seen, self._made, ({}, read), strict=True
            )
        ]

    def _decode_frame(self) -> Array:
        which = 1 if self.latent_frames else 0
        base = self._base_following[(self.latent_frames - 1) % 2] if which else self._base_first
        base.run()
        self.latent_frames += 1
        pictures = np.empty(self._picture_shape(which), self._made[which].dtype)
        for row in self._grid.rows.tiles:
            for history in self._swept:
                history.begin(row)
            for column in self._grid.columns.tiles:
                self._run_tile(which, row, column, pictures)
        return pictures

    def _run_tile(self, which: int, row: Tile, column: Tile, pictures: Array) -> None:
        rows, columns, scale = self._grid.rows, self._grid.columns, self._grid.scale
        self._seen[which][...] = self._features[which][
            ..., row.start : row.start + rows.size, column.start : column.start + columns.size
        ]
        if which:
            for history in self._swept:
                history.load(row, column)
        self._tile[which].run()
        for history in self._swept:
            history.store(row, column)
        target = (..., _whole(row, scale), _whole(column, scale))
        source = (..., _within(row, scale), _within(column, scale))
        self._placed(pictures)[target] = self._placed(self._made[which])[source]

    def _picture_shape(self, which: int) -> tuple[int, ...]:
        """Of whole frames, in the place of what one tile makes."""
        shape = list(self._made[which].shape)
        height = 2 if self._output == PIXELS else 3
        shape[height] = self._grid.rows.length * self._grid.scale
        shape[height + 1] = self._grid.columns.length * self._grid.scale
        return tuple(shape)

    def _placed(self, pictures: Array) -> Array:
        """Height and width last."""
        return np.moveaxis(pictures, -1, 2) if self._output == PIXELS else pictures

    def _reserved(self, engine: Engine, name: str) -> Array:
        sizes = {**self._sizes, **self._of_tile}
        spec = engine.inputs.get(name) or engine.outputs[name]
        reserved = self._memory.reserve({name: Buffer.of(spec, **sizes)}, "decoding in tiles")
        array: Array = reserved[name]
        return array


class SweptHistory:
    """One convolution's history of whole frames, renewed tile by tile in the order of reading.

    What was renewed and a later tile still reads as it was is kept in two strips: above a row of
    tiles, and left of a tile. Places beyond ``reach`` do not matter for what a tile makes.
    """

    def __init__(self, whole: Array, read: Array, renewed: Array, scale: int, reach: int) -> None:
        """``read``, ``renewed``: of one tile. ``scale``: places for each place of the features."""
        self._whole, self._read, self._renewed = whole, read, renewed
        self._scale, self._reach = scale, reach
        self._above = self._below = self._left = whole[..., :0, :0]

    def begin(self, row: Tile) -> None:
        """Before the first tile of a row."""
        end = row.core_end * self._scale
        self._above = self._below
        self._below = self._whole[..., max(0, end - self._reach) : end, :].copy()

    def load(self, row: Tile, column: Tile) -> None:
        height, width = self._read.shape[-2:]
        top, left = row.start * self._scale, column.start * self._scale
        self._read[...] = self._whole[..., top : top + height, left : left + width]
        rows, columns = _within(row, self._scale), _within(column, self._scale)
        above, before = min(rows.start, self._reach), min(columns.start, self._reach)
        if above:
            kept = self._above[..., self._reach - above :, left : left + width]
            self._read[..., rows.start - above : rows.start, :] = kept
        if before:
            kept = self._left[..., self._reach - before :]
            self._read[..., rows, columns.start - before : columns.start] = kept

    def store(self, row: Tile, column: Tile) -> None:
        rows, columns = _whole(row, self._scale), _whole(column, self._scale)
        edge = slice(max(0, columns.stop - self._reach), columns.stop)
        self._left = self._whole[..., rows, edge].copy()
        inner = self._renewed[..., _within(row, self._scale), _within(column, self._scale)]
        self._whole[..., rows, columns] = inner


def _whole(tile: Tile, scale: int) -> slice:
    """What it makes, in the whole."""
    return slice(tile.core_start * scale, tile.core_end * scale)


def _within(tile: Tile, scale: int) -> slice:
    """The same in the tile."""
    return slice((tile.core_start - tile.start) * scale, (tile.core_end - tile.start) * scale)


def _renewed(caches: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {next_of(name): tensor for name, tensor in caches.items()}
