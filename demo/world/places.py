"""The six places: which layers lie behind and before the traveler."""

import math

import torch

from longlive_trt.demo.world import city, travelers
from longlive_trt.demo.world.canvas import Canvas, within
from longlive_trt.demo.world.ground import ground, stones
from longlive_trt.demo.world.light import Color
from longlive_trt.demo.world.plants import bushes, cacti, flowers, pines, trees, tufts
from longlive_trt.demo.world.shapes import box, ellipse, fract, hashed, smooth, triangle, wave
from longlive_trt.demo.world.sky import glitter


def sea(c: Canvas) -> None:
    shore = 0.60
    island = c.hills(0.05, 0.70, 0.17, 1.9, 1.0)
    c.paint(c.below(island), c.lit((0.34, 0.50, 0.50), 0.50, 0.5))
    _lighthouse(c, shore)
    deep = c.lit((0.06, 0.30, 0.52), 0.05)
    shallow = torch.lerp(c.lit((0.25, 0.58, 0.74), 0.20), c.light.horizon, 0.25)
    water = torch.lerp(shallow, deep, ((c.y - shore) / 0.34).clamp(0, 1))
    c.paint(c.rows(shore - c.y), water)
    glitter(c, shore)
    _waves(c, 0.70, 0.30, 0.014, 0.30, 0.75)
    travelers.fly(c)
    _waves(c, 0.775, 0.60, 0.018, 0.38, 0.45)
    travelers.sail(c)
    _waves(c, 0.845, 1.0, 0.022, 0.48, 0.2)
    _waves(c, 0.935, 1.55, 0.028, 0.64, 0.0)


@within(0.65, 1.0)
def _waves(c: Canvas, base: float, share: float, size: float, period: float, far: float) -> None:
    x = c.scroll(share) / period
    swing = (c.clock * 1.5 + base * 20).sin() * 0.006
    height = base + swing - size * (1 - (math.pi * (x + 0.10 * c.clock)).sin().abs())
    body = torch.lerp(c.color(0.05, 0.25, 0.50), c.color(0.22, 0.56, 0.72), far)
    c.paint(c.below(height, 1.2), c.lit(body, 0.10 * far))
    crest = c.cover((c.y - height - 0.008).abs() - 0.0055)
    c.paint(crest * 0.6, c.lit((0.80, 0.93, 0.98), 0.15))


@within(0.15, 0.72)
def _lighthouse(c: Canvas, shore: float) -> None:
    u, r = c.cells(0.11, 2.3, 21.0)
    there = (r(1) < 0.75).float()
    v = c.y - shore
    c.paint(c.cover(ellipse(u, v, 0.16, 0.045)) * there, c.lit((0.35, 0.34, 0.38), 0.30, 0.6))
    tower = c.cover(box(u, v + 0.13, 0.026 + 0.06 * (v + 0.13).clamp(-0.1, 0.1), 0.10))
    band = (fract(v / 0.066) < 0.5).float()
    paint = torch.lerp(c.color(0.96, 0.95, 0.92), c.color(0.82, 0.18, 0.18), band)
    c.paint(tower * there, c.lit(paint, 0.22))
    roof = c.cover(triangle(u, v + 0.255, 0.032, 0.038))
    c.paint(roof * there, c.lit((0.70, 0.15, 0.16), 0.22))
    lamp = torch.lerp(c.lit((0.75, 0.85, 0.9), 0.2), c.color(1, 0.93, 0.55), c.light.lamp)
    c.paint(c.cover(box(u, v + 0.243, 0.020, 0.015)) * there, lamp)
    beam = (1 - (v + 0.243).abs() / (0.012 + 0.16 * u.abs())).clamp_min(0)
    beam = beam * torch.exp(-u.abs() * 3)
    sweep = 0.5 + 0.5 * (c.clock * 1.6 + c.seed).sin() * torch.sign(u)
    c.glow(beam * sweep * c.light.night * there * 0.75, c.color(1.0, 0.92, 0.60))


