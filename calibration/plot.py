"""The sensitivity report as a picture."""

import io
import math
from collections.abc import Sequence

from longlive_trt.calibration.sensitivity import SensitivityReport

_WIDTH, _PANEL_HEIGHT, _MARGIN = 1200, 300, 70
_INK, _GRID, _BAR, _WORST, _LINE = "#202020", "#d8d8d8", "#5078a8", "#c04830", "#2c7a4b"


def sensitivity_png(report: SensitivityReport) -> bytes:
    """Two panels: the error of every layer alone, and that of every pass of all together."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (_WIDTH, 2 * _PANEL_HEIGHT + 4 * _MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    errors = [layer.latents_error for layer in report.layers]
    marked = [layer.layer in report.suggested_exclude for layer in report.layers]
    top = _ErrorPanel(draw, _MARGIN, errors)
    top.frame(f"{report.recipe}: error of the latents with one layer quantized (layers in order)")
    top.bars(errors, marked)
    growth = [item.flow_error for item in report.growth]
    bottom = _ErrorPanel(draw, _PANEL_HEIGHT + 3 * _MARGIN, growth)
    bottom.frame(f"{report.recipe}: error of the flow with all layers quantized (passes in order)")
    bottom.line(growth)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


class _ErrorPanel:
    """A logarithmic diagram of relative errors."""

    def __init__(self, draw: object, top: int, values: Sequence[float]) -> None:
        from PIL.ImageDraw import ImageDraw

        assert isinstance(draw, ImageDraw)
        self._draw, self._top = draw, top
        shown = [value for value in values if value > 0] or [1e-6]
        self._low = math.floor(math.log10(min(shown)))
        self._high = max(math.ceil(math.log10(max(shown))), self._low + 1)

    def frame(self, title: str) -> None:
        self._draw.text((_MARGIN, self._top - 30), title, fill=_INK, font_size=18)
        for exponent in range(self._low, self._high + 1):
            y = self._y(10.0**exponent)
            self._draw.line([(_MARGIN, y), (_WIDTH - _MARGIN, y)], fill=_GRID)
            self._draw.text((10, y - 8), f"1e{exponent}", fill=_INK, font_size=14)

    def bars(self, values: Sequence[float], marked: Sequence[bool]) -> None:
        step = (_WIDTH - 2 * _MARGIN) / len(values)
        for number, (value, mark) in enumerate(zip(values, marked, strict=True)):
            left = _MARGIN + number * step
            box = (left, self._y(value), left + max(1.0, step * 0.8), self._top + _PANEL_HEIGHT)
            self._draw.rectangle(box, fill=_WORST if mark else _BAR)

    def line(self, values: Sequence[float]) -> None:
        step = (_WIDTH - 2 * _MARGIN) / max(1, len(values) - 1)
        points = [(_MARGIN + number * step, self._y(value)) for number, value in enumerate(values)]
        self._draw.line(points, fill=_LINE, width=2)

    def _y(self, value: float) -> float:
        height = math.log10(max(value, 10.0**self._low)) - self._low
        return self._top + _PANEL_HEIGHT * (1 - height / (self._high - self._low))
