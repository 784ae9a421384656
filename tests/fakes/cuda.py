"""Imagined GPUs: ``cuda.bindings.driver`` and ``cuda.core`` as far as this project calls them.

Device memory is host memory. What is queued on a stream runs as late as CUDA's rules allow
(``lazy``), at once (``eager``), or at random moments. So work that nobody waited for leaves wrong
values behind, and touching memory that was freed, or is another device's, loses the context.
Streams, events and memory are of the device whose context was current when they were made.
"""

import ctypes
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.fakes.memory import IllegalAddressError, Kind, Memory, RefusedError, Status
from tests.fakes.queues import Event, Queues, Record, Schedule, Stream, Wait, Work

__all__ = ["FakeCuda", "Schedule", "Status"]


class CudaCoreError(Exception):
    """``cuda.core`` raises types of its own."""


@dataclass(frozen=True)
class Graph:
    work: list[Work]


@dataclass(frozen=True)
class ExecutableGraph:
    work: list[Work]


_NAMES = {
    Stream: "streams",
    Event: "events",
    Graph: "graphs",
    ExecutableGraph: "executable graphs",
}


def _call(name: str, *, outputs: int = 0, unsafe: bool = False, anywhere: bool = False) -> Any:
    """A function of the driver. An unsafe one spoils a capture, most need a current context."""

    def mark(method: Any) -> Any:
        method.described = (name, outputs, unsafe, anywhere)
        return method

    return mark


