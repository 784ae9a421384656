"""Frames of one place while they are painted, back to front."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from longlive_trt.demo.scenes import Scenes
from longlive_trt.demo.world.light import Color, Light, column, constant
from longlive_trt.demo.world.shapes import hashed

_Painter = TypeVar("_Painter", bound=Callable[..., None])

PAINT = (
    (0.88, 0.14, 0.15), (0.98, 0.52, 0.08), (1.00, 0.85, 0.16), (0.16, 0.66, 0.30),
    (0.13, 0.38, 0.90), (0.55, 0.24, 0.76), (0.96, 0.96, 0.97),
)  # fmt: skip
"""The travelers' colors."""
WHITE = 6
SKIN_LIGHT = 0.45
"""A traveler keeps more of its color than the land does, so that words about it stay true."""


@dataclass
class Moments:
    """What n frames show: ``turn`` of the way from a first scene to a second one."""

    first: Scenes
    second: Scenes
    turn: Tensor
    clock: Tensor
    """Seconds."""
    camera: Tensor
    """How far the traveler has come, in heights of the picture; negative to the left."""
    speed: Tensor
    """Heights a second, negative to the left."""
    facing: Tensor
    """1 to the right, -1 to the left, and between them while the traveler turns around."""
    ahead: Tensor
    """[n, 2]: how far the first and the second scene's traveler are ahead of their place."""

    def take(self, index: Tensor) -> "Moments":
        tensors = {f.name: getattr(self, f.name)[index] for f in fields(self)[2:]}
        return Moments(self.first.take(index), self.second.take(index), **tensors)


@dataclass(frozen=True)
class _Kinds:
    """What occurs in a group of frames, read from the device at once."""

    travelers: tuple[frozenset[int], frozenset[int]]
    """Those of the first scenes, and those of the second where they are others."""
    weathers: frozenset[int]
    times_turn: bool

    @classmethod
    def of(cls, moments: Moments) -> "_Kinds":
        first, second = moments.first, moments.second
        table = torch.stack(
            [
                first.traveler,
                second.traveler,
                first.weather,
                second.weather,
                first.time,
                second.time,
            ]
        )
        kinds = table.unique(dim=1).T.tolist()
        return cls(
            travelers=(
                frozenset(row[0] for row in kinds),
                frozenset(row[1] for row in kinds if row[0] != row[1]),
            ),
            weathers=frozenset(w for row in kinds for w in row[2:4]),
            times_turn=any(row[4] != row[5] for row in kinds),
        )


