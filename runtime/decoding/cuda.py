"""The VAE on a GPU: blocks are decoded on a stream of their own, and their pictures leave on
another, while the transformer makes the next block.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from longlive_trt.basics import Array
from longlive_trt.plugins.cuda.marks import mark
from longlive_trt.plugins.cuda.streams import DeviceTensor, Stream
from longlive_trt.runtime.decoding.host import RememberingDecoder, joined
from longlive_trt.runtime.decoding.passage import BetweenGpus, Passage, SamePlace
from longlive_trt.runtime.decoding.pieces import Pieces, between
from longlive_trt.runtime.memory.base import Span, Tensor
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
    """Whole blocks at a time, which is what fills a GPU; or smaller pieces, in less memory."""

    def __init__(
        self,
        open_pieces: Callable[[CudaMemory], Pieces],
        batch: int,
        block_frames: int,
        streams: DecodingStreams,
        *,
        rehearses: bool = False,
    ) -> None:
        """``open_pieces``: what decodes, with a memory that is closed after it.
        ``rehearses``: its engines have decoded nothing of these sizes yet, and shall before a
        video waits for it."""
        # Of several rows, a frame's latents do not lie together.
        self._is_single = batch == 1
        self._memory: CudaMemory = CudaMemory(streams.decoding)
        self._leaving = CudaMemory(streams.leaving, waiting=WAITING_BLOCKS)
        gpu = streams.decoding.gpu
        self._passage: Passage | None = None
        self._pieces: Pieces | None = None
        self._read = [gpu.event() for _ in range(2)]
        self._left = [gpu.event() for _ in range(2)]
        self._made = gpu.event()
        self._blocks = 0
        self.latent_frames = 0
        try:
            self._pieces = open_pieces(self._memory)
            self._reserve(block_frames)
            self._passage = self._passage_over(streams, block_frames)
            if rehearses and self._is_single and self.pieces.are_blocks:
                self._rehearse()
        except BaseException:
            self.close()
            raise

    @property
    def pieces(self) -> Pieces:
        assert self._pieces is not None
        return self._pieces

    def _reserve(self, block_frames: int) -> None:
        pieces, block = self.pieces, self.pieces.pictures(block_frames, is_first=False)
        rest = max(1, block_frames - 1)
        self._pictures = self._memory.reserve(
            {
                "block.0": block,
                "block.1": block,
                "first": pieces.pictures(1, is_first=True),
                "rest": pieces.pictures(rest, is_first=False),
            },
            "decoded pictures",
        )
        self._start = self._memory.reserve(
            {
                "block": pieces.latents(block_frames),
                "first": pieces.latents(1),
                "rest": pieces.latents(block_frames - 1),
            },
            "a video's first latents",
        )

    def _rehearse(self) -> None:
        """An engine seeks the fastest convolutions of a size when it meets it, for a second. What
        this leaves is overwritten.
        """
        latents, pictures = self._start["block"], self._pictures["block.0"]
        count = latents.shape[1]
        self.pieces.run(between(latents, 0, 1, count), between(pictures, 0, 1, count))
        self.pieces.run(latents, pictures)

    def _passage_over(self, streams: DecodingStreams, block_frames: int) -> Passage:
        transformer, decoding, crossing = streams.transformer, streams.decoding, streams.crossing
        if crossing is None:
            return SamePlace(transformer, decoding, self._read)
        latents = self.pieces.latents(block_frames)
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
        if not (is_awaited and self._is_single and count > 1):
            self.pieces.run(latents, picture)
            yield picture
            return
        for begin, end in ((0, 1), (1, count)):
            part, made = (between(x, begin, end, count) for x in (latents, picture))
            self._run_frames(part, made)
            yield made

    def _run_first(self, latents: DeviceTensor) -> Iterator[DeviceTensor]:
        """A video's first latent frame is decoded otherwise."""
        count = latents.shape[1]
        self._memory.copy([(self._start["first"], latents)], [Span(0, 0, 1)])
        made, rest = self._pictures["first"], self._pictures["rest"]
        self.pieces.run_first(self._start["first"], made)
        yield made
        if count > 1:
            self._memory.copy([(self._start["rest"], latents)], [Span(0, 1, count - 1)])
            self._run_frames(self._start["rest"], rest)
            yield rest

    def _run_frames(self, latents: DeviceTensor, pictures: DeviceTensor) -> None:
        """Less than a block, frame by frame: so engines meet no third size."""
        count = latents.shape[1] if self._is_single else 1
        for frame in range(count):
            part, made = (between(x, frame, frame + 1, count) for x in (latents, pictures))
            self.pieces.run(part, made)

    @property
    def caches(self) -> Mapping[str, Tensor]:
        return self.pieces.caches

    def settle(self) -> None:
        self._memory.settle()
        self._leaving.settle()

    def close(self) -> None:
        # First what still copies from the other's memory.
        self._leaving.close()
        self._memory.close()
        for event in (*self._read, *self._left, self._made):
            event.close()
        for part in (self._passage, self._pieces):
            if part is not None:
                part.close()
