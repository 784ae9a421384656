"""Streams, events, captured graphs and memory, on an imagined GPU."""

import gc
import threading
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longlive_trt.errors import EngineError, LostGpuError, PluginError
from longlive_trt.plugins.cuda.streams import (
    ALIGNMENT_BYTES,
    DeviceMemory,
    Gpu,
    Ledger,
    PinnedArray,
    Repeated,
    Rows,
    Stream,
    lay_out,
    tensor_at,
)
from tests.fakes.cuda import FakeCuda, Status

FLOAT = np.dtype(np.float32)


@pytest.fixture
def cuda(fake_cuda: Callable[..., FakeCuda]) -> FakeCuda:
    return fake_cuda()


@pytest.fixture
def gpu(cuda: FakeCuda) -> Gpu:
    return Gpu()


@pytest.fixture
def stream(gpu: Gpu) -> Stream:
    return gpu.stream()


def pinned(gpu: Gpu, values: list[float]) -> PinnedArray:
    memory = gpu.pinned((len(values),), FLOAT)
    memory.array[:] = values
    return memory


def floats(cuda: FakeCuda, block: DeviceMemory) -> Any:
    """What lies in device memory now, whatever is still queued."""
    return cuda.array(block.pointer, (block.size_bytes // 4,), FLOAT)


# ---- the order of things ---------------------------------------------------------------------


def test_nothing_is_there_before_it_was_waited_for(
    cuda: FakeCuda, gpu: Gpu, stream: Stream
) -> None:
    """If this fails, no other test here finds a wait that is missing."""
    block, back = gpu.reserve(8, "a test"), gpu.pinned((2,), FLOAT)
    stream.upload(block.pointer, pinned(gpu, [1, 2]), 8)
    stream.download(back, block.pointer, 8)
    event = stream.record(gpu.event())
    assert np.isnan(floats(cuda, block)).all()
    assert np.isnan(back.array).all()
    assert not event.is_over
    event.wait()
    assert back.array.tolist() == [1, 2]
    assert event.is_over


def test_pinned_memory_is_read_when_the_copy_runs(cuda: FakeCuda, gpu: Gpu, stream: Stream) -> None:
    block, source, pageable = gpu.reserve(8, "a test"), pinned(gpu, [1]), np.ones(1, np.float32)
    stream.upload(block.pointer, source, 4)
    stream.upload(block.pointer + 4, pageable.ctypes.data, 4)
    source.array[:] = 5
    pageable[:] = 5
    stream.synchronize()
    assert floats(cuda, block).tolist() == [5, 1]


def test_streams_run_on_their_own_unless_one_waits(cuda: FakeCuda, gpu: Gpu) -> None:
    first, second = gpu.stream(), gpu.stream()
    block, back = gpu.reserve(4, "a test"), [gpu.pinned((1,), FLOAT) for _ in range(2)]
    first.upload(block.pointer, pinned(gpu, [7]), 4)
    written = first.record(gpu.event())
    second.download(back[0], block.pointer, 4)
    second.synchronize()
    second.wait_for(written)
    second.download(back[1], block.pointer, 4)
    second.synchronize()
    assert np.isnan(back[0].array[0])
    assert back[1].array[0] == 7


def test_a_stream_waits_for_what_was_recorded_when_it_was_told_to(gpu: Gpu) -> None:
    first, second, event = gpu.stream(), gpu.stream(), gpu.event()
    second.wait_for(first.record(event))
    later = first.record(gpu.event())
    first.record(event)
    second.synchronize()
    assert not later.is_over


def test_an_event_that_was_never_recorded_is_over(gpu: Gpu, stream: Stream) -> None:
    event = gpu.event()
    assert event.is_over
    event.wait()
    stream.wait_for(event)
    stream.synchronize()


def test_clearing_keeps_the_order_of_the_stream(cuda: FakeCuda, gpu: Gpu, stream: Stream) -> None:
    block = gpu.reserve(8, "a test")
    stream.clear(block.pointer, 8)
    stream.upload(block.pointer, pinned(gpu, [3]), 4)
    cuda.finish_all()
    assert floats(cuda, block).tolist() == [3, 0]


def test_time_between_events(gpu: Gpu, stream: Stream) -> None:
    earlier, later = (gpu.event(timed=True) for _ in range(2))
    stream.record(earlier)
    stream.record(later)
    with pytest.raises(PluginError, match="CUDA_ERROR_NOT_READY"):
        later.milliseconds_since(earlier)
    later.wait()
    assert 0 <= later.milliseconds_since(earlier) < 1e3
    untimed = stream.record(gpu.event())
    untimed.wait()
    with pytest.raises(PluginError, match="could not read a time"):
        untimed.milliseconds_since(earlier)


def test_the_urgent_stream_goes_first(cuda: FakeCuda, gpu: Gpu) -> None:
    for urgency in (0, 1, 2):
        gpu.stream(urgency)
    least, middle, most = (stream.priority for stream in cuda.queues.streams[-3:])
    assert most < middle < least


# ---- captured graphs -------------------------------------------------------------------------


def test_a_captured_graph_does_its_work_at_every_launch(
    cuda: FakeCuda, gpu: Gpu, stream: Stream
) -> None:
    source, target = gpu.reserve(4, "a test"), gpu.reserve(4, "a test")
    graph = stream.capture(lambda: stream.copy_rows([Rows(target.pointer, source.pointer, 4)]))
    stream.synchronize()
    assert np.isnan(floats(cuda, target)[0])
    for value in (1, 2):
        stream.upload(source.pointer, pinned(gpu, [value]), 4)
        graph.launch()
        stream.synchronize()
        assert floats(cuda, target)[0] == value


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_leaves_no_capture_behind(
    cuda: FakeCuda, gpu: Gpu, stream: Stream, error: type[BaseException]
) -> None:
    def work() -> None:
        raise error

    with pytest.raises(error):
        stream.capture(work)
    assert stream.record(gpu.event()).is_over is False
    stream.capture(lambda: None).close()
    assert "graphs" not in cuda.leaks()


def test_what_must_not_be_captured_is_an_error(gpu: Gpu, stream: Stream) -> None:
    with pytest.raises(PluginError, match="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
        stream.capture(lambda: gpu.reserve(4, "a test").close())
    stream.capture(lambda: None)


def test_a_graph_that_cannot_be_instantiated(cuda: FakeCuda, stream: Stream) -> None:
    cuda.fail("cuGraphInstantiate", Status.CUDA_ERROR_OUT_OF_MEMORY)
    with pytest.raises(PluginError, match="could not instantiate a graph"):
        stream.capture(lambda: None)
    assert "graphs" not in cuda.leaks()


def test_a_graph_is_freed_once_and_when_it_is_dropped(cuda: FakeCuda, stream: Stream) -> None:
    closed, dropped = (stream.capture(lambda: None) for _ in range(2))
    assert cuda.leaks()["executable graphs"] == 2
    closed.close()
    closed.close()
    del dropped
    gc.collect()
    assert cuda.leaks() == {"streams": 1}
    assert cuda.calls["cuGraphExecDestroy"] == 2


def add_one(cuda: FakeCuda, stream: Stream, block: DeviceMemory) -> None:
    def work() -> None:
        floats(cuda, block)[0] += 1

    cuda.launch(stream.handle, work)


def test_work_is_repeated_plainly_then_captured_then_replayed(
    cuda: FakeCuda, gpu: Gpu, stream: Stream
) -> None:
    block = gpu.reserve(4, "a test")
    stream.clear(block.pointer, 4)
    repeated = Repeated(stream, lambda: add_one(cuda, stream, block), captures=True)
    for launches in (0, 1, 2, 3):
        repeated.run()
        assert cuda.calls["cuGraphLaunch"] == launches
    stream.synchronize()
    assert floats(cuda, block)[0] == 4
    assert cuda.calls["cuLaunchKernel"] == 2
    repeated.close()
    assert "executable graphs" not in cuda.leaks()
    with pytest.raises(EngineError, match="was closed with its engine"):
        repeated.run()


def test_work_that_is_not_captured_is_repeated_plainly(
    cuda: FakeCuda, gpu: Gpu, stream: Stream
) -> None:
    block = gpu.reserve(4, "a test")
    repeated = Repeated(stream, lambda: add_one(cuda, stream, block), captures=False)
    for _ in range(3):
        repeated.run()
    assert cuda.calls["cuLaunchKernel"] == 3
    assert cuda.calls["cuGraphLaunch"] == 0


# ---- rows ------------------------------------------------------------------------------------


def test_rows_of_a_batch(cuda: FakeCuda, gpu: Gpu, stream: Stream) -> None:
    """Two rows of two floats, from a table three floats wide to one that is four wide."""
    source, target = gpu.reserve(24, "a test"), gpu.reserve(32, "a test")
    stream.clear(target.pointer, 32)
    stream.upload(source.pointer, pinned(gpu, [1, 2, 3, 4, 5, 6]), 24)
    rows = Rows(target.pointer + 4, source.pointer + 4, 8, 2, 16, 12)
    stream.copy_rows([rows])
    stream.synchronize()
    assert floats(cuda, target).reshape(2, 4).tolist() == [[0, 2, 3, 0], [0, 5, 6, 0]]


def test_one_row_needs_no_pitch(cuda: FakeCuda, gpu: Gpu, stream: Stream) -> None:
    block = gpu.reserve(8, "a test")
    stream.upload(block.pointer, pinned(gpu, [4]), 4)
    stream.copy_rows([Rows(block.pointer + 4, block.pointer, 4)])
    stream.synchronize()
    assert floats(cuda, block).tolist() == [4, 4]


def test_rows_longer_than_their_pitch_are_refused(gpu: Gpu, stream: Stream) -> None:
    block = gpu.reserve(64, "a test")
    with pytest.raises(PluginError, match=r"could not copy on the GPU: CUDA_ERROR_INVALID_VALUE"):
        stream.copy_rows([Rows(block.pointer, block.pointer + 32, 8, 2, 4, 8)])


# ---- the layout of a block -------------------------------------------------------------------

BUFFERS = st.dictionaries(
    st.text(min_size=1, max_size=3),
    st.tuples(
        st.lists(st.integers(0, 9), max_size=4).map(tuple),
        st.sampled_from([np.dtype(t) for t in (np.int8, np.float16, np.float32, np.int64)]),
    ),
)


@given(buffers=BUFFERS)
def test_buffers_lie_aligned_and_apart(buffers: Mapping[str, Any]) -> None:
    offsets, size_bytes = lay_out(buffers)
    assert offsets.keys() == buffers.keys()
    end = 0
    for name, (shape, dtype) in buffers.items():
        assert offsets[name] % ALIGNMENT_BYTES == 0
        assert offsets[name] >= end
        end = offsets[name] + int(np.prod(shape)) * dtype.itemsize
    assert end <= size_bytes < end + ALIGNMENT_BYTES


def test_a_scalar_has_a_place_of_its_own() -> None:
    buffers = {name: ((), np.dtype(np.int64)) for name in "ab"}
    assert lay_out(buffers) == ({"a": 0, "b": ALIGNMENT_BYTES}, 2 * ALIGNMENT_BYTES)


def test_types_have_the_names_that_kernels_know() -> None:
    for dtype, name in (
        (np.float32, "float32"),
        (ml_dtypes.bfloat16, "bfloat16"),
        (ml_dtypes.float8_e4m3fn, "float8_e4m3"),
        (np.uint8, "uint8"),
    ):
        tensor = tensor_at(512, (2, 3), np.dtype(dtype), 0)
        assert (tensor.dtype, tensor.shape, tensor.strides) == (name, (2, 3), (3, 1))


# ---- memory ----------------------------------------------------------------------------------


def test_what_is_closed_is_free_again(cuda: FakeCuda, gpu: Gpu) -> None:
    before = gpu.memory()
    with gpu.reserve(1 << 20, "a test"), gpu.pinned((4,), FLOAT):
        assert gpu.memory().free_bytes == before.free_bytes - (1 << 20)
        assert cuda.leaks() == {"device memory": 1, "pinned memory": 1}
    assert gpu.memory() == before
    assert cuda.leaks() == {}


def test_closing_twice_frees_once(cuda: FakeCuda, gpu: Gpu, stream: Stream) -> None:
    for held in (gpu.reserve(4, "a test"), gpu.pinned((1,), FLOAT), gpu.event(), stream):
        held.close()
        held.close()
    freed = ("cuMemFree", "cuMemFreeHost", "cuEventDestroy", "cuStreamDestroy")
    assert [cuda.calls[name] for name in freed] == [1, 1, 1, 1]


def test_what_nobody_holds_is_free_again(cuda: FakeCuda, gpu: Gpu) -> None:
    held = [gpu.reserve(8, "a test"), DeviceMemory(16, 0)]
    assert sorted(cuda.memory.live("device")) == [8, 16]
    held.clear()
    gc.collect()
    assert cuda.memory.live("device") == []


def test_workspaces_are_zero(cuda: FakeCuda) -> None:
    block = DeviceMemory(16, 0)
    assert floats(cuda, block).tolist() == [0, 0, 0, 0]


def test_an_empty_block_is_a_block(cuda: FakeCuda, gpu: Gpu) -> None:
    gpu.reserve(0, "nothing").close()
    gpu.pinned((0, 3), FLOAT).close()
    assert cuda.leaks() == {}


def test_too_little_memory_says_how_much(fake_cuda: Callable[..., FakeCuda]) -> None:
    fake_cuda(capacity_bytes=1 << 30)
    gpu = Gpu()
    with gpu.reserve(1 << 20, "keys and values"), pytest.raises(EngineError) as caught:
        gpu.reserve(3 << 30, "decoded pictures")
    assert str(caught.value) == (
        "decoded pictures: 3.00 GiB of GPU memory are needed, and 1.00 GiB are free on Imagined "
        "GPU; close what else uses the GPU, or make fewer or smaller videos at once"
    )
    assert gpu.memory().free_bytes == 1 << 30


def test_little_memory_is_told_in_a_smaller_unit(fake_cuda: Callable[..., FakeCuda]) -> None:
    fake_cuda(capacity_bytes=3 << 20)
    with pytest.raises(EngineError, match=r"a test: 5\.00 MiB .* 3\.00 MiB are free"):
        Gpu().reserve(5 << 20, "a test")


def test_too_little_pinned_memory_says_how_much(cuda: FakeCuda, gpu: Gpu) -> None:
    cuda.fail("cuMemAllocHost", Status.CUDA_ERROR_OUT_OF_MEMORY)
    with pytest.raises(PluginError, match=r"allocate 4\.00 MiB of pinned memory: .*OUT_OF_MEMORY"):
        gpu.pinned((1 << 20,), FLOAT)


# ---- lost contexts and threads ---------------------------------------------------------------


LIBRARY = "graph step failed on the GPU: something about a node"


def test_a_librarys_error_is_told_with_its_cause(cuda: FakeCuda, gpu: Gpu) -> None:
    plain = gpu.failure(LIBRARY)
    assert isinstance(plain, EngineError)
    assert str(plain) == f"{LIBRARY}; `longlive-trt -vv` tells more"
    cuda.memory.taken_by_others_bytes = cuda.memory.free_on(0) - (3 << 20)
    assert str(gpu.failure(LIBRARY)) == (
        f"{LIBRARY}; 3.00 MiB of GPU memory are free: close what else uses the GPU, or make fewer "
        "or smaller videos at once"
    )
    cuda.lose_context()
    lost = gpu.failure(LIBRARY)
    assert isinstance(lost, LostGpuError)
    assert str(lost).startswith(f"{LIBRARY} (CUDA_ERROR_ILLEGAL_ADDRESS): the GPU gave up what")


@pytest.mark.parametrize(
    "told", ["Failed to allocate memory for requested buffer", "CUDA failure 2: out of memory"]
)
def test_a_library_that_asked_for_more_than_is_free(gpu: Gpu, told: str) -> None:
    assert "; 80.00 GiB of GPU memory are free: close what else" in str(gpu.failure(told))


def test_a_lost_context_is_not_told_as_a_lack_of_memory(cuda: FakeCuda, gpu: Gpu) -> None:
    gpu.make_current()
    cuda.lose_context()
    with pytest.raises(PluginError, match=r"allocate a test: CUDA_ERROR_ILLEGAL_ADDRESS \(700\)"):
        gpu.reserve(8, "a test")


def test_after_a_lost_context_everything_can_be_closed(cuda: FakeCuda, gpu: Gpu) -> None:
    stream, event = gpu.stream(), gpu.event()
    graph = stream.capture(lambda: None)
    held = (gpu.reserve(8, "a test"), gpu.pinned((2,), FLOAT), graph, event, stream)
    cuda.lose_context()
    for call in (event.wait, stream.synchronize, graph.launch, lambda: event.is_over):
        with pytest.raises(PluginError, match="700"):
            call()
    for each in held:
        each.close()


def test_touching_freed_memory_loses_the_context(cuda: FakeCuda, gpu: Gpu, stream: Stream) -> None:
    block = gpu.reserve(8, "a test")
    stream.upload(block.pointer, pinned(gpu, [1]), 4)
    block.close()
    with pytest.raises(PluginError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        stream.synchronize()


def in_a_thread(work: Callable[[], object]) -> BaseException | None:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    return raised[0] if raised else None


def test_any_thread_may_use_what_another_made(cuda: FakeCuda, gpu: Gpu, stream: Stream) -> None:
    event = stream.record(gpu.event())
    graph = stream.capture(lambda: None)
    for work in (
        event.wait,
        stream.synchronize,
        graph.launch,
        gpu.memory,
        gpu.stream,
        lambda: gpu.reserve(4, "a test").close(),
        lambda: gpu.pinned((1,), FLOAT).close(),
        lambda: stream.wait_for(stream.record(gpu.event())),
    ):
        assert in_a_thread(work) is None


def test_any_thread_may_close_what_another_made(cuda: FakeCuda, gpu: Gpu) -> None:
    stream = gpu.stream()
    held = (gpu.reserve(8, "a test"), gpu.pinned((2,), FLOAT), gpu.event(), stream)
    graph = stream.capture(lambda: None)
    for each in (*held, graph):
        assert in_a_thread(each.close) is None
    assert cuda.leaks() == {}


def test_a_new_thread_after_a_lost_context(cuda: FakeCuda, gpu: Gpu, stream: Stream) -> None:
    cuda.lose_context()
    error = in_a_thread(stream.synchronize)
    assert isinstance(error, PluginError)
    assert "Imagined GPU cannot be used any more" in str(error)


def test_a_thread_is_made_ready_once(cuda: FakeCuda, gpu: Gpu, stream: Stream) -> None:
    before = cuda.calls["set_current"]
    for _ in range(3):
        stream.synchronize()
    assert cuda.calls["set_current"] <= before + 1


# ---- the ledger ------------------------------------------------------------------------------


def test_everything_that_costs_time_is_counted(cuda: FakeCuda, gpu: Gpu, stream: Stream) -> None:
    block = gpu.reserve(8, "a test")
    gpu.pinned((1,), FLOAT)
    stream.copy_rows([Rows(block.pointer, block.pointer + 4, 4)])
    stream.record(gpu.event()).wait()
    stream.synchronize()
    block.close()
    assert gpu.ledger.counts == {
        "allocation": 2,
        "copy on the device": 1,
        "host wait": 2,
        "free": 1,
    }


def test_strictness_ends_and_is_no_other_threads(gpu: Gpu) -> None:
    ledger = gpu.ledger
    with ledger.strictly():
        with pytest.raises(EngineError, match=r"debug: allocation in the steady state: a test"):
            ledger.note("allocation", "a test")
        assert in_a_thread(lambda: ledger.note("allocation", "a test")) is None
    ledger.note("allocation", "a test")
    assert ledger.counts["allocation"] == 3


def test_what_is_allowed_is_allowed_inside_only() -> None:
    ledger = Ledger()
    with ledger.strictly():
        with ledger.allowing("free"), ledger.allowing("host wait"):
            ledger.note("free", "a test")
            ledger.note("host wait", "a test")
            with pytest.raises(EngineError, match="debug: allocation"):
                ledger.note("allocation", "a test")
        for happening in ("free", "host wait"):
            with pytest.raises(EngineError, match=f"debug: {happening}"):
                ledger.note(happening, "a test")  # type: ignore[arg-type]


def test_an_error_inside_ends_strictness_too() -> None:
    ledger = Ledger()
    with pytest.raises(ValueError, match="inside"), ledger.strictly(), ledger.allowing("free"):
        raise ValueError("inside")
    ledger.note("allocation", "a test")


def test_strictness_within_strictness() -> None:
    ledger = Ledger()
    with ledger.strictly():
        with ledger.strictly():
            pass
        with pytest.raises(EngineError):
            ledger.note("free", "a test")


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1000), values=st.lists(st.integers(0, 99), min_size=1, max_size=5))
def test_at_whatever_moment_work_runs(
    fake_cuda: Callable[..., FakeCuda], seed: int, values: list[int]
) -> None:
    """Two streams hand one place in memory to and fro."""
    cuda = fake_cuda(schedule=seed)
    gpu = Gpu()
    writing, reading, block = gpu.stream(), gpu.stream(), gpu.reserve(4, "a test")
    written, read, back = gpu.event(), gpu.event(), []
    for value in values:
        writing.wait_for(read)
        writing.upload(block.pointer, pinned(gpu, [value]), 4)
        reading.wait_for(writing.record(written))
        back.append(gpu.pinned((1,), FLOAT))
        reading.download(back[-1], block.pointer, 4)
        reading.record(read)
    reading.synchronize()
    assert [int(memory.array[0]) for memory in back] == values
    assert cuda.queues.fault is None
