"""A session's tensors on a GPU, and what passes between them and the host.

Nothing here waits for the GPU but :meth:`CudaMemory.settle` and the results of what is fetched.
"""

import threading
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from ..engines.base import Array
from ..engines.cuda import (
    CapturedGraph,
    DeviceBlock,
    DeviceTensor,
    Event,
    Gpu,
    PinnedArray,
    Rows,
    Stream,
    lay_out,
    tensor_at,
)
from ..errors import EngineError
from .memory import Buffer, Span, Tensor

STALL_LIMIT_S = 120.0

_DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
}
_GRAPH_WORTHY = 8
"""So many copies are cheaper as one captured graph."""


class Reserved(dict[str, Tensor]):
    """Tensors whose memory may be used again once nobody holds the mapping."""


class CudaMemory:
    """Work in the order of one stream. ``waiting`` limits how many fetches may lie unread."""

    def __init__(self, stream: Stream, *, waiting: int | None = None) -> None:
        self.stream, self.gpu = stream, stream.gpu
        self._staging = _Slots(self.gpu)
        self._fetched = _Slots(self.gpu, limit=waiting)
        self._spare: dict[int, list[DeviceBlock]] = defaultdict(list)
        self._blocks: list[DeviceBlock] = []
        self._copies: dict[tuple[Any, ...], CapturedGraph] = {}

    def reserve(self, buffers: Mapping[str, Buffer], what: str) -> Reserved:
        self.gpu.make_current()
        wanted = {name: (buffer.shape, buffer.dtype) for name, buffer in buffers.items()}
        offsets, size_bytes = lay_out(wanted)
        block = self._block(size_bytes, what)
        tensors = Reserved()
        for name, (shape, dtype) in wanted.items():
            place = block.pointer + offsets[name]
            tensors[name] = tensor_at(place, shape, dtype, self.gpu.ordinal)
        weakref.finalize(tensors, self._spare[block.size_bytes].append, block)
        return tensors

    def view(self, tensor: DeviceTensor, shape: tuple[int, ...]) -> DeviceTensor:
        return DeviceTensor.contiguous(tensor.pointer, shape, tensor.dtype, tensor.device)

    def write(self, tensor: DeviceTensor, values: Array) -> None:
        self.gpu.make_current()
        slot = self._staging.take(tensor.shape, dtype_of(tensor))
        np.copyto(slot.memory.array, values, casting="unsafe")
        self.stream.upload(tensor.pointer, slot.memory, bytes_of(tensor))
        self.stream.record(slot.event)
        self._staging.give(slot)

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]], spans: Sequence[Span]) -> None:
        self.gpu.make_current()
        rows = [_rows(target, source, span) for target, source in pairs for span in spans]
        if len(rows) < _GRAPH_WORTHY:
            self.stream.copy_rows(rows)
            return
        self.gpu.ledger.note("copy on the device", f"{len(rows)} copies")
        key = tuple(rows)
        if key not in self._copies:
            with self.gpu.ledger.allowing("copy on the device"):
                self._copies[key] = self.stream.capture(lambda: self.stream.copy_rows(rows))
        self._copies[key].launch()

    def clone(self, tensors: Mapping[str, DeviceTensor], what: str) -> Reserved:
        buffers = {name: Buffer(tensor.shape, dtype_of(tensor)) for name, tensor in tensors.items()}
        clones = self.reserve(buffers, what)
        self.stream.copy_rows(
            [Rows(clones[name].pointer, t.pointer, bytes_of(t)) for name, t in tensors.items()]
        )
        return clones

    def fetch(self, tensor: DeviceTensor) -> "Fetched":
        self.gpu.make_current()
        slot = self._fetched.take(tensor.shape, dtype_of(tensor))
        self.stream.download(slot.memory, tensor.pointer, bytes_of(tensor))
        self.stream.record(slot.event)
        return Fetched(slot, self._fetched)

    def settle(self) -> None:
        self.gpu.make_current()
        self.stream.synchronize()

    @contextmanager
    def steady(self) -> Iterator[None]:
        """For debugging: what a live session must not do is an error inside."""
        free_before = self.gpu.memory().free_bytes
        with self.gpu.ledger.strictly():
            yield
        free_after = self.gpu.memory().free_bytes
        if free_after != free_before:
            raise EngineError(
                f"debug: {free_before - free_after} bytes of GPU memory were taken in the steady "
                "state"
            )

    def close(self) -> None:
        self.gpu.make_current()
        self.stream.synchronize()
        for graph in self._copies.values():
            graph.close()
        for block in self._blocks:
            block.close()
        self._staging.close()
        self._fetched.close()
        self._copies.clear()
        self._blocks.clear()
        self._spare.clear()

    def _block(self, size_bytes: int, what: str) -> DeviceBlock:
        spare = self._spare[max(size_bytes, 1)]
        if spare:
            return spare.pop()
        block = self.gpu.reserve(size_bytes, what)
        self._blocks.append(block)
        return block


