"""The public model's VAE on an imagined GPU, against the stream of single frames on the CPU."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.ort.cpu import OnnxRuntimeEngine
from longlive_trt.engines.renewal import renewed_in_place
from longlive_trt.errors import EngineError
from longlive_trt.plugins.cuda.streams import Gpu, Stream
from longlive_trt.runtime.decoding.cuda import CudaDecoder, DecodingStreams
from longlive_trt.runtime.decoding.host import VaeStream
from longlive_trt.runtime.decoding.pieces import WholePieces
from longlive_trt.runtime.memory.base import Buffer
from longlive_trt.runtime.memory.cuda import CudaMemory
from tests.fakes.cuda import FakeCuda, Status
from tests.fakes.engines import FakeCudaEngine

Array = np.ndarray[Any, np.dtype[Any]]
LATENTS = load_file(Path(__file__).parents[2] / "data" / "vae" / "decode.safetensors")["latents"]
BLOCK = 3


class Machine:
    """One GPU with the streams of a session, and the latents that its transformer made."""

    def __init__(self, cuda: FakeCuda, folder: Path) -> None:
        self.cuda, self.gpu = cuda, Gpu()
        self.streams: tuple[Stream, Stream, Stream] = tuple(  # type: ignore[assignment]
            self.gpu.stream() for _ in range(3)
        )
        paths = (folder / f"vae_{name}.onnx" for name in ("first", "next", "next"))
        self.engines = [FakeCudaEngine(cuda, path, self.streams[1]) for path in paths]
        self.memory = CudaMemory(self.streams[0])
        shape = (1, BLOCK, *LATENTS.shape[2:])
        self._latents = self.memory.reserve(
            {name: Buffer(shape, LATENTS.dtype) for name in "ab"}, "latents"
        )

    def decoder(
        self, *, frame_by_frame: bool = False, in_place: Any = (), rehearses: bool = False
    ) -> CudaDecoder:
        first, following, blocks = self.engines
        given = {"in_place": in_place, "blocks": None if frame_by_frame else blocks}
        return CudaDecoder(
            lambda memory: WholePieces(first, following, memory, 1, **given),
            *(1, BLOCK, DecodingStreams(*self.streams)),
            rehearses=rehearses,
        )

    def watched(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
        """Engines and the frames of what they are bound to, as it goes on."""
        bound: list[tuple[str, int]] = []
        for name, engine in zip(("first", "frames", "blocks"), self.engines, strict=True):
            _watch(name, engine, bound, monkeypatch)
        return bound

    def made(self, block: int) -> Any:
        tensor = self._latents["ab"[block % 2]]
        self.memory.write(tensor, LATENTS[:, BLOCK * block : BLOCK * (block + 1)])
        return tensor

    def close(self) -> None:
        self.memory.close()
        for stream in self.streams:
            stream.close()
        for engine in self.engines:
            engine.close()


def _watch(
    name: str, engine: FakeCudaEngine, bound: list[tuple[str, int]], patch: pytest.MonkeyPatch
) -> None:
    bind = engine.bind

    def noted(inputs: Any, outputs: Any) -> Any:
        bound.append((name, inputs["latents"].shape[1]))
        return bind(inputs, outputs)

    patch.setattr(engine, "bind", noted)


@pytest.fixture
def machine(fake_cuda: Callable[..., FakeCuda], small_vae_bundle: Path) -> Iterator[Machine]:
    machine = Machine(fake_cuda(), small_vae_bundle)
    yield machine
    machine.close()
    assert machine.cuda.leaks() == {}


@pytest.fixture(scope="module")
def expected(small_vae_bundle: Path) -> Array:
    paths = (small_vae_bundle / f"vae_{name}.onnx" for name in ("first", "next"))
    first, following = (OnnxRuntimeEngine(path, threads=1) for path in paths)
    with first, following:
        return VaeStream(first, following, 1).decode(LATENTS[:, : 2 * BLOCK])


def decoded(machine: Machine, decoder: CudaDecoder) -> Array:
    decodings = [decoder.start(machine.made(block)) for block in range(2)]
    return np.concatenate([decoding.result() for decoding in decodings], axis=1)


@pytest.mark.parametrize("frame_by_frame", [False, True])
def test_histories_in_place_change_no_bit(
    machine: Machine, small_vae_bundle: Path, frame_by_frame: bool
) -> None:
    histories = [name for name in machine.engines[1].inputs if name.startswith("cache.")]
    assert renewed_in_place(open_bundle(small_vae_bundle), "vae_next") == set(histories)
    pictures: list[Array] = []
    sets: list[set[int]] = []
    for in_place in ((), histories[1:], histories):
        decoder = machine.decoder(frame_by_frame=frame_by_frame, in_place=in_place)
        pictures.append(decoded(machine, decoder))
        assert isinstance(decoder.pieces, WholePieces)
        first, second = decoder.pieces._caches
        shared = {name for name in histories if first[name].pointer == second[name].pointer}
        assert shared == set(in_place)
        sets.append({flip for *_, flip in decoder.pieces._bound})
        decoder.close()
    assert all(np.array_equal(pictures[0], other) for other in pictures[1:])
    # One set is bound, and captured, once.
    assert sets == [{0, 1}, {0, 1}, {0}]


def test_whole_blocks_give_the_pictures_of_single_frames(machine: Machine, expected: Array) -> None:
    decoder = machine.decoder()
    found = decoded(machine, decoder)
    assert decoder.latent_frames == 2 * BLOCK
    decoder.close()
    difference = np.abs(found.astype(int) - expected)
    # Convolutions over more frames add in another order: a value on an edge may fall either way.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_an_engine_decodes_one_number_of_frames(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it meets another one it chooses its convolutions anew, which takes a second."""
    bound, decoder = machine.watched(monkeypatch), machine.decoder()
    for block, is_awaited in enumerate((False, False, True, False)):
        decoder.start(machine.made(block % 2), is_awaited=is_awaited).result()
    decoder.close()
    assert set(bound) == {("first", 1), ("frames", 1), ("blocks", BLOCK)}


