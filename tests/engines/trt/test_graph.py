"""What is changed in a graph for TensorRT: nothing that it computes."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from longlive_trt.configs import load_config
from longlive_trt.engines.trt.graph import PreparedGraph, prepare
from longlive_trt.precision import precision_named

Arrays = dict[str, np.ndarray]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path


def prepared(folder: Path, graph: str, scratch: Path, precision: str = "fp32") -> PreparedGraph:
    return prepare(folder / f"{graph}.onnx", precision_named(precision), scratch)


def run(model: bytes, path: Path, inputs: Arrays, wanted: list[str]) -> list[np.ndarray]:
    beside = path.with_name(f".{path.stem}.test.onnx")
    beside.write_bytes(model)
    try:
        session = ort.InferenceSession(beside, providers=["CPUExecutionProvider"])
        found: list[np.ndarray] = session.run(wanted, inputs)
        return found
    finally:
        beside.unlink()


def copy_of(folder: Path, target: Path) -> Path:
    """Models are written beside their weights, and shared folders are for reading."""
    return Path(shutil.copytree(folder, target / "export"))


def random_inputs(path: Path, sizes: dict[str, int], rng: np.random.Generator) -> Arrays:
    arrays: Arrays = {}
    for value in ir.load(path).graph.inputs:
        shape = [_size(size, sizes) for size in value.shape or ()]
        assert value.dtype is not None
        arrays[str(value.name)] = rng.standard_normal(shape).astype(value.dtype.numpy())
    return arrays


def _size(size: object, sizes: dict[str, int]) -> int:
    if isinstance(size, int):
        return size
    factors = str(getattr(size, "value", size)).split("*")
    return int(np.prod([int(part) if part.isdigit() else sizes[part] for part in factors]))


def test_every_attention_is_named_and_inlined(tiny_export: Path, scratch: Path) -> None:
    graph = prepared(tiny_export, "step", scratch)
    assert [(site.name, site.has_lengths) for site in graph.sites] == [
        ("self_attention.0", True),
        ("cross_attention.0", False),
        ("self_attention.1", True),
        ("cross_attention.1", False),
    ]
    model = onnx.load_from_string(graph.model)
    assert not model.functions
    attentions = [node for node in model.graph.node if node.op_type == "Attention"]
    assert [node.name for node in attentions] == [site.name for site in graph.sites]
    # The parser forgets the seventh input without a word; it must not be there.
    assert all(len([name for name in node.input if name]) == 3 for node in attentions)


def test_lengths_count_the_valid_keys_of_every_row(tiny_export: Path, scratch: Path) -> None:
    folder = copy_of(tiny_export, scratch)
    graph = prepared(folder, "step", scratch)
    config = load_config("tiny")
    sizes = {"batch": 2, "frames": 3, "cache_frames": 9}
    inputs = random_inputs(folder / "step.onnx", sizes, np.random.default_rng(0))
    inputs |= {
        "sink_frames": np.array([3]),
        "window_frames": np.array([2]),
        "frame_index": np.arange(3),
        "cache_index": np.arange(9),
        "timestep": np.array([750], np.float32),
    }
    names = [f"longlive.key_value_lengths.self_attention.{layer}" for layer in range(2)]
    for lengths in run(graph.model, graph.path, inputs, names):
        assert lengths.dtype == np.int32
        assert lengths.tolist() == [(3 + 3 + 2) * config.tokens_per_frame] * 2


def test_pixels_are_the_same_when_the_cast_comes_last(tiny_export: Path, scratch: Path) -> None:
    folder = copy_of(tiny_export, scratch)
    path = folder / "vae_first.onnx"
    inputs = random_inputs(path, {"batch": 2}, np.random.default_rng(1))
    graph = prepared(folder, "vae_first", scratch)
    producers = {
        out: node for node in onnx.load_from_string(graph.model).graph.node for out in node.output
    }
    assert producers["pixels"].op_type == "Cast"
    (before,) = run(path.read_bytes(), path, inputs, ["pixels"])
    (after,) = run(graph.model, path, inputs, ["pixels"])
    assert before.dtype == after.dtype == np.uint8
    assert before.std() > 0
    np.testing.assert_array_equal(before, after)


def test_weights_are_read_where_they_are_unless_their_type_changes(
    tiny_export: Path, scratch: Path
) -> None:
    same = prepared(tiny_export, "prompt", scratch)
    assert same.path == tiny_export / "prompt.onnx"
    assert not list(scratch.iterdir())
    half = prepared(tiny_export, "prompt", scratch, "fp16")
    assert half.path.parent == scratch
    assert half.weights_bytes * 2 == pytest.approx(same.weights_bytes, rel=0.01)


def test_plugin_nodes_stay_and_find_the_plugin(tiny_export: Path, scratch: Path) -> None:
    graph = prepare(
        tiny_export / "step.onnx", precision_named("fp16"), scratch, keep_plugin_nodes=True
    )
    model = onnx.load_from_string(graph.model)
    nodes = [node for node in model.graph.node if node.op_type == "SinkWindowAttention"]
    assert graph.plugin_nodes == len(nodes) == 2
    assert not model.functions
    for node in nodes:
        values = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        assert values["plugin_namespace"] == b"longlive"
        assert values["plugin_version"] == b"1"
        assert values["scale"] == pytest.approx(128**-0.5)
        assert len(node.input) == 6
        assert len(node.output) == 2
    assert [site.name for site in graph.sites] == ["cross_attention.0", "cross_attention.1"]
