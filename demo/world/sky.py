"""The sky: its colors, stars, sun or moon, and clouds."""

import torch
from torch import Tensor

from longlive_trt.demo.scenes import NIGHT, SUNSET, Scenes
from longlive_trt.demo.world.canvas import Canvas, within
from longlive_trt.demo.world.light import CLOUD, SUN, column, constant
from longlive_trt.demo.world.shapes import box, hashed, nearest, smooth

# By time of day: the highest and the lowest place of the sun's middle, its radius, its glow.
_SUN_HIGH = (0.26, 0.12, 0.46, 0.13)
_SUN_LOW = (0.36, 0.20, 0.55, 0.23)
_SUN_RADIUS = (0.062, 0.056, 0.110, 0.066)
_GLOW = (0.35, 0.30, 0.50, 0.16)
_SINKS = 0.55


def paint_sky(c: Canvas) -> None:
    up = (c.y / 0.34).clamp(0, 1)
    low = ((c.y - 0.34) / 0.34).clamp(0, 1)
    sky = torch.lerp(torch.lerp(c.light.top, c.light.middle, up), c.light.horizon, low)
    c.image = sky.expand(-1, -1, -1, c.x.shape[-1]).contiguous()
    _stars(c)
    first, second, turn = c.moments.first, c.moments.second, column(c.moments.turn)
    turns = (first.time != second.time).reshape(-1, 1, 1, 1).float()
    # The old sun sinks while the new one rises; where the time stays there is one alone.
    _sun(c, first, turn * turns)
    if c.kinds.times_turn:
        _sun(c, second, torch.where(turns > 0, 1 - turn, 1.0))
    _clouds(c)


@within(0.0, 0.62)
def _stars(c: Canvas) -> None:
    size = 0.115
    cx, cy = (c.x / size).floor(), (c.y / size).floor()
    key = cx + 37 * cy + c.seed.floor()
    dx = c.x - (cx + 0.25 + 0.5 * hashed(key, 1.0)) * size
    dy = c.y - (cy + 0.25 + 0.5 * hashed(key, 2.0)) * size
    bright = (hashed(key, 3.0) - 0.30).clamp_min(0) * 1.6
    twinkle = 0.8 + 0.2 * (c.clock * 4 + 40 * hashed(key, 4.0)).sin()
    star = c.cover(torch.hypot(dx, dy) - 0.0075) * bright * twinkle
    high = 1 - smooth(0.35, 0.6, c.y)
    c.glow(star * c.light.night * c.light.sun_left * high, c.color(1.0, 0.98, 0.9))


def sun_position(scenes: Scenes, span: float) -> tuple[Tensor, Tensor]:
    """Where the sun or moon of a scene stands, each [n, 1, 1, 1]; it differs from land to land."""
    device = scenes.time.device
    key = scenes.seed * 7.3 + scenes.time
    high, low = constant(_SUN_HIGH, device)[scenes.time], constant(_SUN_LOW, device)[scenes.time]
    x = (0.10 + 0.80 * hashed(key, 1.0)) * span
    return column(x), column(torch.lerp(high, low, hashed(key, 2.0)))


def _sun(c: Canvas, scenes: Scenes, sunk: Tensor) -> None:
    device = scenes.time.device
    cx, cy = sun_position(scenes, c.span)
    cy = cy + sunk * sunk * _SINKS
    r = column(constant(_SUN_RADIUS, device)[scenes.time])
    color = constant(SUN, device)[scenes.time].reshape(-1, 3, 1, 1)
    d = torch.hypot(c.x - cx, c.y - cy)
    left = c.light.sun_left * (1 - sunk)
    strength = column(constant(_GLOW, device)[scenes.time]) * left
    c.glow(torch.exp(-((d / (3.2 * r)) ** 2)) * strength, color)
    c.glow(torch.exp(-((d / 0.55) ** 2)) * strength * 0.45, color)
    bite = torch.hypot(c.x - cx - 0.028, c.y - cy + 0.016) - r * 0.92
    moon = column(scenes.time == NIGHT)
    disc = torch.where(moon, torch.maximum(d - r, -bite), d - r)
    c.paint(c.cover(disc) * c.light.sun_left * (1 - sunk * sunk), color)


@within(0.55, 0.9)
def glitter(c: Canvas, shore: float) -> None:
    """The light of sun or moon on water that begins at height ``shore``."""
    depth = (c.y - shore).clamp_min(0)
    width = 0.05 + depth * 0.35
    row = (c.y / 0.028).floor()
    length = width * (0.35 + 0.65 * hashed(row, 1.0))
    length = length * (0.75 + 0.25 * (c.clock * 3 + row * 2.4).sin())
    ends = (c.moments.first, c.moments.second)
    for scenes, share in zip(ends, (1 - c.moments.turn, c.moments.turn), strict=True):
        sun_x, _ = sun_position(scenes, c.span)
        aside = c.x - sun_x - (hashed(row, 2.0) - 0.5) * width * 0.7
        streak = c.cover(box(aside, c.y - (row + 0.5) * 0.028, length * 0.6, 0.0062, 0.005))
        there = c.light.sun_left * (depth > 0.01).float() * (1 - smooth(0.12, 0.25, depth))
        low = 1.0 + 0.3 * column((scenes.time == SUNSET).float())
        color = constant(SUN, c.x.device)[scenes.time].reshape(-1, 3, 1, 1)
        c.glow(streak * there * 0.6 * low * column(share), color)


@within(0.0, 0.48)
def _clouds(c: Canvas) -> None:
    color = torch.lerp(c.light.by("time", CLOUD), c.light.veil * 1.06, c.light.veiled)
    color = torch.lerp(color, color * 0.80, c.light.rain)
    for share, period, high, size, salt in (
        (0.03, 0.95, 0.15, 1.0, 3.0),
        (0.06, 0.70, 0.30, 0.7, 9.0),
    ):
        u, r = c.cells(share, period, salt)
        u = u - (r(1) - 0.5) * 0.25
        v = c.y - high - (r(2) - 0.5) * 0.10
        grow = (0.7 + 0.5 * r(3)) * size
        # Four puffs over a flat bottom.
        puffs = nearest(
            torch.hypot(u / grow + 0.10, v / grow - 0.004) - 0.042,
            torch.hypot(u / grow + 0.02, v / grow + 0.028) - 0.060,
            torch.hypot(u / grow - 0.075, v / grow + 0.008) - 0.048,
            box(u / grow, v / grow - 0.018, 0.16, 0.028, 0.027),
        )
        shape = torch.maximum(puffs * grow, v - 0.036 * grow)
        there = (r(4) < 0.55 + 0.45 * c.light.rain).float()
        c.paint(c.cover(shape) * there * 0.82, color)
        lower = c.cover(torch.maximum(shape, 0.012 * grow - v)) * there * 0.25
        c.paint(lower, torch.lerp(color, c.light.middle, 0.7))
