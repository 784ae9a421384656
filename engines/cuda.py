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
from importlib import import_module
from math import prod
from typing import Any, Literal

import ml_dtypes
import numpy as np

from ..errors import EngineError, PluginError
from ..plugins.driver import check, device_facts
from ..plugins.tensors import DeviceTensor as DeviceTensor
from ..plugins.tensors import contiguous_strides
from .base import Array, Closing, Given

ALIGNMENT_BYTES = 256

Happening = Literal["allocation", "free", "host wait", "copy on the device"]

_NAMES = {np.dtype(ml_dtypes.float8_e4m3fn): "float8_e4m3"}


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

    def __init__(self, ordinal: int = 0) -> None:
        self.facts = device_facts(ordinal)
        self.ordinal = ordinal
        self.ledger = Ledger()
        self._entered = threading.local()

    def make_current(self) -> None:
        """A thread that talks to the driver does this first; again costs nothing."""
        if not getattr(self._entered, "done", False):
            try:
                import_module("cuda.core").Device(self.ordinal).set_current()
            except Exception as error:  # cuda.core raises private types
                raise PluginError(f"{self.facts.name} cannot be used any more: {error}") from error
            self._entered.done = True

    def driver(self) -> Any:
        """Its functions, on whatever thread asks for them."""
        self.make_current()
        return _driver()

    def memory(self) -> MemoryInfo:
        return MemoryInfo(*check(self.driver().cuMemGetInfo(), "read the free memory"))

    def stream(self, *, urgent: bool = False) -> "Stream":
        """Streams that do not wait for the default one. An urgent one's kernels go first."""
        driver = self.driver()
        least, greatest = check(driver.cuCtxGetStreamPriorityRange(), "read stream priorities")
        flags = int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        priority = greatest if urgent else least
        handle = check(driver.cuStreamCreateWithPriority(flags, priority), "make a stream")
        return Stream(self, int(handle))

    def reserve(self, size_bytes: int, what: str) -> "DeviceBlock":
        return DeviceBlock(self, size_bytes, what)

    def event(self, *, timed: bool = False) -> "Event":
        return Event(self, timed=timed)

    def pinned(self, shape: Sequence[int], dtype: np.dtype[Any]) -> "PinnedArray":
        return PinnedArray(self, shape, dtype)


class DeviceBlock(Closing):
    """A stretch of device memory, with whatever it held before."""

    def __init__(self, gpu: Gpu, size_bytes: int, what: str) -> None:
        self._gpu, self.size_bytes, self._what = gpu, max(size_bytes, 1), what
        gpu.ledger.note("allocation", what)
        driver = gpu.driver()
        result = driver.cuMemAlloc(self.size_bytes)
        if result[0] == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise EngineError(
                f"{what}: {_readable(self.size_bytes)} of GPU memory are needed, and "
                f"{_readable(gpu.memory().free_bytes)} are free on {gpu.facts.name}; close what "
                "else uses the GPU, or make fewer or smaller videos at once"
            )
        self.pointer = int(check(result, f"allocate {what}"))

    def close(self) -> None:
        if self.pointer:
            self._gpu.ledger.note("free", self._what)
            _driver().cuMemFree(self.pointer)
            self.pointer = 0


class PinnedArray(Closing):
    """Host memory that the GPU copies to and from by itself."""

    def __init__(self, gpu: Gpu, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        size_bytes = max(prod(shape) * dtype.itemsize, 1)
        gpu.ledger.note("allocation", f"{size_bytes} bytes of pinned memory")
        what = f"allocate {_readable(size_bytes)} of pinned memory"
        self._pointer = int(check(gpu.driver().cuMemAllocHost(size_bytes), what))
        memory = memoryview((ctypes.c_char * size_bytes).from_address(self._pointer))
        count = prod(shape)
        self.array: Array = np.frombuffer(memory, dtype, count).reshape(tuple(shape))

    @property
    def pointer(self) -> int:
        return self._pointer

    def close(self) -> None:
        if self._pointer:
            _driver().cuMemFreeHost(self._pointer)
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
            _driver().cuEventDestroy(self.handle)
            self.handle = 0

    def milliseconds_since(self, earlier: "Event") -> float:
        result = self._gpu.driver().cuEventElapsedTime(earlier.handle, self.handle)
        return float(check(result, "read a time"))


class Stream:
    def __init__(self, gpu: Gpu, handle: int) -> None:
        self.gpu, self.handle = gpu, handle

    def record(self, event: Event) -> Event:
        check(self.gpu.driver().cuEventRecord(event.handle, self.handle), "record an event")
        return event

    def wait_for(self, event: Event) -> None:
        """The stream waits, not the host."""
        result = self.gpu.driver().cuStreamWaitEvent(self.handle, event.handle, 0)
        check(result, "order two streams")

    def synchronize(self) -> None:
        self.gpu.ledger.note("host wait", "a stream")
        check(self.gpu.driver().cuStreamSynchronize(self.handle), "wait for a stream")

    def upload(self, target: int, source: PinnedArray | int, size_bytes: int) -> None:
        pointer = source.pointer if isinstance(source, PinnedArray) else source
        check(
            self.gpu.driver().cuMemcpyHtoDAsync(target, pointer, size_bytes, self.handle),
            "copy to the GPU",
        )

    def download(self, target: PinnedArray, source: int, size_bytes: int) -> None:
        check(
            self.gpu.driver().cuMemcpyDtoHAsync(target.pointer, source, size_bytes, self.handle),
            "copy from the GPU",
        )

    def clear(self, target: int, size_bytes: int) -> None:
        """In the stream's order: the driver's own clearing would not wait, nor be waited for."""
        result = self.gpu.driver().cuMemsetD8Async(target, 0, size_bytes, self.handle)
        check(result, "clear memory on the GPU")

    def copy_rows(self, rows: Sequence["Rows"]) -> None:
        """Copies on the device, each of some equally long rows."""
        driver = self.gpu.driver()
        self.gpu.ledger.note("copy on the device", f"{len(rows)} copies")
        for row in rows:
            if row.count == 1:
                result = driver.cuMemcpyDtoDAsync(
                    row.target, row.source, row.size_bytes, self.handle
                )
            else:
                result = driver.cuMemcpy2DAsync(row.described(), self.handle)
            check(result, "copy on the GPU")

    def capture(self, work: Callable[[], None]) -> "CapturedGraph":
        driver = self.gpu.driver()
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
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
            _driver().cuStreamDestroy(self.handle)
            self.handle = 0


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


class CapturedGraph:
    """Is freed when nobody holds it; CUDA lets a launch that is under way come to its end."""

    def __init__(self, stream: Stream, executable: Any) -> None:
        self._stream, self._executable = stream, executable
        self._free = weakref.finalize(self, _driver().cuGraphExecDestroy, executable)
        self._free.atexit = False

    def launch(self) -> None:
        driver = self._stream.gpu.driver()
        check(driver.cuGraphLaunch(self._executable, self._stream.handle), "launch a graph")

    def close(self) -> None:
        self._free()


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
    return DeviceTensor.contiguous(pointer, shape, _NAMES.get(dtype, dtype.name), ordinal)


def given_on_device(tensor: DeviceTensor) -> Given:
    packed = tensor.strides == contiguous_strides(tensor.shape)
    return Given(tensor.shape, tensor.dtype, packed)


def _readable(size_bytes: int) -> str:
    unit, name = (2**30, "GiB") if size_bytes >= 2**28 else (2**20, "MiB")
    return f"{size_bytes / unit:.2f} {name}"


def _driver() -> Any:
    return import_module("cuda.bindings.driver")
