"""Travelers on wheels and on water."""

import torch
from torch import Tensor

from longlive_trt.demo.world.canvas import Canvas, within
from longlive_trt.demo.world.shapes import (
    box,
    common,
    ellipse,
    fract,
    nearest,
    segment,
    smooth,
    triangle,
)


@within(0.6, 1.0)
def draw_car(c: Canvas, which: int, here: Tensor) -> None:
    x, y = c.traveler_space(which, 0.872)
    y = y + 0.003 * (c.camera * 21).sin()
    skin = c.skin(which)
    pale = torch.lerp(skin, torch.ones_like(skin), 0.5)
    c.paint(c.cover(ellipse(x, y - 0.004, 0.215, 0.016)) * here * 0.35, c.color(0.05, 0.05, 0.08))
    slope = 0.125 + 0.30 * (y + 0.158).clamp(-0.06, 0.06)
    cabin = torch.maximum(box(x + 0.02, y + 0.158, slope, 0.056, 0.030), y + 0.10)
    c.paint(c.cover(cabin) * here, skin * 0.93)
    slope = 0.100 + 0.30 * (y + 0.155).clamp(-0.05, 0.05)
    pane = box(x + 0.02, y + 0.155, slope, 0.036, 0.016)
    c.paint(c.cover(torch.maximum(pane, 0.010 - (x + 0.022).abs())) * here, c.glass())
    body = box(x, y + 0.080, 0.215, 0.046, 0.034)
    c.paint(c.cover(body) * here, skin)
    c.paint(c.cover(box(x + 0.01, y + 0.108, 0.175, 0.008, 0.006)) * here * 0.45, pale)
    c.paint(c.cover(torch.maximum(body, -(y + 0.056))) * here * 0.55, skin * 0.62)
    c.paint(c.cover(box(x + 0.205, y + 0.088, 0.010, 0.014, 0.005)) * here, c.color(0.8, 0.1, 0.12))
    for at in (-0.122, 0.122):
        c.paint(c.cover(torch.hypot(x - at, y + 0.044) - 0.055) * here, skin * 0.45)
        _wheel(c, here, x - at, y + 0.043, 0.043)
    _headlight(c, here, x - 0.203, y + 0.088)


def _wheel(c: Canvas, here: Tensor, x: Tensor, y: Tensor, radius: float) -> None:
    d = torch.hypot(x, y)
    c.paint(c.cover(d - radius) * here, c.dim((0.13, 0.13, 0.16), 0.5))
    c.paint(c.cover(d - radius * 0.60) * here, c.dim((0.80, 0.82, 0.85), 0.35))
    turn = c.camera * c.moments.facing.reshape(-1, 1, 1, 1).sign() / radius
    a, b = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    long, thin = radius * 0.57, radius * 0.13
    spokes = torch.minimum(box(a, b, long, thin), box(a, b, thin, long))
    c.paint(c.cover(spokes) * here, c.dim((0.32, 0.33, 0.37), 0.4))


def _headlight(c: Canvas, here: Tensor, x: Tensor, y: Tensor) -> None:
    reach = x.clamp_min(0)
    spread = (1 - (y - 0.10 * reach).abs() / (0.010 + 0.22 * reach)).clamp_min(0)
    beam = spread * torch.exp(-reach * 2.6) * (x > 0)
    c.glow(beam * c.light.lamp * here * 0.8, c.color(1.0, 0.93, 0.66))
    c.paint(c.cover(torch.hypot(x, y) - 0.015) * here, c.color(1.0, 0.95, 0.72))


@within(0.32, 1.0)
def draw_train(c: Canvas, which: int, here: Tensor) -> None:
    x, y = c.traveler_space(which, 0.862)
    x = x + 0.02
    _smoke(c, here, x, y)
    for middle in (-0.46, -0.125):
        _carriage(c, which, here, x - middle, y)
    c.paint(c.cover(box(x + 0.29, y + 0.055, 0.40, 0.007)) * here, c.dim((0.16, 0.16, 0.19), 0.5))
    _engine(c, which, here, x, y)
    for at, radius in ((0.115, 0.042), (0.225, 0.042), (0.335, 0.032)):
        _wheel(c, here, x - at, y + radius, radius)
    _headlight(c, here, x - 0.405, y + 0.125)


def _smoke(c: Canvas, here: Tensor, x: Tensor, y: Tensor) -> None:
    color = torch.lerp(c.light.horizon, c.color(0.95, 0.95, 0.96) * c.light.color, 0.6)
    for k in range(5):
        age = fract(c.clock * 0.55 + k / 5)
        back = age * (0.30 + 0.45 * c.pace())
        puff = torch.hypot(x - 0.330 + back, y + 0.285 + age * 0.16) - (0.020 + 0.042 * age)
        c.paint(c.cover(puff) * here * (1 - age) * 0.75, color)


