"""Signed distances to flat shapes, and the small functions that painters share.

Distances are in heights of the picture, negative inside. x runs to the right, y downward.
"""

import torch
from torch import Tensor

Number = Tensor | float


def fract(x: Tensor) -> Tensor:
    return x - x.floor()


def hashed(cell: Tensor, salt: Number) -> Tensor:
    """A number between 0 and 1 that looks random."""
    return fract(torch.sin(cell * 12.9898 + salt * 7.233) * 4375.85453)


def smooth(low: float, high: float, x: Tensor) -> Tensor:
    """0 below ``low``, 1 above ``high``, and a smooth step between them."""
    u = ((x - low) / (high - low)).clamp(0, 1)
    return u * u * (3 - 2 * u)


def wave(x: Tensor) -> Tensor:
    """A triangle wave between 0 and 1 of period 1."""
    return (fract(x) * 2 - 1).abs()


def box(x: Tensor, y: Tensor, half_w: Number, half_h: Number, radius: float = 0.0) -> Tensor:
    """A rounded box around the origin."""
    qx, qy = x.abs() - half_w + radius, y.abs() - half_h + radius
    outside = torch.hypot(qx.clamp_min(0), qy.clamp_min(0))
    return outside + torch.maximum(qx, qy).clamp_max(0) - radius


def ellipse(x: Tensor, y: Tensor, rx: Number, ry: Number) -> Tensor:
    return (torch.hypot(x / rx, y / ry) - 1) * (rx * ry) ** 0.5


def triangle(x: Tensor, y: Tensor, half_w: Number, height: Number) -> Tensor:
    """A triangle that stands on y = 0 with its tip at y = -height."""
    slope = half_w / height
    return torch.maximum((x.abs() - (y + height) * slope) / (1 + slope * slope) ** 0.5, y)


def segment(
    x: Tensor, y: Tensor, ax: Number, ay: Number, bx: Number, by: Number, width: float
) -> Tensor:
    """A line with round ends from a to b, ``width`` to each side."""
    dx, dy = bx - ax, by - ay
    along = (((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return torch.hypot(x - ax - along * dx, y - ay - along * dy) - width


def nearest(*distances: Tensor) -> Tensor:
    """The union of shapes."""
    result = distances[0]
    for distance in distances[1:]:
        result = torch.minimum(result, distance)
    return result


def common(*distances: Tensor) -> Tensor:
    """The intersection of shapes."""
    result = distances[0]
    for distance in distances[1:]:
        result = torch.maximum(result, distance)
    return result
