"""Streams, events, captured graphs and memory of one GPU, through cuda.bindings.

Every call to the driver goes through ``plugins.driver.check``. What a live session must not do
once it runs is counted here: see :class:`Ledger`.
"""

import ctypes
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from math import prod
from typing import Any, Literal

import numpy as np

from longlive_trt.basics import Array, Closing, Given
from longlive_trt.dtypes import name_of
from longlive_trt.errors import EngineError, LongLiveError
from longlive_trt.plugins.cuda.driver import DeviceMemory as DeviceMemory
from longlive_trt.plugins.cuda.driver import (
    check,
    device_facts,
    failure,
    give_back,
    make_current,
    readable,
)
from longlive_trt.plugins.cuda.tensors import DeviceTensor as DeviceTensor
from longlive_trt.plugins.cuda.tensors import contiguous_strides

ALIGNMENT_BYTES = 256

Happening = Literal["allocation", "free", "host wait", "copy on the device"]


class Ledger:
    """What was done that costs a live session time; in strict mode, doing it is an error."""

    def __init__(self) -> None:
        self.counts: Counter[Happening] = Counter()
        self._rules = _Rules()

    def note(self, happening: Happening, what: str) -> None:
        self.counts[happening] += 1
        if self._rules.strict and happening not in self._rules.allowed:
            raise EngineError(f"debug: {happening} in the steady state: {what}")

    @contextmanager
    def strictly(self) -> Iterator[None]:
        """Nothing that is noted may happen inside, on this thread."""
        before, self._rules.strict = self._rules.strict, True
        try:
            yield
        finally:
            self._rules.strict = before

    @contextmanager
    def allowing(self, *happenings: Happening) -> Iterator[None]:
        before = self._rules.allowed
        self._rules.allowed = before | set(happenings)
        try:
            yield
        finally:
            self._rules.allowed = before


class _Rules(threading.local):
    strict = False
    allowed: frozenset[Happening] = frozenset()


@dataclass(frozen=True)
class MemoryInfo:
    free_bytes: int
    total_bytes: int


class Gpu:
    """One device with its primary context, which every library in the process shares."""

    def __init__(self, ordinal: int = 0, ledger: Ledger | None = None) -> None:
        """``ledger``: that of another device, where both make one video."""
        self.facts = device_facts(ordinal)
        self.ordinal = ordinal
        self.ledger = ledger or Ledger()

    def make_current(self) -> None:
        """A thread that talks to the driver does this first; again costs nothing."""
        make_current(self.ordinal)

    def driver(self) -> Any:
        """Its functions, on whatever thread asks for them."""
        self.make_current()
        return _driver()

    @cached_property
    def context(self) -> Any:
        """What copies between devices name them by."""
        return check(self.driver().cuCtxGetCurrent(), "find a GPU's context")

    def memory(self) -> MemoryInfo:
        return MemoryInfo(*check(self.driver().cuMemGetInfo(), "read the free memory"))

    def stream(self, urgency: Literal[0, 1, 2] = 0) -> "Stream":
        """Streams that do not wait for the default one. A more urgent one's kernels go first."""
        driver = self.driver()
        least, greatest = check(driver.cuCtxGetStreamPriorityRange(), "read stream priorities")
        flags = int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        priority = least + (greatest - least) * urgency // 2
        handle = check(driver.cuStreamCreateWithPriority(flags, priority), "make a stream")
        return Stream(self, int(handle))

    def reserve(self, size_bytes: int, what: str, *, zeroed: bool = False) -> DeviceMemory:
        """Device memory with whatever it held before, or zeros, which are waited for."""
        self.ledger.note("allocation", what)
        freed = partial(self.ledger.note, "free", what)
        return DeviceMemory(size_bytes, self.ordinal, what, zeroed=zeroed, before_close=freed)

    def failure(self, message: str) -> LongLiveError:
        """An error of a library, right after it, with what the driver knows of its cause."""
        return failure(self.ordinal, message)

    def event(self, *, timed: bool = False) -> "Event":
        return Event(self, timed=timed)

    def pinned(self, shape: Sequence[int], dtype: np.dtype[Any]) -> "PinnedArray":
        return PinnedArray(self, shape, dtype)


