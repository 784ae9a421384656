"""Random weights of any size, for trying the whole path without a checkpoint."""

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import torch

from longlive_trt.export.checkpoints.weights import Weights, combined_digest

# Part of the digest: change it with anything that changes the numbers.
_RECIPE = "uniform-sfc64-1"


class RandomWeights(Weights):
    """Each tensor depends on the seed and its own name and shape only."""

    def __init__(self, expected: Mapping[str, tuple[int, ...]], seed: int) -> None:
        self._shapes = {name: tuple(shape) for name, shape in expected.items()}
        self._seed = seed

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32

    def load(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        mean, deviation = _moments(name, shape)
        values = np.empty(shape, np.float32)
        self._generator(name).random(out=values, dtype=np.float32)
        # A uniform variable on [0, 1) has a standard deviation of 1 / sqrt(12).
        values -= 0.5
        values *= math.sqrt(12) * deviation
        values += mean
        return torch.from_numpy(values)

    def digest(self) -> str:
        return combined_digest(_RECIPE, self._seed, self._shapes)

    def _generator(self, name: str) -> np.random.Generator:
        key = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        return np.random.Generator(np.random.SFC64(int.from_bytes(key, "little")))


def _moments(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and deviation that keep activations near one through any depth."""
    if name.endswith(".gamma") or (name.endswith(".weight") and len(shape) == 1):
        return 1.0, 0.1
    if name.endswith((".bias", "modulation")):
        return 0.0, 0.02
    if name.endswith(("token_embedding.weight", "pos_embedding.embedding.weight")):
        return 0.0, 1.0
    deviation = 1 / math.sqrt(math.prod(shape[1:]))
    # The text encoder's attention has no 1/sqrt(head_dim): its queries make up for it.
    return 0.0, deviation / 8 if name.endswith(".attn.q.weight") else deviation
