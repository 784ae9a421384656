"""What every compiled graph offers, whoever compiled it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class TensorSpec:
    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | str, ...]
    """A name stands for a size that is chosen when the tensor is bound."""

    def sized(self, **sizes: int) -> tuple[int, ...]:
        """The shape with every named size filled in; ``24*cache_frames`` is a product."""
        return tuple(
            size if isinstance(size, int) else _evaluate(size, sizes) for size in self.shape
        )


def _evaluate(expression: str, sizes: Mapping[str, int]) -> int:
    product = 1
    for factor in expression.split("*"):
        product *= int(factor) if factor.strip().isdigit() else sizes[factor.strip()]
    return product


class Binding(Protocol):
    """A graph with its tensors' addresses fixed: run it as often as you like."""

    def run(self) -> None: ...


class Engine(Protocol):
    """One compiled graph. Memory is the caller's: it binds arrays, and runs write into them."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Binding:
        """Fix addresses. All inputs are needed; outputs may be those that are wanted.

        Tensors are numpy arrays, or device tensors where the engine runs on a device.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Closing(ABC):
    """Is closed at the end of its ``with`` block."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