class PinnedArray(Closing):
    """Host memory that the GPU copies to and from by itself."""

    def __init__(self, gpu: Gpu, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        size_bytes, self._ordinal = max(prod(shape) * dtype.itemsize, 1), gpu.ordinal
        gpu.ledger.note("allocation", f"{size_bytes} bytes of pinned memory")
        what = f"allocate {readable(size_bytes)} of pinned memory"
        self._pointer = int(check(gpu.driver().cuMemAllocHost(size_bytes), what))
        memory = memoryview((ctypes.c_char * size_bytes).from_address(self._pointer))
        count = prod(shape)
        self.array: Array = np.frombuffer(memory, dtype, count).reshape(tuple(shape))

    @property
    def pointer(self) -> int:
        return self._pointer

    def close(self) -> None:
        if self._pointer:
            give_back(self._ordinal, "cuMemFreeHost", self._pointer)
            self._pointer = 0


class Event:
    """A point of a stream; before it is recorded, it is over."""

    def __init__(self, gpu: Gpu, *, timed: bool = False) -> None:
        driver = gpu.driver()
        flags = driver.CUevent_flags
        chosen = flags.CU_EVENT_DEFAULT if timed else flags.CU_EVENT_DISABLE_TIMING
        self._gpu = gpu
        self.handle = int(check(driver.cuEventCreate(int(chosen)), "make an event"))

    def wait(self) -> None:
        """Until all that was queued before it is done."""
        self._gpu.ledger.note("host wait", "an event")
        check(self._gpu.driver().cuEventSynchronize(self.handle), "wait for the GPU")

    @property
    def is_over(self) -> bool:
        driver = self._gpu.driver()
        (status,) = driver.cuEventQuery(self.handle)
        if status == driver.CUresult.CUDA_ERROR_NOT_READY:
            return False
        check((status,), "ask for the GPU's progress")
        return True

    def close(self) -> None:
        if self.handle:
            give_back(self._gpu.ordinal, "cuEventDestroy", self.handle)
            self.handle = 0

    def milliseconds_since(self, earlier: "Event") -> float:
        result = self._gpu.driver().cuEventElapsedTime(earlier.handle, self.handle)
        return float(check(result, "read a time"))


class Stream:
    """Work in the order in which it is queued, from whatever thread."""

    def __init__(self, gpu: Gpu, handle: int) -> None:
        self.gpu, self.handle = gpu, handle
        self.queueing = threading.RLock()
        """Held while something is queued: a capture takes whatever any thread queues meanwhile."""

    def record(self, event: Event) -> Event:
        self._call("cuEventRecord", "record an event", event.handle, self.handle)
        return event

    def wait_for(self, event: Event) -> None:
        """The stream waits, not the host."""
        self._call("cuStreamWaitEvent", "order two streams", self.handle, event.handle, 0)

    def synchronize(self) -> None:
        self.gpu.ledger.note("host wait", "a stream")
        self._call("cuStreamSynchronize", "wait for a stream", self.handle)

    def upload(self, target: int, source: PinnedArray | int, size_bytes: int) -> None:
        pointer = source.pointer if isinstance(source, PinnedArray) else source
        copy = (target, pointer, size_bytes)
        self._call("cuMemcpyHtoDAsync", "copy to the GPU", *copy, self.handle)

    def download(self, target: PinnedArray, source: int, size_bytes: int) -> None:
        copy = (target.pointer, source, size_bytes)
        self._call("cuMemcpyDtoHAsync", "copy from the GPU", *copy, self.handle)

    def clear(self, target: int, size_bytes: int) -> None:
        """In the stream's order: the driver's own clearing would not wait, nor be waited for."""
        self._call("cuMemsetD8Async", "clear memory on the GPU", target, 0, size_bytes, self.handle)

    def copy_rows(self, rows: Sequence["Rows"]) -> None:
        """Copies on the device, each of some equally long rows."""
        self.gpu.ledger.note("copy on the device", f"{len(rows)} copies")
        for row in rows:
            if row.count == 1:
                copy = (row.target, row.source, row.size_bytes)
                self._call("cuMemcpyDtoDAsync", "copy on the GPU", *copy, self.handle)
            else:
                self._call("cuMemcpy2DAsync", "copy on the GPU", row.described(), self.handle)

    def copy_windows(self, windows: Sequence["Windows"]) -> None:
        """Copies on the device, each of a window of rows and columns in some equal layers."""
        self.gpu.ledger.note("copy on the device", f"{len(windows)} copies")
        for window in windows:
            self._call("cuMemcpy3DAsync", "copy on the GPU", window.described(), self.handle)

    def receive(self, target: int, sender: Gpu, source: int, size_bytes: int) -> None:
        """A copy from another device's memory, over the host where there is no way between both."""
        self.gpu.ledger.note("copy on the device", f"{size_bytes} bytes of another GPU")
        copy = (target, self.gpu.context, source, sender.context, size_bytes)
        self._call("cuMemcpyPeerAsync", "copy between GPUs", *copy, self.handle)

    def capture(self, work: Callable[[], None]) -> "CapturedGraph":
        driver = self.gpu.driver()
        # What other threads do elsewhere, such as allocating, is no business of this capture.
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with self.queueing:
            check(driver.cuStreamBeginCapture(self.handle, mode), "capture a graph")
            try:
                work()
                graph = check(driver.cuStreamEndCapture(self.handle), "end a capture")
            except BaseException:
                # The stream must not stay in capture; what was captured is of no use.
                status, graph = driver.cuStreamEndCapture(self.handle)
                if int(status) == 0 and graph:
                    driver.cuGraphDestroy(graph)
                raise
        try:
            executable = check(driver.cuGraphInstantiate(graph, 0), "instantiate a graph")
        finally:
            driver.cuGraphDestroy(graph)
        return CapturedGraph(self, executable)

    def close(self) -> None:
        if self.handle:
            give_back(self.gpu.ordinal, "cuStreamDestroy", self.handle)
            self.handle = 0

    def _call(self, name: str, what: str, *arguments: Any) -> None:
        function = getattr(self.gpu.driver(), name)
        with self.queueing:
            check(function(*arguments), what)


@dataclass(frozen=True)
class Rows:
    """``count`` rows of ``size_bytes`` each, so many bytes apart."""

    target: int
    source: int
    size_bytes: int
    count: int = 1
    target_pitch_bytes: int = 0
    source_pitch_bytes: int = 0

    def described(self) -> Any:
        driver = _driver()
        copy = driver.CUDA_MEMCPY2D()
        device = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.srcMemoryType = copy.dstMemoryType = device
        copy.srcDevice, copy.dstDevice = self.source, self.target
        copy.srcPitch, copy.dstPitch = self.source_pitch_bytes, self.target_pitch_bytes
        copy.WidthInBytes, copy.Height = self.size_bytes, self.count
        return copy


@dataclass(frozen=True)
class Windows:
    """A window in each of ``layers``: ``rows`` of ``size_bytes``. Pitches are from row to row, and
    lines are the rows from layer to layer, in the whole of which it is a window."""

    target: int
    source: int
    size_bytes: int
    rows: int
    layers: int
    target_pitch_bytes: int
    source_pitch_bytes: int
    target_lines: int
    source_lines: int

    def described(self) -> Any:
        driver = _driver()
        copy = driver.CUDA_MEMCPY3D()
        device = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.srcMemoryType = copy.dstMemoryType = device
        copy.srcDevice, copy.dstDevice = self.source, self.target
        copy.srcPitch, copy.dstPitch = self.source_pitch_bytes, self.target_pitch_bytes
        copy.srcHeight, copy.dstHeight = self.source_lines, self.target_lines
        copy.WidthInBytes, copy.Height, copy.Depth = self.size_bytes, self.rows, self.layers
        return copy


class CapturedGraph:
    """Is freed when nobody holds it; CUDA lets a launch that is under way come to its end."""

    def __init__(self, stream: Stream, executable: Any) -> None:
        self._stream, self._executable = stream, executable
        self._free = weakref.finalize(self, _driver().cuGraphExecDestroy, executable)
        self._free.atexit = False

    def launch(self) -> None:
        driver, stream = self._stream.gpu.driver(), self._stream
        with stream.queueing:
            check(driver.cuGraphLaunch(self._executable, stream.handle), "launch a graph")

    def close(self) -> None:
        self._free()


class Repeated:
    """Work that is queued once, captured at the second time, and replayed from then on."""

    def __init__(self, stream: Stream, queue: Callable[[], None], *, captures: bool) -> None:
        self._stream, self._captures = stream, captures
        self._queue: Callable[[], None] | None = queue
        self._graph: CapturedGraph | None = None
        self._was_queued = False

    def run(self) -> None:
        with self._stream.queueing:
            if self._queue is None:
                raise EngineError("what is to run here was closed with its engine")
            if self._graph is not None:
                self._graph.launch()
            elif self._was_queued and self._captures:
                self._graph = self._stream.capture(self._queue)
                self._graph.launch()
            else:
                # Engines choose kernels, and reserve what these need, which cannot be captured.
                # Not all choose their GPU again on a thread that has another one's context.
                self._stream.gpu.make_current()
                self._queue()
                self._was_queued = True

    def close(self) -> None:
        """Forget the work, and with it whatever it holds."""
        self._queue = self._graph = None


def lay_out(
    buffers: Mapping[str, tuple[Sequence[int], np.dtype[Any]]],
) -> tuple[dict[str, int], int]:
    """Where each buffer begins in one block, and how long the block is."""
    offsets, end = {}, 0
    for name, (shape, dtype) in buffers.items():
        offsets[name] = end
        size_bytes = prod(shape) * dtype.itemsize
        end += -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return offsets, end


def tensor_at(
    pointer: int, shape: Sequence[int], dtype: np.dtype[Any], ordinal: int
) -> DeviceTensor:
    return DeviceTensor.contiguous(pointer, shape, name_of(dtype), ordinal)


def given_on_device(tensor: DeviceTensor) -> Given:
    packed = tensor.strides == contiguous_strides(tensor.shape)
    return Given(tensor.shape, tensor.dtype, packed)


def _driver() -> Any:
    return import_module("cuda.bindings.driver")
