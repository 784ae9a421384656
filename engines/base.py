"""What every compiled graph offers, whoever compiled it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from longlive_trt.basics import Closing, Given
from longlive_trt.contract import evaluate_size
from longlive_trt.dtypes import name_of, recorded_type
from longlive_trt.errors import EngineError
from longlive_trt.exports import TensorInfo


@dataclass(frozen=True)
class TensorSpec:
    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | str, ...]
    """A name stands for a size that is chosen when the tensor is bound."""

    def sized(self, **sizes: int) -> tuple[int, ...]:
        """The shape with every named size filled in."""
        return tuple(evaluate_size(size, sizes) for size in self.shape)


def specs_of(tensors: Iterable[TensorInfo]) -> dict[str, TensorSpec]:
    """Tensors of a manifest by name."""
    return {
        tensor.name: TensorSpec(tensor.name, recorded_type(tensor.dtype).numpy, tensor.shape)
        for tensor in tensors
    }


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


class TensorTable(Closing):
    """A graph's name and tensors: what engines have in common, whoever compiled them."""

    name: str
    _inputs: Mapping[str, TensorSpec]
    _outputs: Mapping[str, TensorSpec]

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self._outputs

    def _require_inputs(self, tensors: Mapping[str, Any]) -> None:
        missing = self._inputs.keys() - tensors.keys()
        if missing:
            raise EngineError(
                f"graph {self.name}: inputs are missing: {', '.join(sorted(missing))}"
            )


def require_fit(graph: str, name: str, spec: TensorSpec | None, tensor: Given) -> None:
    if spec is None:
        raise EngineError(f"graph {graph} has no tensor {name}")
    fits = len(tensor.shape) == len(spec.shape) and all(
        have == want or isinstance(want, str)
        for have, want in zip(tensor.shape, spec.shape, strict=True)
    )
    if not fits:
        raise EngineError(
            f"graph {graph}: {name} is {list(tensor.shape)}, expected {list(spec.shape)}"
        )
    if tensor.dtype != name_of(spec.dtype):
        raise EngineError(
            f"graph {graph}: {name} is {tensor.dtype}, expected {name_of(spec.dtype)}"
        )
    if not tensor.is_contiguous:
        raise EngineError(f"graph {graph}: {name} is not contiguous in memory")
