"""How often one caller may do something."""

import time
from collections.abc import Callable


class Rate:
    """A bucket that holds two seconds' worth."""

    def __init__(self, per_second: float, now: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._now = per_second, now
        self._most = max(1.0, 2 * per_second)
        self._left, self._filled_s = self._most, now()

    def take(self) -> bool:
        now = self._now()
        self._left = min(self._most, self._left + (now - self._filled_s) * self._per_second)
        self._filled_s = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
