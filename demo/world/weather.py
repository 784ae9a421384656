"""Rain, snow and fog before everything else; few and large, so that each drop can be followed."""

import torch

from longlive_trt.demo.scenes import FOG, RAIN, SNOW
from longlive_trt.demo.world.canvas import Canvas
from longlive_trt.demo.world.shapes import box, fract, hashed, smooth


def paint_weather(c: Canvas) -> None:
    for kind, paint in ((FOG, _fog), (RAIN, _rain), (SNOW, _snow)):
        if kind in c.kinds.weathers:
            paint(c)


def _fog(c: Canvas) -> None:
    drift = 0.5 + 0.5 * (c.scroll(0.5) * 2.1 + c.y * 5 + c.clock * 0.5).sin()
    c.paint(c.light.fog * (0.20 + 0.12 * drift) * smooth(0.25, 0.75, c.y), c.light.horizon)


def _rain(c: Canvas) -> None:
    color = torch.lerp(c.color(0.82, 0.89, 0.97), c.light.horizon, 0.25)
    for share, period, fall, length, half_width, alpha, salt in (
        (0.4, 0.150, 0.95, 0.11, 0.0062, 0.42, 1.0),
        (0.9, 0.270, 1.30, 0.17, 0.0088, 0.55, 5.0),
    ):
        slanted = c.scroll(share) + c.y * 0.12
        cell = (slanted / period).floor()
        u = slanted - (cell + 0.2 + 0.6 * hashed(cell, salt)) * period
        down = c.y - c.clock * (fall * (0.9 + 0.2 * hashed(cell, salt + 1)))
        down = (down + hashed(cell, salt + 2)) / 0.62
        v = (fract(down) - 0.5) * 0.62
        # Rain begins with single drops, each as bright as any.
        falls = (hashed(cell + 17.0 * down.floor(), salt + 3) < c.light.rain * 1.02).float()
        drop = c.cover(box(u, v, half_width, length / 2, half_width))
        c.paint(drop * alpha * falls, color)


def _snow(c: Canvas) -> None:
    color = torch.lerp(
        c.color(1.0, 1.0, 1.0), c.light.horizon * 1.25, 0.30 * c.light.night + 0.05
    ).clamp_max(1)
    for share, size, fall, radius, salt in (
        (0.35, 0.200, 0.15, 0.0125, 1.0),
        (0.80, 0.340, 0.26, 0.0210, 5.0),
    ):
        x = c.scroll(share) + 0.03 * (c.clock * 1.6 + c.y * 6 + salt).sin()
        y = c.y - c.clock * fall
        cx, cy = (x / size).floor(), (y / size).floor()
        key = cx * 1.7 + cy * 11.3
        u = x - (cx + 0.2 + 0.6 * hashed(key, salt)) * size
        v = y - (cy + 0.2 + 0.6 * hashed(key, salt + 1)) * size
        falls = (hashed(key, salt + 2) < c.light.snow * 1.02).float()
        c.paint(c.cover(torch.hypot(u, v) - radius) * falls * 0.94, color)
