"""Tiles on an imagined GPU, whose work runs as late as it may, against the same on the host."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from longlive_trt.contract import BASE_GRAPHS, TILE_GRAPHS, VAE
from longlive_trt.errors import EngineError
from longlive_trt.plugins.cuda.streams import Gpu, Stream
from longlive_trt.runtime.decoding.cuda import CudaDecoder, DecodingStreams
from longlive_trt.runtime.decoding.pieces import TiledPieces
from longlive_trt.runtime.decoding.tiled import Part
from longlive_trt.runtime.decoding.tiling import TilePlan
from longlive_trt.runtime.memory.base import Buffer, size_bytes
from longlive_trt.runtime.memory.cuda import CudaMemory
from tests.fakes.cuda import FakeCuda, Schedule, Status
from tests.fakes.engines import FakeCudaEngine
from tests.fakes.written import SIZE, TWO, Written

Array = np.ndarray[Any, np.dtype[Any]]
BLOCK, CORE = 2, 5


@pytest.fixture(scope="module", params=[1, 2])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Of one video, and of two side by side."""
    return Written(TWO, tmp_path_factory.mktemp("written"), request.param)


class Machine:
    """One GPU, the streams of a session, and the latents that its transformer made."""

    def __init__(self, cuda: FakeCuda, written: Written) -> None:
        self.cuda, self.gpu, self.written = cuda, Gpu(), written
        self.streams: list[Stream] = [self.gpu.stream() for _ in range(3)]
        self.engines = {
            name: FakeCudaEngine(
                cuda, written.folder / f"{name}.onnx", self.streams[1], inner=engine
            )
            for name, engine in written.engines.items()
        }
        self.memory = CudaMemory(self.streams[0])
        self.latents = written.latents(3 * BLOCK)
        shape = (written.batch, BLOCK, *self.latents.shape[2:])
        places = {name: Buffer(shape, self.latents.dtype) for name in "ab"}
        self._places = self.memory.reserve(places, "latents")

    def decoder(self) -> CudaDecoder:
        base, tile = (
            Part(self.engines[first], self.engines[following], self.written.in_place(following))
            for first, following in (BASE_GRAPHS[VAE], TILE_GRAPHS[VAE])
        )

        def pieces(memory: CudaMemory) -> TiledPieces:
            written = self.written
            return TiledPieces(
                base, tile, written.vae, memory, written.batch, latents=SIZE, core=CORE
            )

        return CudaDecoder(pieces, self.written.batch, BLOCK, DecodingStreams(*self.streams))

    def made(self, block: int) -> Any:
        tensor = self._places["ab"[block % 2]]
        self.memory.write(tensor, self.latents[:, BLOCK * block : BLOCK * (block + 1)])
        return tensor

    def close(self) -> None:
        self.memory.close()
        for stream in self.streams:
            stream.close()


@pytest.fixture
def machine(fake_cuda: Callable[..., FakeCuda], written: Written) -> Iterator[Machine]:
    machine = Machine(fake_cuda(schedule="lazy"), written)
    yield machine
    machine.close()
    assert machine.cuda.leaks() == {}


@pytest.fixture(scope="module")
def expected(written: Written) -> Array:
    return written.tiled(CORE, "pixels").decode(written.latents(3 * BLOCK))


@pytest.mark.parametrize("schedule", ["lazy", 3])
def test_pictures_are_those_of_the_host_to_the_bit(
    fake_cuda: Callable[..., FakeCuda], written: Written, expected: Array, schedule: Schedule
) -> None:
    machine = Machine(fake_cuda(schedule=schedule), written)
    decoder = machine.decoder()
    decodings = [decoder.start(machine.made(block)) for block in range(2)]
    found = np.concatenate([decoding.result() for decoding in decodings], axis=1)
    # From now on, nothing is reserved, waited for or copied but what tiles are.
    latents = machine.made(2)
    with machine.gpu.ledger.strictly():
        last = decoder.start(latents)
    found = np.concatenate([found, last.result()], axis=1)
    assert decoder.latent_frames == 3 * BLOCK
    assert np.array_equal(found, expected)
    decoder.close()
    machine.close()
    assert machine.cuda.leaks() == {}


def test_a_block_that_was_taken_back_is_decoded_anew(machine: Machine, expected: Array) -> None:
    decoder = machine.decoder()
    first = decoder.start(machine.made(0)).result()
    snapshot = decoder.snapshot()
    second = decoder.start(machine.made(1)).result()
    decoder.reinstate(snapshot)
    again = decoder.start(machine.made(1), is_awaited=True).result()
    assert np.array_equal(np.concatenate([first, again], axis=1), expected[:, : -4 * BLOCK])
    assert np.array_equal(again, second)
    # Another video from the beginning, over what the first one left.
    decoder.begin()
    assert np.array_equal(decoder.start(machine.made(0)).result(), first)
    decoder.close()


def test_what_was_saved_goes_on_in_whole_frames(machine: Machine, expected: Array) -> None:
    decoder = machine.decoder()
    decoder.start(machine.made(0)).result()
    whole = machine.written.whole("pixels")
    whole.restore(decoder.latent_frames, dict(decoder.saved()))
    found = whole.decode(machine.latents[:, BLOCK : 2 * BLOCK])
    wanted = expected[:, -8 * BLOCK : -4 * BLOCK]
    assert np.abs(found.astype(int) - wanted).max() <= 1
    decoder.close()


def test_it_takes_what_its_plan_says(machine: Machine) -> None:
    """All but the pictures of blocks, which leave for the host."""
    taken = sum(machine.cuda.memory.live("device"))
    decoder, written = machine.decoder(), machine.written
    plan = TilePlan(written.vae, written.batch, SIZE, CORE)
    base, tile = (
        Part(written.engines[first], written.engines[following], written.in_place(following))
        for first, following in (BASE_GRAPHS[VAE], TILE_GRAPHS[VAE])
    )
    counted, pieces = plan.size_bytes(base.specs, tile.specs, "pixels"), decoder.pieces
    blocks = size_bytes(
        [
            *(pieces.pictures(count, is_first=False) for count in (BLOCK, BLOCK, BLOCK - 1)),
            pieces.pictures(1, is_first=True),
            *(pieces.latents(count) for count in (1, BLOCK - 1)),
        ]
    )
    found = sum(machine.cuda.memory.live("device")) - taken - blocks
    # Places begin at multiples of 256 bytes.
    assert counted <= found <= counted + 256 * 100
    decoder.close()


@pytest.mark.parametrize("allocation", range(5))
def test_too_little_memory_leaves_nothing_behind(machine: Machine, allocation: int) -> None:
    before = machine.cuda.leaks()
    machine.cuda.fail("cuMemAlloc", Status.CUDA_ERROR_OUT_OF_MEMORY, after=allocation)
    with pytest.raises(EngineError, match="of GPU memory are needed"):
        machine.decoder()
    assert machine.cuda.leaks() == before
