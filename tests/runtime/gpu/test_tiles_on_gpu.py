"""Tiles on whatever GPU is there: copies of windows, and pictures against the whole decoder's."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")

from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.engines.ort import gpu as onnxruntime_cuda
from longlive_trt.plugins.cuda.streams import Gpu
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.decoding.choice import decoder_named
from longlive_trt.runtime.decoding.cuda import CudaDecoder
from longlive_trt.runtime.decoding.pieces import TiledPieces
from longlive_trt.runtime.memory.base import Buffer, HostMemory, Patch
from longlive_trt.runtime.memory.cuda import CudaMemory
from tests.fakes.decoders import seeded_decoder
from tests.fakes.streams import make_latents
from tests.fakes.written import TWO, built

pytestmark = pytest.mark.gpu
Array = np.ndarray[Any, Any]
SIZE = (14, 140)
"""Three tiles."""


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("dtype", [np.float16, np.uint8, np.float32])
@pytest.mark.parametrize(
    ("before", "after"), [((), (96,)), ((1, 2), (24,)), ((2, 4), (3,)), ((3, 2), ()), ((), ())]
)
def test_windows_are_those_of_the_host(
    before: tuple[int, ...], after: tuple[int, ...], dtype: Any
) -> None:
    """Channels behind the columns or before the rows, run by run and captured."""
    random, results = np.random.default_rng(0), []
    values = random.integers(0, 255, (*before, 37, 53, *after)).astype(dtype)
    for memory in (CudaMemory(Gpu().stream()), HostMemory()):
        shapes = {"whole": values.shape, "window": (*before, 11, 13, *after)}
        places = {name: Buffer(shape, values.dtype) for name, shape in shapes.items()}
        tensors, axis = memory.reserve(places, "a test"), len(before)
        whole, window = tensors["whole"], tensors["window"]
        # A window is read, and what lies in it goes elsewhere, over what was there.
        copies = memory.bind(
            [
                Patch(window, whole, axis, (0, 0), (5, 7), (11, 13)),
                Patch(whole, window, axis, (25, 40), (1, 2), (10, 11)),
            ]
        )
        for turn in range(3):
            memory.write(whole, np.roll(values, turn, axis=axis + 1))
            copies.run()
        results.append([memory.fetch(tensor).result() for tensor in (whole, window)])
        memory.close()
    for found, expected in zip(*results, strict=True):
        assert np.array_equal(found, expected)


@pytest.fixture(scope="module")
def bundle(target: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    if onnxruntime_cuda.PROVIDER not in ort.get_available_providers():
        pytest.skip("this onnxruntime has no GPU support")
    yield built(tmp_path_factory.mktemp("tiles"), TWO, SIZE, gpu=target)


def test_pictures_are_those_of_whole_frames_and_of_float64(bundle: Bundle) -> None:
    made = make_latents(bundle.config, 5)
    model = seeded_decoder(TWO).double()
    expected = model.decode(torch.from_numpy(made).double()).clamp(-1, 1).numpy()
    found = {}
    for low_memory in (False, True):
        with Engines(bundle, "cuda", low_memory=low_memory) as engines:
            decoder = decoder_named(bundle, None)
            stream = engines.stream_of(decoder, 1, "frames", SIZE)
            found[low_memory] = stream.decode(made)
            stream.close()
    for frames in found.values():
        assert np.abs(frames - expected).max() <= 2e-2
        assert np.linalg.norm(frames - expected) <= 2e-3 * np.linalg.norm(expected)
    # The library may choose another kernel for another size.
    assert np.abs(found[True] - found[False]).max() <= 5e-3


def test_blocks_in_tiles_are_the_bits_of_single_frames_in_tiles(bundle: Bundle) -> None:
    made = make_latents(bundle.config, 6)
    with Engines(bundle, "cuda", low_memory=True) as engines:
        stream = engines.stream_of(decoder_named(bundle, None), 1, "pixels", SIZE)
        expected = stream.decode(made)
        stream.close()
        memory = CudaMemory(engines.stream("transformer"))
        places = {str(n): Buffer((1, 3, *made.shape[2:]), made.dtype) for n in range(2)}
        tensors = memory.reserve(places, "latents")
        decoder = engines.decoder(1)
        assert isinstance(decoder, CudaDecoder) and isinstance(decoder.pieces, TiledPieces)
        decodings = []
        for block in range(2):
            memory.write(tensors[str(block)], made[:, 3 * block : 3 * block + 3])
            decodings.append(decoder.start(tensors[str(block)]))
        found = np.concatenate([decoding.result() for decoding in decodings], axis=1)
        decoder.close()
        memory.close()
    assert np.array_equal(found, expected)


def test_nothing_is_left_behind(bundle: Bundle) -> None:
    made, free_bytes = make_latents(bundle.config, 2), []
    for _ in range(3):
        with Engines(bundle, "cuda", low_memory=True) as engines:
            stream = engines.stream_of(decoder_named(bundle, None), 1, "pixels", SIZE)
            stream.decode(made)
            stream.close()
        free_bytes.append(Gpu().memory().free_bytes)
    # Libraries take what they keep at their first use.
    assert free_bytes[2] == free_bytes[1]
