"""Blocks into encoded pictures, on a thread of a session's own, beside the next block."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from longlive_trt.runtime.output.base import Pixels
from longlive_trt.serving.engine import MadeBlock
from longlive_trt.serving.live.costs import Costs
from longlive_trt.serving.live.hidden import Speculation
from longlive_trt.serving.live.kept.latents import KeptLatents
from longlive_trt.serving.live.kept.recording import Recording
from longlive_trt.serving.live.plan import Plan
from longlive_trt.serving.media.h264 import BlockEncoder, Sample
from longlive_trt.serving.media.jpeg import encode_jpeg

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedPicture:
    epoch: int
    block: int
    frame: int
    pts_us: int
    sample: Sample
    jpeg: bytes | None
    is_last: bool
    """Of its block."""


class Outlet(Protocol):
    """Where pictures go; called from several threads."""

    def picture(self, picture: EncodedPicture) -> None: ...

    @property
    def wants_jpeg(self) -> bool: ...


@dataclass(frozen=True)
class _Job:
    made: MadeBlock
    block: int
    epoch: int
    hidden: Speculation | None
    is_hidden: bool


class _Arriving:
    """A block's pictures as they are decoded, and how long they were waited for."""

    def __init__(self, pictures: Iterator[Pixels], now: Callable[[], float]) -> None:
        self._coming, self._now = pictures, now
        self._there: list[Pixels] = []
        self.first_s = self.waited_s = 0.0

    def __iter__(self) -> Iterator[Pixels]:
        number = 0
        while self._holds(number):
            yield self._there[number]
            number += 1

    def __getitem__(self, number: int) -> Pixels:
        if not self._holds(number):
            raise IndexError(number)
        return self._there[number]

    def _holds(self, number: int) -> bool:
        while len(self._there) <= number:
            begun = self._now()
            picture = next(self._coming, None)
            if picture is None:
                return False
            self._there.append(picture)
            self.waited_s += self._now() - begun
            if len(self._there) == 1:
                self.first_s = self.waited_s
        return True


class Encoding:
    def __init__(
        self,
        plan: Plan,
        encoder: BlockEncoder,
        recording: Recording,
        outlet: Outlet,
        costs: Costs,
        *,
        latents: KeptLatents | None = None,
        jpeg_quality: int = 80,
        on_block: Callable[[int, MadeBlock], None] = lambda _block, _made: None,
        on_failure: Callable[[BaseException], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan, self._encoder, self._recording = plan, encoder, recording
        self._latents = latents
        self._outlet, self._costs, self._quality = outlet, costs, jpeg_quality
        self._on_block, self._on_failure, self._now = on_block, on_failure, now
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)
        self._thread.start()

    def put(self, made: MadeBlock, block: int, epoch: int) -> None:
        self._jobs.put(_Job(made, block, epoch, None, False))

    def hide(self, hidden: Speculation) -> None:
        """Encode a hidden block, to have it at hand."""
        self._jobs.put(_Job(hidden.made, hidden.block, -1, hidden, True))

    def reveal(self, hidden: Speculation, epoch: int) -> None:
        self._jobs.put(_Job(hidden.made, hidden.block, epoch, hidden, False))

    def close(self) -> None:
        """Finish what was handed in."""
        self._jobs.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._work(job)
            except Exception as error:  # whatever it is, the session must end and say so
                self._on_failure(error)

    def _work(self, job: _Job) -> None:
        if job.is_hidden:
            assert job.hidden is not None
            if self._plan.hidden.holds(job.hidden):
                job.hidden.samples = list(self._encoder.encode(job.made.frames))
            return
        if not self._plan.stands(job.block, job.epoch):
            return
        begun, pictures = self._now(), _Arriving(job.made.pictures(), self._now)
        ready = job.hidden.samples if job.hidden else []
        samples = iter(ready) if ready else self._encoder.encode(pictures)
        for number, sample in enumerate(samples):
            if not self._publish(job, number, sample, pictures):
                return
        if job.hidden is None:
            self._costs.observe("decode", pictures.first_s)
        self._costs.observe("encode", self._now() - begun - pictures.waited_s)
        self._on_block(job.block, job.made)

    def _publish(self, job: _Job, number: int, sample: Sample, pictures: _Arriving) -> bool:
        plan = self._plan
        frame = plan.clock.first_frame(job.block) + number
        jpeg = encode_jpeg(pictures[number], self._quality) if self._outlet.wants_jpeg else None
        with plan.lock:
            # Nothing that was taken back gets past this lock. The block on screen may still be
            # encoded when a prompt takes back what follows it: its pictures stay.
            if not plan.stands(job.block, job.epoch):
                return False
            plan.playhead.handed_out(frame, self._now())
            self._recording.add(frame, sample)
            is_last = number + 1 == plan.clock.frames_of(job.block)
            if is_last and self._latents is not None:
                self._latents.add(job.block, job.made.latents)
            pts = plan.clock.pts_us(frame)
            if frame >= plan.playhead.begin:
                self._outlet.picture(
                    EncodedPicture(plan.epoch, job.block, frame, pts, sample, jpeg, is_last)
                )
        return True
