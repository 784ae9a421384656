"""A session's tensors on a GPU, and what passes between them and the host.

Nothing here waits for the GPU but :meth:`CudaMemory.settle` and the results of what is fetched.
"""

import logging
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from longlive_trt.basics import Array
from longlive_trt.dtypes import BY_NAME
from longlive_trt.errors import EngineError, PluginError, UsageError
from longlive_trt.plugins.cuda.streams import (
    CapturedGraph,
    DeviceMemory,
    DeviceTensor,
    Event,
    Gpu,
    PinnedArray,
    Repeated,
    Rows,
    Stream,
    lay_out,
    tensor_at,
)
from longlive_trt.plugins.kernels.values import move_values
from longlive_trt.runtime.memory.addresses import rows_of, windows_of
from longlive_trt.runtime.memory.base import Buffer, Patch, Span, Tensor
from longlive_trt.runtime.memory.copying import copied

logger = logging.getLogger(__name__)

STALL_LIMIT_S = 120.0

_GRAPH_WORTHY = 8
"""So many copies are cheaper as one captured graph."""
_MANY, _SMALL_BYTES = 12, 4 << 20
"""Positions: some of one shape in a block, of which the host may be two ahead."""


class Reserved(dict[str, Tensor]):
    """Tensors whose memory may be used again once nobody holds the mapping."""


