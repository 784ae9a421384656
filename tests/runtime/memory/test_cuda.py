"""What passes between a session's tensors on an imagined GPU and the host; and debug mode."""

import gc
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longlive_trt.engines.base import TensorSpec
from longlive_trt.errors import EngineError, PluginError, UsageError
from longlive_trt.plugins.cuda.streams import Gpu, Rows
from longlive_trt.runtime.memory import cuda as cuda_memory
from longlive_trt.runtime.memory.base import Buffer, HostMemory, Memory, Patch, Span, size_bytes
from longlive_trt.runtime.memory.cuda import CudaMemory, bytes_of, dtype_of
from tests.fakes.cuda import FakeCuda

Array = np.ndarray[Any, np.dtype[Any]]
FLOAT = np.dtype(np.float32)


@pytest.fixture
def cuda(fake_cuda: Callable[..., FakeCuda]) -> FakeCuda:
    return fake_cuda()


@pytest.fixture
def gpu(cuda: FakeCuda) -> Gpu:
    return Gpu()


@pytest.fixture
def memory(cuda: FakeCuda, gpu: Gpu) -> Iterator[CudaMemory]:
    stream = gpu.stream()
    with_memory = CudaMemory(stream)
    yield with_memory
    with_memory.close()
    stream.close()
    assert cuda.leaks() == {}


def one(memory: Memory, *shape: int, dtype: np.dtype[Any] = FLOAT) -> dict[str, Any]:
    return memory.reserve({"x": Buffer(shape, dtype)}, "a test")


def read(memory: Memory, tensor: Any) -> Array:
    return memory.fetch(tensor).result()


# ---- writing, copying, fetching --------------------------------------------------------------


def test_reserved_tensors_are_zero_in_one_block(cuda: FakeCuda, memory: CudaMemory) -> None:
    shapes = {"a": (3, 5), "b": (), "c": (2, 0), "d": (7,)}
    tensors = memory.reserve({name: Buffer(s, FLOAT) for name, s in shapes.items()}, "a test")
    assert len(cuda.memory.live("device")) == 1
    for name, shape in shapes.items():
        assert np.array_equal(read(memory, tensors[name]), np.zeros(shape, np.float32))


def test_memory_that_is_used_again_is_zero_again(cuda: FakeCuda, memory: CudaMemory) -> None:
    tensors = one(memory, 4)
    pointer = tensors["x"].pointer
    memory.write(tensors["x"], np.ones(4, np.float32))
    del tensors
    gc.collect()
    again = one(memory, 4)
    assert again["x"].pointer == pointer
    assert read(memory, again["x"]).tolist() == [0, 0, 0, 0]


def test_memory_in_use_is_not_used_again(cuda: FakeCuda, memory: CudaMemory) -> None:
    held = one(memory, 4)
    assert one(memory, 4)["x"].pointer != held["x"].pointer


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.int64]
)
def test_values_are_cast_as_on_a_cpu(memory: CudaMemory, dtype: Any) -> None:
    values = np.linspace(-3, 40, 12, dtype=np.float32).reshape(3, 4)
    found, expected = (written(place, np.dtype(dtype), values) for place in (memory, HostMemory()))
    assert found.dtype == dtype
    assert np.array_equal(found.view(np.uint8), expected.view(np.uint8))


def written(memory: Memory, dtype: np.dtype[Any], values: Array) -> Array:
    tensors = one(memory, *values.shape, dtype=dtype)
    memory.write(tensors["x"], values)
    return read(memory, tensors["x"])


def test_what_was_written_may_change_at_once(memory: CudaMemory) -> None:
    tensors, values = one(memory, 3), np.ones(3, np.float32)
    memory.write(tensors["x"], values)
    values[:] = 9
    assert read(memory, tensors["x"]).tolist() == [1, 1, 1]


def test_writes_that_were_not_waited_for_keep_their_own_values(memory: CudaMemory) -> None:
    tensors = memory.reserve({name: Buffer((2,), FLOAT) for name in "abcdef"}, "a test")
    for number, tensor in enumerate(tensors.values()):
        memory.write(tensor, np.full(2, number, np.float32))
    for number, tensor in enumerate(tensors.values()):
        assert read(memory, tensor).tolist() == [number, number]


