"""The strip of land next to the viewer, with a road or rails where the traveler has wheels."""

import torch
from torch import Tensor

from longlive_trt.demo.scenes import CAR, TRAIN
from longlive_trt.demo.world.canvas import Canvas, within
from longlive_trt.demo.world.light import Color, column
from longlive_trt.demo.world.shapes import box, ellipse

_TOP = 0.825


@within(0.8, 1.0)
def ground(c: Canvas, near: Color, low: Color, path: Color) -> None:
    base = torch.lerp(c.color(*near), c.color(*low), ((c.y - _TOP) / 0.17).clamp(0, 1))
    c.paint(c.rows(_TOP - c.y), c.lit(base, 0.02, 0.85))
    u, r = c.cells(1.0, 0.23, 83.0)
    speck = box(
        u - (r(1) - 0.5) * 0.1, c.y - 0.925 - 0.06 * r(2), 0.020 + 0.02 * r(3), 0.006, 0.005
    )
    c.paint(c.cover(speck) * 0.6, c.lit(base * 0.82, 0.0, 0.6))
    if {CAR, TRAIN} & (c.kinds.travelers[0] | c.kinds.travelers[1]):
        _path(c, path, _share(c, CAR), _share(c, TRAIN))


def _share(c: Canvas, traveler: int) -> Tensor:
    first, second = (
        column((s.traveler == traveler).float()) for s in (c.moments.first, c.moments.second)
    )
    return torch.lerp(first, second, column(c.moments.turn))


def _path(c: Canvas, path: Color, road: Tensor, rails: Tensor) -> None:
    gravel = torch.lerp(c.color(*path), c.color(0.46, 0.42, 0.40), rails / (road + rails + 1e-6))
    c.paint(c.cover((c.y - 0.870).abs() - 0.030) * (road + rails), c.lit(gravel, 0.0, 0.25))
    u, _ = c.cells(1.0, 0.34, 85.0)
    line = c.cover(box(u, c.y - 0.878, 0.070, 0.0065, 0.004))
    c.paint(line * road, c.lit((0.98, 0.92, 0.72), 0))
    u, _ = c.cells(1.0, 0.095, 87.0)
    c.paint(c.cover(box(u, c.y - 0.874, 0.022, 0.012, 0.002)) * rails, c.lit((0.33, 0.23, 0.18), 0))
    steel = c.cover((c.y - 0.862).abs() - 0.0055)
    c.paint(steel * rails, c.lit((0.74, 0.76, 0.80), 0))


@within(0.9, 1.0)
def stones(c: Canvas, share: float, tint: Color) -> None:
    u, r = c.cells(share, 0.62, 89.0)
    u = u - (r(1) - 0.5) * 0.3
    stone = ellipse(u, c.y - 1.0, 0.07 + 0.05 * r(2), 0.035 + 0.03 * r(3))
    c.paint(c.cover(stone) * (r(4) < 0.7), c.lit(c.color(*tint) * 0.8, 0.0, 0.7))
