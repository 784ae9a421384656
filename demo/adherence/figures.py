"""Which traveler a video shows, in which color and looking where: by the shapes it may have.

For each traveler and direction there is a mask of pixels that carry its paint wherever it bobs. The
mask that is most evenly filled with one of the seven paints, as they look in this light, tells all
three.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from longlive_trt.demo.scenes import COLORS, FOG, NOON, SEA, TRAVELERS, Scenes, fits
from longlive_trt.demo.world.canvas import PAINT, SKIN_LIGHT
from longlive_trt.demo.world.clips import NEVER, SIZE, render_clips
from longlive_trt.demo.world.light import Light
from longlive_trt.demo.world.shapes import smooth

_NEAR = 0.13
"""How far a pixel's color may be from a paint's, of the way from black to full in each channel."""
_MASK_SCENES = 6
_MASK_FRAMES = 6
_FOG_COVER = 0.26


@dataclass(frozen=True)
class Figure:
    traveler: int
    direction: int
    color: int
    share: float
    """How much of its mask has the paint's color."""


@dataclass(frozen=True)
class _Mask:
    traveler: int
    direction: int
    rows: Tensor
    columns: Tensor
    shade: Tensor
    """How bright the paint is at each pixel, of its own brightness."""


def find_figure(frames: Tensor, time: int, weather: int) -> Figure:
    """The figure of frames [n, H, W, 3] uint8 in a light that is known."""
    pictures = frames.float() / 255
    best = Figure(0, 0, 0, -1.0)
    for mask in _masks():
        pixels = pictures[:, mask.rows, mask.columns]
        paints = _paints(time, weather, mask.rows / frames.shape[1])
        expected = paints * mask.shade[:, None]
        # [frames, pixels, colors]: the largest difference of a channel
        away = (pixels[:, :, None] - expected.transpose(0, 1)[None]).abs().amax(-1)
        shares = (away < _NEAR).float().mean(1).median(0).values
        # Of two paints within reach of the same pixels the nearer one counts.
        nearest = away.median(1).values.median(0).values
        color = int((shares - nearest).argmax())
        share = float(shares[color] - nearest[color])
        if share > best.share:
            best = Figure(mask.traveler, mask.direction, color, share)
    return best


def _paints(time: int, weather: int, heights: Tensor) -> Tensor:
    """The seven paints [colors, pixels, 3] in a light, at heights of the picture."""
    scene = Scenes.of([_scene(0, time, weather)], [0.5], "cpu")
    light = Light(scene, scene, torch.zeros(1))
    paints = torch.tensor(PAINT)[:, None] * light.softened(SKIN_LIGHT).flatten()
    paints = paints.expand(-1, len(heights), -1)
    if weather != FOG:
        return paints
    fog = (_FOG_COVER * smooth(0.25, 0.75, heights))[None, :, None]
    return torch.lerp(paints, light.horizon.flatten(), fog)


def _scene(color: int, time: int, weather: int = 0) -> dict[str, int]:
    return {"place": 0, "time": time, "weather": weather, "traveler": 0, "color": color,
            "direction": 0, "pace": 1}  # fmt: skip


@cache
def _masks() -> tuple[_Mask, ...]:
    return tuple(
        _mask(traveler, direction) for traveler in range(len(TRAVELERS)) for direction in (0, 1)
    )


def _mask(traveler: int, direction: int) -> _Mask:
    """Pixels that follow the paint in every scene, found by drawing them in several paints."""
    place = next(p for p in (1, SEA) if fits(p, traveler))
    row = _scene(0, NOON) | {"place": place, "traveler": traveler, "direction": direction}
    names = [COLORS.index(name) for name in ("red", "green", "blue")]
    rows = [row | {"color": color, "pace": k % 3} for k in range(_MASK_SCENES) for color in names]
    scenes = Scenes.of(rows, [k * 7.0 + 0.3 for k in range(_MASK_SCENES) for _ in names], "cpu")
    clips = render_clips(scenes, scenes, torch.full((len(rows),), NEVER), _MASK_FRAMES, SIZE)
    shown = (clips.float() / 255).view(_MASK_SCENES, len(names), _MASK_FRAMES, *SIZE, 3)
    paints = torch.tensor([PAINT[c] for c in names])
    light = Light(scenes, scenes, torch.zeros(len(rows))).softened(SKIN_LIGHT)[0].flatten()
    # The slope of a pixel's color over the paint's, from all pairs of paints.
    steps = (paints - paints.roll(1, 0)) * light
    changes = shown - shown.roll(1, 1)
    slope = (changes * steps[None, :, None, None, None]).sum((1, 5)) / steps.square().sum()
    low, high = slope.amin((0, 1)), slope.amax((0, 1))
    rest = (shown - slope[:, None, ..., None] * (paints * light)[None, :, None, None, None]).abs()
    pure = rest.amax((0, 1, 2, 5)) < 0.12
    rows_at, columns_at = ((low > 0.55) & (high < 1.15) & pure).nonzero(as_tuple=True)
    return _Mask(traveler, direction, rows_at, columns_at, slope.mean((0, 1))[rows_at, columns_at])
