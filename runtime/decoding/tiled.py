"""Wan's decoder in two parts: whole frames while they are small, then tiles of them, one by one.

The same pictures in less memory: activations are those of a tile, and there is one history of each
convolution, of whole frames. A tile reads a window of it and renews what is its own.
"""

from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from longlive_trt.basics import Array
from longlive_trt.configs import VaeConfig
from longlive_trt.configs.tiles import CORE, Tile
from longlive_trt.contract import FEATURES, HISTORY, LATENTS, PIXELS, next_of, numbered
from longlive_trt.engines.base import Binding, Engine
from longlive_trt.runtime.decoding.host import RememberingDecoder, histories
from longlive_trt.runtime.decoding.tiling import (
    PartSpecs,
    SweptHistory,
    TilePlan,
    rows_axis,
    within,
)
from longlive_trt.runtime.memory.base import Bound, HostMemory, Memory, Patch, Tensor, named


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

    @property
    def specs(self) -> PartSpecs:
        first, following = ({**engine.inputs, **engine.outputs} for engine in self.both)
        return PartSpecs(first, following, self.in_place)


@dataclass(frozen=True)
class _Step:
    """What is done for one tile."""

    load: Bound
    tile: Binding
    store: Bound

    def run(self) -> None:
        self.load.run()
        self.tile.run()
        self.store.run()


class TiledFrames:
    """Makes one latent frame's pictures at a time, on a CPU or on a GPU: its memory says where."""

    def __init__(
        self,
        base: Part,
        tile: Part,
        vae: VaeConfig,
        memory: Memory,
        batch: int,
        output: str = PIXELS,
        *,
        latents: tuple[int, int],
        core: int = CORE,
    ) -> None:
        self.plan, self._memory, self._output = TilePlan(vae, batch, latents, core), memory, output
        self._base, self._tile = base, tile
        places = self.plan.places(base.specs, tile.specs, output)
        self._places = memory.reserve(places, "decoding in tiles")
        self.latents: Tensor = self._places[LATENTS]
        specs = named(base.following.inputs, HISTORY)
        self._sets = histories(memory, specs, base.in_place, self.plan.sizes)
        self._flips = 0
        self._whole, swept = self._histories_of_tiles()
        self._base_runs = [self._bound_base(which) for which in range(2)]
        self._steps = [list(self._sweep(which, swept)) for which in range(2)]

    @property
    def caches(self) -> Mapping[str, Tensor]:
        """What the next latent frame reads: all that the whole decoder remembers."""
        return ChainMap(self._sets[self._flips % 2], self._whole)  # type: ignore[arg-type]

    def pictures(self, *, is_first: bool) -> Tensor:
        """Where those of a video's first latent frame come, and those of others."""
        return self._places[f"pictures.{0 if is_first else 1}"]

    def make(self, *, is_first: bool) -> Tensor:
        """The pictures of what lies in ``latents``."""
        which = 0 if is_first else 1
        self._base_runs[which][self._flips % 2].run()
        # A first latent frame reads no history, and leaves its own where the next one reads.
        self._flips += which
        for step in self._steps[which]:
            step.run()
        return self.pictures(is_first=is_first)

    def close(self) -> None:
        """Its memory is closed by whoever opened it."""
        self._base_runs.clear()
        self._steps.clear()

    def _bound_base(self, which: int) -> list[Binding]:
        """For either set of histories."""
        engine, bound = self._base.both[which], []
        for flip in range(2):
            read = self._sets[flip] if which else {}
            renewed = _renewed(self._sets[1 - flip] if which else self._sets[flip])
            features = {FEATURES: self._places[f"{FEATURES}.{which}"]}
            bound.append(engine.bind({LATENTS: self.latents, **read}, {**features, **renewed}))
        return bound

    def _histories_of_tiles(self) -> tuple[dict[str, Tensor], list[SweptHistory]]:
        """Of whole frames, named as the whole decoder counts them; and how tiles use them."""
        plan, what = self.plan, "the decoder's memory of past frames"
        specs, count = named(self._tile.following.inputs, HISTORY), len(self._sets[0])
        names = {spec.name: numbered(HISTORY, count + i) for i, spec in enumerate(specs)}
        whole = self._memory.reserve({names[s.name]: plan.of_frame(s) for s in specs}, what)
        self._windows = histories(self._memory, specs, self._tile.in_place, plan.tile_sizes)
        read, renewed = self._windows
        swept = [
            SweptHistory(
                whole[names[name]],
                read[name],
                renewed[name],
                (self._places[f"{name}.above.0"], self._places[f"{name}.above.1"]),
                self._places[f"{name}.left"],
                *(rows_axis(spec), plan.scale(spec), plan.reach(spec)),
            )
            for spec in specs
            for name in [spec.name]
        ]
        return whole, swept

    def _sweep(self, which: int, swept: list[SweptHistory]) -> Iterator[_Step]:
        """Tile by tile, row by row."""
        read, renewed = self._windows
        engine, past = self._tile.both[which], read if which else {}
        seen, made = (self._places[f"{name}.{which}"] for name in ("seen", "made"))
        run = engine.bind({FEATURES: seen, **past}, {self._output: made, **_renewed(renewed)})
        rows, columns = self.plan.grid.rows.tiles, self.plan.grid.columns.tiles
        for number, row in enumerate(rows):
            for column in columns:
                load = [self._seen(which, row, column)]
                for history in swept if which else ():
                    if column is columns[0] and row is not rows[-1]:
                        load += history.begin(row, number % 2)
                    load += history.load(row, column, number % 2)
                store = [self._shown(which, row, column)]
                for history in swept:
                    store += history.store(row, column)
                yield _Step(self._memory.bind(load), run, self._memory.bind(store))

    def _seen(self, which: int, row: Tile, column: Tile) -> Patch:
        """A tile's features."""
        axis, sizes = rows_axis(self._tile.both[which].inputs[FEATURES]), self.plan.grid
        source, place = self._places[f"{FEATURES}.{which}"], self._places[f"seen.{which}"]
        size = (sizes.rows.size, sizes.columns.size)
        return Patch(place, source, axis, (0, 0), (row.start, column.start), size)

    def _shown(self, which: int, row: Tile, column: Tile) -> Patch:
        """A tile's pictures, as far as they are its own."""
        axis, scale = rows_axis(self._tile.both[which].outputs[self._output]), self.plan.grid.scale
        pictures, made = self._places[f"pictures.{which}"], self._places[f"made.{which}"]
        (top, rows), (left, columns) = within(row, scale), within(column, scale)
        target = (row.core_start * scale, column.core_start * scale)
        return Patch(pictures, made, axis, target, (top, left), (rows, columns))


