"""What the demo's world can show, as data: attributes of scenes and how one turns into another."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

PLACES = ("sea", "desert", "mountains", "forest", "city", "meadow")
TIMES = ("morning", "noon", "sunset", "night")
WEATHERS = ("clear", "rain", "snow", "fog")
TRAVELERS = ("car", "train", "boat", "balloon", "bird")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white")
DIRECTIONS = ("left", "right")
PACES = ("slow", "medium", "fast")

ATTRIBUTES = {
    "place": PLACES,
    "time": TIMES,
    "weather": WEATHERS,
    "traveler": TRAVELERS,
    "color": COLORS,
    "direction": DIRECTIONS,
    "pace": PACES,
}
"""Every attribute's values, in the order of their numbers."""

SEA, DESERT, MOUNTAINS, FOREST, CITY, MEADOW = range(6)
MORNING, NOON, SUNSET, NIGHT = range(4)
CLEAR, RAIN, SNOW, FOG = range(4)
CAR, TRAIN, BOAT, BALLOON, BIRD = range(5)

# A boat needs water, wheels need land; the boat is drawn twice as often at sea as what flies there.
_ON_LAND, _AT_SEA = (CAR, TRAIN, BALLOON, BIRD), (BOAT, BOAT, BALLOON, BIRD)
_FITTING = tuple(_AT_SEA if place == SEA else _ON_LAND for place in range(len(PLACES)))
_WEATHER_WEIGHTS = (4.0, 2.0, 2.0, 1.6)
# How often a change touches an attribute.
_CHANGE_PLACE, _CHANGE_TRAVELER = 0.45, 0.25
_CHANGE = {"time": 0.5, "weather": 0.5, "color": 0.4, "direction": 0.3, "pace": 0.3}


@dataclass
class Scenes:
    """Attributes of n scenes; all tensors are [n]."""

    place: Tensor
    time: Tensor
    weather: Tensor
    traveler: Tensor
    color: Tensor
    direction: Tensor
    pace: Tensor
    seed: Tensor
    """Where in the endless land the scene lies."""

    def __len__(self) -> int:
        return len(self.place)

    def take(self, index: Tensor) -> "Scenes":
        return Scenes(*(getattr(self, f.name)[index] for f in fields(self)))

    def replaced(self, others: "Scenes", where: Tensor) -> "Scenes":
        """These scenes, but those of ``others`` where it says so."""
        pairs = ((getattr(others, f.name), getattr(self, f.name)) for f in fields(self))
        return Scenes(*(torch.where(where, other, own) for other, own in pairs))

    def rows(self) -> list[dict[str, int]]:
        columns = [getattr(self, name).tolist() for name in ATTRIBUTES]
        return [dict(zip(ATTRIBUTES, row, strict=True)) for row in zip(*columns, strict=True)]

    @classmethod
    def of(
        cls, rows: Sequence[dict[str, int]], seeds: Sequence[float], device: str | torch.device
    ) -> "Scenes":
        columns = {
            name: torch.tensor([row[name] for row in rows], device=device) for name in ATTRIBUTES
        }
        return cls(**columns, seed=torch.tensor(list(seeds), device=device))


def fits(place: int, traveler: int) -> bool:
    return traveler in _FITTING[place]


class SceneSource:
    """Draws scenes and what they turn into from one generator."""

    def __init__(self, seed: int, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._fitting = torch.tensor(_FITTING, device=self.device)
        self._weathers = torch.tensor(_WEATHER_WEIGHTS, device=self.device)

    def scenes(self, n: int) -> Scenes:
        place = self._draw(n, len(PLACES))
        weather = torch.multinomial(self._weathers, n, replacement=True, generator=self.generator)
        return Scenes(
            place=place,
            time=self._draw(n, len(TIMES)),
            weather=weather,
            traveler=self._fitting_traveler(place),
            color=self._draw(n, len(COLORS)),
            direction=self._draw(n, len(DIRECTIONS)),
            pace=self._draw(n, len(PACES)),
            seed=self.uniform(n) * 50,
        )

    def changed(self, scenes: Scenes) -> Scenes:
        """What comes after a change: some attributes are drawn anew, the land's seed stays."""
        n = len(scenes)
        fresh = self.scenes(n)
        picked = {
            name: torch.where(self.uniform(n) < often, getattr(fresh, name), getattr(scenes, name))
            for name, often in _CHANGE.items()
        }
        moves = self.uniform(n) < _CHANGE_PLACE
        place = torch.where(moves, fresh.place, scenes.place)
        drawn = self._fitting_traveler(place)
        stays = (self._fitting[place] == scenes.traveler[:, None]).any(1)
        stays &= self.uniform(n) >= _CHANGE_TRAVELER
        traveler = torch.where(stays, scenes.traveler, drawn)
        return Scenes(place=place, traveler=traveler, seed=scenes.seed, **picked)

    def journeys(self, n: int, families: int) -> tuple[Scenes, Scenes]:
        """Scenes and what they turn into, of few different pairs of places and travelers.

        Frames of a change are painted together only if they show the same pair.
        """
        origins = self.scenes(min(families, n))
        goals = self.changed(origins)
        family = torch.arange(n, device=self.device) % len(origins)
        first = self.scenes(n)
        first.place, first.traveler = origins.place[family], origins.traveler[family]
        second = self.changed(first)
        second.place, second.traveler = goals.place[family], goals.traveler[family]
        return first, second

    def uniform(self, n: int) -> Tensor:
        return torch.rand(n, generator=self.generator, device=self.device)

    def integers(self, n: int, low: int, high: int) -> Tensor:
        """Whole numbers from ``low`` to ``high``, which is not among them."""
        return torch.randint(low, high, (n,), generator=self.generator, device=self.device)

    def _draw(self, n: int, high: int) -> Tensor:
        return self.integers(n, 0, high)

    def _fitting_traveler(self, place: Tensor) -> Tensor:
        choice = self._draw(len(place), self._fitting.shape[1])
        return self._fitting[place].gather(1, choice[:, None])[:, 0]
