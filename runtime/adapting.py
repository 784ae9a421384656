"""The transformer's matrices where its engines read them, and adapters that change them there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longlive_trt.adapters import Adapter, open_adapter, parse_adapter
from longlive_trt.ahead import ahead
from longlive_trt.basics import Array
from longlive_trt.engines.base import Engine
from longlive_trt.engines.matrices import Layout, MatricesFile, SuppliedEngine, supplied_specs
from longlive_trt.errors import CheckpointError
from longlive_trt.runtime.memory.base import Buffer, Memory, Tensor
from longlive_trt.runtime.prompting.switches import EXACT, SwitchMode

AskedAdapter = str | Path | Adapter
"""``FILE`` or ``FILE:SCALE``, or one that is open."""


def opened_adapter(asked: AskedAdapter, shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    """Refused where it does not fit matrices of these shapes."""
    if isinstance(asked, Adapter):
        return asked
    path, strength = parse_adapter(str(asked))
    return open_adapter(path, shapes, strength)


@dataclass(frozen=True)
class AdaptersInUse:
    labels: tuple[str, ...] = ()
    """What tells each from any other, in their order."""
    mode: SwitchMode = EXACT
    """How videos change over that were made with others until now."""


@dataclass(frozen=True)
class _Placed:
    """The matrices of one graph."""

    memory: Memory
    layout: Layout
    tensors: Mapping[str, Tensor]
    kinds: Mapping[str, np.dtype[np.generic]]


def _within(values: Array, kind: np.dtype[np.generic]) -> bool:
    """Whether all is finite in that type. As rounding keeps the order, the ends say it."""
    if values.dtype == kind and kind != np.float32:
        # As it was exported: sums are in float32.
        return True
    ends = np.array([values.min(), values.max()])
    with np.errstate(over="ignore"):
        return bool(np.isfinite(ends.astype(kind).astype(np.float32)).all())


class Matrices:
    """Of all videos of a bundle. Addresses stay; what lies there is exchanged between blocks."""

    def __init__(self, folder: Path, memory_of: Callable[[str], Memory]) -> None:
        """``memory_of`` is where a graph's engine reads its inputs."""
        self.file = MatricesFile.open(folder)
        self._memory_of = memory_of
        self._placed: dict[str, _Placed] = {}
        self._adapters: tuple[Adapter, ...] = ()

    def supply(self, graph: str, engine: Engine) -> SuppliedEngine:
        """The engine with matrices, under the adapters in use."""
        layout = self.file.layouts.get(graph, {})
        specs, memory = supplied_specs(engine, layout), self._memory_of(graph)
        buffers = {name: Buffer.of(spec) for name, spec in specs.items()}
        kinds = {name: spec.dtype for name, spec in specs.items()}
        tensors = memory.reserve(buffers, "the transformer's matrices")
        self._placed[graph] = _Placed(memory, layout, tensors, kinds)
        self._write([(self._placed[graph], name) for name in layout])
        return SuppliedEngine(engine, tensors)

    def use(self, adapters: Sequence[Adapter]) -> None:
        """Exchange what differs; if that fails, all is as it was."""
        before, self._adapters = self._adapters, tuple(adapters)
        modules = {module for one in (*before, *self._adapters) for module in one.pairs}
        try:
            self._exchange(modules)
        except BaseException:
            self._adapters = before
            self._exchange(modules)
            raise

    def _exchange(self, modules: set[str]) -> None:
        self._write(
            [
                (placed, name)
                for placed in self._placed.values()
                for name, parts in placed.layout.items()
                if not modules.isdisjoint(parts)
            ]
        )

    def _write(self, places: Sequence[tuple[_Placed, str]]) -> None:
        """Matrices are made on threads while others go to their places."""
        for (placed, name), kept in zip(places, ahead(self._made, places), strict=True):
            placed.memory.write(placed.tensors[name], kept)
            # Places on the way to a GPU are used again.
            placed.memory.settle()

    def _made(self, place: tuple[_Placed, str]) -> Array:
        """What is to lie in a place."""
        placed, name = place
        parts = [self._merged(module) for module in placed.layout[name]]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        kind = placed.kinds[name]
        if not _within(values, kind):
            raise CheckpointError(
                f"{', '.join(placed.layout[name])}: with the adapter, values are beyond the range "
                f"of {kind}; use a smaller scale, or a bundle in bf16 or fp32"
            )
        kept: Array = values.astype(kind, copy=False)
        return kept

    def _merged(self, module: str) -> Array:
        """In float32, like export's merge; as it was exported where no adapter changes it."""
        matrix = self.file.read(module)
        changes = [one.change_of(module) for one in self._adapters]
        for change in changes:
            if change is not None:
                # In its own place: new memory of this size would take longer than the sum.
                np.add(change, matrix, out=change)
                matrix = change
        return matrix