def test_what_the_gpu_is_done_with_is_written_to_again(cuda: FakeCuda, memory: CudaMemory) -> None:
    tensors = one(memory, 3)
    memory.write(tensors["x"], np.zeros(3, np.float32))
    pinned = cuda.memory.live("pinned")
    for number in range(3 * len(pinned)):
        memory.write(tensors["x"], np.full(3, number, np.float32))
        memory.settle()
    assert cuda.memory.live("pinned") == pinned


def test_large_tensors_are_staged_one_by_one(cuda: FakeCuda, memory: CudaMemory) -> None:
    """A saved state must not take its size several times in pinned memory."""
    shape = (5 << 20,)
    tensors = one(memory, *shape, dtype=np.dtype(np.int8))
    for _ in range(2):
        memory.write(tensors["x"], np.ones(shape, np.int8))
        memory.settle()
        assert read(memory, tensors["x"]).all()
    assert cuda.memory.live("pinned") == [5 << 20] * 2


def test_a_steady_state_does_not_depend_on_who_is_faster(
    cuda: FakeCuda, memory: CudaMemory
) -> None:
    """The GPU kept up at first, and falls behind later."""
    tensors = one(memory, 3)
    values = np.zeros(3, np.float32)
    memory.write(tensors["x"], values)
    memory.fetch(tensors["x"]).result()
    unread = []
    with memory.steady():
        for _ in range(3):
            for _ in range(4):
                memory.write(tensors["x"], values)
            unread.append(memory.fetch(tensors["x"]))


def test_fetched_values_are_the_callers_own(memory: CudaMemory) -> None:
    tensors = one(memory, 2)
    first = memory.fetch(tensors["x"]).result()
    memory.write(tensors["x"], np.ones(2, np.float32))
    assert read(memory, tensors["x"]).tolist() == [1, 1]
    assert first.tolist() == [0, 0]


def test_a_fetch_can_be_asked_for_again(memory: CudaMemory) -> None:
    tensors = one(memory, 2)
    fetched = memory.fetch(tensors["x"])
    assert not fetched.is_there
    first = fetched.result()
    assert fetched.is_there
    assert fetched.result() is first


