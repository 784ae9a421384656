"""Captures while other threads are at work, on an imagined GPU and (``gpu``) on a real one."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from longlive_trt.errors import PluginError
from longlive_trt.plugins.cuda.streams import (
    CapturedGraph,
    DeviceMemory,
    Gpu,
    Repeated,
    Rows,
    Stream,
)
from tests.fakes.cuda import FakeCuda

FLOAT = np.dtype(np.float32)


@pytest.fixture(params=["imagined", pytest.param("gpu", marks=pytest.mark.gpu)])
def gpu(request: pytest.FixtureRequest, fake_cuda: Callable[..., FakeCuda]) -> Gpu:
    if request.param == "imagined":
        fake_cuda()
    try:
        return Gpu()
    except PluginError as error:
        pytest.skip(str(error))


@pytest.fixture
def stream(gpu: Gpu) -> Stream:
    return gpu.stream()


class Cell:
    """A number in the GPU's memory, and one to copy there."""

    def __init__(self, stream: Stream, value: float) -> None:
        self._stream, gpu = stream, stream.gpu
        self._memory: DeviceMemory = gpu.reserve(8, "a test")
        self._host = gpu.pinned((2,), FLOAT)
        self._host.array[:] = 0, value
        stream.upload(self._memory.pointer, self._host, 8)
        stream.synchronize()

    def set(self) -> None:
        pointer = self._memory.pointer
        self._stream.copy_rows([Rows(pointer, pointer + 4, 4)])

    def clear(self) -> None:
        self._stream.clear(self._memory.pointer, 4)

    def get(self) -> float:
        self._stream.download(self._host, self._memory.pointer, 4)
        self._stream.synchronize()
        return float(self._host.array[0])


def test_what_other_threads_queue_meanwhile_is_not_captured(gpu: Gpu, stream: Stream) -> None:
    """They wait until the capture is over."""
    mine, theirs, event = Cell(stream, 1), Cell(stream, 2), gpu.event()
    repeated = Repeated(stream, theirs.set, captures=False)
    captured = stream.capture(theirs.set)
    queued: list[Callable[[], object]] = [
        theirs.clear,
        repeated.run,
        captured.launch,
        lambda: stream.record(event),
        lambda: stream.wait_for(event),
        stream.synchronize,
    ]
    threads = [threading.Thread(target=work) for work in queued]

    def work() -> None:
        for thread in threads:
            thread.start()
            time.sleep(0.02)
        assert all(thread.is_alive() for thread in threads)
        mine.set()

    graph = stream.capture(work)
    for thread in threads:
        thread.join(60)
    mine.clear()
    theirs.clear()
    graph.launch()
    assert (mine.get(), theirs.get()) == (1, 0)


def test_threads_that_capture_on_one_stream(gpu: Gpu, stream: Stream) -> None:
    """One after the other, each its own work."""
    cells = [Cell(stream, number + 1) for number in range(4)]
    graphs: dict[int, CapturedGraph] = {}

    def capture(number: int) -> None:
        def work() -> None:
            time.sleep(0.02)
            cells[number].set()

        graphs[number] = stream.capture(work)

    threads = [threading.Thread(target=capture, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number, cell in enumerate(cells):
        graphs[number].launch()
        found = [each.get() for each in cells]
        assert found == [each + 1 if each == number else 0 for each in range(4)]
        cell.clear()


def test_other_threads_may_allocate_during_a_capture(gpu: Gpu, stream: Stream) -> None:
    """As the one that loads a text encoder does."""
    cell, elsewhere = Cell(stream, 3), gpu.stream()
    failed: list[BaseException] = []

    def allocate() -> None:
        try:
            with gpu.reserve(64 << 20, "a test") as block, gpu.pinned((2,), FLOAT) as memory:
                elsewhere.upload(block.pointer, memory, 8)
                elsewhere.synchronize()
            DeviceMemory(1 << 20, gpu.ordinal).close()
        except BaseException as error:
            failed.append(error)

    def work() -> None:
        cell.set()
        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join(60)

    graph = stream.capture(work)
    assert not failed
    graph.launch()
    assert cell.get() == 3
