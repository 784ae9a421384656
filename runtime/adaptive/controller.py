"""Holds the time of a block under a target, by going down and up a ladder of settings.

Pure decisions: times of blocks come in, the number of a rung comes out. Rung 0 is the best one.
"""

from collections import deque
from collections.abc import Sequence
from statistics import median

RECENT = 16
"""Blocks by which lateness is judged."""
LATE = 2
"""So many late ones among them are too many; one alone may be a hiccup."""
PATIENCE, LONGEST_PATIENCE = 24, 384
"""Blocks in time before a better rung is tried; twice as many after each try that failed."""
MARGIN = 0.9
"""Of the target: what a better rung must be expected to take at most."""
LEFT_OUT = 2
"""Blocks after a change that were begun before it."""
_COMPARED = 8


class Controller:
    def __init__(self, target_ms: float, costs: Sequence[float]) -> None:
        """``costs``: what each rung is expected to take, by any measure; falling."""
        self.target_ms, self._costs = target_ms, costs
        self.rung = 0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._in_time = 0
        self._patience = PATIENCE
        self._to_leave_out = 0
        self._before_ms: float | None = None
        self._ratios: dict[int, float] = {}
        """By rung: how much longer the one above it took, where that was seen."""
        self._has_climbed = False

    def note(self, block_ms: float) -> None:
        """One more block took so long."""
        if self._to_leave_out:
            self._to_leave_out -= 1
            return
        self._recent.append(block_ms)
        self._in_time = self._in_time + 1 if block_ms <= self.target_ms else 0
        if self._before_ms is not None and len(self._recent) == _COMPARED:
            self._learn(self._before_ms)
        if self._has_climbed and self._in_time >= self._patience:
            # What was tried holds.
            self._patience, self._has_climbed = PATIENCE, False

    def choose(self) -> int:
        """The rung that the next blocks should be made on."""
        late = sum(block_ms > self.target_ms for block_ms in self._recent)
        if late >= LATE:
            return self._lower()
        is_patient = self._in_time >= self._patience and self.rung > 0
        return self.rung - 1 if is_patient and self._would_fit() else self.rung

    def moved(self, rung: int) -> None:
        """The next blocks are made on another rung."""
        went_down = rung > self.rung
        if went_down and self._has_climbed:
            self._patience = min(LONGEST_PATIENCE, 2 * self._patience)
        self._has_climbed = not went_down
        is_step = went_down and rung == self.rung + 1
        self._before_ms = self._typical(late=True) if is_step else None
        self.rung, self._in_time, self._to_leave_out = rung, 0, LEFT_OUT
        self._recent.clear()

    def interrupted(self) -> None:
        """Something else took time, a change of prompt: the next blocks say nothing."""
        self._to_leave_out = max(self._to_leave_out, LEFT_OUT)

    def _lower(self) -> int:
        """The first one that is expected to be in time; the last one if none is."""
        typical, last = self._typical(late=True), len(self._costs) - 1
        for rung in range(self.rung + 1, last):
            if typical * self._costs[rung] / self._costs[self.rung] <= self.target_ms:
                return rung
        return last

    def _would_fit(self) -> bool:
        expected = self._costs[self.rung - 1] / self._costs[self.rung]
        ratio = min(expected, self._ratios.get(self.rung, expected))
        return max(self._recent) * ratio <= MARGIN * self.target_ms

    def _typical(self, *, late: bool) -> float:
        times = [ms for ms in self._recent if not late or ms > self.target_ms]
        return median(times or [self.target_ms])

    def _learn(self, before_ms: float) -> None:
        self._ratios[self.rung] = max(1.0, before_ms / median(self._recent))
        self._before_ms = None