class Slot:
    """Pinned memory, and the event after which it was read or written."""

    def __init__(self, gpu: Gpu, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.key = (shape, dtype)
        self.memory: PinnedArray = gpu.pinned(shape, dtype)
        self.event: Event = gpu.event()

    def close(self) -> None:
        self.memory.close()
        self.event.close()


class _Slots:
    """Slots by shape; with a limit, those beyond it are waited for."""

    def __init__(self, gpu: Gpu, limit: int | None = None) -> None:
        self._gpu, self._limit = gpu, limit
        self._free: dict[Any, list[Slot]] = defaultdict(list)
        self._all: list[Slot] = []
        self._changed = threading.Condition()

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Slot:
        with self._changed:
            free = self._free[shape, dtype]
            if self._limit is not None and len(self._all) >= self._limit:
                self._wait_for(free)
            for index, slot in enumerate(free):
                if slot.event.is_over:
                    return free.pop(index)
        return self._new(shape, dtype)

    def give(self, slot: Slot) -> None:
        with self._changed:
            self._free[slot.key].append(slot)
            self._changed.notify()

    def close(self) -> None:
        for slot in self._all:
            slot.close()
        self._all.clear()
        self._free.clear()

    def _wait_for(self, free: list[Slot]) -> None:
        if not self._changed.wait_for(lambda: free, STALL_LIMIT_S):
            raise EngineError(
                f"nobody has read the pictures of the last {self._limit} blocks for "
                f"{STALL_LIMIT_S:.0f} s; read a block's pixels before asking for more"
            )

    def _new(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Slot:
        slot = Slot(self._gpu, shape, dtype)
        self._all.append(slot)
        return slot


class Fetched:
    """Values on their way to the host."""

    def __init__(self, slot: Slot, slots: _Slots) -> None:
        self._slot: Slot | None = slot
        self._slots = slots
        self._values: Array | None = None
        self._lock = threading.Lock()

    @property
    def is_there(self) -> bool:
        return self._slot is None or self._slot.event.is_over

    def result(self) -> Array:
        with self._lock:
            if self._slot is not None:
                if not self._slot.event.is_over:
                    self._slot.event.wait()
                self._values = self._slot.memory.array.copy()
                self._release()
            assert self._values is not None
            return self._values

    def __del__(self) -> None:
        self._release()

    def _release(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            self._slots.give(slot)


def dtype_of(tensor: DeviceTensor) -> np.dtype[Any]:
    return _DTYPES.get(tensor.dtype) or np.dtype(tensor.dtype)


def bytes_of(tensor: DeviceTensor) -> int:
    return prod(tensor.shape) * tensor.item_bytes


def _rows(target: DeviceTensor, source: DeviceTensor, span: Span) -> Rows:
    """Entries of the second axis, in every row of the batch."""
    entry = prod(target.shape[2:]) * target.item_bytes
    return Rows(
        target=target.pointer + span.target_start * entry,
        source=source.pointer + span.source_start * entry,
        size_bytes=span.count * entry,
        count=target.shape[0],
        target_pitch_bytes=target.shape[1] * entry,
        source_pitch_bytes=source.shape[1] * entry,
    )