def test_what_engines_choose_is_chosen_before_a_video_waits_for_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, expected: Array
) -> None:
    bound, decoder = machine.watched(monkeypatch), machine.decoder(rehearses=True)
    assert bound == [("frames", 1), ("blocks", BLOCK)]
    assert np.abs(decoded(machine, decoder).astype(int) - expected).max() <= 1
    decoder.close()


def test_the_first_pictures_that_are_awaited_leave_before_the_others(machine: Machine) -> None:
    decoder = machine.decoder()
    decoder.start(machine.made(0)).result()
    whole, parted = (
        decoder.start(machine.made(1), is_awaited=is_awaited) for is_awaited in (False, True)
    )
    assert [part.result().shape[1] for part in whole.parts] == [4 * BLOCK]
    assert [part.result().shape[1] for part in parted.parts] == [4, 4 * (BLOCK - 1)]
    decoder.close()


def test_frame_by_frame_gives_the_same_bits(machine: Machine, expected: Array) -> None:
    decoder = machine.decoder(frame_by_frame=True)
    assert np.array_equal(decoded(machine, decoder), expected)
    decoder.close()


def test_a_block_that_was_taken_back_is_decoded_anew(machine: Machine) -> None:
    decoder = machine.decoder()
    decoder.start(machine.made(0)).result()
    snapshot = decoder.snapshot()
    first, second = (
        (decoder.start(machine.made(1)).result(), decoder.reinstate(snapshot))[0] for _ in range(2)
    )
    assert np.array_equal(first, second)
    assert decoder.latent_frames == BLOCK
    decoder.close()


def test_saved_memory_goes_on_in_another_decoder(machine: Machine) -> None:
    whole, other = machine.decoder(), machine.decoder()
    whole.start(machine.made(0)).result()
    saved = {name: machine.memory.fetch(cache).result() for name, cache in whole.caches.items()}
    expected = whole.start(machine.made(1)).result()
    other.restore(whole.latent_frames - BLOCK, saved)
    assert np.array_equal(other.start(machine.made(1)).result(), expected)
    for decoder in (whole, other):
        decoder.close()


@pytest.mark.parametrize("allocation", [0, 1, 2, 3])
def test_too_little_memory_leaves_nothing_behind(machine: Machine, allocation: int) -> None:
    before = machine.cuda.leaks()
    machine.cuda.fail("cuMemAlloc", Status.CUDA_ERROR_OUT_OF_MEMORY, after=allocation)
    with pytest.raises(EngineError, match="of GPU memory are needed"):
        machine.decoder()
    assert machine.cuda.leaks() == before
