"""The tiny decoder on an imagined GPU, its memories renewed in place, and on the host."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from longlive_trt.contract import VAE_GRAPHS
from longlive_trt.engines.renewal import renewable
from longlive_trt.plugins.cuda.streams import Gpu
from longlive_trt.runtime.decoding.cuda import CudaDecoder, DecodingStreams
from longlive_trt.runtime.decoding.host import VaeStream
from longlive_trt.runtime.decoding.pieces import WholePieces
from longlive_trt.runtime.memory.base import Buffer
from longlive_trt.runtime.memory.cuda import CudaMemory
from tests.engines.graphs.test_taehv import SIZE, config_of, rounded_decoder, written
from tests.fakes.cuda import FakeCuda, Schedule
from tests.fakes.engines import FakeCudaEngine
from tests.fakes.sessions import KernelEngine
from tests.fakes.streams import make_latents

BLOCK, BLOCKS, BATCH = 2, 4, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(rounded_decoder(), tmp_path_factory.mktemp("taehv"), batch=BATCH)


@pytest.mark.parametrize("schedule", ["lazy", 3])
def test_blocks_are_those_of_the_host(
    fake_cuda: Callable[..., FakeCuda], folder: Path, schedule: Schedule
) -> None:
    latents = make_latents(config_of(rounded_decoder()), BLOCK * BLOCKS, BATCH)
    engines = [KernelEngine(folder / f"{name}.onnx") for name in VAE_GRAPHS]
    expected = VaeStream(*engines, BATCH, latents=SIZE).decode(latents)
    cuda, gpu = fake_cuda(schedule=schedule), Gpu()
    streams = [gpu.stream() for _ in range(3)]
    first, following = (
        FakeCudaEngine(cuda, folder / f"{engine.name}.onnx", streams[1], inner=engine)
        for engine in engines
    )
    in_place = renewable(ir.load(folder / f"{following.name}.onnx"))
    memory = CudaMemory(streams[0])
    places = {name: Buffer((BATCH, BLOCK, *latents.shape[2:]), latents.dtype) for name in "ab"}
    tensors = memory.reserve(places, "latents")
    decoder = CudaDecoder(
        lambda own: WholePieces(
            first, following, own, BATCH, blocks=following, latents=SIZE, in_place=in_place
        ),
        *(BATCH, BLOCK, DecodingStreams(*streams)),
    )
    found = []
    for index, block in enumerate(np.split(latents, BLOCKS, axis=1)):
        place = tensors["ab"[index % 2]]
        memory.write(place, block)
        found.append(decoder.start(place).result())
    steps = np.abs(np.concatenate(found, axis=1).astype(int) - expected)
    # A library of another size of batch may add in another order.
    assert steps.max() <= 1 and (steps > 0).mean() <= 1e-3
    decoder.close()
    memory.close()
    for stream in streams:
        stream.close()
    assert cuda.leaks() == {}
