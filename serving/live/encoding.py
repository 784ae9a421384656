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
    """What the thread is given. What it works with is its own, and goes when it ends: of a session
    that is over, no encoder is kept with the recording.
    """

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
        work = _Work(
            plan,
            encoder,
            recording,
            outlet,
            costs,
            latents,
            jpeg_quality,
            on_block,
            on_failure,
            now,
        )
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=work.run, args=(self._jobs,), name="encode", daemon=True
        )
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


@dataclass(frozen=True, eq=False)
class _Work:
    plan: Plan
    encoder: BlockEncoder
    recording: Recording
    outlet: Outlet
    costs: Costs
    latents: KeptLatents | None
    jpeg_quality: int
    on_block: Callable[[int, MadeBlock], None]
    on_failure: Callable[[BaseException], None]
    now: Callable[[], float]

    def run(self, jobs: "queue.SimpleQueue[_Job | None]") -> None:
        while (job := jobs.get()) is not None:
            try:
                self._do(job)
            except Exception as error:  # whatever it is, the session must end and say so
                self.on_failure(error)

    def _do(self, job: _Job) -> None:
        if job.is_hidden:
            assert job.hidden is not None
            if self.plan.hidden.holds(job.hidden):
                job.hidden.samples = list(self.encoder.encode(job.made.frames))
            return
        if not self.plan.stands(job.block, job.epoch):
            return
        begun, pictures = self.now(), _Arriving(job.made.pictures(), self.now)
        ready = job.hidden.samples if job.hidden else []
        samples = iter(ready) if ready else self.encoder.encode(pictures)
        for number, sample in enumerate(samples):
            if not self._publish(job, number, sample, pictures):
                return
        if job.hidden is None:
            self.costs.observe("decode", pictures.first_s)
        self.costs.observe("encode", self.now() - begun - pictures.waited_s)
        self.on_block(job.block, job.made)

    def _publish(self, job: _Job, number: int, sample: Sample, pictures: _Arriving) -> bool:
        plan = self.plan
        frame = plan.clock.first_frame(job.block) + number
        jpeg = encode_jpeg(pictures[number], self.jpeg_quality) if self.outlet.wants_jpeg else None
        with plan.lock:
            # Nothing that was taken back gets past this lock. The block on screen may still be
            # encoded when a prompt takes back what follows it: its pictures stay.
            if not plan.stands(job.block, job.epoch):
                return False
            plan.playhead.handed_out(frame, self.now())
            self.recording.add(frame, sample)
            is_last = number + 1 == plan.clock.frames_of(job.block)
            if is_last and self.latents is not None:
                self.latents.add(job.block, job.made.latents)
            pts = plan.clock.pts_us(frame)
            if frame >= plan.playhead.begin:
                self.outlet.picture(
                    EncodedPicture(plan.epoch, job.block, frame, pts, sample, jpeg, is_last)
                )
        return True
