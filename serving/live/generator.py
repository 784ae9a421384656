"""The thread that makes blocks, for all sessions: what is due first is made first."""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from longlive_trt.serving.live.plan import Idle

logger = logging.getLogger(__name__)

_LONGEST_WAIT_S = 0.5


@dataclass(frozen=True)
class Work:
    due_s: float
    run: Callable[[], None]


class Worker(Protocol):
    """What has blocks to make: a session."""

    def next_work(self, now: float) -> Work | Idle:
        """What is to be done whatever else waits."""
        ...

    def slack(self, now: float) -> float:
        """Seconds until it has to be worked for."""
        ...

    def spare_work(self, now: float, spare_s: float) -> Work | None:
        """What may be done while nothing is due for so long."""
        ...

    def fail(self, error: BaseException) -> None: ...


class Generator:
    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._workers: list[Worker] = []
        self._condition = threading.Condition()
        self._is_closing = False
        self._is_woken = False
        self._thread = threading.Thread(target=self._run, name="generate", daemon=True)
        self._thread.start()

    def add(self, worker: Worker) -> None:
        with self._condition:
            self._workers.append(worker)
        self.wake()

    def remove(self, worker: Worker) -> None:
        with self._condition:
            if worker in self._workers:
                self._workers.remove(worker)

    def wake(self) -> None:
        """Something changed: look again."""
        with self._condition:
            self._is_woken = True
            self._condition.notify()

    def close(self) -> None:
        with self._condition:
            self._is_closing = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_closing:
            now = self._now()
            worker, work, until = self._choose(now)
            if work is None or worker is None:
                self._wait(until)
                continue
            try:
                work.run()
            except Exception as error:  # the session ends; the others go on
                logger.debug("a session failed", exc_info=error)
                worker.fail(error)

    def _choose(self, now: float) -> tuple[Worker | None, Work | None, float]:
        with self._condition:
            workers = list(self._workers)
            self._is_woken = False
        found: list[tuple[float, int]] = []
        works: list[Work] = []
        until = now + _LONGEST_WAIT_S
        for number, worker in enumerate(workers):
            answer = worker.next_work(now)
            if isinstance(answer, Work):
                found.append((answer.due_s, number))
                works.append(answer)
            elif answer.until is not None:
                until = min(until, answer.until)
        if found:
            first = min(range(len(found)), key=lambda index: found[index][0])
            return workers[found[first][1]], works[first], until
        for worker in workers:
            others = (other.slack(now) for other in workers if other is not worker)
            spare = worker.spare_work(now, min(others, default=math.inf))
            if spare is not None:
                return worker, spare, until
        return None, None, until

    def _wait(self, until: float) -> None:
        with self._condition:
            if not self._is_woken and not self._is_closing:
                self._condition.wait(max(0.0, until - self._now()))
