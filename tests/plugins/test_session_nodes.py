"""Nodes belong to the session that made them: on any thread, and no longer than it lives."""

import ctypes
import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from longlive_trt.contract import KERNEL_DOMAIN, KERNEL_OPERATORS
from longlive_trt.engines.ort import gpu as onnxruntime_cuda
from longlive_trt.engines.ort.gpu import OnnxRuntimeCudaEngine
from longlive_trt.errors import EngineError, PluginError
from longlive_trt.plugins import onnxruntime_bridge
from longlive_trt.plugins.attention.variants import Variant
from longlive_trt.plugins.cuda import driver
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.streams import Gpu, Stream, tensor_at
from longlive_trt.plugins.cuda.tensors import DeviceTensor
from longlive_trt.plugins.kernels import gemm
from longlive_trt.plugins.kernels.base import spec_of
from longlive_trt.plugins.kernels.registry import KERNELS
from longlive_trt.plugins.onnxruntime_bridge import SessionNodes, compiled_library
from tests.fakes.cuda import FakeCuda
from tests.fakes.sessions import kernel_session

OPENINGS = pytest.mark.parametrize(
    "openings", [50, pytest.param(200, marks=pytest.mark.exhaustive)]
)
WARM_UP = 20
NODES = 24
"""In a graph: enough that another thread opens its own meanwhile."""
HEADS, HEAD_DIM = 2, 128
DIM = HEADS * HEAD_DIM


class Stamp:
    """Adds its number, and on a device the stream that it was told to run on."""

    def __init__(self, number: int) -> None:
        self.number = number

    def output_shapes(self, inputs: Sequence[tuple[int, ...]]) -> Sequence[tuple[int, ...]]:
        return [inputs[0]]

    def launch(self, inputs: Any, outputs: Any, place: Placement) -> None:
        count = inputs[0].shape[0]
        x, y = (
            np.frombuffer((ctypes.c_char * (4 * count)).from_address(t.pointer), np.float32)
            for t in (inputs[0], outputs[0])
        )
        y[:] = x + self.number + place.stream.handle

    def compute(self, inputs: Any, outputs: Any) -> None:
        outputs[0][...] = inputs[0] + self.number


@pytest.fixture(autouse=True)
def known_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, "stamp", Stamp)  # type: ignore[arg-type]


@pytest.fixture
def bridge() -> Any:
    return onnxruntime_bridge._library(compiled_library().resolve())


@pytest.fixture
def no_others(bridge: Any) -> Iterator[None]:
    """What other tests left is collected before, and nothing is left behind."""
    gc.collect()
    before = bridge.longlive_sessions()
    yield
    gc.collect()
    assert bridge.longlive_sessions() == before


def stamps(number: int) -> bytes:
    """As many nodes one after another, each of which adds the number."""
    nodes = [
        helper.make_node(
            KERNEL_OPERATORS["float32"],
            [f"x{i}"],
            [f"x{i + 1}"],
            domain=KERNEL_DOMAIN,
            spec=spec_of("stamp", {"number": number}),
        )
        for i in range(NODES)
    ]
    ends = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["n"]) for i in (0, NODES)]
    return saved(nodes, ends[:1], ends[1:])


def saved(nodes: Any, inputs: Any, outputs: Any, weights: Any = ()) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(KERNEL_DOMAIN, 1)]
    content: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=10
    ).SerializeToString()
    return content


def on_threads(*works: Callable[[], None]) -> None:
    """All at once; what one of them raises is raised here."""
    failures: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        try:
            start.wait(30)
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if failures:
        raise failures[0]


# ---- several at once -------------------------------------------------------------------------


@pytest.mark.usefixtures("no_others")
def test_sessions_opened_on_threads_keep_their_own_nodes() -> None:
    x = np.arange(5, dtype=np.float32)

    def opened_again_and_again(number: int) -> Callable[[], None]:
        def work() -> None:
            graph, open_ones = stamps(number), []
            for _ in range(25):
                open_ones = [*open_ones[-2:], kernel_session(graph)]
                for session in open_ones:
                    (y,) = session.run(None, {"x0": x})
                    np.testing.assert_array_equal(y, x + NODES * number)

        return work

    on_threads(*map(opened_again_and_again, (1, 1000, 50_000)))


@pytest.mark.usefixtures("no_others")
def test_every_session_runs_on_its_own_stream_or_with_numpy(
    fake_cuda: Callable[..., FakeCuda],
) -> None:
    fake_cuda()
    gpu = Gpu()
    streams = [gpu.stream(), None, gpu.stream(), None]
    x = np.zeros(3, np.float32)

    def opened_again_and_again(stream: Stream | None, number: int) -> Callable[[], None]:
        expected = NODES * (number + (0 if stream is None else stream.handle))

        def work() -> None:
            graph = stamps(number)
            for _ in range(25):
                with SessionNodes(stream) as nodes:
                    session = opened(graph, nodes)
                    for _ in range(2):
                        (y,) = session.run(None, {"x0": x})
                        np.testing.assert_array_equal(y, np.float32(expected))
                    del session

        return work

    assert streams[0].handle != streams[2].handle  # type: ignore[union-attr]
    on_threads(*(opened_again_and_again(stream, i) for i, stream in enumerate(streams)))


