"""Downloads of recordings by another decoder, as they are made."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator

import numpy as np
from fastapi.responses import StreamingResponse
from starlette.types import Send

from longlive_trt.basics import Array
from longlive_trt.errors import LongLiveError
from longlive_trt.runtime.output.base import Pixels
from longlive_trt.serving.engine import LiveModel
from longlive_trt.serving.live.generator import Generator
from longlive_trt.serving.live.kept.remaking import Remake, Stretch, stretch_of
from longlive_trt.serving.live.session import LiveSession
from longlive_trt.serving.media.h264 import BlockEncoder
from longlive_trt.serving.media.mp4 import Timing, fragment, initialization
from longlive_trt.serving.problems import ProblemError

logger = logging.getLogger(__name__)


class Remakes:
    """One at a time: another decoder's memory is as large as a session's."""

    def __init__(self, model: LiveModel, generator: Generator, patience_s: float) -> None:
        """So long the first pictures may take before the caller is sent away."""
        self._model, self._generator, self._patience_s = model, generator, patience_s
        self._taken = threading.Lock()
        self._current: Remake | None = None

    async def open(
        self, session: LiveSession, decoder: str, last_s: float | None, until: int | None
    ) -> AsyncIterator[bytes]:
        """An MP4 in fragments, whose first is made when this returns."""
        stretch = stretch_of(session, self._model.past_blocks(decoder), last_s, until)
        if not self._taken.acquire(blocking=False):
            raise ProblemError(
                "server_full", "Another recording is being made; ask again.", retry_after_s=10
            )
        try:
            opened = await asyncio.to_thread(self._model.open_decoder, decoder)
        except BaseException as error:
            self._taken.release()
            if isinstance(error, LongLiveError):
                raise ProblemError("conflict", f"It cannot be made now: {error}.") from None
            raise
        guess_s = session.clock.block_s
        remake = Remake(opened, self._generator, guess_s, self._taken.release, time.monotonic)
        self._current = remake
        pieces = _pieces(remake, session, stretch)
        try:
            first = await asyncio.wait_for(anext(pieces), self._patience_s)
        except TimeoutError:
            raise ProblemError(
                "server_full",
                "Running videos leave no time for it; ask again when they pause or end.",
                retry_after_s=30,
            ) from None
        return _followed(first, pieces)

    def stop(self) -> None:
        """What is being made ends."""
        if self._current is not None:
            self._current.stop()


async def _followed(first: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in pieces:
        yield piece


class BreakableResponse(StreamingResponse):
    """Where what it sends breaks off, so does the connection, by which its reader knows."""

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except (ProblemError, LongLiveError) as error:
            logger.warning("a recording by another decoder broke off: %s", error)


async def _pieces(remake: Remake, session: LiveSession, stretch: Stretch) -> AsyncIterator[bytes]:
    """A fragment a block, after what comes before the first."""
    clock, timing, number = session.clock, Timing(session.clock.fps), 0
    encoder = BlockEncoder(session.stream.width, session.stream.height, clock.fps)
    head = initialization(encoder.facts, timing)
    try:
        for block, latents in enumerate(stretch.blocks.read(), stretch.blocks.begin):
            pictures = await _decoded(remake, latents)
            if block < stretch.first_block:
                continue
            start = clock.first_frame(block)
            shown = pictures[: stretch.end_frame - start]
            samples = await asyncio.to_thread(list, encoder.encode(shown))
            number += 1
            yield head + fragment(number, start - stretch.first_frame, samples, timing)
            head = b""
    finally:
        remake.stop()


async def _decoded(remake: Remake, latents: Array) -> Pixels:
    """A block's pictures."""
    parts = [
        await asyncio.wrap_future(remake.decode(latents[:, frame : frame + 1]))
        for frame in range(latents.shape[1])
    ]
    return np.concatenate(parts)
