"""How latents on a GPU become pictures there: whole frames at once, or tile by tile.

A piece is a video's first latent frame, or some that follow it.
"""

from collections.abc import Collection, Mapping
from math import prod
from typing import Protocol

from longlive_trt.configs import VaeConfig
from longlive_trt.configs.tiles import CORE
from longlive_trt.contract import (
    BATCH,
    HISTORY,
    LATENT_FRAMES,
    LATENTS,
    PIXELS,
    latent_sizes,
    next_of,
)
from longlive_trt.engines.base import Binding, Engine
from longlive_trt.plugins.cuda.streams import DeviceTensor
from longlive_trt.runtime.decoding.host import histories
from longlive_trt.runtime.decoding.tiled import Part, TiledFrames
from longlive_trt.runtime.memory.base import Buffer, Memory, Span, Tensor, named


class Pieces(Protocol):
    @property
    def caches(self) -> Mapping[str, Tensor]:
        """What the next latent frame reads."""
        ...

    @property
    def are_blocks(self) -> bool:
        """Whether several latent frames are one piece."""
        ...

    def latents(self, latent_frames: int) -> Buffer:
        """What a piece is made of."""
        ...

    def pictures(self, latent_frames: int, *, is_first: bool) -> Buffer:
        """What it becomes."""
        ...

    def run_first(self, latents: DeviceTensor, pictures: DeviceTensor) -> None: ...

    def run(self, latents: DeviceTensor, pictures: DeviceTensor) -> None: ...

    def close(self) -> None:
        """Forget what was captured; memory is not its own."""
        ...


class WholePieces:
    """Whole frames: of as many latent frames at once as come, or one by one, in less memory.

    An engine may keep what it chose for one size alone, and need a second to choose anew. So
    single frames and several at once have one each.
    """

    def __init__(
        self,
        first: Engine,
        following: Engine,
        memory: Memory,
        batch: int,
        *,
        blocks: Engine | None = None,
        latents: tuple[int, int] = (0, 0),
        in_place: Collection[str] = (),
    ) -> None:
        """``blocks``: the graph of ``following`` for several frames at once; without it they are
        decoded one by one. ``latents``: their height and width, for engines that take any.
        ``in_place``: histories that may be renewed where they lie."""
        self._first, self._following, self._blocks = first, following, blocks
        self._sizes = {BATCH: batch, **latent_sizes(*latents)}
        specs = named(following.inputs, HISTORY)
        self._caches = histories(memory, specs, in_place, self._sizes)
        # Where both sets are one, a piece is bound, and captured, once.
        self._sets = 1 if self._caches[0] is self._caches[1] else 2
        self._bound: dict[tuple[int, int, int, int], Binding] = {}
        self._flips = 0

    @property
    def caches(self) -> Mapping[str, Tensor]:
        return self._caches[self._flips % 2]

    @property
    def are_blocks(self) -> bool:
        return self._blocks is not None

    def latents(self, latent_frames: int) -> Buffer:
        spec = self._following.inputs[LATENTS]
        return Buffer.of(spec, **self._sizes, latent_frames=latent_frames)

    def pictures(self, latent_frames: int, *, is_first: bool) -> Buffer:
        engine = self._first if is_first else self._following
        return Buffer.of(engine.outputs[PIXELS], **self._sizes, latent_frames=latent_frames)

    def run_first(self, latents: DeviceTensor, pictures: DeviceTensor) -> None:
        made = {PIXELS: pictures, **_renewed(self.caches)}
        self._first.bind({LATENTS: latents}, made).run()

    def run(self, latents: DeviceTensor, pictures: DeviceTensor) -> None:
        # Of several rows, a frame's do not lie together.
        is_single = self._blocks is None and self._sizes[BATCH] == 1
        pieces = latents.shape[1] if is_single else 1
        for piece in range(pieces):
            self._run(*(between(x, piece, piece + 1, pieces) for x in (latents, pictures)))

    def close(self) -> None:
        self._bound.clear()

    def _run(self, latents: DeviceTensor, pictures: DeviceTensor) -> None:
        flip = self._flips % self._sets
        self._flips += 1
        frames = latents.shape[1]
        key = (latents.pointer, frames, pictures.pointer, flip)
        if key not in self._bound:
            engine = self._following if frames == 1 or self._blocks is None else self._blocks
            self._bound[key] = engine.bind(
                {LATENTS: latents, **self._caches[flip]},
                {PIXELS: pictures, **_renewed(self._caches[1 - flip])},
            )
        self._bound[key].run()


class TiledPieces:
    """Latent frame by latent frame, each in tiles."""

    def __init__(
        self,
        base: Part,
        tile: Part,
        vae: VaeConfig,
        memory: Memory,
        batch: int,
        *,
        latents: tuple[int, int],
        core: int = CORE,
    ) -> None:
        self._base, self._tile, self._memory = base, tile, memory
        self._frames = TiledFrames(base, tile, vae, memory, batch, latents=latents, core=core)

    @property
    def caches(self) -> Mapping[str, Tensor]:
        return self._frames.caches

    @property
    def are_blocks(self) -> bool:
        return False

    def latents(self, latent_frames: int) -> Buffer:
        spec, sizes = self._base.following.inputs[LATENTS], self._frames.plan.sizes
        return Buffer.of(spec, **{**sizes, LATENT_FRAMES: latent_frames})

    def pictures(self, latent_frames: int, *, is_first: bool) -> Buffer:
        spec = self._tile.both[0 if is_first else 1].outputs[PIXELS]
        batch, frames, *rest = self._frames.plan.of_frame(spec).shape
        return Buffer((batch, latent_frames * frames, *rest), spec.dtype)

    def run_first(self, latents: DeviceTensor, pictures: DeviceTensor) -> None:
        self._run(latents, 0, pictures, is_first=True)

    def run(self, latents: DeviceTensor, pictures: DeviceTensor) -> None:
        for frame in range(latents.shape[1]):
            self._run(latents, frame, pictures, is_first=False)

    def close(self) -> None:
        self._frames.close()

    def _run(
        self, latents: DeviceTensor, frame: int, pictures: DeviceTensor, *, is_first: bool
    ) -> None:
        self._memory.commit([(self._frames.latents, latents)], [Span(0, frame, 1)])
        made = self._frames.make(is_first=is_first)
        count = made.shape[1]
        self._memory.commit([(pictures, made)], [Span(frame * count, 0, count)])


def between(tensor: DeviceTensor, begin: int, end: int, parts: int) -> DeviceTensor:
    """Some of so many equal parts along the second axis: all, or the first has one entry."""
    batch, length, *rest = tensor.shape
    each = length // parts
    pointer = tensor.pointer + begin * each * prod(rest) * tensor.item_bytes
    shape = (batch, (end - begin) * each, *rest)
    return DeviceTensor.contiguous(pointer, shape, tensor.dtype, tensor.device)


def _renewed(caches: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {next_of(name): tensor for name, tensor in caches.items()}
