"""Lines over time and bars, as SVG that takes its colors from the page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[Sequence[float]]

_WIDTH, _HEIGHT = 440, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 14, 26
_LINES = 4
_ROW, _LABEL = 24, 96


@dataclass(frozen=True)
class _Scale:
    """From values to pixels."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.begin + share * (self.end - self.begin), 1)

    @property
    def ticks(self) -> list[float]:
        step = nice_step((self.high - self.low) / _LINES)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(n * step, 10) for n in range(first, last + 1)]


def nice_step(step: float) -> float:
    """The next larger one of 1, 2, 2.5 and 5 times a power of ten."""
    unit = 10 ** math.floor(math.log10(step)) if step > 0 else 1.0
    return next(unit * n for n in (1, 2, 2.5, 5, 10) if unit * n >= step * (1 - 1e-9))


def line_chart(title: str, series: Mapping[str, Points], x_unit: str = "s") -> str:
    """One line for each of the series; the axis of values need not begin at zero."""
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    across = _Scale(min(xs), max(max(xs), min(xs) + 1e-6), _LEFT, _WIDTH - _RIGHT)
    up = _Scale(*_with_room(min(ys), max(ys)), _HEIGHT - _BOTTOM, _TOP)
    lines = [
        f'<polyline class="line c{number % 6}" points="{_path(points, across, up)}"/>'
        for number, points in enumerate(series.values())
    ]
    body = _grid(across, up, x_unit) + "".join(lines)
    return _figure(title, list(series), body, _HEIGHT)


def bar_chart(title: str, rows: Mapping[str, Sequence[float]], names: Sequence[str]) -> str:
    """Shares of one, for each row as many bars as there are names."""
    thick = 8 if len(names) > 1 else 12
    height = _TOP + len(rows) * _ROW + 8
    scale = _Scale(0, 1, _LABEL, _WIDTH - 76)
    parts = []
    for number, (row, values) in enumerate(rows.items()):
        top = _TOP + number * _ROW
        parts.append(
            f'<text class="tick" x="{_LABEL - 8}" y="{top + 13}" text-anchor="end">'
            f"{escape(row)}</text>"
        )
        for which, value in enumerate(values):
            y = top + 2 + which * (thick + 1)
            parts.append(
                f'<rect class="track" x="{_LABEL}" y="{y}" width="{scale(1) - _LABEL}" '
                f'height="{thick}" rx="2"/><rect class="bar c{which % 6}" x="{_LABEL}" y="{y}" '
                f'width="{max(0.0, scale(value) - _LABEL):.1f}" height="{thick}" rx="2"/>'
            )
        shown = " / ".join(f"{100 * value:.0f}" for value in values)
        parts.append(f'<text class="tick" x="{_WIDTH - 68}" y="{top + 13}">{shown} %</text>')
    return _figure(title, names, "".join(parts), height)


def _path(points: Points, across: _Scale, up: _Scale) -> str:
    return " ".join(f"{across(x)},{up(y)}" for x, y in points)


def _with_room(low: float, high: float) -> tuple[float, float]:
    room = (high - low) * 0.08 or max(abs(high) * 0.05, 0.01)
    return low - room, high + room


def _grid(across: _Scale, up: _Scale, x_unit: str) -> str:
    parts = []
    for value in up.ticks:
        y = up(value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 3.5}" text-anchor="end">{value:g}</text>'
        )
    for value in across.ticks:
        x, unit = across(value), f" {x_unit}" if x_unit and value == across.ticks[-1] else ""
        parts.append(
            f'<text class="tick" x="{x}" y="{_HEIGHT - 8}" text-anchor="middle">{value:g}{unit}'
            f"</text>"
        )
    return "".join(parts)


def _figure(title: str, names: Sequence[str], body: str, height: int) -> str:
    keys = "".join(
        f'<span class="key"><i class="c{number % 6}"></i>{escape(name)}</span>'
        for number, name in enumerate(names)
    )
    return (
        f'<figure><figcaption>{escape(title)}<span class="keys">{keys}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">{body}'
        "</svg></figure>"
    )
