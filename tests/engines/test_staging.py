"""Engines on an imagined GPU for callers with arrays on the host."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longlive_trt.basics import Array
from longlive_trt.engines.base import Engine
from longlive_trt.engines.ort.cpu import OnnxRuntimeEngine
from longlive_trt.engines.staging import HostStaged
from longlive_trt.errors import EngineError
from longlive_trt.plugins.cuda.streams import Gpu, Stream
from tests.fakes.cuda import FakeCuda, Status
from tests.fakes.engines import FakeCudaEngine

FRAMES = 3
GRAPHS = ("vae_next", "text", "prompt")


@pytest.fixture
def cuda(fake_cuda: Callable[..., FakeCuda]) -> FakeCuda:
    return fake_cuda()


@pytest.fixture
def stream(cuda: FakeCuda) -> Iterator[Stream]:
    stream = Gpu().stream()
    yield stream
    stream.close()


def tensors(engine: Engine, seed: int = 0) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs that are drawn, and places for the outputs."""
    random, sizes = np.random.default_rng(seed), {"batch": 2, "latent_frames": FRAMES}
    inputs = {
        name: (9 * random.random(spec.sized(**sizes))).astype(spec.dtype)
        for name, spec in engine.inputs.items()
    }
    outputs = {
        name: np.zeros(spec.sized(**sizes), spec.dtype) for name, spec in engine.outputs.items()
    }
    return inputs, outputs


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_staged_engine_computes_the_same(
    cuda: FakeCuda, stream: Stream, video_bundle: Path, graph: str
) -> None:
    """At every run, with what its caller's arrays hold by then."""
    path = video_bundle / f"{graph}.onnx"
    with (
        OnnxRuntimeEngine(path, threads=1) as plain,
        FakeCudaEngine(cuda, path, stream) as engine,
        HostStaged(engine, stream) as staged,
    ):
        assert (staged.inputs, staged.outputs) == (plain.inputs, plain.outputs)
        given, expected = tensors(plain)
        taken, found = tensors(plain)
        bindings = plain.bind(given, expected), staged.bind(taken, found)
        for run in range(4):
            for name, array in tensors(plain, run)[0].items():
                given[name][...] = taken[name][...] = array
            for binding in bindings:
                binding.run()
            for name, array in expected.items():
                assert np.array_equal(found[name], array), name
                assert found[name].any()
    assert cuda.queues.fault is None


def test_an_output_may_be_the_next_runs_input(
    cuda: FakeCuda, stream: Stream, video_bundle: Path
) -> None:
    path = video_bundle / "vae_next.onnx"
    pixels: list[Array] = []
    for place in ("host", "gpu"):
        engine: Any = (
            OnnxRuntimeEngine(path, threads=1)
            if place == "host"
            else HostStaged(FakeCudaEngine(cuda, path, stream), stream)
        )
        inputs, outputs = tensors(engine)
        for name in ("cache_next.0", "cache_next.1"):
            outputs[name] = inputs[name.replace("_next", "")].copy()
        there = engine.bind(inputs, outputs)
        swapped = {name.replace("_next", ""): outputs[name] for name in outputs if "next" in name}
        back = engine.bind(
            {"latents": inputs["latents"], **swapped},
            {name: inputs[name.replace("_next", "")] for name in outputs if "next" in name}
            | {"pixels": outputs["pixels"]},
        )
        for binding in (there, back, there, back):
            binding.run()
        pixels.append(outputs["pixels"])
        engine.close()
    assert np.array_equal(*pixels)


def test_only_the_memory_is_given_back(cuda: FakeCuda, stream: Stream, video_bundle: Path) -> None:
    engine = FakeCudaEngine(cuda, video_bundle / "text.onnx", stream)
    staged = HostStaged(engine, stream)
    binding = staged.bind(*tensors(engine))
    binding.run()
    assert cuda.leaks() == {"streams": 1, "device memory": 3}
    staged.close()
    assert cuda.leaks() == {"streams": 1}
    assert engine.inputs
    engine.close()


def test_too_little_memory(cuda: FakeCuda, stream: Stream, video_bundle: Path) -> None:
    with FakeCudaEngine(cuda, video_bundle / "text.onnx", stream) as engine:
        staged = HostStaged(engine, stream)
        cuda.fail("cuMemAlloc", Status.CUDA_ERROR_OUT_OF_MEMORY, after=1)
        with pytest.raises(EngineError, match=r"^mask: .* of GPU memory are needed"):
            staged.bind(*tensors(engine))
        staged.close()
    assert cuda.leaks() == {"streams": 1}


def test_a_run_that_fails_leaves_the_results_as_they_were(
    cuda: FakeCuda, stream: Stream, video_bundle: Path
) -> None:
    def fail() -> None:
        raise EngineError("graph text failed on the GPU: a test")

    with FakeCudaEngine(cuda, video_bundle / "text.onnx", stream, fail) as engine:
        inputs, outputs = tensors(engine)
        with HostStaged(engine, stream) as staged:
            binding = staged.bind(inputs, outputs)
            with pytest.raises(EngineError, match="a test"):
                binding.run()
            assert not any(array.any() for array in outputs.values())
    assert cuda.leaks() == {"streams": 1}


def test_what_does_not_fit_is_refused(cuda: FakeCuda, stream: Stream, video_bundle: Path) -> None:
    with (
        FakeCudaEngine(cuda, video_bundle / "text.onnx", stream) as engine,
        HostStaged(engine, stream) as staged,
    ):
        inputs, outputs = tensors(engine)
        with pytest.raises(EngineError, match="ids is float32, expected int64"):
            staged.bind({**inputs, "ids": inputs["ids"].astype(np.float32)}, outputs)
