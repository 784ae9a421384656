"""What one video does in the course of time, without another to compare it with."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from longlive_trt.quality.metrics.similarity import Pixels

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_CELL = 8

_Values = npt.NDArray[np.float32]


@dataclass
class Course:
    """One number a picture, in gray levels of 255; pictures come block by block."""

    brightness: list[float] = field(default_factory=list)
    saturation: list[float] = field(default_factory=list)
    """How far a pixel's strongest and weakest channel are apart."""
    sharpness: list[float] = field(default_factory=list)
    """How much neighboring pixels differ."""
    motion: list[float] = field(default_factory=list)
    """How much a picture differs from the one before."""
    flicker: list[float] = field(default_factory=list)
    """How much cells of 8 x 8 pixels are brighter or darker than just before and after.

    Steady motion changes a cell steadily; what jumps to and fro is seen as flicker."""
    _last: _Values | None = field(default=None, repr=False)
    _cells: list[_Values] = field(default_factory=list, repr=False)

    def add(self, pictures: Pixels) -> None:
        spread = pictures.max(axis=3).astype(np.float32) - pictures.min(axis=3)
        self.saturation += spread.mean(axis=(1, 2)).tolist()
        for luma in pictures @ _LUMA:
            self._add_luma(luma)

    def _add_luma(self, luma: _Values) -> None:
        self.brightness.append(float(luma.mean()))
        edges = np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean()
        self.sharpness.append(float(edges))
        self.motion.append(0.0 if self._last is None else float(np.abs(luma - self._last).mean()))
        self._last = luma
        self._cells = [*self._cells[-2:], _cells(luma)]
        self.flicker.append(_jump(self._cells))

    def values(self) -> dict[str, list[float]]:
        return {name: getattr(self, name) for name in MEASURES}


MEASURES = ("brightness", "saturation", "sharpness", "motion", "flicker")


def _cells(luma: _Values) -> _Values:
    size = min(_CELL, *luma.shape)
    rows, columns = luma.shape[0] // size, luma.shape[1] // size
    whole = luma[: rows * size, : columns * size]
    return np.asarray(whole.reshape(rows, size, columns, size).mean(axis=(1, 3)))


def _jump(cells: Sequence[_Values]) -> float:
    if len(cells) < 3:
        return 0.0
    before, middle, after = cells
    return float(np.abs(before - 2 * middle + after).mean() / 2)


def relative_change(values: Sequence[float], count: int, skipped: int) -> float | None:
    """The mean of the last ``count`` against that of the first, after some that are left out."""
    first, last = values[skipped : skipped + count], values[-count:]
    if len(values) < skipped + 2 * count or not (base := float(np.mean(first))):
        return None
    return float(np.mean(last)) / base - 1
