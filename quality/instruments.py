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
from longlive_trt.quality.metrics.clips import ClipCutter, ClipReader, clip_starts
from longlive_trt.quality.metrics.course import Course
from longlive_trt.quality.metrics.lpips import Lpips
from longlive_trt.quality.metrics.similarity import (
    Pixels,
    ms_ssim,
    require_alike,
    squared_error,
    ssim,
)
from longlive_trt.quality.metrics.world import world_clips

EVERY = 4
"""Pictures from one that is looked at closely to the next: SSIM, LPIPS."""
MOMENTS = 6
"""Pictures of a video that a report shows."""
_WIDEST = 320
_DIGITS = 5

Values = dict[str, Any]


@dataclass(frozen=True)
class Extras:
    """What is measured with weights of the user's own, of a VAE, and of the demo model."""

    lpips: Lpips | None = None
    clip: ClipScore | None = None
    clips: ClipReader | None = None
    judges: bool = False
    """Whether pictures are of the demo's world, and it is there to compare them with."""


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
    _clips: list[list[float]] = field(default_factory=list)
    _cutter: ClipCutter | None = None
    _clip: list[float] = field(default_factory=list)
    _spans: dict[int, list[Pixels]] = field(default_factory=dict)
    _shown: dict[int, Mapping[str, str]] = field(default_factory=dict)
    _stills: list[str] = field(default_factory=list)
    _done: int = 0

    def __post_init__(self) -> None:
        if self.extras.clips is not None:
            length = self.extras.clips.pictures
            starts = [start for scene in starts_of(self.case, length) for start in scene]
            self._cutter = ClipCutter(starts, length)

    def add(self, block: Pixels, prompt: str) -> None:
        first, self._done = self._done, self._done + len(block)
        self._course.add(block)
        if self._cutter is not None and self.extras.clips is not None:
            self._clips += [_rounded(self.extras.clips(clip)) for clip in self._cutter.add(block)]
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
            **course, "clip": self._clip, "clips": self._clips, "shown": shown,
            "stills": self._stills,
        }  # fmt: skip


def starts_of(case: Case, pictures: int) -> list[list[int]]:
    """Where clips begin in a case's video, by its scenes."""
    return clip_starts(((scene.begin, scene.end) for scene in case.scenes), pictures)


@dataclass
class World:
    """What the demo's world draws in a video's place."""

    reader: ClipReader
    fps: float

    def values(self, case: Case) -> Values:
        points: list[list[float]] = []
        by_scene = zip(case.scenes, starts_of(case, self.reader.pictures), strict=True)
        for number, (scene, starts) in enumerate(by_scene):
            seconds, seed = [start / self.fps for start in starts], case.seed * 10 + number
            clips = world_clips(scene.shows, seconds, self.reader.pictures, seed)
            points += [_rounded(self.reader(clip)) for clip in clips]
        return {"clips": points}


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
