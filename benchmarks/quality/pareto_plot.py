"""Speed against quality as a picture: a point for each preset, and what nothing beats is joined."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from itertools import product

from benchmarks.quality.svg import picture
from longlive_trt.quality.report.charts import nice_step

_WIDTH, _HEIGHT = 860, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 30, 54, 50
_LINES, _LETTER, _LINE = 5, 6.7, 15


@dataclass(frozen=True)
class Point:
    frames_per_s: float
    shown: float
    """In percent."""
    error: float = 0.0
    """Of ``shown``, to either side."""


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def drawn(points: Mapping[str, Point]) -> str:
    return picture(_WIDTH, _HEIGHT, "".join(_Plot(points).parts()))


def front(points: Mapping[str, Point]) -> list[str]:
    """Those that nothing beats in both."""
    return [name for name, point in points.items() if not _is_beaten(point, points.values())]


def _is_beaten(point: Point, others: Iterable[Point]) -> bool:
    own = (point.frames_per_s, point.shown)
    every = ((other.frames_per_s, other.shown) for other in others)
    return any(a >= own[0] and b >= own[1] and (a, b) != own for a, b in every)


class _Plot:
    def __init__(self, points: Mapping[str, Point]) -> None:
        self._points = points
        low = min(point.shown - point.error for point in points.values())
        high = max(point.shown + point.error for point in points.values())
        self._up_step = nice_step(max(high - low, 0.5) / _LINES)
        self._low = self._up_step * int(low / self._up_step - 0.3)
        self._high = self._up_step * (int(high / self._up_step) + 1)
        fastest = max(point.frames_per_s for point in points.values())
        self._across_step = nice_step(fastest / _LINES)
        self._most = fastest * 1.12

    def _x(self, frames_per_s: float) -> float:
        return _LEFT + round((_WIDTH - _LEFT - _RIGHT) * frames_per_s / self._most, 1)

    def _y(self, shown: float) -> float:
        share = (shown - self._low) / (self._high - self._low)
        return _HEIGHT - _BOTTOM - round((_HEIGHT - _TOP - _BOTTOM) * share, 1)

    def parts(self) -> Iterator[str]:
        yield from self._axes()
        best = sorted((self._points[n] for n in front(self._points)), key=lambda p: p.frames_per_s)
        path = " ".join(f"{self._x(p.frames_per_s)},{self._y(p.shown)}" for p in best)
        yield f'<polyline class="line blue dashed" points="{path}"/>'
        yield from self._marks()
        yield from self._names()

    def _axes(self) -> Iterator[str]:
        yield f'<text class="title" x="{_LEFT}" y="24">Attributes shown, % - frames/s</text>'
        lines = round((self._high - self._low) / self._up_step)
        for value in (self._low + n * self._up_step for n in range(lines + 1)):
            y = self._y(value)
            yield (
                f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
                f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{value:g}</text>'
            )
        for number in range(int(self._most / self._across_step) + 1):
            x, unit = self._x(number * self._across_step), "" if number else " frames/s"
            yield (
                f'<text x="{x}" y="{_HEIGHT - 22}" text-anchor="{"middle" if number else "start"}">'
                f"{number * self._across_step:g}{unit}</text>"
            )

    def _marks(self) -> Iterator[str]:
        best = set(front(self._points))
        for name, point in self._points.items():
            x, y = self._x(point.frames_per_s), self._y(point.shown)
            color = "blue" if name in best else "gray"
            ends = (self._y(point.shown - point.error), self._y(point.shown + point.error))
            yield f'<line class="{color}" x1="{x}" x2="{x}" y1="{ends[0]}" y2="{ends[1]}"/>'
            yield f'<circle class="dot {color}" cx="{x}" cy="{y}" r="4.5"/>'

    def _names(self) -> Iterator[str]:
        """Each beside its point, where nothing else is written; points at one place share one."""
        by_place: dict[tuple[int, int], list[str]] = {}
        for name, point in self._points.items():
            place = (round(self._x(point.frames_per_s)), round(self._y(point.shown)))
            by_place.setdefault(place, []).append(name)
        taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in by_place]
        for (x, y), names in sorted(by_place.items()):
            text = ", ".join(names)
            *others, last = _places(x, y, _LETTER * len(text))
            box = next((b for b in others if not _hits(b, taken)), last)
            taken.append(box)
            yield f'<text class="name" x="{box[0]:.1f}" y="{box[3] - 4:.1f}">{escape(text)}</text>'


def _places(x: float, y: float, width: float) -> Iterator[Box]:
    """Around a point, nearest first; the last one is taken whatever is there."""
    for far, right, down in product(range(6), (True, False), (False, True)):
        left = x + 8 if right else x - 8 - width
        shift = (6 + far * _LINE) * (1 if down else -1)
        middle = y + shift
        if left >= _LEFT and left + width <= _WIDTH and _TOP <= middle <= _HEIGHT - _BOTTOM:
            yield left, middle - _LINE / 2, left + width, middle + _LINE / 2
    yield x, y - _LINE, x + width, y


def _hits(box: Box, taken: Iterable[Box]) -> bool:
    return any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
        for other in taken
    )
