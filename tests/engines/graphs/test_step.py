"""The transformer's graphs for a GPU, run on a CPU, against the exported ones."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from longlive_trt.contract import CONTEXT_TOKENS, KERNEL_DOMAIN
from longlive_trt.engines.graphs.kernels import kernels_of
from longlive_trt.engines.graphs.step import build_step_graphs
from longlive_trt.engines.ort.cpu import build_graph
from longlive_trt.errors import UsageError
from longlive_trt.exports import read_export
from longlive_trt.precision import PRECISIONS
from tests.engines.graphs.written import ADDED_INPUT, padded, specs_in
from tests.fakes.sessions import kernel_session
from tests.shared import Shared

TOLERANCE = {"fp32": 1e-5, "fp16": 3e-3}
BATCH, FRAMES = 2, 3
STANDARD_OPERATORS = {
    *("Add", "Cast", "Concat", "Cos", "Floor", "Gather", "Mul", "Reshape", "Sigmoid", "Sin"),
    *("Sub", "Transpose"),
}

Outputs = dict[str, np.ndarray[Any, np.dtype[Any]]]


@pytest.fixture(scope="module")
def small_relative(shared: Shared) -> Path:
    return shared("small-relative-export")


@pytest.fixture(scope="module")
def small_absolute(shared: Shared) -> Path:
    return shared("small-absolute-export")


@pytest.fixture(
    params=[
        "small_relative",
        pytest.param("small_absolute", marks=pytest.mark.exhaustive),
        "golden_export",
    ]
)
def exported(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def exported_session(source: Path, folder: Path, graph: str, precision: str) -> Any:
    build_graph(source / f"{graph}.onnx", folder, PRECISIONS[precision])
    return ort.InferenceSession(folder / f"{graph}.onnx", providers=["CPUExecutionProvider"])


def written_session(folder: Path, graph: str) -> Any:
    return kernel_session(folder / f"{graph}.onnx")


Sessions = Callable[[str], tuple[Any, Any]]


@pytest.fixture(params=list(TOLERANCE))
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def sessions(exported: Path, precision: str, tmp_path: Path) -> Sessions:
    """The exported graph and ours, both as sessions on the CPU."""
    folders = [tmp_path / name for name in ("exported", "written")]
    for folder in folders:
        folder.mkdir()
    config = read_export(exported).config
    build_step_graphs(config, exported, PRECISIONS[precision], folders[1])

    def open_both(graph: str) -> tuple[Any, Any]:
        reference = exported_session(exported, folders[0], graph, precision)
        return reference, written_session(folders[1], graph)

    return open_both


def inputs(session: Any, cache_frames: int, valid_frames: int) -> Outputs:
    sizes = {"batch": BATCH, "frames": FRAMES, "cache_frames": cache_frames}
    generator = np.random.default_rng(7)
    chosen: dict[str, Any] = {
        # Whole steps have a table; this one needs the fraction too.
        "timestep": np.array([937.25], np.float32),
        "sigma": np.array([0.7], np.float32),
        "sigma_next": np.array([0.4], np.float32),
        "frame_index": np.arange(20, 20 + FRAMES),
        "cache_index": np.arange(cache_frames),
        "sink_frames": np.array([valid_frames // 2]),
        "window_frames": np.array([valid_frames - valid_frames // 2]),
    }
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    for spec in session.get_inputs():
        if spec.name not in (*chosen, CONTEXT_TOKENS):
            shape = [size if isinstance(size, int) else counted(size, sizes) for size in spec.shape]
            chosen[spec.name] = generator.standard_normal(shape).astype(types[spec.type])
    return padded(chosen)


def counted(size: str, sizes: Mapping[str, int]) -> int:
    """``frames`` or ``96*frames``."""
    *factor, name = size.split("*")
    return int(np.prod([int(x) for x in factor])) * sizes[name]


def run(session: Any, feed: Outputs) -> Outputs:
    names = [spec.name for spec in session.get_outputs()]
    given = {spec.name: feed[spec.name] for spec in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))


def described(values: Any) -> list[tuple[str, str, list[Any]]]:
    return [(value.name, value.type, value.shape) for value in values]


def test_the_graphs_agree(sessions: Sessions, precision: str, relative_error: Any) -> None:
    for graph in ("step", "prompt"):
        reference, written = sessions(graph)
        added = [ADDED_INPUT] if graph == "step" else []
        assert described(written.get_inputs()) == described(reference.get_inputs()) + added
        assert described(written.get_outputs()) == described(reference.get_outputs())
        cases = [(5, 3), (5, 5), (0, 0)] if graph == "step" else [(0, 0)]
        for cache_frames, valid_frames in cases:
            feed = inputs(reference, cache_frames, valid_frames)
            expected, found = run(reference, feed), run(written, feed)
            for name, value in expected.items():
                assert relative_error(found[name], value) <= TOLERANCE[precision], name


def test_keys_and_values_alone_take_less(small_absolute: Path, tmp_path: Path) -> None:
    """The clean pass and the re-cache: the last layer ends with its projections."""
    config = read_export(small_absolute).config
    build_step_graphs(config, small_absolute, PRECISIONS["fp32"], tmp_path)
    served = [spec.get("serves") for spec in specs_in(tmp_path / "step.onnx")]
    # Both attentions, six products with that of the head, three sums with a norm, and a norm.
    assert served[-12:] == ["latents_next"] * 12 and not any(served[:-12])
    session = written_session(tmp_path, "step")
    feed = inputs(session, 5, 3)
    expected = run(session, feed)
    kept = [name for name in expected if name != "latents_next"]
    given = {spec.name: feed[spec.name] for spec in session.get_inputs()}
    ran = _counting(session.kernel_nodes)
    with session.kernel_nodes.wanting(kept):
        found = session.run(kept, given)
    assert ran == [len(served) - 12]
    for name, value in zip(kept, found, strict=True):
        assert np.array_equal(value, expected[name]), name


def _counting(nodes: Any) -> list[int]:
    """How many kernels are computed from now on."""
    ran = [0]

    class Counted:
        def __init__(self, kernel: Any) -> None:
            self.output_shapes, self._kernel = kernel.output_shapes, kernel

        def compute(self, *given: Any) -> None:
            ran[0] += 1
            self._kernel.compute(*given)

    nodes.kernels = {number: Counted(kernel) for number, kernel in nodes.kernels.items()}
    return ran


def test_every_input_has_a_say(small_relative: Path, tmp_path: Path, relative_error: Any) -> None:
    """What agrees with the exported graph agrees in something."""
    config = read_export(small_relative).config
    build_step_graphs(config, small_relative, PRECISIONS["fp32"], tmp_path)
    session = written_session(tmp_path, "step")
    feed = inputs(session, 5, 3)
    first = run(session, feed)["latents_next"]
    for name, value in feed.items():
        changed = value + 1 if value.dtype == np.int64 else value * np.float32(0.75)
        if name == "cache_index":
            changed = value[::-1].copy()
        if name == CONTEXT_TOKENS:
            # One more is one that the last stood for.
            changed = value - 1
        error = relative_error(run(session, {**feed, name: changed})["latents_next"], first)
        assert error > 1e-3, name


def test_graphs_opened_and_run_on_two_threads_give_the_bits_that_each_gives_alone(
    small_relative: Path, small_absolute: Path, tmp_path: Path
) -> None:
    alone: dict[Path, Outputs] = {}
    for source in (small_relative, small_absolute):
        folder = tmp_path / source.name
        folder.mkdir()
        build_step_graphs(read_export(source).config, source, PRECISIONS["fp16"], folder)
        session = written_session(folder, "step")
        alone[folder] = run(session, inputs(session, 5, 3))
    start = threading.Barrier(len(alone))

    def open_and_run(folder: Path) -> list[Outputs]:
        start.wait(30)
        sessions = (written_session(folder, "step") for _ in range(4))
        return [run(session, inputs(session, 5, 3)) for session in sessions]

    with ThreadPoolExecutor(len(alone)) as pool:
        together = list(pool.map(open_and_run, alone))
    for expected, results in zip(alone.values(), together, strict=True):
        for found in results:
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                np.testing.assert_array_equal(found[name], value)


def test_products_are_our_kernels(exported: Path, tmp_path: Path) -> None:
    build_step_graphs(read_export(exported).config, exported, PRECISIONS["bf16"], tmp_path)
    for graph in ("step", "prompt"):
        nodes = ir.load(tmp_path / f"{graph}.onnx").graph
        assert {node.op_type for node in nodes if node.domain == ""} <= STANDARD_OPERATORS
        assert {node.domain for node in nodes} <= {"", KERNEL_DOMAIN}


def test_heads_without_a_kernel_are_refused(small_relative: Path, tmp_path: Path) -> None:
    config = read_export(small_relative).config
    config = replace(config, transformer=replace(config.transformer, heads=8))
    with pytest.raises(UsageError, match="is 16: the GPU kernels are for heads of 64 or 128"):
        build_step_graphs(config, small_relative, PRECISIONS["fp16"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_kernels_of_a_graph_are_known_before_it_is_written(
    exported: Path, tmp_path: Path
) -> None:
    record = read_export(exported)
    build_step_graphs(record.config, exported, PRECISIONS["bf16"], tmp_path)
    assert kernels_of(record) == {
        spec["kernel"]
        for graph in ("step", "prompt")
        for spec in specs_in(tmp_path / f"{graph}.onnx")
    }
