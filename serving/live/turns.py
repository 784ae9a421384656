"""Whose block is made next: what is due first, of all sessions. Knows no thread."""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from longlive_trt.serving.live.load import Claim, Load
from longlive_trt.serving.live.plan import Idle

_LONGEST_WAIT_S = 0.5


@dataclass(frozen=True)
class Work:
    due_s: float
    run: Callable[[], None]
    takes_s: float = 0.0
    """About."""


class Worker(Protocol):
    """What has blocks to make: a session."""

    def next_work(self, now: float) -> Work | Idle:
        """What is to be done whatever else waits."""
        ...

    def claim(self, now: float) -> Claim | None:
        """What others have to reckon with."""
        ...

    def slack(self, now: float) -> float:
        """Seconds until it has to be worked for."""
        ...

    def spare_work(self, now: float, spare_s: float) -> Work | None:
        """What may be done while nothing is due for so long."""
        ...

    def fail(self, error: BaseException) -> None: ...


@dataclass(frozen=True)
class Turn:
    worker: Worker
    work: Work


class Turns:
    """Safe for several threads; one of them does the work, a turn at a time."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []
        self._lock = threading.Lock()
        self._free_s = -math.inf
        """When what runs will be done."""

    def add(self, worker: Worker) -> None:
        with self._lock:
            self._workers.append(worker)

    def remove(self, worker: Worker) -> None:
        with self._lock:
            if worker in self._workers:
                self._workers.remove(worker)

    def load(self, asking: Worker, now: float) -> Load:
        """What stands between a worker's next wish and its being carried out."""
        others = [worker for worker in self._all() if worker is not asking]
        claims = (worker.claim(now) for worker in others)
        return Load(max(now, self._free_s), tuple(claim for claim in claims if claim is not None))

    def choose(self, now: float) -> Turn | float:
        """What is to be done now; or until when there is nothing."""
        workers = self._all()
        answers = [(worker, worker.next_work(now)) for worker in workers]
        turns = [Turn(worker, answer) for worker, answer in answers if isinstance(answer, Work)]
        if turns:
            return min(turns, key=lambda turn: turn.work.due_s)
        waits = (idle.until for _, idle in answers if isinstance(idle, Idle))
        until = min([now + _LONGEST_WAIT_S, *(wait for wait in waits if wait is not None)])
        return self._spare(workers, now) or until

    def begin(self, turn: Turn, now: float) -> None:
        """Of workers that are late alike, the one that was not served for longest comes first."""
        self._free_s = now + turn.work.takes_s
        with self._lock:
            if turn.worker in self._workers:
                self._workers.remove(turn.worker)
                self._workers.append(turn.worker)

    def end(self) -> None:
        self._free_s = -math.inf

    def _spare(self, workers: list[Worker], now: float) -> Turn | None:
        for worker in workers:
            others = (other.slack(now) for other in workers if other is not worker)
            spare = worker.spare_work(now, min(others, default=math.inf))
            if spare is not None:
                return Turn(worker, spare)
        return None

    def _all(self) -> list[Worker]:
        with self._lock:
            return list(self._workers)
