"""What a setting shows less or more than the model as it is, on the same videos, and how surely."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from longlive_trt.quality.cases import CHANGED, KEPT, LONG, SHOWN, TIMELINE
from longlive_trt.quality.metrics.similarity import psnr_db
from longlive_trt.quality.summary import pairs_of

Line = Mapping[str, Any]
EVERYTHING = (*SHOWN, *CHANGED, *KEPT)
PARTS = {"adherence": SHOWN, "changed": CHANGED, "kept": KEPT, "together": EVERYTHING}
_CERTAIN = 2.0
"""Standard errors."""


@dataclass(frozen=True)
class Share:
    """In percent; the standard error of the difference is that of videos drawn at random."""

    own: float
    difference: float
    error: float
    attributes: int

    @property
    def most_lost(self) -> float:
        """Points that are certainly not exceeded."""
        return max(0.0, _CERTAIN * self.error - self.difference)

    @property
    def least_lost(self) -> float:
        """Points that are certainly lost."""
        return max(0.0, -self.difference - _CERTAIN * self.error)


def share(lines: Sequence[Line], spans: Sequence[str]) -> Share | None:
    """Of all attributes together; each video counts as one draw."""
    counts = np.array([_right(line, spans) for line in lines], np.float64).reshape(-1, 3)
    own, other, asked = counts.T
    if not asked.sum():
        return None
    gained = own - other
    mean = gained.sum() / asked.sum()
    n = len(counts)
    spread = np.square(gained - mean * asked).sum() * n / max(1, n - 1)
    percent = 100 / asked.sum()
    return Share(own.sum() * percent, 100 * mean, math.sqrt(spread) * percent, int(asked.sum()))


def _right(line: Line, spans: Sequence[str]) -> tuple[int, int, int]:
    own, other = (
        [shown[name] == value for stated, shown in pairs_of([line], side, spans)
         for name, value in stated.items()]
        for side in ("own", "other")
    )  # fmt: skip
    return sum(own), sum(other), len(own)


def likeness(lines: Sequence[Line], name: str) -> tuple[float, float] | None:
    """The mean over videos, and their spread: PSNR in dB, SSIM, flicker, sharpness."""
    values = [_value(line, name) for line in lines if line["kind"] != LONG]
    return (fmean(values), float(np.std(values))) if values else None


def _value(line: Line, name: str) -> float:
    if name == "psnr":
        return psnr_db(fmean(line["against"]["squared_error"]))
    if name in ("ssim", "ms_ssim"):
        return fmean(line["against"][name])
    return fmean(line["own"][name])


def shown_after(lines: Sequence[Line], blocks: int, side: str = "own") -> list[float]:
    """The share of changed attributes that each of the first blocks after a switch shows."""
    shares = []
    for n in range(blocks):
        pairs = pairs_of(lines, side, (f"after {n + 1}",))
        right = [shown[name] == value for stated, shown in pairs for name, value in stated.items()]
        shares.append(sum(right) / max(1, len(right)))
    return shares


def flicker_at_cut(lines: Sequence[Line], config: Any, side: str = "own") -> float:
    """How many times stronger the flicker is in a block after a switch than elsewhere."""
    at_cuts: list[float] = []
    elsewhere: list[float] = []
    for line in lines:
        if line["kind"] == TIMELINE:
            flicker = line[side]["flicker"]
            cuts = list(_cuts(len(flicker), config))
            at_cuts += [value for begin, end in cuts for value in flicker[begin:end]]
            inside = {n for begin, end in cuts for n in range(begin, end)}
            elsewhere += [value for n, value in enumerate(flicker) if n not in inside]
    return float(np.mean(at_cuts) / np.mean(elsewhere)) if at_cuts else 0.0


def _cuts(pictures: int, config: Any) -> Iterator[tuple[int, int]]:
    """Pictures of the block after each of a timeline's two switches."""
    block = config.rollout.frames_per_block
    blocks = (pictures + config.temporal_factor - 1) // (block * config.temporal_factor)
    for part in (1, 2):
        start = blocks // 3 * part * block
        yield config.video_frames(start), config.video_frames(start + block)
