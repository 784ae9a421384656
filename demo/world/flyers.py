"""Travelers in the air."""

import math

import torch
from torch import Tensor

from longlive_trt.demo.world.canvas import Canvas, within
from longlive_trt.demo.world.shapes import box, ellipse, segment, smooth, triangle, wave


@within(0.12, 0.7)
def draw_balloon(c: Canvas, which: int, here: Tensor) -> None:
    x, y = c.traveler_space(which, 0.36)
    y = y - 0.016 * (c.clock * 1.1 + c.seed).sin()
    x = x - 0.010 * (c.clock * 0.8).sin()
    skin, radius = c.skin(which), 0.175
    low = (y / radius).clamp(0, 1.3)
    d = torch.hypot(x, torch.where(y > 0, y * 0.80, y)) - radius * (1 - 0.10 * low * low)
    bulge = radius * (1 - (y * 0.86 / radius) ** 2).clamp_min(0.02).sqrt()
    across = (x / bulge).clamp(-1, 1)
    gore = smooth(0.42, 0.58, wave(across.asin() / math.pi * 2.0))
    pale = torch.lerp(skin, c.color(1.0, 0.98, 0.92), 0.72)
    second = torch.where(c.is_white(which), skin * c.color(0.80, 0.84, 0.90), pale)
    mask = c.cover(d) * here
    c.paint(mask, torch.lerp(second, skin, gore))
    c.paint(mask * smooth(0.2, 1.0, across) * 0.32, skin * 0.40)
    c.paint(mask * smooth(0.45, 0.95, -across) * 0.20, c.color(1, 1, 1))
    rope = c.color(0.30, 0.24, 0.20) * c.light.color
    for side in (-1.0, 1.0):
        line = segment(x * side, y, 0.085, 0.16, 0.030, 0.255, 0.0045)
        c.paint(c.cover(line) * here, rope)
    flame = torch.exp(-((torch.hypot(x, y - 0.19) / 0.09) ** 2))
    c.glow(flame * c.light.lamp * here * 0.6, c.color(1.0, 0.75, 0.35))
    basket = c.color(0.62, 0.42, 0.25) * c.light.softened(0.25)
    c.paint(c.cover(box(x, y - 0.278, 0.036, 0.028, 0.008)) * here, basket)
    rim = c.color(0.42, 0.27, 0.16) * c.light.color
    c.paint(c.cover(box(x, y - 0.254, 0.040, 0.008, 0.004)) * here, rim)


@within(0.08, 0.66)
def draw_bird(c: Canvas, which: int, here: Tensor) -> None:
    x, y = c.traveler_space(which, 0.37)
    beat = (c.clock * 6.5 + c.camera.abs() * 2.0 + c.seed).sin()
    y = y + 0.016 * beat
    skin = c.skin(which)
    spread = (-(x + 0.10)).clamp_min(0) * 0.45
    tail = torch.maximum((y + 0.012).abs() - 0.012 - spread, (x + 0.145).abs() - 0.070)
    c.paint(c.cover(tail) * here, skin * 0.72)
    _wing(c, here, x + 0.012, y + 0.012, beat * 0.85, skin * 0.62)
    body = ellipse(x, y, 0.125, 0.058)
    c.paint(c.cover(body) * here, skin)
    belly = torch.lerp(skin, c.color(1, 1, 0.97), 0.75)
    c.paint(c.cover(torch.maximum(body, 0.012 - y)) * here * 0.55, belly)
    beak = triangle(y + 0.046, -(x - 0.155), 0.022, 0.054)
    c.paint(c.cover(beak) * here, c.color(0.99, 0.66, 0.14) * c.light.softened(0.4))
    c.paint(c.cover(torch.hypot(x - 0.118, y + 0.050) - 0.050) * here, skin)
    eye = c.cover(torch.hypot(x - 0.134, y + 0.060) - 0.012)
    c.paint(eye * here, c.color(0.06, 0.06, 0.10))
    _wing(c, here, x + 0.012, y + 0.012, beat, skin * 0.82)


def _wing(c: Canvas, here: Tensor, x: Tensor, y: Tensor, beat: Tensor, color: Tensor) -> None:
    # The wing hangs on the shoulder; its tip sweeps up and down and a little backward.
    span = 0.20 * (0.55 + 0.45 * beat.abs())
    tip_x, tip_y = -0.075, -span * beat.sign() * beat.abs().clamp_min(0.15)
    along = ((x * tip_x + y * tip_y) / (tip_x * tip_x + tip_y * tip_y)).clamp(0, 1)
    width = 0.050 * (1 - along) ** 0.7 + 0.006
    c.paint(c.cover(torch.hypot(x - along * tip_x, y - along * tip_y) - width) * here, color)
