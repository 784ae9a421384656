"""Which way and how fast the traveler goes, by how the ground beside it shifts."""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from longlive_trt.demo.world.clips import FPS, SPEEDS

_TOP = 0.905
"""The ground below the road: what lies on the road repeats too regularly."""
_LAGS = (1, 2, 3, 4)
"""Frames between two pictures that are compared."""
_FASTEST = 11.0
"""Pixels a frame."""
_FLAKE = 5
"""Pixels; what is bright and not wider than that may fall and is left out."""
_NEAREST = 1.25
"""The ground's layers move at 1 to 1.5 times the camera's speed."""


@dataclass(frozen=True)
class Motion:
    direction: int
    pace: int
    speed: float
    """Heights of the picture a second, positive to the right."""


def find_motion(frames: Tensor) -> Motion:
    """Of successive frames [n, H, W, 3] uint8; a block or more, so that the ground has moved."""
    height = frames.shape[1]
    ground = _ground(frames[:, int(height * _TOP) :])
    speeds = [step / 2 for step in range(int(-2 * _FASTEST), int(2 * _FASTEST) + 1)]
    likeness = {
        (lag, shift): _likeness(ground, lag, shift)
        for lag in _LAGS
        for shift in {round(speed * lag) for speed in speeds}
    }
    found = max(speeds, key=lambda v: sum(likeness[lag, round(v * lag)] for lag in _LAGS))
    speed = found / height * FPS / _NEAREST
    paces = [abs(math.log(max(abs(speed), 1e-3) / pace)) for pace in SPEEDS]
    pace = paces.index(min(paces))
    return Motion(int(speed > 0), pace, speed)


def _ground(strips: Tensor) -> Tensor:
    """How strips [n, h, W, 3] differ from each row's usual brightness, without drops and flakes."""
    gray = strips.float().mean(3)[:, None] / 255
    reach = _FLAKE // 2
    opened = F.max_pool2d(-F.max_pool2d(-gray, _FLAKE, 1, reach), _FLAKE, 1, reach)[:, 0]
    # Only what differs from its row can be seen to move.
    return opened - opened.median(2, keepdim=True).values


def _likeness(ground: Tensor, lag: int, shift: int) -> float:
    """The correlation of pictures ``lag`` frames apart, if the ground went by ``shift`` pixels."""
    width = ground.shape[2]
    early = ground[:-lag, :, max(0, shift) : width + min(0, shift)]
    late = ground[lag:, :, max(0, -shift) : width + min(0, -shift)]
    size = (early.square().sum() * late.square().sum()).sqrt()
    return float((early * late).sum() / size.clamp_min(1e-6))