def desert(c: Canvas) -> None:
    x = c.scroll(0.06)
    step = (x * 1.7 + c.seed).sin() + 0.6 * (x * 3.9 + 2 * c.seed).sin()
    mesa = 0.66 - 0.17 * smooth(0.05, 0.42, step) - 0.09 * smooth(0.75, 1.0, step)
    c.paint(c.below(mesa, 2.5), c.lit((0.78, 0.42, 0.30), 0.42, 0.3))
    strata = c.below(mesa + 0.06, 2.5) * (1 - c.below(mesa + 0.085, 2.5))
    c.paint(strata * 0.4, c.lit((0.62, 0.30, 0.24), 0.42, 0.3))
    _dunes(c, 0.16, 0.72, 0.13, 2.3, 2.0, (0.95, 0.72, 0.42), 0.25)
    cacti(c, 0.30, 0.70, 0.73, 0.75, 31.0, 0.22)
    _dunes(c, 0.34, 0.80, 0.12, 2.9, 5.0, (0.93, 0.66, 0.36), 0.10)
    travelers.fly(c)
    cacti(c, 0.72, 0.95, 0.83, 1.1, 33.0, 0.04)
    ground(c, (0.91, 0.66, 0.38), (0.80, 0.52, 0.28), (0.45, 0.38, 0.36))
    travelers.roll(c)
    stones(c, 1.5, (0.60, 0.38, 0.26))


@within(0.5, 1.0)
def _dunes(
    c: Canvas, share: float, base: float, size: float, rate: float, salt: float,
    tint: Color, far: float,
) -> None:  # fmt: skip
    height = c.hills(share, base, size, rate, salt)
    sand = c.color(*tint)
    c.paint(c.below(height, 1.1), c.lit(sand, far, 0.75))
    falls = torch.roll(height, -1, -1) - height
    falls[..., -1] = falls[..., -2]
    lee = c.below(height, 1.1) * (1 - smooth(0.0, 0.10, c.y - height))
    c.paint(lee * smooth(-0.001, 0.003, falls) * 0.5, c.lit(sand * 0.72, far, 0.55))


def mountains(c: Canvas) -> None:
    _range(c, 0.05, 0.62, 0.40, 0.80, 1.0, (0.46, 0.52, 0.66), 0.42, 0.15)
    _range(c, 0.11, 0.66, 0.24, 0.50, 7.0, (0.32, 0.42, 0.52), 0.26, 0.07)
    slope = c.hills(0.22, 0.76, 0.12, 2.2, 4.0)
    c.paint(c.below(slope), c.lit((0.36, 0.54, 0.36), 0.20, 0.85))
    pines(c, 0.34, 0.20, 0.80, 0.19, 41.0, (0.15, 0.38, 0.30), 0.14, 0.8)
    travelers.fly(c)
    pines(c, 0.72, 0.40, 0.83, 0.27, 43.0, (0.10, 0.31, 0.25), 0.03, 0.45)
    ground(c, (0.46, 0.62, 0.36), (0.32, 0.48, 0.28), (0.40, 0.40, 0.44))
    travelers.roll(c)
    stones(c, 1.5, (0.38, 0.40, 0.44))


@within(0.15, 1.0)
def _range(
    c: Canvas, share: float, base: float, size: float, period: float, salt: float,
    tint: Color, far: float, cap: float,
) -> None:  # fmt: skip
    x = c.scroll(share) / period + salt
    cell, local = x.floor(), fract(x) - 0.5
    seed = c.seed.floor() + salt
    best = facing = depth = None
    for k in (-1, 0, 1):
        tall = size * (0.55 + 0.45 * hashed(cell + k, seed))
        aside = local - k - 0.3 * (hashed(cell + k, seed + 3) - 0.5)
        peak = tall - aside.abs() * period * 1.15
        if best is None or facing is None or depth is None:
            best, facing, depth = peak, aside.sign(), tall - peak
            continue
        facing = torch.where(peak > best, aside.sign(), facing)
        depth = torch.where(peak > best, tall - peak, depth)
        best = torch.maximum(best, peak)
    assert best is not None and facing is not None and depth is not None
    height = base - best - 0.012 * wave(x * 9) + 0.008 * wave(x * 4.3)
    rock, white = c.color(*tint), c.color(0.97, 0.98, 1.0)
    mask = c.below(height, 1.5)
    c.paint(mask, c.lit(rock, far, 0.25))
    c.paint(mask * (facing > 0) * 0.9, c.lit(rock * 0.74, far, 0.2))
    zigzag = cap + 0.025 * wave(x * 7) + 0.02 * wave(x * 3.1)
    snowy = mask * c.cover(c.y - height - (zigzag - depth * 0.95))
    c.paint(snowy, c.lit(white, far * 0.5))
    c.paint(snowy * (facing > 0), c.lit(white * c.color(0.78, 0.83, 0.93), far * 0.5))


