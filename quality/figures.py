"""Figures of an evaluation as values."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, pstdev
from typing import Any

Values = dict[str, Any]
_DIGITS = 4


def spread(numbers: Sequence[float]) -> float | None:
    """One number has none."""
    return pstdev(numbers) if len(numbers) > 1 else None


@dataclass(frozen=True)
class Figure:
    """Of the videos, each counted once; ``spread`` is their standard deviation."""

    mean: float
    spread: float | None
    """None of one video, and where there is one number of all videos together."""
    count: int
    chance: float | None = None
    """What chance alone comes to, of a distance."""

    @classmethod
    def of(cls, numbers: Iterable[float | None]) -> "Figure | None":
        known = [number for number in numbers if number is not None and math.isfinite(number)]
        return cls(mean(known), spread(known), len(known)) if known else None

    def values(self) -> Values:
        return {name: None if v is None else round(v, _DIGITS) for name, v in asdict(self).items()}


@dataclass(frozen=True)
class Metric:
    """``own`` is the bundle's; ``other`` the reference's, where it has one of its own."""

    name: str
    title: str
    unit: str
    better: str
    """``higher``, ``lower``, or ``""`` where the reference's is as good as any."""
    own: Figure | None
    other: Figure | None = None
    note: str = ""
    """What it was made of, or why there is no figure."""

    def values(self) -> Values:
        return {
            **asdict(self),
            "own": self.own and self.own.values(),
            "other": self.other and self.other.values(),
        }
