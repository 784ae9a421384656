"""How far two collections of videos are apart: a Fréchet distance, and how much of it is chance.

Points are what :mod:`longlive_trt.quality.metrics.clips` makes of clips. Those of one video are
alike, so what a video counts for is one draw: chance is what the distance comes to where the two
videos of a pair are exchanged at random.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
"""[n, numbers]"""
Kind = Literal["full", "diagonal"]

LEAST_VIDEOS = 8
"""There are 128 ways to exchange the videos of 8 pairs."""
FULL_VIDEOS, FULL_POINTS = 16, 3
"""Videos, and points for each number, from which on covariances are estimated too."""
_SPLITS, _CERTAIN = 100, 0.95


@dataclass(frozen=True)
class Distance:
    value: float
    chance: float
    """Of 20 random exchanges 19 come to this or less."""
    kind: Kind
    points: int
    """Of one side."""


def distance_of(pairs: Sequence[tuple[Points, Points]]) -> Distance | None:
    """One pair for each video: its own points, and those of what it is compared with.

    None of too few videos. Of few ones only means and spreads are compared ("diagonal").
    """
    if len(pairs) < LEAST_VIDEOS:
        return None
    points, numbers = sum(len(own) for own, _ in pairs), pairs[0][0].shape[1]
    is_full = len(pairs) >= FULL_VIDEOS and points >= FULL_POINTS * numbers
    measure = frechet_distance if is_full else diagonal_distance
    return Distance(
        value=_between(pairs, measure),
        chance=_chance(pairs, measure),
        kind="full" if is_full else "diagonal",
        points=points,
    )


def frechet_distance(a: Points, b: Points) -> float:
    """Of two normal distributions with the means and covariances of points."""
    gap = a.mean(axis=0) - b.mean(axis=0)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = _root(first)
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    return max(0.0, float(gap @ gap + np.trace(first) + np.trace(second) - 2 * shared))


def diagonal_distance(a: Points, b: Points) -> float:
    """The same of distributions whose numbers have nothing to do with each other."""
    gap = a.mean(axis=0) - b.mean(axis=0)
    spread = a.std(axis=0, ddof=1) - b.std(axis=0, ddof=1)
    return float(gap @ gap + spread @ spread)


def _root(covariance: Points) -> Points:
    """The symmetric square root."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)


Measure = Callable[[Points, Points], float]


def _between(pairs: Sequence[tuple[Points, Points]], measure: Measure) -> float:
    return measure(*(np.concatenate(side) for side in zip(*pairs, strict=True)))


def _chance(pairs: Sequence[tuple[Points, Points]], measure: Measure) -> float:
    random = np.random.default_rng(0)
    drawn = [_between(_exchanged(pairs, random), measure) for _ in range(_SPLITS)]
    return float(np.quantile(drawn, _CERTAIN))


def _exchanged(
    pairs: Sequence[tuple[Points, Points]], random: np.random.Generator
) -> list[tuple[Points, Points]]:
    swapped = random.random(len(pairs)) < 0.5
    return [(b, a) if swap else (a, b) for (a, b), swap in zip(pairs, swapped, strict=True)]
