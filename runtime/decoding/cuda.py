"""The VAE on a GPU: blocks are decoded on a stream of their own, and their pictures leave on
another, while the transformer makes the next block.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from longlive_trt.basics import Array
from longlive_trt.contract import BATCH, HISTORY, LATENTS, PIXELS, latent_sizes, next_of
from longlive_trt.engines.base import Binding, Engine
from longlive_trt.plugins.cuda.marks import mark
from longlive_trt.plugins.cuda.streams import DeviceTensor, Stream
from longlive_trt.runtime.decoding.host import RememberingDecoder, histories
from longlive_trt.runtime.decoding.passage import BetweenGpus, Passage, SamePlace
from longlive_trt.runtime.memory.base import Buffer, Span, Tensor, named
from longlive_trt.runtime.memory.cuda import CudaMemory, Fetched

WAITING_BLOCKS = 4
"""Blocks whose pictures may lie unread; whoever asks for more waits."""


@dataclass(frozen=True)
class DecodingStreams:
    """The transformer's, and of the GPU that decodes: decoding's own, and that of what leaves.

    With ``crossing`` that is another GPU than the transformer's, and latents come to it so.
    """

    transformer: Stream
    decoding: Stream
    leaving: Stream
    crossing: Stream | None = None


@dataclass(frozen=True)
class _Decoding:
    _pictures: tuple[Fetched, ...]
    _passage: Passage
    _which: int

    def result(self) -> Array:
        parts = [fetched.result() for fetched in self._pictures]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def release(self) -> None:
        self._passage.release(self._which)


class CudaDecoder(RememberingDecoder):
    """Whole blocks at a time, which is what fills a GPU; or frame by frame, in less memory."""

    def __init__(
        self,
        first: Engine,
        following: Engine,
        batch: int,
        block_frames: int,
        streams: DecodingStreams,
        *,
        frame_by_frame: bool = False,
        latents: tuple[int, int] = (0, 0),
        in_place: Collection[str] = (),
    ) -> None:
        """``latents``: their height and width, for engines that take any. ``in_place``: histories
        that may be renewed where they lie."""
        self._sizes = {BATCH: batch, **latent_sizes(*latents)}
        self._frame_by_frame = frame_by_frame and batch == 1
        self._first_engine, self._following_engine = first, following
        self._memory: CudaMemory = CudaMemory(streams.decoding)
        self._leaving = CudaMemory(streams.leaving, waiting=WAITING_BLOCKS)
        gpu = streams.decoding.gpu
        self._passage: Passage | None = None
        self._read = [gpu.event() for _ in range(2)]
        self._left = [gpu.event() for _ in range(2)]
        self._bound: dict[tuple[int, int, int], Binding] = {}
        self._blocks = 0
        self._flips = 0
        self.latent_frames = 0
        try:
            self._reserve(block_frames, in_place)
            self._passage = self._passage_over(streams, batch, block_frames)
        except BaseException:
            self.close()
            raise

    def _reserve(self, block_frames: int, in_place: Collection[str]) -> None:
        first, following = self._first_engine, self._following_engine
        specs = named(following.inputs, HISTORY)
        self._caches = histories(self._memory, specs, in_place, self._sizes)
        # Where both sets are one, a piece is bound, and captured, once.
        self._sets = 1 if self._caches[0] is self._caches[1] else 2
        self._pictures = self._memory.reserve(
            _pictures(first, following, self._sizes, block_frames), "decoded pictures"
        )
        self._start = self._memory.reserve(
            {
                "first": Buffer.of(following.inputs[LATENTS], **self._sizes, latent_frames=1),
                "rest": Buffer.of(
                    following.inputs[LATENTS], **self._sizes, latent_frames=block_frames - 1
                ),
            },
            "a video's first latents",
        )

    def _passage_over(self, streams: DecodingStreams, batch: int, block_frames: int) -> Passage:
        transformer, decoding, crossing = streams.transformer, streams.decoding, streams.crossing
        if crossing is None:
            return SamePlace(transformer, decoding, self._read)
        latents = Buffer.of(
            self._following_engine.inputs[LATENTS], batch=batch, latent_frames=block_frames
        )
        return BetweenGpus((transformer, decoding, crossing), self._memory, latents, self._read)

    def start(self, latents: DeviceTensor) -> _Decoding:
        assert self._passage is not None
        which = self._blocks % 2
        stream = self._memory.stream
        latents = self._passage.bring(latents, which)
        # The pictures of the block before the last must have left their place.
        stream.wait_for(self._left[which])
        with mark("decode"):
            made = self._run(latents, which)
        stream.record(self._read[which])
        self._leaving.stream.wait_for(self._read[which])
        fetched = tuple(self._leaving.fetch(picture) for picture in made)
        self._leaving.stream.record(self._left[which])
        self._blocks += 1
        self.latent_frames += latents.shape[1]
        return _Decoding(fetched, self._passage, which)

    def _run(self, latents: DeviceTensor, which: int) -> list[DeviceTensor]:
        if self.latent_frames:
            picture = self._pictures[f"block.{which}"]
            self._run_following(latents, picture)
            return [picture]
        return self._run_first(latents)

    def _run_first(self, latents: DeviceTensor) -> list[DeviceTensor]:
        """A video's first latent frame is decoded otherwise."""
        count = latents.shape[1]
        self._memory.copy([(self._start["first"], latents)], [Span(0, 0, 1)])
        caches = _renewed(self._caches[self._flips % 2])
        made = [self._pictures["first"]]
        self._first_engine.bind({LATENTS: self._start["first"]}, {PIXELS: made[0], **caches}).run()
        if count > 1:
            self._memory.copy([(self._start["rest"], latents)], [Span(0, 1, count - 1)])
            made.append(self._pictures["rest"])
            self._run_following(self._start["rest"], made[1])
        return made

    def _run_following(self, latents: DeviceTensor, picture: DeviceTensor) -> None:
        pieces = latents.shape[1] if self._frame_by_frame else 1
        for piece in range(pieces):
            self._run_piece(_piece(latents, piece, pieces), _piece(picture, piece, pieces))

    def _run_piece(self, latents: DeviceTensor, picture: DeviceTensor) -> None:
        flip = self._flips % self._sets
        self._flips += 1
        key = (latents.pointer, picture.pointer, flip)
        if key not in self._bound:
            self._bound[key] = self._following_engine.bind(
                {LATENTS: latents, **self._caches[flip]},
                {PIXELS: picture, **_renewed(self._caches[1 - flip])},
            )
        self._bound[key].run()

    @property
    def caches(self) -> Mapping[str, Tensor]:
        return self._caches[self._flips % 2]

    def settle(self) -> None:
        self._memory.settle()
        self._leaving.settle()

    def close(self) -> None:
        # First what still copies from the other's memory.
        self._leaving.close()
        self._memory.close()
        for event in (*self._read, *self._left):
            event.close()
        if self._passage is not None:
            self._passage.close()
        self._bound.clear()


def _piece(tensor: DeviceTensor, number: int, pieces: int) -> DeviceTensor:
    """One of so many equal parts along the second axis; the first has one entry."""
    batch, length, *rest = tensor.shape
    shape = (batch, length // pieces, *rest)
    pointer = tensor.pointer + number * prod(shape) * tensor.item_bytes
    return DeviceTensor.contiguous(pointer, shape, tensor.dtype, tensor.device)


def _renewed(caches: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {next_of(name): tensor for name, tensor in caches.items()}


def _pictures(
    first: Engine, following: Engine, sizes: Mapping[str, int], block_frames: int
) -> dict[str, Buffer]:
    pixels = following.outputs[PIXELS]
    block = Buffer.of(pixels, **sizes, latent_frames=block_frames)
    return {
        "block.0": block,
        "block.1": block,
        "first": Buffer.of(first.outputs[PIXELS], **sizes, latent_frames=1),
        "rest": Buffer.of(pixels, **sizes, latent_frames=max(1, block_frames - 1)),
    }