def forest(c: Canvas) -> None:
    back = c.hills(0.07, 0.62, 0.16, 2.0, 2.0) - 0.014 * (c.scroll(0.07) * 45).sin().abs()
    c.paint(c.below(back, 1.3), c.lit((0.36, 0.55, 0.46), 0.42, 0.7))
    pines(c, 0.15, 0.16, 0.74, 0.31, 51.0, (0.22, 0.46, 0.36), 0.28, 0.7)
    floor = c.hills(0.2, 0.76, 0.06, 2.8, 3.0)
    c.paint(c.below(floor), c.lit((0.25, 0.44, 0.28), 0.20, 0.8))
    pines(c, 0.30, 0.28, 0.80, 0.43, 53.0, (0.15, 0.39, 0.27), 0.16, 0.6)
    trees(c, 0.52, 0.66, 0.83, 1.35, 55.0, (0.22, 0.50, 0.20), 0.06)
    travelers.fly(c)
    bushes(c, 0.80, 0.40, 0.835, 57.0, (0.16, 0.40, 0.18))
    ground(c, (0.34, 0.52, 0.24), (0.22, 0.38, 0.18), (0.47, 0.38, 0.30))
    travelers.roll(c)
    tufts(c, 1.5, 0.17, (0.12, 0.30, 0.14))


def meadow(c: Canvas) -> None:
    far = c.hills(0.05, 0.66, 0.20, 1.7, 1.0)
    c.paint(c.below(far), c.lit((0.48, 0.70, 0.56), 0.42, 0.7))
    middle = c.hills(0.12, 0.72, 0.15, 2.2, 4.0)
    mask = c.below(middle)
    c.paint(mask, c.lit((0.56, 0.76, 0.36), 0.22, 0.8))
    stripe = smooth(0.42, 0.58, wave(c.scroll(0.12) * 3.6 + (c.y - middle) * 4))
    stripe = stripe * smooth(0.01, 0.04, c.y - middle)
    c.paint(mask * stripe * 0.35, c.lit((0.80, 0.82, 0.36), 0.22, 0.8))
    _windmills(c)
    near = c.hills(0.30, 0.80, 0.10, 2.6, 6.0)
    c.paint(c.below(near), c.lit((0.44, 0.70, 0.28), 0.10, 0.85))
    trees(c, 0.45, 0.85, 0.82, 0.95, 75.0, (0.30, 0.60, 0.24), 0.08)
    travelers.fly(c)
    _fence(c)
    ground(c, (0.48, 0.74, 0.28), (0.34, 0.60, 0.22), (0.60, 0.50, 0.38))
    travelers.roll(c)
    tufts(c, 1.25, 0.24, (0.24, 0.50, 0.18))
    flowers(c)


@within(0.3, 0.82)
def _windmills(c: Canvas) -> None:
    u, r = c.cells(0.19, 1.5, 71.0)
    v = c.y - 0.68
    there = (r(1) < 0.8).float()
    tower = c.cover(box(u, v + 0.07, 0.038 + 0.12 * (v + 0.07).clamp(-0.12, 0.12), 0.12))
    c.paint(tower * there, c.lit((0.95, 0.92, 0.86), 0.20))
    roof = c.cover(triangle(u, v + 0.185, 0.036, 0.05))
    c.paint(roof * there, c.lit((0.66, 0.26, 0.20), 0.20))
    window = torch.lerp(c.lit((0.35, 0.45, 0.55), 0.2), c.color(1, 0.85, 0.45), c.light.lamp)
    c.paint(c.cover(box(u, v + 0.08, 0.012, 0.016)) * there, window)
    w = v + 0.195
    turn = c.clock * 1.3 + 6.28 * r(2)
    a, b = u * turn.cos() + w * turn.sin(), w * turn.cos() - u * turn.sin()
    blades = torch.minimum(box(a, b, 0.135, 0.013, 0.004), box(a, b, 0.013, 0.135, 0.004))
    c.paint(c.cover(blades) * there * 0.95, c.lit((0.99, 0.97, 0.93), 0.12))
    c.paint(c.cover(torch.hypot(u, w) - 0.016) * there, c.lit((0.45, 0.28, 0.22), 0.12))


@within(0.75, 0.86)
def _fence(c: Canvas) -> None:
    u, _ = c.cells(0.80, 0.21, 73.0)
    v = c.y - 0.835
    wood = c.lit((0.80, 0.70, 0.56), 0.04, 0.6)
    rails = torch.minimum((v + 0.054).abs() - 0.007, (v + 0.024).abs() - 0.007)
    c.paint(c.rows(rails), wood)
    c.paint(c.cover(box(u, v + 0.035, 0.011, 0.045, 0.003)), wood * 0.94)


PAINTERS = (sea, desert, mountains, forest, city.paint, meadow)
"""By the place's number."""
