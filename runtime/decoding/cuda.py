"""The VAE on a GPU: blocks are decoded on a stream of their own, and their pictures leave on
another, while the transformer makes the next block.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from longlive_trt.basics import Array
from longlive_trt.contract import BATCH, HISTORY, LATENTS, PIXELS, latent_sizes, next_of
from longlive_trt.engines.base import Binding, Engine
from longlive_trt.plugins.cuda.marks import mark
from longlive_trt.plugins.cuda.streams import DeviceTensor, Stream
from longlive_trt.runtime.decoding.host import RememberingDecoder, histories, joined
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
    parts: tuple[Fetched, ...]
    _passage: Passage
    _which: int

    def result(self) -> Array:
        return joined(part.result() for part in self.parts)

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
        # Of several rows, the frames of a part do not lie together.
        self._is_single = batch == 1
        self._frame_by_frame = frame_by_frame and self._is_single
        self._first_engine, self._following_engine = first, following
        self._memory: CudaMemory = CudaMemory(streams.decoding)
        self._leaving = CudaMemory(streams.leaving, waiting=WAITING_BLOCKS)
        gpu = streams.decoding.gpu
        self._passage: Passage | None = None
        self._read = [gpu.event() for _ in range(2)]
        self._left = [gpu.event() for _ in range(2)]
        self._made = gpu.event()
        self._bound: dict[tuple[int, int, int, int], Binding] = {}
        self._blocks = 0
        self._flips = 0
        self.latent_frames = 0
        try:
            self._reserve(block_frames, in_place)
            self._passage = self._passage_over(streams, batch, block_frames)
            self._rehearse(block_frames - 1)
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

    def _rehearse(self, rest: int) -> None:
        """A frame by itself, once: an engine seeks the fastest convolutions of a new size when it
        meets it, and a prompt's first pictures shall not wait for that. What it leaves is
        overwritten.
        """
        if not self._is_single or not rest:
            return
        part, made = (_between(x["rest"], 0, 1, rest) for x in (self._start, self._pictures))
        self._run_piece(part, made)

    def _passage_over(self, streams: DecodingStreams, batch: int, block_frames: int) -> Passage:
        transformer, decoding, crossing = streams.transformer, streams.decoding, streams.crossing
        if crossing is None:
            return SamePlace(transformer, decoding, self._read)
        latents = Buffer.of(
            self._following_engine.inputs[LATENTS], batch=batch, latent_frames=block_frames
        )
        return BetweenGpus((transformer, decoding, crossing), self._memory, latents, self._read)

    def start(self, latents: DeviceTensor, *, is_awaited: bool = False) -> _Decoding:
        assert self._passage is not None
        which = self._blocks % 2
        stream = self._memory.stream
        latents = self._passage.bring(latents, which)
        # The pictures of the block before the last must have left their place.
        stream.wait_for(self._left[which])
        with mark("decode"):
            fetched = tuple(map(self._leave, self._run(latents, which, is_awaited)))
        stream.record(self._read[which])
        self._leaving.stream.record(self._left[which])
        self._blocks += 1
        self.latent_frames += latents.shape[1]
        return _Decoding(fetched, self._passage, which)

    def _leave(self, picture: DeviceTensor) -> Fetched:
        """What has just been queued, to the host as soon as it is made."""
        self._leaving.stream.wait_for(self._memory.stream.record(self._made))
        return self._leaving.fetch(picture)

    def _run(self, latents: DeviceTensor, which: int, is_awaited: bool) -> Iterator[DeviceTensor]:
        """The pictures, in the parts in which they are made."""
        if not self.latent_frames:
            yield from self._run_first(latents)
            return
        picture, count = self._pictures[f"block.{which}"], latents.shape[1]
        cuts = (0, 1, count) if is_awaited and self._is_single and count > 1 else (0, count)
        for begin, end in pairwise(cuts):
            part, made = (_between(x, begin, end, count) for x in (latents, picture))
            self._run_following(part, made)
            yield made

    def _run_first(self, latents: DeviceTensor) -> Iterator[DeviceTensor]:
        """A video's first latent frame is decoded otherwise."""
        count = latents.shape[1]
        self._memory.copy([(self._start["first"], latents)], [Span(0, 0, 1)])
        caches = _renewed(self._caches[self._flips % 2])
        made, rest = self._pictures["first"], self._pictures["rest"]
        self._first_engine.bind({LATENTS: self._start["first"]}, {PIXELS: made, **caches}).run()
        yield made
        if count > 1:
            self._memory.copy([(self._start["rest"], latents)], [Span(0, 1, count - 1)])
            self._run_following(self._start["rest"], rest)
            yield rest

    def _run_following(self, latents: DeviceTensor, picture: DeviceTensor) -> None:
        pieces = latents.shape[1] if self._frame_by_frame else 1
        for piece in range(pieces):
            part, made = (_between(x, piece, piece + 1, pieces) for x in (latents, picture))
            self._run_piece(part, made)

    def _run_piece(self, latents: DeviceTensor, picture: DeviceTensor) -> None:
        flip = self._flips % self._sets
        self._flips += 1
        key = (latents.pointer, latents.shape[1], picture.pointer, flip)
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
        for event in (*self._read, *self._left, self._made):
            event.close()
        if self._passage is not None:
            self._passage.close()
        self._bound.clear()


def _between(tensor: DeviceTensor, begin: int, end: int, parts: int) -> DeviceTensor:
    """Some of so many equal parts along the second axis: all, or the first has one entry."""
    batch, length, *rest = tensor.shape
    each = length // parts
    pointer = tensor.pointer + begin * each * prod(rest) * tensor.item_bytes
    shape = (batch, (end - begin) * each, *rest)
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