def opened(graph: bytes, nodes: SessionNodes) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    nodes.register(options)
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@pytest.mark.usefixtures("no_others", "on_the_host")
def test_what_only_serves_an_unwanted_output_is_not_launched(
    fake_cuda: Callable[..., FakeCuda], tmp_path: Path
) -> None:
    fake_cuda()
    gpu = Gpu()
    stream = gpu.stream()
    (tmp_path / "step.onnx").write_bytes(forked())
    single = np.dtype(np.float32)
    engine = OnnxRuntimeCudaEngine(tmp_path / "step.onnx", stream, library=compiled_library())
    engine._captures = False
    with engine, gpu.reserve(4096, "tensors") as memory:
        x, kept, more = (tensor_at(memory.pointer + at, (4,), single, 0) for at in (0, 512, 1024))
        values = {t: _on_the_host(t) for t in (x, kept, more)}
        for wanted in ({"kept": kept}, {"more": more}, {"kept": kept, "more": more}):
            values[kept][:] = values[more][:] = -1
            engine.bind({"x": x}, wanted).run()
            per_node = 1 + stream.handle
            assert (values[kept] == (per_node if "kept" in wanted else -1)).all()
            assert (values[more] == (2 * per_node if "more" in wanted else -1)).all()


def forked() -> bytes:
    """One output, and another made of it by a node that says so."""

    def stamp(source: str, target: str, **serving: str) -> Any:
        spec = spec_of("stamp", {"number": 1, **serving})
        operator = KERNEL_OPERATORS["float32"]
        return helper.make_node(operator, [source], [target], domain=KERNEL_DOMAIN, spec=spec)

    nodes = [stamp("x", "kept"), stamp("kept", "more", serves="more")]
    x, kept, more = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"])
        for name in ("x", "kept", "more")
    )
    return saved(nodes, [x], [kept, more])


def _on_the_host(tensor: DeviceTensor) -> Any:
    size = ctypes.c_char * (4 * tensor.shape[0])
    values = np.frombuffer(size.from_address(tensor.pointer), np.float32)
    values[:] = 0
    return values


# ---- and gone --------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_others")
def test_nodes_go_with_their_session() -> None:
    with SessionNodes() as nodes:
        session = opened(stamps(1), nodes)
        assert len(nodes.kernels) == NODES
        del session
        gc.collect()
        assert nodes.kernels == {}


def test_a_session_that_outlives_its_nodes_fails_with_a_reason(bridge: Any) -> None:
    gc.collect()
    before = bridge.longlive_sessions()
    nodes = SessionNodes()
    session = opened(stamps(1), nodes)
    nodes.close()
    assert bridge.longlive_sessions() == before + 1
    with pytest.raises(Exception, match="the nodes of this session are closed"):
        session.run(None, {"x0": np.zeros(1, np.float32)})
    del session
    gc.collect()
    assert bridge.longlive_sessions() == before


@pytest.mark.usefixtures("no_others")
def test_a_graph_that_cannot_be_opened_leaves_nothing() -> None:
    for _ in range(3):
        with SessionNodes() as nodes, pytest.raises(Exception, match="INVALID"):
            opened(b"no graph", nodes)
        assert nodes.kernels == {}


@pytest.mark.usefixtures("no_others")
def test_options_are_of_one_session() -> None:
    options = ort.SessionOptions()
    with pytest.raises(Exception, match=r"longlive\.session"):
        options.register_custom_ops_library(str(compiled_library()))
    with SessionNodes() as nodes:
        nodes.register(options)
        with pytest.raises(Exception, match="these options belong to no session"):
            options.register_custom_ops_library(str(compiled_library()))


def test_a_library_of_another_version_is_refused(tmp_path: Path) -> None:
    """The first had no version, and none of the functions that are called now."""
    source, library = tmp_path / "old.c", tmp_path / "old.so"
    source.write_text("void longlive_bridge_set(void *a, void *b, void *c) {}\n")
    compiler = onnxruntime_bridge.shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    onnxruntime_bridge.subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True
    )
    with pytest.raises(PluginError, match=r"interface is 1, and 2 is needed\): build the bundle"):
        SessionNodes(library=library)


# ---- two hundred times -----------------------------------------------------------------------


