"""Where tensors live, and how they get there and back. On a CPU they are numpy arrays."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
import psutil

from longlive_trt.basics import Array
from longlive_trt.contract import stem_of
from longlive_trt.engines.base import TensorSpec
from longlive_trt.errors import EngineError
from longlive_trt.plugins.kernels.values import moved

Tensor = Any
"""A numpy array on a CPU, a device tensor on a GPU."""


@dataclass(frozen=True)
class Buffer:
    """A tensor before there is memory for it."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @classmethod
    def of(cls, spec: TensorSpec, **sizes: int) -> "Buffer":
        return cls(spec.sized(**sizes), spec.dtype)

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Span:
    """``count`` entries of the second axis that go from one place to another."""

    target_start: int
    source_start: int
    count: int


@dataclass(frozen=True, eq=False)
class Patch:
    """A window of rows and columns that goes from one tensor into another, in all their layers."""

    target: Tensor
    source: Tensor
    axis: int
    """Of the rows; the next one is that of the columns."""
    target_start: tuple[int, int]
    source_start: tuple[int, int]
    size: tuple[int, int]


class Bound(Protocol):
    """Copies whose places are fixed: run them as often as you like."""

    def run(self) -> None: ...


class Pending(Protocol):
    """Values on their way to the host."""

    @property
    def is_there(self) -> bool: ...

    def result(self) -> Array:
        """Waits for them; an array of the caller's own."""
        ...


class Inlet(Protocol):
    """A place that one thread fills while another works with what came before."""

    def fill(self, values: Sequence[Array]) -> None:
        """Bring values there, as soon as the readings that were asked for before are over."""
        ...

    def reading(self) -> AbstractContextManager[None]:
        """What is asked of the memory inside finds what was filled in before."""
        ...


class Memory(Protocol):
    """What is asked of it happens in this order, after the runs that were asked for before."""

    def reserve(self, buffers: Mapping[str, Buffer], what: str) -> dict[str, Tensor]:
        """Zeroed tensors in one stretch of memory, which lives as long as the mapping."""
        ...

    def view(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The beginning of a tensor's memory in another shape."""
        ...

    def write(self, tensor: Tensor, values: Array) -> None: ...

    def inlet(self, tensors: Sequence[Tensor]) -> Inlet: ...

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]], spans: Sequence[Span]) -> None:
        """From each pair's second to its first tensor."""
        ...

    def commit(
        self,
        pairs: Iterable[tuple[Tensor, Tensor]],
        spans: Sequence[Span],
        transposed: Iterable[tuple[Tensor, Tensor]] = (),
    ) -> None:
        """The copies that a live session makes: of a block's keys and values, and around tiles.

        Entries of the ``transposed`` are tokens of values that lie as attention reads them.
        """
        ...

    def bind(self, patches: Sequence[Patch]) -> Bound:
        """Copies of windows, in this order, as often as their caller wants."""
        ...

    def clone(self, tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]: ...

    def fetch(self, tensor: Tensor) -> Pending: ...

    def settle(self) -> None:
        """Wait until all of it has happened."""
        ...

    def steady(self) -> AbstractContextManager[None]:
        """For debugging: what a live session must not do is an error inside."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Arrived:
    values: Array
    is_there: bool = True

    def result(self) -> Array:
        return self.values


@dataclass(frozen=True)
class HostInlet:
    """For readings that are over when they return."""

    tensors: Sequence[Tensor]

    def fill(self, values: Sequence[Array]) -> None:
        for tensor, value in zip(self.tensors, values, strict=True):
            tensor[...] = value

    def reading(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True)
class HostPatches:
    pairs: Sequence[tuple[Array, Array]]
    """Views: the first of each is written."""

    def run(self) -> None:
        for target, source in self.pairs:
            target[...] = source


class HostMemory:
    def reserve(self, buffers: Mapping[str, Buffer], what: str) -> dict[str, Tensor]:
        needed, free = size_bytes(buffers.values()), psutil.virtual_memory().available
        if needed > free:
            raise EngineError(
                f"{what}: {needed / 1e9:.1f} GB of memory are needed and {free / 1e9:.1f} GB are "
                f"free; set a smaller rollout.window_frames or batch, or end other programs"
            )
        return {name: np.zeros(buffer.shape, buffer.dtype) for name, buffer in buffers.items()}

    def view(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        return tensor.reshape(-1)[: prod(shape)].reshape(shape)

    def write(self, tensor: Tensor, values: Array) -> None:
        tensor[...] = values

    def inlet(self, tensors: Sequence[Tensor]) -> HostInlet:
        return HostInlet(tensors)

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]], spans: Sequence[Span]) -> None:
        for target, source in pairs:
            for span in spans:
                taken = slice(span.source_start, span.source_start + span.count)
                given = slice(span.target_start, span.target_start + span.count)
                target[:, given] = source[:, taken]

    def commit(
        self,
        pairs: Iterable[tuple[Tensor, Tensor]],
        spans: Sequence[Span],
        transposed: Iterable[tuple[Tensor, Tensor]] = (),
    ) -> None:
        self.copy(pairs, spans)
        for target, source in transposed:
            for span in spans:
                moved(
                    source,
                    target,
                    source_first=span.source_start,
                    target_first=span.target_start,
                    tokens=span.count,
                )

    def bind(self, patches: Sequence[Patch]) -> HostPatches:
        return HostPatches(
            [
                (
                    _window(patch.target, patch.axis, patch.target_start, patch.size),
                    _window(patch.source, patch.axis, patch.source_start, patch.size),
                )
                for patch in patches
            ]
        )

    def clone(self, tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
        return {name: tensor.copy() for name, tensor in tensors.items()}

    def fetch(self, tensor: Tensor) -> Arrived:
        return Arrived(tensor.copy())

    def settle(self) -> None:
        """All has happened already."""

    def steady(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        """Arrays free themselves."""


def _window(array: Array, axis: int, start: tuple[int, int], size: tuple[int, int]) -> Array:
    rows, columns = (slice(s, s + n) for s, n in zip(start, size, strict=True))
    window: Array = array[(slice(None),) * axis + (rows, columns)]
    assert window.shape[axis : axis + 2] == size
    return window


def buffers(specs: Iterable[TensorSpec], **sizes: int) -> dict[str, Buffer]:
    return {spec.name: Buffer.of(spec, **sizes) for spec in specs}


def named(specs: Mapping[str, TensorSpec], *prefixes: str) -> list[TensorSpec]:
    """The tensors that come one to a layer: ``k_cache.0``, ``k_cache.1``, ..."""
    return [spec for name, spec in specs.items() if stem_of(name) in prefixes]


def size_bytes(tensors: Iterable[Buffer]) -> int:
    return sum(buffer.size_bytes for buffer in tensors)
