"""What the values of attention have in common, which eight bits need not hold.

Rows of a softmax sum to one: a constant that is taken from every value of a channel is missing from
what attention gives, whatever it attends to. So the means of values leave v's bias, and o's gets
what o would have made of them. That is exact; rounding then meets numbers around zero, and the sums
of the tensor cores lose nothing that all keys share.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

MEAN, MOST, BELOW = "v_mean", "v_most", "v_below"
PARTS = (MEAN, MOST, BELOW)
"""Of every channel: the mean, the largest value, and the least one times -1."""


def is_signed(name: str) -> bool:
    """Whether a channel's numbers are values, and not magnitudes."""
    return name.rpartition(".")[2] in PARTS


def merged(name: str, known: Tensor, new: Tensor, videos: int) -> Tensor:
    """What ``videos`` and one more have shown of a channel."""
    if name.endswith(MEAN):
        return known + (new - known) / (videos + 1)
    return torch.maximum(known, new)


class ValueWatcher:
    """Of one layer, while a video is made."""

    def __init__(self) -> None:
        self._sum, self._count = torch.zeros(()), 0
        self._most = self._below = torch.full((), -torch.inf)

    def observe(self, v: Tensor) -> None:
        """[B, S, heads, head_dim]"""
        channels = v.detach().float().flatten(2).flatten(0, 1)
        self._sum = self._sum.to(v.device) + channels.sum(0)
        self._count += channels.shape[0]
        self._most = torch.maximum(self._most.to(v.device), channels.amax(0))
        self._below = torch.maximum(self._below.to(v.device), -channels.amin(0))

    def seen(self) -> dict[str, Tensor]:
        if self._count == 0:
            return {}
        found = (self._sum / self._count, self._most, self._below)
        return dict(zip(PARTS, (value.cpu() for value in found), strict=True))


@dataclass(frozen=True)
class ValueRanges:
    """Of one layer's values, by channel."""

    mean: Tensor
    most: Tensor
    below: Tensor

    @classmethod
    def of(cls, channels: Mapping[str, Tensor], attention: str) -> "ValueRanges | None":
        """Calibrations of earlier versions have none."""
        names = [f"{attention}.{part}" for part in PARTS]
        if not all(name in channels for name in names):
            return None
        return cls(*(channels[name] for name in names))

    @property
    def amax(self) -> Tensor:
        """The largest magnitude, once the mean is gone."""
        return torch.maximum(self.most - self.mean, self.below + self.mean)