def test_threads_that_ask_for_the_same_values(memory: CudaMemory) -> None:
    tensors, found = one(memory, 2), []
    fetched = memory.fetch(tensors["x"])
    threads = [threading.Thread(target=lambda: found.append(fetched.result())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({id(values) for values in found}) == 1


def test_a_view_is_the_beginning_of_a_tensor(memory: CudaMemory) -> None:
    tensors = one(memory, 3, 4)
    memory.write(tensors["x"], np.arange(12, dtype=np.float32).reshape(3, 4))
    view = memory.view(tensors["x"], (2, 3))
    assert read(memory, view).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_clone_stays_as_it_is(memory: CudaMemory) -> None:
    tensors = memory.reserve({"a": Buffer((2, 3), FLOAT), "b": Buffer((5,), FLOAT)}, "a test")
    memory.write(tensors["b"], np.arange(5, dtype=np.float32))
    clones = memory.clone(tensors, "a checkpoint")
    memory.write(tensors["b"], np.zeros(5, np.float32))
    assert read(memory, clones["b"]).tolist() == [0, 1, 2, 3, 4]
    assert clones["a"].shape == (2, 3)


@st.composite
def copies(draw: st.DrawFn) -> tuple[int, int, int, int, list[Span]]:
    """Tensors, rows of a batch, entries of target and source, and what goes where."""
    tensors, batch = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    target, source = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    spans = []
    for _ in range(draw(st.integers(1, 3))):
        count = draw(st.integers(1, min(target, source)))
        starts = [draw(st.integers(0, size - count)) for size in (target, source)]
        spans.append(Span(*starts, count))
    return tensors, batch, target, source, spans


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=copies(), seed=st.integers(0, 99), times=st.integers(1, 2))
def test_copies_are_those_of_a_cpu(
    fake_cuda: Callable[..., FakeCuda], drawn: Any, seed: int, times: int
) -> None:
    """A batch in rows, some copies one by one and some as a captured graph."""
    tensors, batch, target, source, spans = drawn
    fake_cuda(schedule=seed)
    results = []
    for memory in (CudaMemory(Gpu().stream()), HostMemory()):
        sources, targets = (
            memory.reserve(
                {str(n): Buffer((batch, size, 2), FLOAT) for n in range(tensors)}, "a test"
            )
            for size in (source, target)
        )
        pairs = [(targets[name], sources[name]) for name in sources]
        for turn in range(times):
            for number, tensor in enumerate(sources.values()):
                values = np.arange(batch * source * 2, dtype=np.float32) + 100 * number + turn
                memory.write(tensor, values.reshape(batch, source, 2))
            memory.copy(pairs, spans)
        results.append([read(memory, tensor) for tensor in targets.values()])
        memory.close()
    for found, expected in zip(*results, strict=True):
        assert np.array_equal(found, expected)


def test_many_copies_are_captured_once(cuda: FakeCuda, memory: CudaMemory) -> None:
    tensors = memory.reserve({str(n): Buffer((1, 4), FLOAT) for n in range(16)}, "a test")
    pairs = [(tensors[str(n)], tensors[str(n + 8)]) for n in range(8)]
    for _ in range(3):
        memory.copy(pairs, [Span(0, 2, 1)])
    # The first time they are queued one by one, so that a kernel among them is loaded.
    assert cuda.calls["cuGraphInstantiate"] == 1
    assert cuda.calls["cuGraphLaunch"] == 2
    memory.copy(pairs, [Span(1, 2, 1)])
    assert cuda.calls["cuGraphInstantiate"] == 2


@st.composite
def patches(draw: Any) -> Any:
    """The shapes of two tensors, the axis of their rows, and a window that both have."""
    before = draw(st.lists(st.integers(1, 3), max_size=2))
    after = draw(st.lists(st.integers(1, 4), max_size=1))
    size = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    sides, starts = [], []
    for _ in range(2):
        start = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
        beyond = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
        starts.append(start)
        sides.append([s + n + b for s, n, b in zip(start, size, beyond, strict=True)])
    shapes = [(*before, *side, *after) for side in sides]
    return shapes, len(before), starts, size


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    drawn=st.lists(patches(), min_size=1, max_size=3),
    dtype=st.sampled_from([np.float16, np.uint8, np.float32]),
    seed=st.integers(0, 1 << 16),
    times=st.integers(1, 3),
)
def test_windows_go_where_they_go_on_a_cpu(
    fake_cuda: Callable[..., FakeCuda], drawn: Any, dtype: Any, seed: int, times: int
) -> None:
    """Layers around rows and columns, and whatever lies at each of their places."""
    cuda, results = fake_cuda(schedule=seed), []
    for memory in (CudaMemory(Gpu().stream()), HostMemory()):
        bound = []
        for (target, source), axis, starts, size in drawn:
            pair = memory.reserve(
                {n: Buffer(s, np.dtype(dtype)) for n, s in (("a", target), ("b", source))}, "a test"
            )
            bound.append((pair, Patch(pair["a"], pair["b"], axis, *starts, size)))
        copies = memory.bind([patch for _, patch in bound])
        for turn in range(times):
            for pair, _ in bound:
                values = 1 + (turn + np.arange(np.prod(pair["b"].shape))) % 251
                memory.write(pair["b"], values.reshape(pair["b"].shape))
            copies.run()
        results.append([read(memory, pair["a"]) for pair, _ in bound])
        memory.close()
    for found, expected in zip(*results, strict=True):
        assert expected.any() and np.array_equal(found, expected)
    assert cuda.calls["cuGraphInstantiate"] == (times > 1 and len(drawn) > 1)


def test_windows_may_be_copied_in_the_steady_state(memory: CudaMemory, gpu: Gpu) -> None:
    pair = memory.reserve({name: Buffer((2, 3, 4), FLOAT) for name in "ab"}, "a test")
    patch = Patch(pair["a"], pair["b"], 1, (0, 1), (1, 2), (2, 2))
    copies = memory.bind([patch, patch])
    with gpu.ledger.strictly():
        for _ in range(3):
            copies.run()
    assert gpu.ledger.counts["copy on the device"] == 2


