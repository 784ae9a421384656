"""Figures of an evaluation: means and spreads over its videos, and curves over time."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np

from longlive_trt.quality.cases import CHANGED, END_S, ENDS, KEPT, LONG, PROMPT, SHOWN
from longlive_trt.quality.distances import distances
from longlive_trt.quality.figures import Figure, Metric, spread
from longlive_trt.quality.instruments import EVERY
from longlive_trt.quality.metrics.adherence import share_shown, shares_by_attribute
from longlive_trt.quality.metrics.course import relative_change
from longlive_trt.quality.metrics.similarity import IDENTICAL_DB, psnr_db

Line = Mapping[str, Any]
Values = dict[str, Any]

_SKIPPED_S = 1.0
"""A video begins out of nothing."""


def metrics(lines: Sequence[Line], fps: float) -> list[Metric]:
    """Those that were measured."""
    short = [line for line in lines if line["kind"] != LONG]
    long = [line for line in lines if line["kind"] == LONG]
    every = [
        *_likeness(short or lines),
        *distances(lines),
        *_shown(lines),
        *(_course(name, title, short or lines) for name, title in _COURSE.items()),
        *(_drift(name, long, fps) for name in ("sharpness", "saturation", "motion")),
    ]
    return [metric for metric in every if metric.own is not None or metric.note]


_COURSE = {
    "flicker": "temporal flicker",
    "sharpness": "sharpness",
    "saturation": "saturation",
    "motion": "motion",
}


def _likeness(lines: Sequence[Line]) -> Iterable[Metric]:
    compared = [line["against"] for line in lines if line["against"]]
    for name, title, unit, better, of in (
        ("psnr", "PSNR", "dB", "higher", lambda c: psnr_db(mean(c["squared_error"]))),
        ("ssim", "SSIM", "", "higher", lambda c: mean(c["ssim"])),
        ("ms_ssim", "MS-SSIM", "", "higher", lambda c: mean(c["ms_ssim"])),
        ("lpips", "LPIPS", "", "lower", lambda c: mean(c["lpips"]) if "lpips" in c else None),
    ):
        yield Metric(name, title, unit, better, Figure.of(of(each) for each in compared))


def _shown(lines: Sequence[Line]) -> Iterable[Metric]:
    yield _both("clip", "CLIP score", "", "higher", lines, lambda v: _mean(v["clip"]))
    for name, title, spans in (
        ("adherence", "attributes shown", SHOWN),
        ("changed", "changed at a switch", CHANGED),
        ("kept", "kept at a switch", KEPT),
    ):
        own, other = (
            _shares(pairs_of(lines, side, spans), side_lines(lines, side, spans))
            for side in ("own", "other")
        )
        yield Metric(name, title, "%", "higher", own, other)


def _shares(
    pairs: list[tuple[Mapping[str, str], Mapping[str, str]]],
    by_video: Sequence[list[tuple[Mapping[str, str], Mapping[str, str]]]],
) -> Figure | None:
    """The share of all attributes; the spread is that of the videos."""
    share = share_shown(pairs)
    if share is None:
        return None
    each = [s for s in map(share_shown, by_video) if s is not None]
    return Figure(100 * share, spread([100 * s for s in each]), len(each))


def pairs_of(
    lines: Iterable[Line], side: str, spans: Sequence[str]
) -> list[tuple[Mapping[str, str], Mapping[str, str]]]:
    """(stated, shown) of every span of these names."""
    return [pair for each in side_lines(lines, side, spans) for pair in each]


def side_lines(
    lines: Iterable[Line], side: str, spans: Sequence[str]
) -> list[list[tuple[Mapping[str, str], Mapping[str, str]]]]:
    return [
        [(s["stated"], s["shown"]) for s in line[side]["shown"] if s["span"] in spans]
        for line in lines
        if line[side]
    ]


def attributes(lines: Sequence[Line], side: str) -> dict[str, float]:
    return shares_by_attribute(pairs_of(lines, side, (*SHOWN, *CHANGED, *KEPT)))


def _course(name: str, title: str, lines: Sequence[Line]) -> Metric:
    better = "lower" if name == "flicker" else ""
    return _both(name, title, "", better, lines, lambda values: _mean(values[name]))


def _drift(name: str, lines: Sequence[Line], fps: float) -> Metric:
    count, skipped = round(END_S * fps), round(_SKIPPED_S * fps)

    def change(values: Line) -> float | None:
        found = relative_change(values[name], count, skipped)
        return None if found is None else 100 * found

    return _both(f"drift_{name}", f"drift of {name}", "%", "near 0", lines, change)


def _both(
    name: str, title: str, unit: str, better: str, lines: Sequence[Line],
    of: Callable[[Line], float | None],
) -> Metric:  # fmt: skip
    own, other = (
        Figure.of(of(line[side]) for line in lines if line[side]) for side in ("own", "other")
    )
    return Metric(name, title, unit, better, own, other)


def _mean(numbers: Sequence[float]) -> float | None:
    return mean(numbers) if numbers else None


def curves(lines: Sequence[Line], fps: float) -> dict[str, dict[str, list[list[float]]]]:
    """By title, then by line: points (seconds, value), the mean of the videos of one prompt."""
    single = [line for line in lines if line["kind"] == PROMPT]
    long = [line for line in lines if line["kind"] == LONG]
    drawn: dict[str, dict[str, list[list[float]]]] = {}
    compared = [line["against"] for line in single if line["against"]]
    if compared:
        errors = _mean_series([each["squared_error"] for each in compared])
        drawn["PSNR (dB)"] = {"against the reference": _psnr_points(errors, 1 / fps)}
        alike = {"SSIM": "ssim", "MS-SSIM": "ms_ssim", "LPIPS": "lpips"}
        drawn["likeness"] = {
            title: _points(_mean_series([each[name] for each in compared]), EVERY / fps)
            for title, name in alike.items()
            if name in compared[0]
        }
    for name, title in _COURSE.items():
        drawn[title] = _two_lines(single, name, fps, seconds=0)
    for name in ("sharpness", "saturation", "motion"):
        if long:
            drawn[f"{name}, long videos"] = _two_lines(long, name, fps, seconds=2)
    return {title: by_line for title, by_line in drawn.items() if any(by_line.values())}


def _two_lines(
    lines: Sequence[Line], name: str, fps: float, *, seconds: float
) -> dict[str, list[list[float]]]:
    """The bundle's and the reference's; as means of so many seconds, or picture by picture."""
    found = {}
    for side, title in (("own", "bundle"), ("other", "reference")):
        series = _mean_series([line[side][name] for line in lines if line[side]])
        width = max(1, round(seconds * fps))
        means = [mean(series[n : n + width]) for n in range(0, len(series), width)]
        if means:
            found[title] = _points(means[2 if width == 1 else 0 :], width / fps)
    return found


def _mean_series(series: Sequence[Sequence[float]]) -> list[float]:
    """As long as the shortest."""
    if not series:
        return []
    shortest = min(map(len, series))
    return np.mean([each[:shortest] for each in series], axis=0).tolist()  # type: ignore[no-any-return]


def _points(values: Iterable[float], step_s: float) -> list[list[float]]:
    return [[round(n * step_s, 3), round(value, 4)] for n, value in enumerate(values)]


def _psnr_points(errors: Sequence[float], step_s: float) -> list[list[float]]:
    """Without pictures that are equal, if others are not: what those count for is far above."""
    points = _points(map(psnr_db, errors), step_s)
    return [point for point in points if point[1] < IDENTICAL_DB] or points


def case_values(line: Line) -> Values:
    """One video's own figures."""
    against, own = line["against"], line["own"]
    shown = pairs_of([line], "own", (*SHOWN, *CHANGED, *KEPT, *ENDS))
    values: Values = {key: line[key] for key in ("kind", "number", "seed", "texts")}
    values["shown"] = [{k: s[k] for k in ("span", "stated", "shown")} for s in own["shown"]]
    values["adherence"] = share_shown(shown)
    values["flicker"] = round(mean(own["flicker"]), 4)
    if against:
        values["psnr"] = round(psnr_db(mean(against["squared_error"])), 3)
        values["ssim"] = round(mean(against["ssim"]), 4)
        values["ms_ssim"] = round(mean(against["ms_ssim"]), 4)
    return values
