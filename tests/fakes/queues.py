"""Streams and events of an imagined GPU: what is queued, and when it runs."""

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Work = Callable[[], None]
Schedule = Literal["eager", "lazy"] | int
"""When queued work runs: at once, when somebody waits for it, or at random moments of a seed."""


@dataclass(eq=False)
class Record:
    """One recording of an event; it can be waited for from elsewhere."""

    stream: "Stream"
    done_s: float | None = None


@dataclass(frozen=True)
class Wait:
    record: Record


@dataclass(eq=False)
class Stream:
    priority: int = 0
    device: int = 0
    queue: deque[Work | Record | Wait] = field(default_factory=deque)
    captured: list[Work] | None = None
    captured_by: int = 0
    is_spoiled: bool = False

    def begin_capture(self) -> None:
        self.captured, self.captured_by = [], threading.get_ident()
        self.is_spoiled = False

    @property
    def is_captured_here(self) -> bool:
        return self.captured is not None and self.captured_by == threading.get_ident()

    def add(self, entry: Work | Record | Wait) -> None:
        if self.captured is None:
            self.queue.append(entry)
        elif isinstance(entry, Record | Wait):
            raise NotImplementedError("events inside a capture")
        else:
            self.captured.append(entry)

    @property
    def is_ready(self) -> bool:
        head = self.queue[0] if self.queue else None
        return head is not None and not (isinstance(head, Wait) and head.record.done_s is None)


@dataclass(eq=False)
class Event:
    is_timed: bool
    device: int = 0
    latest: Record | None = None


class Queues:
    """All streams, those too that were closed: what is queued in them still runs some time."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.default = Stream()
        self.streams = [self.default]
        self.fault: BaseException | None = None
        """What lost the context; nothing runs any more."""
        self._moments = random.Random(schedule if isinstance(schedule, int) else 0)

    def open(self, priority: int, device: int = 0) -> Stream:
        self.streams.append(Stream(priority, device))
        return self.streams[-1]

    def tick(self) -> None:
        """Time goes by, between two calls of the driver."""
        if self.schedule == "lazy":
            return
        while ready := [stream for stream in self.streams if stream.is_ready]:
            if self.schedule != "eager" and self._moments.random() < 0.4:
                return
            self._advance(self._moments.choice(ready))

    def drain(self, stream: Stream) -> None:
        while stream.queue:
            self._advance(stream)

    def finish(self, record: Record) -> None:
        while record.done_s is None and self.fault is None:
            self._advance(record.stream)

    def lose(self, fault: BaseException) -> None:
        self.fault = fault
        for stream in self.streams:
            stream.queue.clear()

    def _advance(self, stream: Stream) -> None:
        entry = stream.queue[0]
        if isinstance(entry, Wait):
            self.finish(entry.record)
        # The context may have been lost meanwhile.
        if stream.queue:
            stream.queue.popleft()
            self._run(entry)

    def _run(self, entry: Work | Record | Wait) -> None:
        if isinstance(entry, Record):
            entry.done_s = time.perf_counter()
        elif not isinstance(entry, Wait):
            try:
                entry()
            except Exception as error:  # whatever fails on a device loses the context
                self.lose(error)
