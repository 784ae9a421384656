"""How the time of day and the weather color everything, also while they turn."""

from functools import cache

import torch
from torch import Tensor

from longlive_trt.demo.scenes import FOG, NIGHT, RAIN, SNOW, SUNSET, Scenes

Color = tuple[float, float, float]

# By time of day: the sky's top, middle and horizon, the light on things, clouds, sun or moon.
_TOP = ((0.42, 0.64, 0.90), (0.16, 0.50, 0.92), (0.27, 0.17, 0.44), (0.025, 0.035, 0.13))
_MIDDLE = ((0.72, 0.80, 0.92), (0.42, 0.72, 0.97), (0.84, 0.34, 0.42), (0.06, 0.09, 0.25))
_HORIZON = ((1.00, 0.86, 0.74), (0.80, 0.93, 0.98), (1.00, 0.70, 0.38), (0.15, 0.20, 0.40))
_LIGHT = ((0.98, 0.90, 0.88), (1.00, 1.00, 0.98), (0.86, 0.58, 0.54), (0.24, 0.30, 0.52))
CLOUD = ((1.00, 0.93, 0.90), (1.00, 1.00, 1.00), (0.98, 0.60, 0.50), (0.16, 0.19, 0.34))
SUN = ((1.00, 0.95, 0.72), (1.00, 0.98, 0.82), (1.00, 0.80, 0.42), (0.96, 0.95, 0.86))
_LAMP = (0.0, 0.0, 0.55, 1.0)
_BRIGHTNESS = (0.98, 1.0, 0.66, 0.27)
# By weather: the veil over the sky, how strong it is, how much of the sun is left, haze, dimming.
_VEIL = ((0.0, 0.0, 0.0), (0.46, 0.52, 0.60), (0.80, 0.84, 0.90), (0.86, 0.88, 0.89))
_VEIL_STRENGTH = (0.0, 0.68, 0.60, 0.72)
_SUN_LEFT = (1.0, 0.0, 0.12, 0.25)
_HAZE = (0.0, 0.16, 0.16, 0.46)
_DIM = (1.0, 0.74, 0.96, 0.92)


@cache
def constant(values: tuple[object, ...], device: torch.device) -> Tensor:
    """Kept on the device: a copy from the host for every color would stall the queue."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def column(x: Tensor) -> Tensor:
    """One number a frame, to go with pictures [n, channels, height, width]."""
    return x.reshape(-1, 1, 1, 1)


class Light:
    """The light in n frames, each ``turn`` of the way from a first scene to a second one."""

    def __init__(self, first: Scenes, second: Scenes, turn: Tensor) -> None:
        self._ends, self._turn = (first, second), column(turn)
        self.night = self._is("time", NIGHT)
        self.rain, self.snow, self.fog = (self._is("weather", w) for w in (RAIN, SNOW, FOG))
        self.lamp = self.by("time", _LAMP)
        self.haze = self.by("weather", _HAZE)
        self.sun_left = self.by("weather", _SUN_LEFT)
        self.veiled = self.by("weather", _VEIL_STRENGTH)
        self.veil = self.by("weather", _VEIL) * self.by("time", _BRIGHTNESS)
        sky = (self.by("time", table) for table in (_TOP, _MIDDLE, _HORIZON))
        self.top, self.middle, self.horizon = (torch.lerp(c, self.veil, self.veiled) for c in sky)
        bright = self.by("time", _LIGHT)
        gray = bright.mean(1, keepdim=True) * self.by("weather", _DIM)
        self.color = torch.lerp(bright, gray.expand_as(bright), self.veiled * 0.6)
        sunset = self._is("time", SUNSET)
        self.low_sun = torch.maximum(sunset, self.by("time", (1.0, 0.0, 0.0, 0.0)) * 0.5)

    def by(self, attribute: str, table: tuple[object, ...]) -> Tensor:
        """A table's rows or numbers for the frames, [n, 3 or 1, 1, 1]."""
        values = constant(table, self._turn.device)
        ends = [values[getattr(scenes, attribute)] for scenes in self._ends]
        first, second = (v.reshape(len(v), -1, 1, 1) for v in ends)
        return torch.lerp(first, second, self._turn)

    def _is(self, attribute: str, value: int) -> Tensor:
        first, second = (column((getattr(s, attribute) == value).float()) for s in self._ends)
        return torch.lerp(first, second, self._turn)

    def softened(self, share: float) -> Tensor:
        """The light, moved ``share`` of the way to white."""
        return torch.lerp(self.color, torch.ones_like(self.color), share)