# ---- values that nobody reads ----------------------------------------------------------------


@pytest.fixture
def limited(cuda: FakeCuda, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaMemory]:
    monkeypatch.setattr(cuda_memory, "STALL_LIMIT_S", 0.1)
    stream = gpu.stream()
    memory = CudaMemory(stream, waiting=2)
    yield memory
    memory.close()


def test_whoever_reads_nothing_is_told_so(cuda: FakeCuda, limited: CudaMemory) -> None:
    tensors = one(limited, 2)
    unread = [limited.fetch(tensors["x"]) for _ in range(2)]
    with pytest.raises(EngineError, match=r"last 2 blocks for 0 s; read a block's pixels before"):
        limited.fetch(tensors["x"])
    assert len(cuda.memory.live("pinned")) == 2
    unread[0].result()
    limited.fetch(tensors["x"]).result()
    assert len(cuda.memory.live("pinned")) == 2


def test_each_shape_has_a_limit_of_its_own(cuda: FakeCuda, limited: CudaMemory) -> None:
    """A video's first pictures must not take the place of those that follow."""
    tensors = limited.reserve({"a": Buffer((2,), FLOAT), "b": Buffer((3,), FLOAT)}, "a test")
    unread = [limited.fetch(tensors[name]) for name in "aabb"]
    assert len(unread) == 4
    with pytest.raises(EngineError, match="nobody has read"):
        limited.fetch(tensors["b"])


def test_values_that_were_dropped_unread_count_no_more(cuda: FakeCuda, limited: CudaMemory) -> None:
    tensors = one(limited, 2)
    for _ in range(9):
        limited.fetch(tensors["x"])
    assert len(cuda.memory.live("pinned")) == 1
    limited.write(tensors["x"], np.ones(2, np.float32))
    assert read(limited, tensors["x"]).tolist() == [1, 1]


def test_a_late_reader_is_waited_for(limited: CudaMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_memory, "STALL_LIMIT_S", 60)
    tensors, found = one(limited, 1), []
    unread: queue.Queue[Any] = queue.Queue()

    def read_late() -> None:
        time.sleep(0.1)
        for _ in range(5):
            found.append(unread.get(timeout=60).result()[0])

    reader = threading.Thread(target=read_late)
    reader.start()
    started = time.monotonic()
    for number in range(5):
        limited.write(tensors["x"], np.full(1, number, np.float32))
        unread.put(limited.fetch(tensors["x"]))
    waited_s = time.monotonic() - started
    reader.join(60)
    assert found == [0, 1, 2, 3, 4]
    assert waited_s >= 0.05


# ---- the end ---------------------------------------------------------------------------------


def test_nothing_is_left_behind(cuda: FakeCuda, gpu: Gpu) -> None:
    stream = gpu.stream()
    memory = CudaMemory(stream)
    tensors = memory.reserve({str(n): Buffer((1, 4), FLOAT) for n in range(16)}, "a test")
    clones = memory.clone(tensors, "a checkpoint")
    memory.write(tensors["0"], np.ones((1, 4), np.float32))
    memory.copy([(tensors[n], clones[n]) for n in tensors], [Span(0, 0, 4)])
    unread = memory.fetch(tensors["0"])
    memory.close()
    memory.close()
    stream.close()
    assert cuda.leaks() == {}
    with pytest.raises(UsageError, match="its session is closed; read a block's latents and"):
        unread.result()
    cuda.finish_all()
    assert cuda.queues.fault is None


def test_values_that_were_read_outlive_the_memory(cuda: FakeCuda, gpu: Gpu) -> None:
    memory = CudaMemory(gpu.stream())
    fetched = memory.fetch(one(memory, 2)["x"])
    values = fetched.result()
    memory.close()
    assert values.tolist() == fetched.result().tolist() == [0, 0]


