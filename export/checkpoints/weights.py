"""What every source of weights offers: names and shapes at once, tensors one at a time."""

import hashlib
import json
from abc import ABC, abstractmethod

import torch

from longlive_trt.ahead import ahead


class Weights(ABC):
    """Named tensors, in the order of the model's state dict; none is kept once loaded."""

    #: The modules that a LoRA adapter changed.
    adapted_modules: tuple[str, ...] = ()

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]: ...

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]: ...

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype: ...

    @abstractmethod
    def load(self, name: str) -> torch.Tensor:
        """A tensor of the caller's own, contiguous and finite."""

    @abstractmethod
    def digest(self) -> str:
        """A sha256 that is equal only where every tensor is."""


def fill(model: torch.nn.Module, weights: Weights) -> None:
    """Give every parameter its values; the next ones are read meanwhile."""
    parameters = dict(model.named_parameters())
    for parameter, values in zip(parameters.values(), ahead(weights.load, parameters), strict=True):
        parameter.copy_(values)


def combined_digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