def attending(dtype: int, name: str) -> bytes:
    """A product with a weight of some size, and attention: a workspace of each kind."""

    def kernel(kernel_name: str, *inputs: str, out: str, **parameters: Any) -> Any:
        spec = spec_of(kernel_name, parameters)
        return helper.make_node(
            KERNEL_OPERATORS[name], inputs, [out], domain=KERNEL_DOMAIN, spec=spec
        )

    nodes = [
        kernel("gemm", "x", "weight", out="product", heads=HEADS),
        kernel("cross_attention", "product", "product", "product", out="y"),
    ]
    values = np.random.default_rng(1).standard_normal((DIM, DIM)).astype(name)
    weight = numpy_helper.from_array(values, "weight")
    ends = [helper.make_tensor_value_info(x, dtype, [1, "tokens", DIM]) for x in "xy"]
    return saved(nodes, ends[:1], ends[1:], [weight])


@pytest.mark.usefixtures("no_others")
@OPENINGS
def test_sessions_that_come_and_go_leave_the_host_memory_flat(openings: int) -> None:
    graph = attending(TensorProto.FLOAT, "float32")
    given = {"x": np.random.default_rng(2).standard_normal((1, 7, DIM)).astype(np.float32)}
    process, sizes_bytes = psutil.Process(), []
    for _ in range(openings):
        session = kernel_session(graph)
        (y,) = session.run(None, given)
        assert np.isfinite(y).all()
        del session
        sizes_bytes.append(process.memory_info().rss)
    grown_bytes = max(sizes_bytes[-WARM_UP:]) - max(sizes_bytes[:WARM_UP])
    # Each that was opened has weights of 256 KiB.
    assert grown_bytes < 2 << 20


@pytest.fixture
def pretended_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the imagined GPU nothing is computed: what is looked at is memory."""

    class Launched:
        def launch(self, *_: object) -> None:
            pass

    class Product:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __call__(self, *_: object, workspace: int, **__: object) -> None:
            assert workspace

    monkeypatch.setattr(driver, "load_kernel", lambda *_: Launched())
    monkeypatch.setattr(driver, "tensor_map", lambda *_: bytes(128))
    monkeypatch.setattr(gemm, "Matmul", Product)
    # Clearing memory of the real size takes the imagined GPU a second.
    monkeypatch.setattr(gemm, "WORKSPACE_BYTES", 1 << 14)
    monkeypatch.setattr(Variant, "partial_bytes", lambda *_: 1 << 12)


@pytest.fixture
def on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's CPU runs the graph, whose kernels are placed on the imagined GPU."""
    make, address = ort.InferenceSession, onnxruntime_cuda._address

    def session(path: Path, options: Any, providers: Any) -> Any:
        del providers
        return make(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime_cuda, "PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(onnxruntime_cuda, "load_libraries", lambda: None)
    monkeypatch.setattr(
        onnxruntime_cuda, "_address", lambda *given: ("cpu", 0, *address(*given)[2:])
    )


@pytest.mark.usefixtures("no_others", "pretended_kernels", "on_the_host")
@OPENINGS
def test_engines_that_come_and_go_leave_the_gpu_as_it_was(
    fake_cuda: Callable[..., FakeCuda], bridge: Any, tmp_path: Path, openings: int
) -> None:
    cuda, open_sessions = fake_cuda(), bridge.longlive_sessions()
    (tmp_path / "step.onnx").write_bytes(attending(TensorProto.FLOAT16, "float16"))
    gpu = Gpu()
    stream, half = gpu.stream(), np.dtype(np.float16)
    with gpu.reserve(1 << 20, "tensors") as memory:
        x, y = (tensor_at(memory.pointer + at, (1, 7, DIM), half, 0) for at in (0, 1 << 18))
        before = cuda.memory.live("device"), cuda.leaks()
        workspaces = None
        for opening in range(openings):
            taken = gpu.ledger.counts["allocation"] - gpu.ledger.counts["free"]
            engine = OnnxRuntimeCudaEngine(
                tmp_path / "step.onnx", stream, library=compiled_library()
            )
            binding = engine.bind({"x": x}, {"y": y})
            for _ in range(3):
                binding.run()
            present = sorted(cuda.memory.live("device"))
            workspaces = workspaces or present
            assert present == workspaces and len(present) == 3
            if opening % 10:
                engine.close()
            else:  # whoever closes it
                on_threads(engine.close)
            assert (cuda.memory.live("device"), cuda.leaks()) == before
            assert bridge.longlive_sessions() == open_sessions
            with pytest.raises(EngineError, match="was closed with its engine"):
                binding.run()
            assert gpu.ledger.counts["allocation"] - gpu.ledger.counts["free"] == taken


@pytest.mark.usefixtures("no_others", "pretended_kernels", "on_the_host")
def test_an_engine_that_does_not_open_takes_nothing(
    fake_cuda: Callable[..., FakeCuda], tmp_path: Path
) -> None:
    cuda = fake_cuda()
    (tmp_path / "step.onnx").write_bytes(b"no graph")
    stream = Gpu().stream()
    with pytest.raises(Exception, match="cannot load the graph on the GPU"):
        OnnxRuntimeCudaEngine(tmp_path / "step.onnx", stream, library=compiled_library())
    assert cuda.memory.live("device") == []
