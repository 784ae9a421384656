"""How the 8-bit convolution shares its work out, and the layout in which it reads weights."""

from dataclasses import dataclass

import numpy as np

from longlive_trt.basics import Array

WIDTH_MULTIPLE = 96
"""Of channels, in and out."""
WIDEST_BLOCK = 192
"""Output channels that one thread block makes of a pixel."""
NORM_WIDTHS = (WIDTH_MULTIPLE, WIDEST_BLOCK, 2 * WIDEST_BLOCK)
"""Of outputs that a thread block, or two that talk, have all channels of: it takes their norm."""
TAPS = 3

_SLICE, _PIECE, _GROUP = 96, 16, 32
_SIDE, _PATCH_COLUMNS = 8, 2
_EDGES = 16
"""Which of four sides a pixel is at."""
OFFSET_ROWS = TAPS * _EDGES
_SHARED_BYTES = 227 * 1024
_BARRIERS_BYTES = 16
"""Of a stage: it is full, it is free."""
_TILES_BYTES = 112 * 1024
"""Of three tiles; of larger ones there are two."""
_LOW_TILES_COST = 1.08
"""What a pixel of a tile of half the height takes, in those of a whole one: 1.02 to 1.10."""


@dataclass(frozen=True)
class ConvTiles:
    """Tiles of so many rows of two patches, 8x8 pixels each, for one convolution.

    ``norm``: it is followed by the norm over its output's channels.
    """

    channels_in: int
    channels_out: int
    patch_rows: int = 2
    norm: bool = False

    @property
    def block(self) -> int:
        return _widest(self.channels_out)

    @property
    def blocks(self) -> int:
        return self.channels_out // self.block

    @property
    def chunk(self) -> int:
        """Input channels of a tile."""
        return _widest(self.channels_in)

    @property
    def box(self) -> tuple[int, ...]:
        """What the copy engine brings at once: 16 channels, columns, rows, pieces, frames."""
        rows, columns = _SIDE * self.patch_rows, _SIDE * _PATCH_COLUMNS
        return (_PIECE, columns + 2, rows + 2, self.chunk // _PIECE, 1)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        chunks, slices = self.channels_in // self.chunk, self.chunk // _SLICE
        taps = (TAPS, TAPS * TAPS)
        return (self.blocks, chunks, *taps, slices, _SLICE // _PIECE, self.block, _PIECE)

    def units(self, frames: int, height: int, width: int) -> int:
        high = -(-height // (_SIDE * self.patch_rows))
        wide = -(-width // (_SIDE * _PATCH_COLUMNS))
        return high * wide * frames * self.blocks

    @property
    def constants(self) -> dict[str, int]:
        return {
            "LL_BLOCK": self.block,
            "LL_CHUNK": self.chunk,
            "LL_CHUNKS": self.channels_in // self.chunk,
            "LL_PATCH_ROWS": self.patch_rows,
            "LL_TURNS": int(self._takes_turns),
            "LL_NORM": int(self.norm),
            "LL_PAIR": int(self._is_pair),
            "LL_TILE_STAGES": self._tile_stages,
            "LL_WEIGHT_STAGES": self._weight_stages,
            "LL_SHARED_BYTES": self.shared_bytes,
        }

    @property
    def shared_bytes(self) -> int:
        weights = self._weight_stages * (self._weight_bytes + _BARRIERS_BYTES)
        return self._fixed_bytes + weights

    @property
    def _takes_turns(self) -> bool:
        """The sums of a whole tile fit into one warpgroup."""
        return self.block == WIDTH_MULTIPLE

    @property
    def _is_pair(self) -> bool:
        """Two thread blocks have a pixel's channels, and the norm is over all of them."""
        return self.norm and self.blocks == 2

    @property
    def _tile_pitch(self) -> int:
        return -(-int(np.prod(self.box)) // 256) * 256

    @property
    def _tile_stages(self) -> int:
        return 3 if 3 * self._tile_pitch <= _TILES_BYTES else 2

    @property
    def _weight_bytes(self) -> int:
        return self.block * _SLICE

    @property
    def _fixed_bytes(self) -> int:
        vectors = 3 * self.block * 4
        tiles = self._tile_stages * (self._tile_pitch + _BARRIERS_BYTES)
        letters = 2 * (self.patch_rows * _PATCH_COLUMNS * _SIDE**2 * 4 + _BARRIERS_BYTES)
        return tiles + vectors + (letters if self._is_pair else 0)

    @property
    def _weight_stages(self) -> int:
        return (_SHARED_BYTES - self._fixed_bytes) // (self._weight_bytes + _BARRIERS_BYTES)


def tiles_for(
    channels: tuple[int, int],
    frames: int,
    size: tuple[int, int],
    multiprocessors: int,
    *,
    norm: bool = False,
) -> ConvTiles:
    """Low tiles where whole ones would leave multiprocessors idle in the last round."""
    whole, low = (ConvTiles(*channels, patch_rows, norm) for patch_rows in (2, 1))
    if whole.block < WIDEST_BLOCK:
        return whole

    def rounds(tiles: ConvTiles) -> int:
        return -(-tiles.units(frames, *size) // multiprocessors)

    return low if rounds(low) * _LOW_TILES_COST < 2 * rounds(whole) else whole


def packed_weight(weight: Array) -> Array:
    """[out, in, 3, 3, 3] in ``ConvTiles.weight_shape``."""
    channels_out, channels_in = weight.shape[:2]
    tiles = ConvTiles(channels_in, channels_out)
    blocks, chunks, times, places, slices, pieces, block, piece = tiles.weight_shape
    parts = weight.reshape(blocks, block, chunks, slices, pieces, piece, times, places)
    ordered = parts[:, _channel_order(block)]
    return np.ascontiguousarray(ordered.transpose(0, 2, 6, 7, 3, 4, 1, 5))


def unpacked_weight(packed: Array) -> Array:
    """The reverse."""
    blocks, chunks, times, _, slices, pieces, block, piece = packed.shape
    parts = packed.transpose(0, 6, 1, 4, 5, 7, 2, 3)
    in_order = parts[:, np.argsort(_channel_order(block))]
    return in_order.reshape(blocks * block, chunks * slices * pieces * piece, times, TAPS, TAPS)


def zero_offsets(weight: Array, zero: int) -> Array:
    """What makes sums right where ``zero`` stands for zero in the input, [48, out] in int32.

    The first row is added to all. The others, to be added too, are for pixels that miss neighbors,
    in place of which the sums have real zeros: 1 above, 2 below, 4 left, 8 right, and 16 for each
    frame before.
    """
    sums = -zero * weight.sum(axis=1, dtype=np.int64)
    offsets = np.empty((OFFSET_ROWS, weight.shape[0]), np.int32)
    for row in range(len(offsets)):
        frames, edges = divmod(row, _EDGES)
        there = sums[:, frames:, edges & 1 : TAPS - (edges >> 1 & 1)]
        there = there[..., edges >> 2 & 1 : TAPS - (edges >> 3 & 1)].sum(axis=(1, 2, 3))
        offsets[row] = there if row == 0 else there - sums.sum(axis=(1, 2, 3))
    return offsets


def _channel_order(block: int) -> Array:
    """The channel that each row of the product makes: a thread then has eight neighbors."""
    row = np.arange(block)
    eight, thread, parity = row // 8, row % 8 // 2, row % 2
    order: Array = _GROUP * (eight // 4) + 8 * thread + 2 * (eight % 4) + parity
    return order


def _widest(channels: int) -> int:
    return WIDEST_BLOCK if channels % WIDEST_BLOCK == 0 else WIDTH_MULTIPLE
