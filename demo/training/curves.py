"""Curves of a training as a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

_SIZE, _MARGIN = (860, 460), 64
_INK, _GRID = (40, 44, 52), (222, 224, 230)
_COLORS = ((203, 62, 62), (45, 104, 196), (46, 140, 76), (146, 84, 180), (214, 138, 30))

Points = Sequence[tuple[float, float]]


def draw_curves(
    path: Path, title: str, curves: Mapping[str, Points], across: str, *, logarithmic: bool = False
) -> None:
    image = Image.new("RGB", _SIZE, "white")
    draw = ImageDraw.Draw(image)
    scale = _logarithm if logarithmic else float
    points = [(x, scale(y)) for curve in curves.values() for x, y in curve]
    if not points:
        return
    left, right = _ends([x for x, _ in points])
    low, high = _ends([y for _, y in points])

    def at(x: float, y: float) -> tuple[float, float]:
        across_px = _MARGIN + (x - left) / (right - left) * (_SIZE[0] - 2 * _MARGIN)
        return across_px, _SIZE[1] - _MARGIN - (y - low) / (high - low) * (_SIZE[1] - 2 * _MARGIN)

    for i in range(6):
        x, y = left + (right - left) * i / 5, low + (high - low) * i / 5
        draw.line([at(left, y), at(right, y)], fill=_GRID)
        label = f"{10**y if logarithmic else y:.3g}"
        draw.text((8, at(left, y)[1] - 6), label, fill=_INK)
        draw.text((at(x, low)[0] - 12, _SIZE[1] - _MARGIN + 8), f"{x:.4g}", fill=_INK)
    draw.text((_MARGIN, 12), title, fill=_INK)
    draw.text((_SIZE[0] // 2 - 20, _SIZE[1] - 24), across, fill=_INK)
    for i, (name, curve) in enumerate(curves.items()):
        color = _COLORS[i % len(_COLORS)]
        draw.line([at(x, scale(y)) for x, y in curve], fill=color, width=2)
        draw.text((_MARGIN + 150 * i, 30), name, fill=color)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _ends(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _logarithm(value: float) -> float:
    return math.log10(max(value, 1e-9))
