"""A checkpoint that a test changes on the way to the model."""

import torch
from torch import Tensor

from longlive_trt.export.checkpoints.weights import Weights


class ChangedWeights(Weights):
    """Those of another one, as long as ``load`` is not another's; the digest stays too."""

    def __init__(self, base: Weights) -> None:
        self._base = base

    @property
    def names(self) -> tuple[str, ...]:
        return self._base.names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self._base.dtype(name)

    def load(self, name: str) -> Tensor:
        return self._base.load(name)

    def digest(self) -> str:
        return self._base.digest()
