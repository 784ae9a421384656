"""Types that every area shares."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

Report = Callable[[str, int, int], None]
"""(what is being done, how much is done, of how much)"""


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
