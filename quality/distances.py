"""How far the bundle's clips are from the reference's, and both from the demo's world."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from longlive_trt.quality.figures import Figure, Metric
from longlive_trt.quality.metrics.frechet import (
    FULL_POINTS,
    FULL_VIDEOS,
    LEAST_VIDEOS,
    Distance,
    Points,
    distance_of,
)

Line = Mapping[str, Any]
OWN, OTHER, WORLD = "own", "other", "world"


def distances(lines: Sequence[Line]) -> Iterator[Metric]:
    """Those that the lines have points for; without a figure where there are too few videos."""
    if pairs := _pairs(lines, OWN, OTHER):
        yield _metric("frechet", "Fréchet distance", pairs)
    if pairs := _pairs(lines, OWN, WORLD):
        others = _pairs(lines, OTHER, WORLD)
        yield _metric("frechet_world", "Fréchet distance to the world", pairs, others)


Pairs = list[tuple[Points, Points]]


def _pairs(lines: Sequence[Line], side: str, against: str) -> Pairs:
    """Of every video that both have points of."""
    both = ((_points(line, side), _points(line, against)) for line in lines)
    return [(a, b) for a, b in both if len(a) and len(b)]


def _points(line: Line, side: str) -> Points:
    source = line.get(side) or {}
    return np.array(source.get("clips", []), np.float64)


def _metric(name: str, title: str, pairs: Pairs, others: Pairs | None = None) -> Metric:
    own, other = distance_of(pairs), distance_of(others or [])
    return Metric(
        name, title, "", "lower", _figure(own, pairs), _figure(other, pairs), _note(own, pairs)
    )


def _figure(distance: Distance | None, pairs: Pairs) -> Figure | None:
    if distance is None:
        return None
    return Figure(distance.value, None, len(pairs), distance.chance)


def _note(distance: Distance | None, pairs: Pairs) -> str:
    if distance is None:
        return f"too few videos: {len(pairs)}, and a distance needs {LEAST_VIDEOS}"
    if distance.kind == "full":
        return f"of {distance.points} clips"
    numbers = pairs[0][0].shape[1]
    return (
        f"of {distance.points} clips: means and spreads alone, as covariances need "
        f"{FULL_VIDEOS} videos and {FULL_POINTS * numbers} clips"
    )