class FakeCuda:
    def __init__(
        self,
        *,
        schedule: Schedule = "lazy",
        capacity_bytes: int = 80 << 30,
        capability: tuple[int, int] = (9, 0),
        is_there: bool = True,
        devices: int = 1,
    ) -> None:
        """``capacity_bytes`` and ``capability`` are those of every device."""
        self.capability, self.devices = capability, devices if is_there else 0
        self.memory = Memory(capacity_bytes)
        self.queues = Queues(schedule)
        self.calls: Counter[str] = Counter()
        self.before: dict[str, Callable[[], None]] = {}
        """What happens, on the calling thread, before a function is called."""
        self._failures: dict[str, deque[Status]] = defaultdict(deque)
        self._lock = threading.RLock()
        self._context = threading.local()
        self._handles: dict[int, Any] = {0: self.queues.default}
        self._next_handle = 0x1000
        self.driver = self._make_driver()
        self.modules = {
            "cuda.bindings.driver": self.driver,
            "cuda.core": SimpleNamespace(Device=self._device),
        }

    # ---- for tests ---------------------------------------------------------------------------

    def fail(self, name: str, status: Status, *, after: int = 0) -> None:
        """The call after so many more fails once."""
        self._failures[name].extend([Status.CUDA_SUCCESS] * after + [status])

    def choose(self, ordinal: int) -> None:
        """As libraries do, and tell nobody: this thread is in that device's context."""
        self._context.device = ordinal

    def lose_context(self) -> None:
        with self._lock:
            self.queues.lose(IllegalAddressError("the test wants it so"))

    def finish_all(self) -> None:
        """Run everything that is queued anywhere."""
        with self._lock:
            for stream in self.queues.streams:
                self.queues.drain(stream)

    def leaks(self) -> dict[str, int]:
        """What was made and not given back."""
        counts = Counter(_NAMES[type(held)] for handle, held in self._handles.items() if handle)
        counts["device memory"] = len(self.memory.live("device"))
        counts["pinned memory"] = len(self.memory.live("pinned"))
        return {what: count for what, count in counts.items() if count}

    def array(self, pointer: int, shape: Sequence[int], dtype: np.dtype[Any]) -> Any:
        """Device memory as an array, for what runs on the device."""
        size_bytes = int(np.prod(shape)) * dtype.itemsize
        return self.memory.at(pointer, size_bytes).view(dtype).reshape(tuple(shape))

    def launch(self, stream: int, work: Work, touched: Sequence[tuple[int, int]] = ()) -> Any:
        """Queue a kernel that touches so many bytes from these addresses on."""

        def run() -> None:
            for pointer, size_bytes in touched:
                self.memory.at(pointer, size_bytes, device=device)
            work()

        device = self._device_of(stream)
        return self.driver.cuLaunchKernel(run, stream)

    # ---- devices -----------------------------------------------------------------------------

    def _device(self, ordinal: int = 0) -> Any:
        if not 0 <= ordinal < self.devices:
            raise CudaCoreError("CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected")
        major, minor = self.capability
        return SimpleNamespace(
            name="Imagined GPU",
            compute_capability=SimpleNamespace(major=major, minor=minor),
            properties=SimpleNamespace(
                multiprocessor_count=132, max_shared_memory_per_block_optin=232448
            ),
            set_current=lambda: self._set_current(ordinal),
        )

    def _set_current(self, ordinal: int) -> None:
        if self.queues.fault is not None:
            raise CudaCoreError("CUDA_ERROR_ILLEGAL_ADDRESS")
        self.calls["set_current"] += 1
        self._context.device = ordinal

    def _here(self) -> int:
        """The device whose context this thread is in."""
        return int(self._context.device)

    # ---- calls -------------------------------------------------------------------------------

    def _make_driver(self) -> Any:
        methods = [getattr(self, name) for name in dir(type(self))]
        calls = {m.described[0]: self._wrapped(m) for m in methods if hasattr(m, "described")}
        return SimpleNamespace(
            **calls,
            CUresult=Status,
            CUstream_flags=SimpleNamespace(CU_STREAM_NON_BLOCKING=1),
            CUevent_flags=SimpleNamespace(CU_EVENT_DEFAULT=0, CU_EVENT_DISABLE_TIMING=2),
            CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1),
            CUmemorytype=SimpleNamespace(CU_MEMORYTYPE_DEVICE=2),
            CUDA_MEMCPY2D=SimpleNamespace,
            CUDA_MEMCPY3D=SimpleNamespace,
        )

    def _wrapped(self, method: Any) -> Callable[..., tuple[Any, ...]]:
        name, outputs, unsafe, anywhere = method.described

        def call(*arguments: Any) -> tuple[Any, ...]:
            if name in self.before:
                self.before[name]()
            with self._lock:
                self.calls[name] += 1
                try:
                    self._require_allowed(name, unsafe=unsafe, anywhere=anywhere)
                    values = method(*arguments)
                    self.queues.tick()
                except RefusedError as refused:
                    return (refused.status, *[None] * outputs)
            return (Status.CUDA_SUCCESS, *(values if outputs > 1 else [values] * outputs))

        return call

    def _require_allowed(self, name: str, *, unsafe: bool, anywhere: bool) -> None:
        self._require_context_kept()
        if not anywhere and not hasattr(self._context, "device"):
            raise RefusedError(Status.CUDA_ERROR_INVALID_CONTEXT)
        if self._failures[name] and (status := self._failures[name].popleft()):
            raise RefusedError(status)
        capturing = [stream for stream in self.queues.streams if stream.is_captured_here]
        if unsafe and capturing:
            capturing[0].is_spoiled = True
            raise RefusedError(Status.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)

    def _require_context_kept(self) -> None:
        if self.queues.fault is not None:
            raise RefusedError(Status.CUDA_ERROR_ILLEGAL_ADDRESS)

    def _hold(self, held: Any) -> int:
        self._next_handle += 16
        self._handles[self._next_handle] = held
        return self._next_handle

    def _held(self, handle: Any, kind: type) -> Any:
        held = self._handles.get(int(handle))
        if not isinstance(held, kind):
            raise RefusedError(Status.CUDA_ERROR_INVALID_HANDLE)
        return held

    def _drop(self, handle: Any, kind: type) -> None:
        self._held(handle, kind)
        del self._handles[int(handle)]

    def _add(self, stream: Any, entry: Work | Record | Wait) -> None:
        self._held(stream, Stream).add(entry)

    # ---- memory ------------------------------------------------------------------------------

    @_call("cuMemGetInfo", outputs=2)
    def _memory_info(self) -> tuple[int, int]:
        return self.memory.free_on(self._here()), self.memory.capacity_bytes

    @_call("cuMemAlloc", outputs=1, unsafe=True)
    def _allocate(self, size_bytes: int) -> int:
        if not size_bytes:
            raise RefusedError(Status.CUDA_ERROR_INVALID_VALUE)
        return self.memory.allocate(size_bytes, "device", self._here())

    @_call("cuMemFree", unsafe=True)
    def _free(self, pointer: int) -> None:
        self.memory.free(pointer, "device")

    @_call("cuMemAllocHost", outputs=1, unsafe=True)
    def _allocate_pinned(self, size_bytes: int) -> int:
        return self.memory.allocate(size_bytes, "pinned")

    @_call("cuMemFreeHost", unsafe=True)
    def _free_pinned(self, pointer: int) -> None:
        self.memory.free(pointer, "pinned")

    @_call("cuMemsetD8", unsafe=True)
    def _set(self, pointer: int, value: int, size_bytes: int) -> None:
        """On the default stream, for which other streams do not wait."""
        self._set_in_order(pointer, value, size_bytes, 0)

    @_call("cuMemsetD8Async")
    def _set_in_order(self, pointer: int, value: int, size_bytes: int, stream: int) -> None:
        device = self._device_of(stream)

        def fill() -> None:
            self.memory.at(pointer, size_bytes, device=device)[:] = value

        self._add(stream, fill)

    @_call("cuMemcpyHtoDAsync")
    def _upload(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        if self.memory.is_pinned(source):
            self._copy((target, "device"), (source, "pinned"), size_bytes, stream)
            return
        # What is not pinned is read before the call returns.
        values = np.frombuffer(ctypes.string_at(source, size_bytes), np.uint8)

        device = self._device_of(stream)

        def copy() -> None:
            self.memory.at(target, size_bytes, device=device)[:] = values

        self._add(stream, copy)

    @_call("cuMemcpyDtoHAsync")
    def _download(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        self._copy((target, "pinned"), (source, "device"), size_bytes, stream)

    @_call("cuMemcpyDtoDAsync")
    def _copy_inside(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        self._copy((target, "device"), (source, "device"), size_bytes, stream)

    @_call("cuMemcpy2DAsync")
    def _copy_rows(self, rows: Any, stream: int) -> None:
        if rows.WidthInBytes > min(rows.srcPitch, rows.dstPitch):
            raise RefusedError(Status.CUDA_ERROR_INVALID_VALUE)
        for row in range(rows.Height):
            source = rows.srcDevice + row * rows.srcPitch
            self._copy_inside(
                rows.dstDevice + row * rows.dstPitch, source, rows.WidthInBytes, stream
            )

    @_call("cuMemcpy3DAsync")
    def _copy_layers(self, copy: Any, stream: int) -> None:
        too_wide = copy.WidthInBytes > min(copy.srcPitch, copy.dstPitch)
        if too_wide or copy.Height > min(copy.srcHeight, copy.dstHeight):
            raise RefusedError(Status.CUDA_ERROR_INVALID_VALUE)
        device = self._device_of(stream)

        def windows(pointer: int, pitch: int, lines: int) -> Any:
            """A view of as much as the copy touches."""
            strides = (pitch * lines, pitch, 1)
            shape = (copy.Depth, copy.Height, copy.WidthInBytes)
            reach = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
            memory = self.memory.at(pointer, reach, device=device)
            return np.lib.stride_tricks.as_strided(memory, shape, strides)

        def run() -> None:
            source = windows(copy.srcDevice, copy.srcPitch, copy.srcHeight)
            windows(copy.dstDevice, copy.dstPitch, copy.dstHeight)[...] = source

        self._add(stream, run)

    def _copy(
        self, target: tuple[int, Kind], source: tuple[int, Kind], size_bytes: int, stream: int
    ) -> None:
        device = self._device_of(stream)

        def copy() -> None:
            values = self.memory.at(source[0], size_bytes, source[1], device)
            self.memory.at(target[0], size_bytes, target[1], device)[:] = values

        self._add(stream, copy)

    @_call("cuMemcpyPeerAsync")
    def _copy_between(
        self, target: int, to: int, source: int, sender: int, size_bytes: int, stream: int
    ) -> None:
        """Contexts are devices' ordinals here."""

        def copy() -> None:
            values = self.memory.at(source, size_bytes, device=sender)
            self.memory.at(target, size_bytes, device=to)[:] = values

        self._add(stream, copy)

    def _device_of(self, stream: int) -> int:
        """Of the default stream, the current one."""
        return int(self._held(stream, Stream).device) if stream else self._here()

    @_call("cuCtxGetCurrent", outputs=1)
    def _context_here(self) -> int:
        return self._here()

    @_call("cuCtxSetCurrent", anywhere=True)
    def _choose_context(self, context: int) -> None:
        self._context.device = context

    # ---- streams and events ------------------------------------------------------------------

    @_call("cuCtxGetStreamPriorityRange", outputs=2)
    def _priorities(self) -> tuple[int, int]:
        return 0, -5

    @_call("cuStreamCreateWithPriority", outputs=1)
    def _make_stream(self, flags: int, priority: int) -> int:
        if flags != self.driver.CUstream_flags.CU_STREAM_NON_BLOCKING:
            raise NotImplementedError("streams that wait for the default one")
        return self._hold(self.queues.open(priority, self._here()))

    @_call("cuStreamDestroy")
    def _drop_stream(self, stream: int) -> None:
        self._drop(stream, Stream)

    @_call("cuStreamSynchronize", unsafe=True)
    def _synchronize(self, stream: int) -> None:
        self.queues.drain(self._held(stream, Stream))
        self._require_context_kept()

    @_call("cuStreamWaitEvent")
    def _wait_for(self, stream: int, event: int, _flags: int) -> None:
        record = self._held(event, Event).latest
        if record is not None:
            self._add(stream, Wait(record))

    @_call("cuLaunchKernel")
    def _launch(self, work: Work, stream: int) -> None:
        self._require_current(stream)
        self._add(stream, work)

    def _require_current(self, stream: int) -> None:
        """What belongs to a context is of no use in another one's stream."""
        if self._device_of(stream) != self._here():
            raise RefusedError(Status.CUDA_ERROR_INVALID_HANDLE)

    @_call("cuEventCreate", outputs=1)
    def _make_event(self, flags: int) -> int:
        is_timed = flags == self.driver.CUevent_flags.CU_EVENT_DEFAULT
        return self._hold(Event(is_timed, self._here()))

    @_call("cuEventDestroy")
    def _drop_event(self, event: int) -> None:
        self._drop(event, Event)

    @_call("cuEventRecord")
    def _record(self, event: int, stream: int) -> None:
        if self._held(event, Event).device != self._device_of(stream):
            raise RefusedError(Status.CUDA_ERROR_INVALID_HANDLE)
        record = Record(self._held(stream, Stream))
        self._add(stream, record)
        self._held(event, Event).latest = record

    @_call("cuEventSynchronize", unsafe=True)
    def _wait_here(self, event: int) -> None:
        record = self._held(event, Event).latest
        if record is not None:
            self.queues.finish(record)
        self._require_context_kept()

    @_call("cuEventQuery", unsafe=True)
    def _ask(self, event: int) -> None:
        self.queues.tick()
        record = self._held(event, Event).latest
        if record is not None and record.done_s is None:
            raise RefusedError(Status.CUDA_ERROR_NOT_READY)

    @_call("cuEventElapsedTime", outputs=1)
    def _elapsed_ms(self, earlier: int, later: int) -> float:
        events = [self._held(event, Event) for event in (earlier, later)]
        times_s = [event.latest.done_s for event in events if event.latest and event.is_timed]
        if len(times_s) < len(events):
            raise RefusedError(Status.CUDA_ERROR_INVALID_HANDLE)
        if None in times_s:
            raise RefusedError(Status.CUDA_ERROR_NOT_READY)
        return (times_s[1] - times_s[0]) * 1e3

    # ---- graphs ------------------------------------------------------------------------------

    @_call("cuStreamBeginCapture")
    def _begin_capture(self, stream: int, _mode: Any) -> None:
        held = self._held(stream, Stream)
        if held.captured is not None:
            raise RefusedError(Status.CUDA_ERROR_INVALID_VALUE)
        held.begin_capture()

    @_call("cuStreamEndCapture", outputs=1)
    def _end_capture(self, stream: int) -> int:
        held = self._held(stream, Stream)
        captured, held.captured = held.captured, None
        if captured is None:
            raise RefusedError(Status.CUDA_ERROR_INVALID_VALUE)
        if held.is_spoiled:
            raise RefusedError(Status.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)
        return self._hold(Graph(captured))

    @_call("cuGraphInstantiate", outputs=1)
    def _instantiate(self, graph: int, _flags: int) -> int:
        return self._hold(ExecutableGraph(self._held(graph, Graph).work))

    @_call("cuGraphLaunch")
    def _launch_graph(self, graph: int, stream: int) -> None:
        for work in self._held(graph, ExecutableGraph).work:
            self._add(stream, work)

    @_call("cuGraphDestroy", anywhere=True)
    def _drop_graph(self, graph: int) -> None:
        self._drop(graph, Graph)

    @_call("cuGraphExecDestroy", anywhere=True)
    def _drop_executable(self, graph: int) -> None:
        self._drop(graph, ExecutableGraph)
