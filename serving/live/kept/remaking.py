"""A recording by another decoder: latents that were kept become pictures while nothing is due.

Running sessions are not made later by it: one latent frame is decoded at a time, and only where
all of them have so much time to spare. Where they never have, it waits until they pause or end.
"""

import math
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from longlive_trt.basics import Array
from longlive_trt.runtime.output.base import Pixels
from longlive_trt.serving.engine import LiveDecoder
from longlive_trt.serving.live.generator import Generator
from longlive_trt.serving.live.kept.latents import KeptBlocks
from longlive_trt.serving.live.load import Claim
from longlive_trt.serving.live.plan import Idle
from longlive_trt.serving.live.session import LiveSession
from longlive_trt.serving.live.turns import Work
from longlive_trt.serving.problems import ProblemError

_LIKE_BEFORE = 1.25
"""A frame is thought to take so many times what the longest one took."""
_REMEMBERED = 0.9
"""Of that, with every frame that takes less."""


@dataclass(frozen=True)
class Stretch:
    """Of a video, that is wanted, and the blocks that its decoder reads for it."""

    first_frame: int
    end_frame: int
    first_block: int
    blocks: KeptBlocks
    """Those before the first are read only."""


def stretch_of(
    session: LiveSession, past_blocks: int, last_s: float | None, until: int | None
) -> Stretch:
    """All that was shown or the last seconds of it; a problem where latents for it are missing."""
    clock, latents = session.clock, session.latents
    assert latents is not None
    recorded = session.recording.begin
    end = recorded + session.recording.frames
    end = end if until is None else min(end, until)
    if end <= recorded:
        raise ProblemError("conflict", "Nothing was shown yet.")
    wanted = recorded if last_s is None else max(recorded, end - round(last_s * float(clock.fps)))
    first = clock.block_of(wanted)
    blocks = latents.blocks(max(0, first - past_blocks), clock.block_of(end - 1) + 1)
    if blocks.begin > max(0, first - past_blocks):
        raise _no_longer_kept(session, blocks.begin + past_blocks, end)
    if blocks.end <= first:
        why = "the first block is not complete yet" if not latents.failure else latents.failure
        raise ProblemError("conflict", f"There are no latents of these pictures: {why}.")
    stop = min(end, clock.first_frame(blocks.end))
    return Stretch(clock.first_frame(first), stop, first, blocks)


def _no_longer_kept(session: LiveSession, first_block: int, end: int) -> ProblemError:
    left = end - session.clock.first_frame(first_block)
    seconds = math.floor(10 * session.clock.seconds(left)) / 10
    recipe = "all of it is made by generate --timeline recipe.json --decoder full"
    if seconds <= 0:
        said = "Latents of these pictures are not kept here"
        return ProblemError("conflict", f"{said}; {recipe}.")
    said = f"Latents are kept of the last {seconds:g} s only"
    return ProblemError(
        "conflict", f"{said}: ask for those (seconds={seconds:g}); {recipe}.", seconds=seconds
    )


@dataclass(frozen=True)
class _Piece:
    latents: Array
    pictures: "Future[Pixels]"


class Remake:
    """Decodes on the thread that makes blocks, when all sessions have time for it."""

    def __init__(
        self,
        decoder: LiveDecoder,
        generator: Generator,
        takes_s: float,
        on_closed: Callable[[], None],
        now: Callable[[], float],
    ) -> None:
        """``takes_s`` is what a latent frame is thought to take until one was decoded."""
        self._decoder, self._generator, self._now = decoder, generator, now
        self._takes_s, self._is_measured = takes_s, False
        self._on_closed = on_closed
        self._waiting: deque[_Piece] = deque()
        self._lock = threading.Lock()
        self._is_over = False
        generator.add(self)

    def decode(self, latents: Array) -> "Future[Pixels]":
        """Of the latent frame [1, 1, C, h, w] that follows."""
        piece = _Piece(latents, Future())
        with self._lock:
            if self._is_over:
                piece.pictures.set_exception(_going_down())
            else:
                self._waiting.append(piece)
        self._generator.wake()
        return piece.pictures

    def stop(self) -> None:
        """From any thread; what is waited for is not made any more."""
        with self._lock:
            self._is_over, left = True, list(self._waiting)
            self._waiting.clear()
        for piece in left:
            if piece.pictures.set_running_or_notify_cancel():
                piece.pictures.set_exception(_going_down())
        self._generator.wake()

    def next_work(self, now: float) -> Work | Idle:
        return Work(now, self._close) if self._is_over else Idle(None)

    def claim(self, now: float) -> Claim | None:
        return None

    def slack(self, now: float) -> float:
        return math.inf

    def spare_work(self, now: float, spare_s: float) -> Work | None:
        if not self._waiting or spare_s < self._takes_s:
            return None
        return Work(now, self._decode_next, self._takes_s)

    def fail(self, error: BaseException) -> None:
        """Whoever waits for the piece was told."""

    def _decode_next(self) -> None:
        with self._lock:
            piece = self._waiting.popleft() if self._waiting else None
        if piece is None or not piece.pictures.set_running_or_notify_cancel():
            return
        begun = self._now()
        try:
            piece.pictures.set_result(self._decoder.decode(piece.latents))
        except Exception as error:  # belongs to whoever waits
            piece.pictures.set_exception(error)
        took = _LIKE_BEFORE * (self._now() - begun)
        self._takes_s = max(_REMEMBERED * self._takes_s, took) if self._is_measured else took
        self._is_measured = True

    def _close(self) -> None:
        self._generator.remove(self)
        self._decoder.close()
        self._on_closed()


def _going_down() -> ProblemError:
    return ProblemError(
        "draining", "The server is going down; try again in a minute.", retry_after_s=60
    )