class Canvas:
    """Heights of the picture are 1; x runs to width / height.

    Layers that scroll depend on x alone wherever possible, which keeps most of the arithmetic
    one-dimensional.
    """

    def __init__(self, moments: Moments, size: tuple[int, int]) -> None:
        height, width = size
        device = moments.turn.device
        self.moments, self.n, self.pixel = moments, len(moments.turn), 1.0 / height
        self.y = ((torch.arange(height, device=device) + 0.5) / height).reshape(1, 1, -1, 1)
        self.x = ((torch.arange(width, device=device) + 0.5) / height).reshape(1, 1, 1, -1)
        self.span = width / height
        self.clock, self.camera = column(moments.clock), column(moments.camera)
        self.speed, self.seed = column(moments.speed), column(moments.first.seed)
        self.light = Light(moments.first, moments.second, moments.turn)
        self.kinds = _Kinds.of(moments)
        self.image = torch.zeros(self.n, 3, height, width, device=device)
        paints = constant(PAINT, device)
        first, second = (paints[s.color] for s in (moments.first, moments.second))
        mixed = torch.lerp(first, second, moments.turn[:, None])
        leaves = (moments.first.traveler != moments.second.traveler)[:, None]
        self._skins = [
            torch.where(leaves, own, mixed).reshape(self.n, 3, 1, 1) for own in (first, second)
        ]

    # Painting ------------------------------------------------------------------------------------

    def cover(self, distance: Tensor) -> Tensor:
        """How much of a pixel lies inside of a shape."""
        return (0.5 - distance / self.pixel).clamp(0, 1)

    def paint(self, mask: Tensor, color: Tensor) -> None:
        self.image.lerp_(color.expand_as(self.image), mask)

    def glow(self, mask: Tensor, color: Tensor) -> None:
        self.image.addcmul_((1 - self.image).clamp_min(0), color * mask)

    @contextmanager
    def band(self, top: float, bottom: float) -> Iterator[None]:
        """Paint between two heights alone, where nothing is to be painted elsewhere."""
        whole = self.image, self.y
        rows = slice(max(0, int(top / self.pixel) - 1), math.ceil(bottom / self.pixel) + 1)
        self.image, self.y = self.image[:, :, rows], self.y[:, :, rows]
        try:
            yield
        finally:
            self.image, self.y = whole

    def rows(self, distance: Tensor) -> Tensor:
        """The cover of what spans the picture's whole width."""
        return self.cover(distance).expand(self.n, 1, -1, self.x.shape[-1])

    def below(self, height: Tensor, slope: Tensor | float = 1.0) -> Tensor:
        """The cover of what lies under a line of hills."""
        return self.cover((height - self.y) / slope)

    # Color ---------------------------------------------------------------------------------------

    def color(self, r: float, g: float, b: float) -> Tensor:
        return constant((r, g, b), self.clock.device).reshape(1, 3, 1, 1)

    def lit(self, base: Tensor | Color, far: float, snow: float = 0.0) -> Tensor:
        """A thing's color under this light, seen through the haze of its distance."""
        base = self.color(*base) if isinstance(base, tuple) else base
        base = torch.lerp(base, torch.full_like(base, 0.97), self.light.snow * snow)
        haze = (far + self.light.haze * (0.35 + far)).clamp_max(0.94)
        return torch.lerp(base * self.light.color, self.light.horizon, haze)

    def dim(self, base: Color, least: float) -> Tensor:
        """A color that keeps ``least`` of its brightness in the dark."""
        return self.color(*base) * (least + (1 - least) * self.light.color)

    def skin(self, which: int) -> Tensor:
        """The color of the first or the second scene's traveler."""
        return self._skins[which] * self.light.softened(SKIN_LIGHT)

    def is_white(self, which: int) -> Tensor:
        scenes = (self.moments.first, self.moments.second)[which]
        return column(scenes.color == WHITE)

    def glass(self) -> Tensor:
        day = self.color(0.70, 0.86, 0.95) * self.light.softened(0.3)
        return torch.lerp(day, self.color(1.0, 0.86, 0.48), self.light.lamp)

    # Land that scrolls ---------------------------------------------------------------------------

    def scroll(self, share: float) -> Tensor:
        """Positions in a layer that moves by ``share`` of the camera's way."""
        return self.x + self.camera * share + self.seed * (1.7 + share)

    def cells(
        self, share: float, period: float, salt: float, jitter: float = 0.0
    ) -> tuple[Tensor, Callable[[int], Tensor]]:
        """Offsets from the middles of a layer's cells, and random numbers of each cell."""
        position = self.scroll(share) / period
        cell = position.floor()
        # Seeds are rounded so that hashing stays far from the sine's steep parts of other seeds.
        base = self.seed.floor() + salt

        def number(k: int) -> Tensor:
            return hashed(cell, base + 1.37 * k)

        offset = (position - cell - 0.5) * period
        return offset - (number(1) - 0.5) * period * jitter if jitter else offset, number

    def hills(self, share: float, base: float, size: float, rate: float, salt: float) -> Tensor:
        """The heights of a line of hills."""
        x, phase = self.scroll(share) * rate, self.seed * 3.1 + salt
        bent = (
            (x + phase).sin() + 0.5 * (2.3 * x + 2 * phase).sin() + 0.22 * (5.1 * x + phase).sin()
        )
        return base - size * (0.5 + 0.32 * bent)

    # Travelers -----------------------------------------------------------------------------------

    def traveler_space(self, which: int, base: float) -> tuple[Tensor, Tensor]:
        """Coordinates around a traveler at height ``base`` that look where it looks."""
        facing = column(self.moments.facing)
        ahead = column(self.moments.ahead[:, which])
        way = torch.where(facing < 0, -1.0, 1.0)
        # One that turns around is drawn ever narrower, like a paper figure.
        x = (self.x - self.span / 2 + 0.10 * facing) * way / facing.abs().clamp_min(0.12)
        return x - ahead, self.y - base

    def pace(self) -> Tensor:
        return self.speed.abs()


def within(top: float, bottom: float) -> Callable[[_Painter], _Painter]:
    """Restricts a painter to a band of the picture."""

    def restricted(paint: _Painter) -> _Painter:
        @wraps(paint)
        def run(c: Canvas, *details: Any) -> None:
            with c.band(top, bottom):
                paint(c, *details)

        return cast(_Painter, run)

    return restricted