class CudaMemory:
    """Work in the order of one stream.

    ``waiting`` limits how many fetches of tensors of one shape may lie unread. What inlets bring
    comes over the stream ``arriving``, beside the other.
    """

    def __init__(
        self, stream: Stream, *, waiting: int | None = None, arriving: Stream | None = None
    ) -> None:
        self.stream, self.gpu = stream, stream.gpu
        self._arriving = arriving or stream
        self._inlets: list[CudaInlet] = []
        self.is_closed = False
        self._staging = _Slots(self.gpu)
        self._fetched = _Slots(self.gpu, limit=waiting)
        self._spare: dict[int, list[DeviceMemory]] = defaultdict(list)
        self._blocks: list[DeviceMemory] = []
        self._copies: dict[tuple[Any, ...], CapturedGraph] = {}
        self._bound: list[Repeated] = []

    def reserve(self, buffers: Mapping[str, Buffer], what: str) -> Reserved:
        wanted = {name: (buffer.shape, buffer.dtype) for name, buffer in buffers.items()}
        offsets, size_bytes = lay_out(wanted)
        block = self._block(size_bytes, what)
        self.stream.clear(block.pointer, block.size_bytes)
        tensors = Reserved()
        for name, (shape, dtype) in wanted.items():
            place = block.pointer + offsets[name]
            tensors[name] = tensor_at(place, shape, dtype, self.gpu.ordinal)
        weakref.finalize(tensors, self._spare[block.size_bytes].append, block)
        return tensors

    def view(self, tensor: DeviceTensor, shape: tuple[int, ...]) -> DeviceTensor:
        return DeviceTensor.contiguous(tensor.pointer, shape, tensor.dtype, tensor.device)

    def write(self, tensor: DeviceTensor, values: Array) -> None:
        slot = self._staging.take(tensor.shape, dtype_of(tensor), at_rest=True)
        np.copyto(slot.memory.array, values, casting="unsafe")
        self.stream.upload(tensor.pointer, slot.memory, bytes_of(tensor))
        self.stream.record(slot.event)
        self._staging.give(slot)

    def inlet(self, tensors: Sequence[DeviceTensor]) -> "CudaInlet":
        self._inlets.append(CudaInlet(self.stream, self._arriving, tensors))
        return self._inlets[-1]

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]], spans: Sequence[Span]) -> None:
        self._copy(pairs, spans)

    def commit(
        self,
        pairs: Iterable[tuple[Tensor, Tensor]],
        spans: Sequence[Span],
        transposed: Iterable[tuple[Tensor, Tensor]] = (),
    ) -> None:
        with self.gpu.ledger.allowing("copy on the device"):
            self._copy(pairs, spans, transposed)

    def _copy(
        self,
        pairs: Iterable[tuple[Tensor, Tensor]],
        spans: Sequence[Span],
        transposed: Iterable[tuple[Tensor, Tensor]] = (),
    ) -> None:
        rows = [rows_of(target, source, span) for target, source in pairs for span in spans]
        moves = [_Move(target, source, span) for target, source in transposed for span in spans]

        def queue() -> None:
            self.stream.copy_rows(rows)
            for move in moves:
                move.queue(self.stream)

        key = (*rows, *moves)
        if len(key) < _GRAPH_WORTHY:
            queue()
        elif key in self._copies:
            self.gpu.ledger.note("copy on the device", f"{len(key)} copies")
            self._copies[key].launch()
        else:
            # At once: a kernel's first launch, which loads it, cannot be under capture.
            queue()
            with self.gpu.ledger.allowing("copy on the device"):
                self._copies[key] = self.stream.capture(queue)

    def bind(self, patches: Sequence[Patch]) -> Repeated:
        windows = [windows_of(patch) for patch in patches]

        def queue() -> None:
            with self.gpu.ledger.allowing("copy on the device"):
                self.stream.copy_windows(windows)

        bound = Repeated(self.stream, queue, captures=len(windows) > 1)
        self._bound.append(bound)
        return bound

    def clone(self, tensors: Mapping[str, DeviceTensor], what: str) -> Reserved:
        buffers = {name: Buffer(tensor.shape, dtype_of(tensor)) for name, tensor in tensors.items()}
        clones = self.reserve(buffers, what)
        self.stream.copy_rows(
            [Rows(clones[name].pointer, t.pointer, bytes_of(t)) for name, t in tensors.items()]
        )
        return clones

    def fetch(self, tensor: DeviceTensor) -> "Fetched":
        # One that was given back unread may be under way still: then this fetch comes after it.
        slot = self._fetched.take(tensor.shape, dtype_of(tensor), at_rest=False)
        self.stream.download(slot.memory, tensor.pointer, bytes_of(tensor))
        self.stream.record(slot.event)
        return Fetched(slot, self._fetched)

    def settle(self) -> None:
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
        _wait_if_possible(self.settle)
        for inlet in self._inlets:
            inlet.close()
        for graph in self._copies.values():
            graph.close()
        for bound in self._bound:
            bound.close()
        for block in self._blocks:
            block.close()
        self._staging.close()
        self._fetched.close()
        self._inlets.clear()
        self._copies.clear()
        self._bound.clear()
        self._blocks.clear()
        self._spare.clear()
        self.is_closed = True

    def _block(self, size_bytes: int, what: str) -> DeviceMemory:
        spare = self._spare[max(size_bytes, 1)]
        if spare:
            return spare.pop()
        block = self.gpu.reserve(size_bytes, what)
        self._blocks.append(block)
        return block


@dataclass(frozen=True)
class _Move:
    target: DeviceTensor
    source: DeviceTensor
    span: Span

    def queue(self, stream: Stream) -> None:
        move_values(
            self.source,
            self.target,
            source_first=self.span.source_start,
            target_first=self.span.target_start,
            tokens=self.span.count,
            stream=stream.handle,
        )


class CudaInlet:
    """Two events order two streams: values come after the readings before, and readings after them.

    All of it is reserved at once: a live session fills and reads, and nothing else.
    """

    def __init__(self, reader: Stream, arriving: Stream, tensors: Sequence[DeviceTensor]) -> None:
        gpu = reader.gpu
        self._reader, self._arriving, self._tensors = reader, arriving, tensors
        self._staged: list[PinnedArray] = []
        self._arrived = gpu.event()
        # What was asked for before, such as clearing, may still be queued.
        self._was_read = reader.record(gpu.event())
        try:
            for tensor in tensors:
                self._staged.append(gpu.pinned(tensor.shape, dtype_of(tensor)))
        except BaseException:
            self.close()
            raise

    def fill(self, values: Sequence[Array]) -> None:
        # What was staged before has left, unless the GPU is a whole turn behind.
        if not self._arrived.is_over:
            self._arrived.wait()
        for staged, value in zip(self._staged, values, strict=True):
            np.copyto(staged.array, value, casting="unsafe")
        self._arriving.wait_for(self._was_read)
        for staged, tensor in zip(self._staged, self._tensors, strict=True):
            self._arriving.upload(tensor.pointer, staged, bytes_of(tensor))
        self._arriving.record(self._arrived)

    @contextmanager
    def reading(self) -> Iterator[None]:
        self._reader.wait_for(self._arrived)
        try:
            yield
        finally:
            self._reader.record(self._was_read)

    def close(self) -> None:
        _wait_if_possible(self._arrived.wait)
        for staged in self._staged:
            staged.close()
        self._arrived.close()
        self._was_read.close()


