"""Types that every area shares."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

Report = Callable[[str, int, int], None]
"""(what is being done, how much is done, of how much)"""


def unheard(_what: str, _done: int, _total: int) -> None:
    """Progress that nobody asked for."""


class Tally:
    """The bytes of some work, reported as they are done; several threads may count at once."""

    def __init__(self, report: Report, total: int, done: int = 0) -> None:
        self._report, self._total, self._done = report, total, done
        self._what = ""
        self._counting = threading.Lock()

    def begin(self, what: str) -> None:
        self._what = what
        self.add(0)

    def add(self, size: int) -> None:
        with self._counting:
            # What has to be done again is no more than the whole.
            self._done = min(self._done + size, self._total)
            self._report(self._what, self._done, self._total)


class Closing(ABC):
    """Is closed at the end of its ``with`` block."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Given:
    """A tensor as a caller gives it, wherever it lies."""

    shape: tuple[int, ...]
    dtype: str
    is_contiguous: bool
