"""ONNX Runtime's GPU sessions, with a stand-in for its part: what fails there, and when."""

import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from longlive_trt.engines.ort import gpu as onnxruntime_cuda
from longlive_trt.engines.ort.gpu import OnnxRuntimeCudaBinding, OnnxRuntimeCudaEngine
from longlive_trt.errors import EngineError, LostGpuError
from longlive_trt.plugins.cuda.streams import Gpu, Stream
from tests.fakes.cuda import FakeCuda


class Sessions:
    """What ``ort.InferenceSession`` makes; ``on_run`` is what happens in a run."""

    def __init__(self) -> None:
        self.runs = 0
        self.on_run: Callable[[], None] = lambda: None
        self.on_load: Callable[[], None] = lambda: None

    def __call__(self, *_: object, **__: object) -> Any:
        self.on_load()
        return SimpleNamespace(
            get_inputs=list,
            get_outputs=list,
            io_binding=lambda: "binding",
            run_with_iobinding=self._run,
        )

    def _run(self, *_: object) -> None:
        self.on_run()
        self.runs += 1


@pytest.fixture
def cuda(fake_cuda: Callable[..., FakeCuda]) -> FakeCuda:
    return fake_cuda()


@pytest.fixture
def stream(cuda: FakeCuda) -> Stream:
    return Gpu().stream()


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Sessions:
    made = Sessions()
    monkeypatch.setattr(onnxruntime_cuda, "load_libraries", lambda: None)
    monkeypatch.setattr(ort, "InferenceSession", made)
    return made


def bound(stream: Stream, *, captures: bool = False) -> OnnxRuntimeCudaBinding:
    engine = OnnxRuntimeCudaEngine(Path("step.onnx"), stream)
    # Only graphs with our kernels are captured, which would have to be compiled.
    engine._captures = captures
    return engine.bind({}, {})


def test_a_pass_is_queued_then_captured_then_replayed(
    cuda: FakeCuda, stream: Stream, sessions: Sessions
) -> None:
    binding = bound(stream, captures=True)
    for _ in range(4):
        binding.run()
    assert sessions.runs == 2
    assert cuda.calls["cuGraphLaunch"] == 3
    binding.close()
    assert "executable graphs" not in cuda.leaks()


def test_bindings_end_with_their_engine(cuda: FakeCuda, stream: Stream, sessions: Sessions) -> None:
    engine = OnnxRuntimeCudaEngine(Path("step.onnx"), stream)
    engine._captures = True
    binding = engine.bind({}, {})
    for _ in range(2):
        binding.run()
    assert cuda.leaks() == {"streams": 1, "executable graphs": 1}
    engine.close()
    assert cuda.leaks() == {"streams": 1}
    with pytest.raises(EngineError, match="was closed with its engine"):
        binding.run()


@pytest.mark.parametrize("captured", [False, True])
def test_ctrl_c_waits_until_all_kernels_are_queued(
    stream: Stream, sessions: Sessions, captured: bool
) -> None:
    """Inside, it would be lost in a callback from C, and a kernel with it."""
    binding = bound(stream, captures=captured)
    if captured:
        binding.run()
    sessions.on_run = lambda: signal.raise_signal(signal.SIGINT)
    before = sessions.runs
    with pytest.raises(KeyboardInterrupt):
        binding.run()
    assert sessions.runs == before + 1
    sessions.on_run = lambda: None
    binding.run()
    stream.synchronize()


def raising(message: str) -> Callable[[], None]:
    def work() -> None:
        raise RuntimeError(message)

    return work


def test_a_run_that_fails(cuda: FakeCuda, stream: Stream, sessions: Sessions) -> None:
    binding = bound(stream)
    sessions.on_run = raising("Non-zero status code\nwhile running node_7")
    with pytest.raises(EngineError) as caught:
        binding.run()
    assert str(caught.value) == (
        "graph step failed on the GPU: Non-zero status code while running node_7; "
        "`longlive-trt -vv` tells more"
    )
    cuda.lose_context()
    with pytest.raises(LostGpuError, match=r"node_7 \(CUDA_ERROR_ILLEGAL_ADDRESS\): the GPU gave"):
        binding.run()


def test_a_graph_for_which_there_is_no_memory(
    cuda: FakeCuda, stream: Stream, sessions: Sessions
) -> None:
    cuda.memory.taken_by_others_bytes = cuda.memory.free_on(0) - (1 << 30)
    sessions.on_load = raising("Failed to allocate memory for requested buffer of size 2838528000")
    with pytest.raises(EngineError) as caught:
        bound(stream)
    assert str(caught.value) == (
        "step.onnx: onnxruntime cannot load the graph on the GPU: Failed to allocate memory for "
        "requested buffer of size 2838528000; 1.00 GiB of GPU memory are free: close what else "
        "uses the GPU, or make fewer or smaller videos at once"
    )