def test_a_lost_context(cuda: FakeCuda, gpu: Gpu) -> None:
    memory = CudaMemory(gpu.stream())
    tensors = one(memory, 2)
    fetched = memory.fetch(tensors["x"])
    cuda.lose_context()
    for call in (
        fetched.result,
        memory.settle,
        lambda: memory.write(tensors["x"], np.zeros(2, np.float32)),
        lambda: memory.clone(tensors, "a checkpoint"),
        lambda: one(memory, 9),
    ):
        with pytest.raises(PluginError, match=r"CUDA could not .* \(700\)"):
            call()
    memory.close()


# ---- debug mode ------------------------------------------------------------------------------


def refused(memory: CudaMemory, what: str, work: Callable[[], object]) -> None:
    with (
        pytest.raises(EngineError, match=f"^debug: {what}"),
        memory.steady(),
    ):
        work()


def test_nothing_may_be_allocated(memory: CudaMemory) -> None:
    refused(memory, "allocation in the steady state: a test", lambda: one(memory, 2))
    tensors = one(memory, 2)
    values = np.zeros(2, np.float32)
    refused(memory, "allocation", lambda: memory.write(tensors["x"], values))
    refused(memory, "allocation", lambda: memory.fetch(tensors["x"]))
    memory.write(tensors["x"], values)
    fetched = memory.fetch(tensors["x"]).result()
    with memory.steady():
        memory.write(tensors["x"], fetched)
        memory.fetch(tensors["x"])


def test_nothing_may_be_freed(gpu: Gpu, memory: CudaMemory) -> None:
    block = gpu.reserve(8, "a test")
    refused(memory, "free in the steady state: a test", block.close)
    block.close()


def test_nobody_may_wait_for_the_gpu(gpu: Gpu, memory: CudaMemory) -> None:
    tensors = one(memory, 2)
    fetched, again = memory.fetch(tensors["x"]), memory.fetch(tensors["x"])
    refused(memory, "host wait", memory.settle)
    refused(memory, "host wait", fetched.result)
    memory.settle()
    with memory.steady():
        again.result()


def test_values_that_are_there_are_no_wait(memory: CudaMemory) -> None:
    fetched = memory.fetch(one(memory, 2)["x"])
    memory.settle()
    with memory.steady():
        assert fetched.result().tolist() == [0, 0]


def test_nothing_may_be_copied_on_the_device(memory: CudaMemory) -> None:
    tensors = memory.reserve({str(n): Buffer((1, 4), FLOAT) for n in range(16)}, "a test")
    for count in (1, 8):
        pairs = [(tensors[str(n)], tensors[str(n + 8)]) for n in range(count)]
        memory.copy(pairs, [Span(0, 0, 4)])
        refused(
            memory,
            f"copy on the device in the steady state: {count} copies",
            lambda pairs=pairs: memory.copy(pairs, [Span(0, 0, 4)]),  # type: ignore[misc]
        )
    rows = [Rows(tensors["0"].pointer, tensors["1"].pointer, 4)]
    refused(memory, "copy on the device", lambda: memory.stream.copy_rows(rows))


@pytest.mark.parametrize("taken", [1 << 20, -(1 << 20)])
def test_nobody_else_may_take_or_give_memory(
    cuda: FakeCuda, memory: CudaMemory, taken: int
) -> None:
    def others() -> None:
        cuda.memory.taken_by_others_bytes += taken

    cuda.memory.taken_by_others_bytes = 1 << 30
    refused(memory, f"{taken} bytes of GPU memory were taken", others)


def test_what_is_wrong_inside_is_told_first(cuda: FakeCuda, memory: CudaMemory) -> None:
    with pytest.raises(ValueError, match="inside"), memory.steady():
        cuda.memory.taken_by_others_bytes += 1
        raise ValueError("inside")
    one(memory, 2)


# ---- sizes -----------------------------------------------------------------------------------


def test_sizes_of_tensors(memory: CudaMemory) -> None:
    spec = TensorSpec("x", np.dtype(ml_dtypes.bfloat16), ("batch", 3, "2*frames"))
    buffer = Buffer.of(spec, batch=2, frames=4)
    tensor = memory.reserve({"x": buffer}, "a test")["x"]
    assert tensor.shape == (2, 3, 8)
    assert bytes_of(tensor) == buffer.size_bytes == size_bytes([buffer]) == 96
    assert dtype_of(tensor) == ml_dtypes.bfloat16
