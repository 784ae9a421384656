"""The city: towers with lit windows, houses, street lamps."""

import torch

from longlive_trt.demo.world import travelers
from longlive_trt.demo.world.canvas import Canvas, within
from longlive_trt.demo.world.ground import ground
from longlive_trt.demo.world.light import Color
from longlive_trt.demo.world.plants import tufts
from longlive_trt.demo.world.shapes import box, hashed, nearest, triangle


def paint(c: Canvas) -> None:
    _skyline(c)
    _towers(c, 0.13, 0.25, 0.24, 0.40, 63.0, (0.36, 0.40, 0.54), 0.28)
    _houses(c)
    travelers.fly(c)
    ground(c, (0.66, 0.64, 0.64), (0.52, 0.51, 0.53), (0.33, 0.34, 0.38))
    _lamps(c)
    travelers.roll(c)
    tufts(c, 1.5, 0.34, (0.20, 0.28, 0.24))


@within(0.25, 1.0)
def _skyline(c: Canvas) -> None:
    u, r = c.cells(0.05, 0.13, 61.0)
    top = 0.80 - 0.30 - 0.22 * r(1) * 0.9
    half = 0.13 * (0.40 + 0.10 * r(2))
    wall = c.color(0.50, 0.56, 0.68) * (0.84 + 0.32 * r(3))
    c.paint(c.cover(torch.maximum(u.abs() - half, top - c.y)), c.lit(wall, 0.55, 0.15))


@within(0.15, 1.0)
def _towers(
    c: Canvas, share: float, period: float, low: float, high: float, salt: float,
    tint: Color, far: float,
) -> None:  # fmt: skip
    u, r = c.cells(share, period, salt)
    top = 0.80 - low - high * r(1) * 0.9
    half = period * (0.40 + 0.10 * r(2))
    mask = c.cover(torch.maximum(u.abs() - half, top - c.y))
    wall = c.color(*tint) * (0.84 + 0.32 * r(3))
    c.paint(mask, c.lit(wall, far, 0.15))
    c.paint(mask * c.cover(u + half * 0.55) * 0.35, c.lit(wall * 0.75, far))
    wide, tall = 0.052, 0.062
    column, row = (u / wide).floor(), ((c.y - top) / tall).floor()
    window = torch.maximum(
        (u - (column + 0.5) * wide).abs() - 0.0145, (c.y - top - (row + 0.55) * tall).abs() - 0.0180
    )
    window = torch.maximum(window, (column + 0.5).abs() * wide + 0.014 - half)
    lit = (hashed(column * 3.1 + row * 17.7 + r(4) * 50, salt) < 0.62).float() * c.light.lamp
    glass = torch.lerp(c.lit((0.62, 0.76, 0.90), far * 0.8), c.color(1.0, 0.82, 0.42), lit)
    c.paint(c.cover(window) * mask * (c.y > top + 0.015) * 0.9, glass)


@within(0.35, 1.0)
def _houses(c: Canvas) -> None:
    period = 0.42
    u, r = c.cells(0.42, period, 65.0)
    half, top = period * (0.38 + 0.08 * r(1)), 0.64 - 0.10 * r(2)
    v = c.y - top
    wall = torch.cat([0.72 + 0.26 * r(3), 0.52 + 0.32 * r(4), 0.44 + 0.30 * r(5)], 1)
    mask = c.cover(torch.maximum(u.abs() - half, -v))
    c.paint(mask, c.lit(wall, 0.10))
    tiles = torch.cat([0.58 + 0.2 * r(7), 0.28 + 0 * r(7), 0.24 + 0.1 * r(8)], 1)
    roof = c.cover(triangle(u, v, half * 1.16, 0.085 + 0.05 * r(6)))
    c.paint(roof, c.lit(tiles, 0.10, 0.9))
    wide, tall = 0.096, 0.086
    column, row = (u / wide).floor(), (v / tall).floor()
    wu, wv = u - (column + 0.5) * wide, v - (row + 0.55) * tall
    fits = ((column + 0.5).abs() * wide + 0.034 < half).float() * (row >= 0) * (row < 3)
    lit = (hashed(column * 3.1 + row * 17.7 + r(4) * 50, 3.0) < 0.7).float() * c.light.lamp
    c.paint(
        c.cover(box(wu, wv, 0.030, 0.033, 0.004)) * mask * fits, c.lit((0.96, 0.94, 0.90), 0.08)
    )
    glass = torch.lerp(c.lit((0.42, 0.60, 0.76), 0.08), c.color(1.0, 0.84, 0.46), lit)
    c.paint(c.cover(box(wu, wv, 0.022, 0.025, 0.003)) * mask * fits, glass)


@within(0.35, 0.86)
def _lamps(c: Canvas) -> None:
    u, _ = c.cells(1.0, 1.05, 67.0)
    v = c.y - 0.845
    post = nearest(box(u, v + 0.17, 0.0075, 0.17), box(u - 0.03, v + 0.335, 0.036, 0.007))
    c.paint(c.cover(post), c.lit((0.20, 0.22, 0.26), 0.0))
    bulb = torch.hypot(u - 0.06, v + 0.32)
    glass = torch.lerp(c.lit((0.9, 0.9, 0.85), 0), c.color(1, 0.9, 0.6), c.light.lamp)
    c.paint(c.cover(bulb - 0.019), glass)
    c.glow(torch.exp(-((bulb / 0.10) ** 2)) * c.light.lamp * 0.55, c.color(1.0, 0.84, 0.5))
