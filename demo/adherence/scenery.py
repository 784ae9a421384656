"""Place, time and weather of a video, from the colors at each height and from what falls.

The measurements are plain: mean and spread of the colors in bands of the picture beside the
traveler, and how much is small, bright and moving. What they look like in each of the 96
combinations was measured once on the world's own clips (``fit.py``); a video is taken for the
nearest one.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from longlive_trt.demo.scenes import PLACES, TIMES, WEATHERS

FITTED = Path(__file__).with_name("scenery.npz")

_BANDS = 16
_SIDE = 0.28
"""Share of the width to the left and to the right of the traveler that is looked at."""
_SKY = 0.5
_PARTICLE = 7
"""Pixels; what is wider than that is no drop and no flake."""


@dataclass(frozen=True)
class Scenery:
    place: int
    time: int
    weather: int


def combinations() -> list[Scenery]:
    return [
        Scenery(place, time, weather)
        for place in range(len(PLACES))
        for time in range(len(TIMES))
        for weather in range(len(WEATHERS))
    ]


def find_scenery(frames: Tensor) -> Scenery:
    """Of successive frames [n, H, W, 3] uint8, two or more."""
    shift, whitening, means = _fitted()
    point = (measured(frames) - shift) @ whitening
    return combinations()[int((means - point).square().sum(1).argmin())]


def measured(frames: Tensor) -> Tensor:
    """The measurements that tell sceneries apart, as one row of numbers."""
    pictures = frames.float().permute(0, 3, 1, 2) / 255
    side = int(pictures.shape[-1] * _SIDE)
    beside = torch.cat([pictures[..., :side], pictures[..., -side:]], dim=-1)
    bands = beside.unflatten(2, (_BANDS, -1))
    mean, spread = bands.mean((0, 3, 4)), bands.std((0, 3, 4))
    return torch.cat([mean.flatten(), spread.sqrt().flatten(), _particles(pictures)])


def _particles(pictures: Tensor) -> Tensor:
    """How much in the sky is small and bright, how much of it moves, and how upright it is."""
    sky = pictures[:, :, : int(pictures.shape[2] * _SKY)].mean(1, keepdim=True)
    reach = _PARTICLE // 2
    opened = F.max_pool2d(-F.max_pool2d(-sky, _PARTICLE, 1, reach), _PARTICLE, 1, reach)
    small = (sky - opened).clamp_min(0)
    moved = small.diff(dim=0).abs()
    across, down = small.diff(dim=-1).abs().mean(), small.diff(dim=-2).abs().mean()
    counted = torch.stack([(small > level).float().mean() for level in (0.06, 0.15, 0.3)])
    moving = torch.stack([(moved > level).float().mean() for level in (0.06, 0.15, 0.3)])
    upright = (across - down) / (across + down + 1e-4)
    return torch.cat(
        [counted.sqrt(), moving.sqrt(), upright[None], (upright * moving[1].sqrt())[None]]
    )


@cache
def _fitted() -> tuple[Tensor, Tensor, Tensor]:
    with np.load(FITTED) as file:
        shift, whitening, means = (
            torch.from_numpy(file[name].astype(np.float32))
            for name in ("shift", "whitening", "means")
        )
    return shift, whitening, means


def fitted(points: Tensor, labels: Tensor) -> dict[str, np.ndarray]:
    """Whitened means of measurements [n, d] by combination [n]: the classes share one spread."""
    groups = [points[labels == label] for label in range(len(combinations()))]
    within = torch.cat([group - group.mean(0) for group in groups])
    shift, scale = points.mean(0), within.std(0) + 1e-4
    scaled = within / scale
    covariance = scaled.T @ scaled / len(scaled) + 0.05 * torch.eye(points.shape[1])
    values, vectors = torch.linalg.eigh(covariance)
    whitening = vectors / values.sqrt() / scale[:, None]
    means = torch.stack([(group.mean(0) - shift) @ whitening for group in groups])
    parts = {"shift": shift, "whitening": whitening, "means": means}
    return {name: value.numpy().astype(np.float32) for name, value in parts.items()}
