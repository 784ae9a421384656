"""The thread that makes blocks, for all sessions."""

import logging
import threading
import time
from collections.abc import Callable

from longlive_trt.serving.live.load import Load
from longlive_trt.serving.live.turns import Turn, Turns, Worker

logger = logging.getLogger(__name__)


class Generator:
    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._turns = now, Turns()
        self._condition = threading.Condition()
        self._is_closing = False
        self._is_woken = False
        self._thread = threading.Thread(target=self._run, name="generate", daemon=True)
        self._thread.start()

    def add(self, worker: Worker) -> None:
        self._turns.add(worker)
        self.wake()

    def remove(self, worker: Worker) -> None:
        self._turns.remove(worker)

    def load(self, asking: Worker) -> Load:
        return self._turns.load(asking, self._now())

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
            with self._condition:
                self._is_woken = False
            now = self._now()
            turn = self._turns.choose(now)
            if isinstance(turn, Turn):
                self._carry_out(turn, now)
            else:
                self._wait(turn)

    def _carry_out(self, turn: Turn, now: float) -> None:
        self._turns.begin(turn, now)
        try:
            turn.work.run()
        except Exception as error:  # the session ends; the others go on
            logger.debug("a session failed", exc_info=error)
            turn.worker.fail(error)
        finally:
            self._turns.end()

    def _wait(self, until: float) -> None:
        with self._condition:
            if not self._is_woken and not self._is_closing:
                self._condition.wait(max(0.0, until - self._now()))