class TiledStream(RememberingDecoder):
    """Decodes one latent frame at a time. Its memory is that of the whole decoder."""

    def __init__(
        self,
        base: Part,
        tile: Part,
        vae: VaeConfig,
        batch: int,
        output: str = PIXELS,
        memory: Memory | None = None,
        *,
        latents: tuple[int, int],
        core: int = CORE,
    ) -> None:
        """``core``: places of the features, on a side, that a tile makes at most."""
        self._memory, self.latent_frames = memory or HostMemory(), 0
        self.frames = TiledFrames(
            base, tile, vae, self._memory, batch, output, latents=latents, core=core
        )

    def decode(self, latents: Array) -> Array:
        """Latents [B, n, C, h, w] that follow the ones before; frames [B, m, ...] of your own."""
        pieces = []
        for index in range(latents.shape[1]):
            self._memory.write(self.frames.latents, latents[:, index : index + 1])
            made = self.frames.make(is_first=not self.latent_frames)
            self.latent_frames += 1
            pieces.append(self._memory.fetch(made).result())
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)

    @property
    def caches(self) -> Mapping[str, Tensor]:
        """What the next latent frame reads."""
        return self.frames.caches

    def close(self) -> None:
        self._memory.close()
        self.frames.close()


def _renewed(caches: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {next_of(name): tensor for name, tensor in caches.items()}
