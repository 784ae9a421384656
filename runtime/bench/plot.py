"""The series of a measurement as a picture: every block, every interval, every prompt switch."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longlive_trt.runtime.bench.report import Figures

_WIDTH, _PANEL_HEIGHT, _LEFT, _RIGHT, _ABOVE, _BELOW = 1200, 260, 90, 30, 70, 40
_INK, _GRID = "#202020", "#d8d8d8"
_COLORS = ("#3b6ea8", "#c04830", "#2c7a4b", "#8a5fb0", "#b8860b", "#5a5a5a")
_GRID_LINES = 4


@dataclass(frozen=True)
class _Panel:
    title: str
    series: Mapping[str, Sequence[float]]

    @property
    def longest(self) -> int:
        return max(map(len, self.series.values()))

    @property
    def highest(self) -> float:
        return max(value for values in self.series.values() for value in values)


def latency_png(shown: Sequence[Figures], title: str) -> bytes:
    """One panel below the other; all times in milliseconds, from zero."""
    from PIL import Image, ImageDraw

    panels = [panel for each in shown for panel in _panels(each)]
    height = _ABOVE + len(panels) * (_PANEL_HEIGHT + _ABOVE + _BELOW)
    picture = Image.new("RGB", (_WIDTH, height), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((_LEFT, 20), title, fill=_INK, font_size=20)
    for number, panel in enumerate(panels):
        _draw(draw, panel, _ABOVE + number * (_PANEL_HEIGHT + _ABOVE + _BELOW) + _ABOVE)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _panels(shown: Figures) -> list[_Panel]:
    name = shown.bundle.folder.name
    named = (
        ("blocks, one after the other", shown.blocks),
        ("switches to prompts that are new", shown.switches),
        ("switches to prompts that were announced", shown.announced_switches),
        ("intervals with everything overlapped", {"interval": shown.times.intervals_ms}),
    )
    panels = (_Panel(f"{name}: {what} (ms)", _told(series)) for what, series in named)
    return [panel for panel in panels if panel.series]


def _told(series: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    return {name: values for name, values in series.items() if len(values)}


def _draw(draw: Any, panel: _Panel, top: int) -> None:
    scale = _round_above(panel.highest)
    bottom = top + _PANEL_HEIGHT
    draw.text((_LEFT, top - 52), panel.title, fill=_INK, font_size=17)
    for line in range(_GRID_LINES + 1):
        y = bottom - _PANEL_HEIGHT * line / _GRID_LINES
        draw.line([(_LEFT, y), (_WIDTH - _RIGHT, y)], fill=_GRID)
        draw.text((10, y - 8), f"{scale * line / _GRID_LINES:.4g}", fill=_INK, font_size=14)
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, panel.longest - 1)
    legend = _LEFT
    for number, (name, values) in enumerate(panel.series.items()):
        color = _COLORS[number % len(_COLORS)]
        points = [
            (_LEFT + index * step, bottom - _PANEL_HEIGHT * max(value, 0) / scale)
            for index, value in enumerate(values)
        ]
        _draw_series(draw, points, color)
        draw.text((legend, top - 26), name, fill=color, font_size=15)
        legend += int(draw.textlength(name, font_size=15)) + 24
    draw.text((_LEFT, bottom + 6), "0", fill=_INK, font_size=14)
    draw.text((_WIDTH - _RIGHT - 30, bottom + 6), str(panel.longest - 1), fill=_INK, font_size=14)


def _round_above(value: float) -> float:
    """The next larger number that divides an axis into short quarters."""
    unit = 10 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(
        unit * step for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if unit * step >= value
    )


def _draw_series(draw: Any, points: Sequence[tuple[float, float]], color: str) -> None:
    draw.line(points, fill=color, width=2)
    for x, y in points:
        draw.ellipse([(x - 2, y - 2), (x + 2, y + 2)], fill=color)
