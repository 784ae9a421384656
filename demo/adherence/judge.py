"""What a video shows, attribute by attribute, and how often that is what was asked for."""

from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor

from longlive_trt.demo.adherence.figures import find_figure
from longlive_trt.demo.adherence.motion import find_motion
from longlive_trt.demo.adherence.scenery import Scenery, find_scenery
from longlive_trt.demo.scenes import ATTRIBUTES

WINDOW = 12
"""Video frames, one block of the rollout, that are judged together."""
_STEP = 4


def judged(frames: Tensor) -> dict[str, int]:
    """Every attribute's value in frames [n, H, W, 3] uint8 that show one scene; n from 6 on.

    Longer stretches are judged window by window, and the most frequent value counts.
    """
    windows = [part for part in frames.split(WINDOW) if len(part) >= WINDOW] or [frames]
    votes: dict[str, Counter[int]] = {name: Counter() for name in ATTRIBUTES}
    for window in windows:
        for name, value in _judged_at_once(window).items():
            votes[name][value] += 1
    return {name: count.most_common(1)[0][0] for name, count in votes.items()}


def _judged_at_once(frames: Tensor) -> dict[str, int]:
    views = [find_scenery(frames[i : i + 3]) for i in range(0, len(frames) - 2, _STEP)]
    place, time, weather = (_usual(getattr(v, name) for v in views) for name in _SCENERY)
    figure = find_figure(frames[::3], time, weather)
    motion = find_motion(frames)
    return {
        "place": place,
        "time": time,
        "weather": weather,
        "traveler": figure.traveler,
        "color": figure.color,
        "direction": motion.direction,
        "pace": motion.pace,
    }


_SCENERY = tuple(Scenery.__dataclass_fields__)


def _usual(values: Iterable[int]) -> int:
    return Counter(values).most_common(1)[0][0]


class Tally:
    """How many of the attributes that prompts state were shown."""

    def __init__(self) -> None:
        self.right: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()

    def add(self, stated: Mapping[str, int], shown: Mapping[str, int]) -> None:
        for name, value in stated.items():
            self.asked[name] += 1
            self.right[name] += shown[name] == value

    @property
    def share(self) -> float:
        return sum(self.right.values()) / max(1, sum(self.asked.values()))

    def by_attribute(self) -> dict[str, float]:
        return {name: self.right[name] / count for name, count in self.asked.items()}
