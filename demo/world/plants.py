"""What grows: pines, trees, bushes, tufts of grass, cacti and flowers."""

import torch

from longlive_trt.demo.world.canvas import Canvas, within
from longlive_trt.demo.world.light import Color
from longlive_trt.demo.world.shapes import box, nearest, segment, triangle


@within(0.2, 0.88)
def pines(
    c: Canvas, share: float, period: float, base: float, size: float, salt: float,
    tint: Color, far: float, snow: float,
) -> None:  # fmt: skip
    u, r = c.cells(share, period, salt, jitter=0.35)
    tall = size * (0.65 + 0.5 * r(2))
    v = c.y - base
    there = (r(3) < 0.85).float()
    trunk = c.cover(box(u, v + tall * 0.06, tall * 0.045, tall * 0.10))
    c.paint(trunk * there, c.lit((0.36, 0.25, 0.20), far))
    tiers = ((0.10, 0.30, 0.50), (0.34, 0.24, 0.42), (0.58, 0.17, 0.42))
    crown = nearest(*(triangle(u, v + tall * low, tall * wide, tall * high)
                      for low, wide, high in tiers))  # fmt: skip
    mask = c.cover(crown) * there
    green = c.color(*tint)
    c.paint(mask, c.lit(green, far, snow))
    c.paint(mask * c.cover(u + 0.004) * 0.55, c.lit(green * 1.28, far, snow))


@within(0.35, 0.88)
def trees(
    c: Canvas, share: float, period: float, base: float, size: float, salt: float,
    tint: Color, far: float,
) -> None:  # fmt: skip
    u, r = c.cells(share, period, salt)
    u = (u - (r(1) - 0.5) * period * 0.4) / size
    v = (c.y - base) / size
    tall = 0.15 + 0.06 * r(2)
    there = (r(3) < 0.8).float()
    wide = 0.013 - 0.05 * (v + tall * 0.5).clamp(-0.1, 0.06)
    trunk = c.cover(box(u, v + tall * 0.5, wide, tall * 0.52) * size)
    c.paint(trunk * there, c.lit((0.40, 0.27, 0.20), far))
    crown = nearest(
        torch.hypot(u, v + tall + 0.055) - 0.082,
        torch.hypot(u + 0.062, v + tall + 0.012) - 0.058,
        torch.hypot(u - 0.064, v + tall + 0.018) - 0.056,
    )
    leaves = torch.lerp(c.color(*tint), c.color(0.80, 0.46, 0.16), (r(5) > 0.72).float() * 0.8)
    c.paint(c.cover(crown * size) * there, c.lit(leaves * 0.86, far, 0.45))
    bright = nearest(
        torch.hypot(u + 0.012, v + tall + 0.072) - 0.060,
        torch.hypot(u + 0.070, v + tall + 0.022) - 0.040,
    )
    c.paint(c.cover(bright * size) * there * 0.9, c.lit(leaves * 1.22, far, 0.75))


@within(0.7, 0.92)
def bushes(c: Canvas, share: float, period: float, base: float, salt: float, tint: Color) -> None:
    u, r = c.cells(share, period, salt, jitter=0.4)
    grow = 0.7 + 0.6 * r(2)
    v = c.y - base
    bush = nearest(
        torch.hypot(u, v) - 0.050 * grow,
        torch.hypot(u - 0.05 * grow, v) - 0.036 * grow,
        torch.hypot(u + 0.05 * grow, v) - 0.034 * grow,
    )
    c.paint(c.cover(bush) * (r(3) < 0.7), c.lit(tint, 0.03, 0.6))


@within(0.85, 1.0)
def tufts(c: Canvas, share: float, period: float, tint: Color) -> None:
    u, r = c.cells(share, period, 91.0, jitter=0.5)
    v = c.y - 1.0
    grow = 0.6 + 0.7 * r(2)
    blades = (segment(u, v, lean * 0.3, 0.02, lean, -0.06 * grow, 0.009)
              for lean in (-0.028, 0.0, 0.028))  # fmt: skip
    c.paint(c.cover(nearest(*blades)) * (r(3) < 0.75), c.lit(tint, 0.0, 0.4))


@within(0.4, 0.9)
def cacti(
    c: Canvas, share: float, period: float, base: float, size: float, salt: float, far: float
) -> None:
    u, r = c.cells(share, period, salt)
    u = (u - (r(1) - 0.5) * period * 0.4) / size
    v = (c.y - base) / size
    tall = 0.10 + 0.07 * r(2)
    body = segment(u, v, 0.0, 0.02, 0.0, -tall, 0.020)
    side = torch.where(r(3) < 0.5, -1.0, 1.0)
    for way, low in ((side, 0.45), (-side, 0.62)):
        w = u * way
        body = nearest(
            body,
            segment(w, v, 0.0, -tall * low, 0.048, -tall * low, 0.0125),
            segment(w, v, 0.048, -tall * low, 0.048, -tall * (low + 0.33), 0.0125),
        )
    there = (r(4) < 0.75).float()
    green = c.lit((0.20, 0.47, 0.28), far, 0.35)
    c.paint(c.cover(body * size) * there, green)
    c.paint(c.cover(body * size) * (u < -0.004) * there * 0.5, green * 1.25)


@within(0.85, 1.0)
def flowers(c: Canvas) -> None:
    for share, period, base, salt in ((1.0, 0.24, 0.925, 77.0), (1.45, 0.31, 0.965, 79.0)):
        u, r = c.cells(share, period, salt, jitter=0.5)
        v = c.y - base + 0.03 * r(2)
        d = torch.hypot(u, v)
        hue = r(3)
        pink = torch.lerp(c.color(0.98, 0.45, 0.58), c.color(1.0, 0.95, 0.92), (hue > 0.4).float())
        petal = torch.lerp(pink, c.color(0.62, 0.46, 0.92), (hue > 0.72).float())
        there = (r(4) < 0.75).float() * (1 - c.light.snow * 0.7)
        stem = c.cover(box(u, v - 0.03, 0.005, 0.03))
        c.paint(stem * there, c.lit((0.22, 0.48, 0.18), 0))
        c.paint(c.cover(d - 0.023) * there, c.lit(petal, 0) * 1.05)
        c.paint(c.cover(d - 0.0095) * there, c.lit((1.0, 0.82, 0.22), 0))
