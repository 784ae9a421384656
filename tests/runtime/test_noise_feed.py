"""Noise is drawn, and brought to the GPU, ahead of the block that reads it: never too early."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.errors import LostGpuError
from longlive_trt.plugins.cuda.streams import Gpu
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.memory.base import Buffer, HostMemory
from longlive_trt.runtime.memory.cuda import CudaMemory
from longlive_trt.runtime.noise import BlockNoise, NoiseFeed, SeededNoise
from longlive_trt.runtime.session import Session
from tests.fakes.cuda import FakeCuda, Schedule
from tests.fakes.engines import put_in_place

Array = np.ndarray[Any, np.dtype[Any]]
FLOAT = np.dtype(np.float32)
SHAPE = (1, 1, 1, 1, 2)


class Place:
    """Remembers what was brought."""

    def __init__(self) -> None:
        self.brought: list[Array] = []

    def fill(self, values: Sequence[Array]) -> None:
        self.brought.append(np.concatenate([value.ravel() for value in values]))

    def reading(self) -> AbstractContextManager[None]:
        return nullcontext()


class Source:
    """Two draws a block, of the block's number; some blocks fail once."""

    def __init__(self, failing: Sequence[int] = ()) -> None:
        self.asked: list[int] = []
        self.threads: set[str] = set()
        self._failing = list(failing)

    def block(self, index: int) -> BlockNoise:
        self.asked.append(index)
        self.threads.add(threading.current_thread().name)
        if index in self._failing:
            self._failing.remove(index)
            raise ValueError(f"block {index}")
        return BlockNoise(np.full(SHAPE, index, FLOAT), [np.full(SHAPE, index + 0.5, FLOAT)])


Feed = Callable[..., NoiseFeed]


@pytest.fixture
def places() -> list[Place]:
    return [Place(), Place()]


@pytest.fixture
def feed(places: list[Place]) -> Iterator[Feed]:
    made: list[NoiseFeed] = []

    def open_feed(source: Source, end: int | None = None) -> NoiseFeed:
        made.append(NoiseFeed(source, places, end=end))
        return made[-1]

    yield open_feed
    for each in made:
        each.close()


def test_what_was_prepared_is_drawn_once_and_elsewhere(places: list[Place], feed: Feed) -> None:
    source = Source()
    fed = feed(source)
    for _ in range(3):
        fed.prepare(7, 1)
    fed.require(7, 1)
    assert source.asked == [7]
    assert [values.tolist() for values in places[1].brought] == [[7, 7, 7.5, 7.5]]
    assert not places[0].brought
    assert threading.current_thread().name not in source.threads


def test_what_was_not_prepared_is_drawn_when_it_is_required(
    places: list[Place], feed: Feed
) -> None:
    """As after a rollback: another block's noise is in the place."""
    source = Source()
    fed = feed(source)
    fed.prepare(4, 0)
    fed.require(2, 0)
    assert source.asked == [4, 2]
    assert places[0].brought[-1][0] == 2


def test_a_place_is_brought_its_noise_anew_at_every_turn(places: list[Place], feed: Feed) -> None:
    fed = feed(Source())
    for _ in range(2):
        fed.require(3, 0)
    assert len(places[0].brought) == 2


def test_nothing_is_prepared_after_the_last_block(feed: Feed) -> None:
    source = Source()
    fed = feed(source, end=5)
    for block in (4, 5, 6):
        fed.prepare(block, block % 2)
    fed.require(4, 0)
    fed.close()
    assert source.asked == [4]


def test_a_failure_is_told_to_whoever_needs_the_noise(places: list[Place], feed: Feed) -> None:
    fed = feed(Source(failing=[1]))
    fed.prepare(1, 0)
    with pytest.raises(ValueError, match="block 1"):
        fed.require(1, 0)
    fed.require(1, 0)
    assert places[0].brought[-1][0] == 1


def test_on_a_cpu_values_are_there_at_once() -> None:
    memory = HostMemory()
    tensors = memory.reserve({name: Buffer((2,), FLOAT) for name in "ab"}, "a test")
    inlet = memory.inlet(list(tensors.values()))
    inlet.fill([np.ones(2, FLOAT), np.full(2, 2, FLOAT)])
    with inlet.reading():
        assert tensors["a"].tolist() + tensors["b"].tolist() == [1, 1, 2, 2]