def _carriage(c: Canvas, which: int, here: Tensor, x: Tensor, y: Tensor) -> None:
    skin, half = c.skin(which), 0.150
    body = box(x, y + 0.125, half, 0.085, 0.020)
    c.paint(c.cover(body) * here, skin * 0.90)
    c.paint(c.cover(torch.maximum(body, (y + 0.200).abs() - 0.012)) * here, skin * 0.58)
    stripe = torch.maximum(body, (y + 0.066).abs() - 0.007)
    c.paint(c.cover(stripe) * here * 0.8, torch.lerp(skin, torch.ones_like(skin), 0.55))
    pane = x / 0.072
    pane = (pane - pane.round().clamp(-1.5, 1.5)) * 0.072
    windows = c.cover(box(pane, y + 0.138, 0.026, 0.028, 0.006)) * (x.abs() < half - 0.02)
    c.paint(windows * here, c.glass())
    for at in (-0.090, 0.090):
        _wheel(c, here, x - at, y + 0.032, 0.031)


def _engine(c: Canvas, which: int, here: Tensor, x: Tensor, y: Tensor) -> None:
    skin, iron = c.skin(which), c.dim((0.18, 0.18, 0.21), 0.45)
    boiler = box(x - 0.275, y + 0.115, 0.125, 0.055, 0.045)
    c.paint(c.cover(boiler) * here, skin)
    band = torch.maximum(boiler, (x - 0.30).abs() - 0.009)
    c.paint(c.cover(band) * here, torch.lerp(skin, torch.ones_like(skin), 0.5))
    c.paint(c.cover(box(x - 0.115, y + 0.150, 0.062, 0.105, 0.012)) * here, skin * 0.92)
    c.paint(c.cover(box(x - 0.112, y + 0.258, 0.080, 0.010, 0.006)) * here, skin * 0.5)
    c.paint(c.cover(box(x - 0.115, y + 0.190, 0.036, 0.032, 0.006)) * here, c.glass())
    chimney = nearest(
        box(x - 0.335, y + 0.200, 0.018, 0.040), box(x - 0.335, y + 0.243, 0.028, 0.010, 0.004)
    )
    c.paint(c.cover(chimney) * here, iron)
    c.paint(c.cover(box(x - 0.26, y + 0.052, 0.17, 0.014, 0.004)) * here, iron)
    front = (x - 0.395) + (-y - 0.05) * 1.2 - 0.02
    plow = torch.maximum(box(x - 0.425, y + 0.026, 0.040, 0.026), front)
    c.paint(c.cover(plow) * here, skin * 0.6)


@within(0.28, 0.92)
def draw_boat(c: Canvas, which: int, here: Tensor) -> None:
    x, y = c.traveler_space(which, 0.815)
    roll = 0.07 * (c.clock * 1.7 + c.seed).sin() - 0.03
    y = y - 0.010 * (c.clock * 2.1).sin()
    x, y = x * roll.cos() + y * roll.sin(), y * roll.cos() - x * roll.sin()
    skin = c.skin(which)
    cream = c.color(0.99, 0.96, 0.88) * c.light.softened(0.35)
    mast = segment(x, y, -0.01, -0.02, -0.01, -0.46, 0.0075)
    c.paint(c.cover(mast) * here, c.color(0.42, 0.28, 0.20) * c.light.color)
    main = common(x + 0.022, -(x + 0.022) - (y + 0.445) * 0.52, y + 0.085)
    c.paint(c.cover(main) * here, skin)
    stripe = torch.maximum(main, (y + 0.185).abs() - 0.020)
    c.paint(c.cover(stripe) * here, torch.lerp(skin, cream, 0.75))
    jib = common(-(x - 0.006), (x - 0.006) - (y + 0.40) * 0.50, y + 0.085)
    c.paint(c.cover(jib) * here, cream)
    c.paint(c.cover(triangle(y + 0.452, x + 0.012, 0.016, 0.065)) * here, skin)
    edge = 0.235 + 0.62 * (-y - 0.045) + 0.10 * (x > 0) * (-y)
    hull = common(x.abs() - edge, -(y + 0.062), y - 0.05)
    c.paint(c.cover(hull) * here, skin)
    c.paint(c.cover(torch.maximum(hull, y + 0.044)) * here, cream)
    c.paint(c.cover(torch.maximum(hull, -(y + 0.016))) * here * 0.5, skin * 0.6)
    for at in (-0.10, 0.0, 0.10):
        c.paint(c.cover(torch.hypot(x - at, y + 0.026) - 0.013) * here, c.glass())
    wake = ellipse(x + 0.30, y - 0.035, 0.10 + 0.06 * smooth(0.1, 0.9, c.pace()), 0.013)
    c.paint(c.cover(wake) * here * 0.6, c.lit((0.92, 0.98, 1.0), 0.05))
