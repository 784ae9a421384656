"""What is measured on one video, and on two side by side, while their blocks are made."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from longlive_trt.quality.cases import Case
from longlive_trt.quality.metrics.adherence import judged
from longlive_trt.quality.metrics.clip import ClipScore
from longlive_trt.quality.metrics.course import Course
from longlive_trt.quality.metrics.frechet import features
from longlive_trt.quality.metrics.lpips import Lpips
from longlive_trt.quality.metrics.similarity import (
    Pixels,
    ms_ssim,
    require_alike,
    squared_error,
    ssim,
)

EVERY = 4
"""Pictures from one that is looked at closely to the next: SSIM, LPIPS, features."""
MOMENTS = 6
"""Pictures of a video that a report shows."""
_WIDEST = 320
_DIGITS = 5

Values = dict[str, Any]


@dataclass(frozen=True)
class Extras:
    """What is measured with weights of the user's own, and of the demo model."""

    lpips: Lpips | None = None
    clip: ClipScore | None = None
    judges: bool = False


def close_looks(first: int, count: int) -> slice:
    """Which of a block's pictures are looked at closely; ``first`` is its first one's number."""
    return slice(-first % EVERY, count, EVERY)


@dataclass
class Watch:
    """One video."""

    case: Case
    pictures: int
    """Of the whole video."""
    extras: Extras
    _course: Course = field(default_factory=Course)
    _points: list[list[float]] = field(default_factory=list)
    _clip: list[float] = field(default_factory=list)
    _spans: dict[int, list[Pixels]] = field(default_factory=dict)
    _shown: dict[int, Mapping[str, str]] = field(default_factory=dict)
    _stills: list[str] = field(default_factory=list)
    _done: int = 0

    def add(self, block: Pixels, prompt: str) -> None:
        first, self._done = self._done, self._done + len(block)
        self._course.add(block)
        close = block[close_looks(first, len(block))]
        self._points += [_rounded(row) for row in features(close)] if len(close) else []
        if self.extras.clip is not None:
            self._clip += _rounded(self.extras.clip(block[-1:], prompt))
        self._stills += [still(block[n - first]) for n in self.moments if first <= n < self._done]
        if self.extras.judges:
            self._judge(block, first)

    @property
    def moments(self) -> list[int]:
        return [int(n) for n in np.linspace(0, self.pictures - 1, MOMENTS).round()]

    def _judge(self, block: Pixels, first: int) -> None:
        """Pictures of a span are held until its end."""
        for number, span in enumerate(self.case.spans):
            begin, end = max(span.begin, first), min(span.end, first + len(block))
            if not span.shows or begin >= end:
                continue
            held = self._spans.setdefault(number, [])
            held.append(block[begin - first : end - first])
            if end == span.end:
                self._shown[number] = judged(np.concatenate(self._spans.pop(number)))

    def values(self) -> Values:
        shown = [
            {"span": span.name, "stated": dict(span.shows), "shown": dict(self._shown[number])}
            for number, span in enumerate(self.case.spans)
            if number in self._shown
        ]
        course = {name: _rounded(series) for name, series in self._course.values().items()}
        return {
            **course, "clip": self._clip, "features": self._points, "shown": shown,
            "stills": self._stills,
        }  # fmt: skip


@dataclass
class Comparison:
    """Two videos, picture by picture."""

    extras: Extras
    _series: dict[str, list[float]] = field(default_factory=dict)
    _done: int = 0

    def add(self, own: Pixels, other: Pixels) -> None:
        require_alike(own, other, "the two videos")
        first, self._done = self._done, self._done + len(own)
        self._extend("squared_error", squared_error(own, other))
        looks = close_looks(first, len(own))
        a, b = own[looks], other[looks]
        if len(a):
            self._extend("ssim", ssim(a, b))
            self._extend("ms_ssim", ms_ssim(a, b))
            if self.extras.lpips is not None:
                self._extend("lpips", self.extras.lpips(a, b))

    def _extend(self, name: str, numbers: Sequence[float] | Any) -> None:
        self._series.setdefault(name, []).extend(_rounded(numbers))

    def values(self) -> Values:
        return dict(self._series)


def still(picture: Pixels) -> str:
    """A small JPEG in base64."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture))
    if image.width > _WIDEST:
        image = image.resize((_WIDEST, image.height * _WIDEST // image.width))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode()


def _rounded(numbers: Any) -> list[float]:
    return [float(f"{number:.{_DIGITS}g}") for number in numbers]