# ---- on an imagined GPU ----------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["lazy", "eager", *range(6)])
def test_values_come_after_what_reads_those_before(
    fake_cuda: Callable[..., FakeCuda], schedule: Schedule
) -> None:
    """Two places in turn, filled as early as can be."""
    fake_cuda(schedule=schedule)
    gpu = Gpu()
    memory = CudaMemory(gpu.stream(), arriving=gpu.stream())
    tensors = memory.reserve({name: Buffer((3,), FLOAT) for name in "ab"}, "a test")
    inlets = [memory.inlet([tensor]) for tensor in tensors.values()]
    inlets[0].fill([np.zeros(3, FLOAT)])
    found = []
    for turn in range(9):
        inlets[1 - turn % 2].fill([np.full(3, turn + 1, FLOAT)])
        with inlets[turn % 2].reading():
            found.append(memory.fetch(tensors["ab"[turn % 2]]))
    assert [int(fetched.result()[0]) for fetched in found] == list(range(9))
    memory.close()


def test_what_was_given_may_change_at_once(fake_cuda: Callable[..., FakeCuda]) -> None:
    fake_cuda()
    gpu = Gpu()
    memory = CudaMemory(gpu.stream(), arriving=gpu.stream())
    tensors = memory.reserve({"a": Buffer((2,), FLOAT)}, "a test")
    inlet, values = memory.inlet([tensors["a"]]), np.ones(2, FLOAT)
    inlet.fill([values])
    values[:] = 9
    with inlet.reading():
        fetched = memory.fetch(tensors["a"])
    assert fetched.result().tolist() == [1, 1]
    memory.close()


def test_filling_takes_no_memory_and_leaves_none_behind(
    fake_cuda: Callable[..., FakeCuda],
) -> None:
    cuda = fake_cuda()
    gpu = Gpu()
    streams = gpu.stream(), gpu.stream()
    memory = CudaMemory(streams[0], arriving=streams[1])
    tensors = memory.reserve({"a": Buffer((2,), FLOAT)}, "a test")
    inlet = memory.inlet([tensors["a"]])
    taken = gpu.ledger.counts["allocation"]
    for _ in range(5):
        inlet.fill([np.ones(2, FLOAT)])
    assert gpu.ledger.counts["allocation"] == taken
    memory.close()
    for stream in streams:
        stream.close()
    assert cuda.leaks() == {}
    cuda.finish_all()
    assert cuda.queues.fault is None


@pytest.fixture(scope="module")
def bundle(video_bundle: Path) -> Bundle:
    return open_bundle(video_bundle)


def begin(engines: Engines, blocks: int | None = None) -> Session:
    config = engines.bundle.config
    frames = config.rollout.frames_per_block
    noise = SeededNoise(3, (1, frames, *config.latent_shape), len(config.rollout.steps))
    sizes = config.transformer
    states = np.ones((1, sizes.text_len, sizes.text_dim), np.float32)
    context = engines.contexts(1).of_states(states)
    total = None if blocks is None else blocks * frames
    session = engines.session(config, noise, total_frames=total, decode=False)
    session.switch_prompt(context)
    return session


def noise_there(cuda: FakeCuda, session: Session, place: int) -> list[Array]:
    shape = (1, 3, *session.config.latent_shape)
    tensors = session.passes._noise(place)
    return [np.array(cuda.array(tensor.pointer, shape, FLOAT)) for tensor in tensors]


def test_noise_arrives_while_the_block_before_is_made(
    bundle: Bundle, fake_cuda: Callable[..., FakeCuda], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = fake_cuda()
    put_in_place(cuda, monkeypatch)
    shape = (1, 3, *bundle.config.latent_shape)
    source = SeededNoise(3, shape, len(bundle.config.rollout.steps))
    with Engines(bundle, "cuda") as engines, begin(engines) as session:
        for block in range(6):
            made = session.step()
            # What was prepared has been queued by the thread that draws.
            session._noise._thread.submit(lambda: None).result()
            engines.stream("arriving").synchronize()
            for found, drawn in zip(
                noise_there(cuda, session, (block + 1) % 2),
                source.block(block + 1).draws,
                strict=True,
            ):
                assert np.array_equal(found, drawn)
            assert not made._latents.is_there


def test_the_last_block_is_followed_by_none(
    bundle: Bundle, fake_cuda: Callable[..., FakeCuda], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = fake_cuda()
    put_in_place(cuda, monkeypatch)
    with Engines(bundle, "cuda") as engines, begin(engines, blocks=2) as session:
        for _ in range(2):
            session.step()
        assert session._noise._coming == {}


def test_a_lost_context_is_noticed_where_noise_is_brought(
    bundle: Bundle, fake_cuda: Callable[..., FakeCuda], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = fake_cuda()
    put_in_place(cuda, monkeypatch)
    with Engines(bundle, "cuda") as engines, begin(engines) as session:
        session.step()
        cuda.lose_context()
        with pytest.raises(LostGpuError, match=r"\(700\): the GPU gave up"):
            session.step()