class Slot:
    """Pinned memory, and the event after which it was read or written."""

    def __init__(self, gpu: Gpu, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.key = (shape, dtype)
        self.memory: PinnedArray = gpu.pinned(shape, dtype)
        self.event: Event = gpu.event()
        self._in_use = threading.Lock()
        self._is_closed = False

    def read(self) -> Array:
        """What has arrived; waits for it."""
        with self._in_use:
            if self._is_closed:
                raise UsageError(
                    "values of a block were never read, and its session is closed; read a block's "
                    "latents and pixels before that"
                )
            if not self.event.is_over:
                self.event.wait()
            return copied(self.memory.array)

    def close(self) -> None:
        with self._in_use:
            self._is_closed = True
            self.memory.close()
            self.event.close()


class _Slots:
    """Slots by shape; with a limit, there are so many of each, and one more is waited for."""

    def __init__(self, gpu: Gpu, limit: int | None = None) -> None:
        self._gpu, self._limit = gpu, limit
        self._free: dict[Any, list[Slot]] = defaultdict(list)
        self._all: dict[Any, list[Slot]] = defaultdict(list)
        self._changed = threading.Condition()

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any], *, at_rest: bool) -> Slot:
        """``at_rest``: one that the GPU neither reads nor writes any more."""
        key = shape, dtype
        with self._changed:
            free = self._free[key]
            if len(self._all[key]) == self._limit:
                self._wait_for(free)
            for index, slot in enumerate(free):
                if not at_rest or slot.event.is_over:
                    return free.pop(index)
        return self._more(key)

    def give(self, slot: Slot) -> None:
        with self._changed:
            self._free[slot.key].append(slot)
            self._changed.notify()

    def close(self) -> None:
        for slots in self._all.values():
            for slot in slots:
                slot.close()
        self._all.clear()
        self._free.clear()

    def _more(self, key: tuple[tuple[int, ...], np.dtype[Any]]) -> Slot:
        """As many as a live session may come to need, which must not make any later."""
        known = self._all[key]
        if self._limit is not None:
            # A video has its first pictures once only: not all that is wanted is wanted again.
            count = self._limit - len(known) if known else 1
        else:
            count = _MANY if Buffer(*key).size_bytes <= _SMALL_BYTES else 1
        made = []
        for _ in range(count):
            made.append(Slot(self._gpu, *key))
            known.append(made[-1])
        for spare in made[1:]:
            self.give(spare)
        return made[0]

    def _wait_for(self, free: list[Slot]) -> None:
        if not self._changed.wait_for(lambda: free, STALL_LIMIT_S):
            raise EngineError(
                f"nobody has read the pictures of the last {self._limit} blocks for "
                f"{STALL_LIMIT_S:.0f} s; read a block's pixels before asking for more"
            )


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
                self._values = self._slot.read()
                self._release()
            assert self._values is not None
            return self._values

    def __del__(self) -> None:
        self._release()

    def _release(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            self._slots.give(slot)


def _wait_if_possible(wait: Callable[[], None]) -> None:
    try:
        wait()
    except PluginError as error:
        # A lost context is told by whatever asks for results; here is nothing to wait for.
        logger.debug("closing: %s", error)


def dtype_of(tensor: DeviceTensor) -> np.dtype[Any]:
    return BY_NAME[tensor.dtype].numpy


def bytes_of(tensor: DeviceTensor) -> int:
    return prod(tensor.shape) * tensor.item_bytes
