"""What TensorRT's plugins of attention in int8 are given: what the graph means, unmultiplied."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from longlive_trt.contract import INTEGER_ATTENTION_OP, TRANSPOSED_VALUES_OP
from longlive_trt.engines.trt.graph import prepare
from longlive_trt.engines.trt.integer_attention import to_plugin_inputs
from longlive_trt.errors import EngineError
from longlive_trt.export.check_runs import _given, _returned
from longlive_trt.plugins.attention.value_layout import transposed_values
from longlive_trt.plugins.kernels.attention import NarrowAttention, attended
from longlive_trt.precision import PRECISIONS, retype
from tests.shared import Shared

SIZES = {"batch": 1, "frames": 1, "cache_frames": 3}
SEEN = 4
"""Tokens of the cache that are valid."""


@pytest.fixture(params=["absolute", "relative"])
def step(request: pytest.FixtureRequest, shared: Shared) -> Path:
    if request.param == "relative":
        return shared("gpu8-relative-integers") / "step.onnx"
    export: Path = request.getfixturevalue("integer_attention_export")
    return export / "step.onnx"


def attention_of(model: ir.Model) -> ir.Node:
    (node,) = (node for node in model.graph if node.op_type == INTEGER_ATTENTION_OP)
    return node


def before_transposing(value: ir.Value) -> ir.Value:
    producer = value.producer()
    if producer is None or producer.op_type != TRANSPOSED_VALUES_OP:
        return value
    (plain,) = producer.inputs
    assert plain is not None
    return plain


def values_of(model: ir.Model, wanted: list[ir.Value], scratch: Path) -> list[Any]:
    """Of a graph that ends where an attention begins."""
    outputs = []
    for index, value in enumerate(wanted):
        # Inputs of the graph, and what is wanted twice, are no outputs by themselves.
        copy = ir.Node("", "Identity", [value])
        copy.outputs[0].name, copy.outputs[0].type = f"wanted.{index}", value.type
        model.graph.append(copy)
        outputs.append(copy.outputs[0])
    model.graph.outputs.clear()
    model.graph.outputs.extend(outputs)
    RemoveUnusedNodesPass()(model)
    model.functions.clear()
    path = scratch / "cut.onnx"
    ir.save(model, path, external_data="cut.data")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = {item.name: random_input(item) for item in session.get_inputs()}
    return [_returned(value).numpy() for value in session.run_with_ort_values(None, feeds)]


def random_input(item: ort.NodeArg) -> ort.OrtValue:
    random = np.random.default_rng(len(item.name))
    shape = [size if isinstance(size, int) else extent(size) for size in item.shape]
    if item.type == "tensor(int64)":
        return _given(torch.full(shape, 1), item.type)
    if item.type == "tensor(int8)":
        return _given(torch.from_numpy(random.integers(-127, 128, shape, np.int8)), item.type)
    values = torch.from_numpy(random.standard_normal(shape).astype(np.float32))
    is_float8 = item.type == "tensor(float8e4m3fn)"
    return _given((values * 30).to(torch.float8_e4m3fn) if is_float8 else values, item.type)


def extent(size: str) -> int:
    factors = [part.strip() for part in size.split("*")]
    return int(np.prod([int(part) if part.isdigit() else SIZES[part] for part in factors]))


def loaded(step: Path) -> ir.Model:
    model = ir.load(step)
    retype(model, PRECISIONS["fp32"])
    return model


def test_the_plugins_are_given_the_same_numbers(step: Path, tmp_path: Path) -> None:
    plain = loaded(step)
    q, k_new, v_new, k_cache, v_cache = values_of(
        plain, list(attention_of(plain).inputs[:5]), tmp_path
    )
    rewritten = loaded(step)
    to_plugin_inputs(rewritten)
    given = [before_transposing(v) for v in attention_of(rewritten).inputs]
    assert [value.dtype for value in (given[i] for i in (0, 1, 3))] == [ir.DataType.INT8] * 3
    assert [given[i].dtype for i in (2, 4)] == [ir.DataType.FLOAT8E4M3FN] * 2
    wanted = [given[i] for i in (0, 1, 2, 3, 4, 6, 7, 8, 9)]
    q8, k8_new, v8_new, k8, v8, q_scale, k_scale, v_scale, plain_q = values_of(
        rewritten, wanted, tmp_path
    )
    assert np.abs(q8).max() == 127
    assert plain_q.shape == q.shape
    assert np.abs(plain_q - q).max() <= 0.5001 * q_scale.max()
    by_head_k, by_head_v = k_scale[:, None], v_scale[:, None]
    for narrow, scale, wide in (
        (q8, q_scale, q),
        *((k8_new, by_head_k, k_new), (k8, by_head_k, k_cache)),
        *((v8_new, by_head_v, v_new), (v8, by_head_v, v_cache)),
    ):
        np.testing.assert_array_equal(narrow.astype(np.float32) * scale, wide)
    require_meaning(
        (q8, k8_new, v8_new, k8, v8),
        (q_scale[..., 0], k_scale, v_scale),
        (q, k_new, v_new, k_cache, v_cache),
    )


def require_meaning(narrow: tuple, scales: tuple, wide: tuple) -> None:
    """What the kernel makes of the plugin's inputs is attention to what the graph meant."""
    q8, k8_new, v8_new, k8, v8 = narrow
    q, k_new, v_new, k_cache, v_cache = wide
    turned = [transposed_values(x.astype(ml_dtypes.float8_e4m3fn)) for x in (v8_new, v8)]
    inputs = [q8, k8_new, turned[0], k8, turned[1], np.array([SEEN]), *scales]
    found = np.empty(q.shape, np.float32)
    NarrowAttention().compute(inputs, [found])
    keys = np.concatenate([k_cache[:, :SEEN], k_new], axis=1)
    values = np.concatenate([v_cache[:, :SEEN], v_new], axis=1)
    np.testing.assert_allclose(found, attended(q, keys, values, None), rtol=1e-4, atol=1e-5)


def test_the_parser_finds_both_plugins(step: Path, tmp_path: Path) -> None:
    graph = prepare(step, PRECISIONS["bf16"], tmp_path, keep_plugin_nodes=True)
    model = ir.from_proto(onnx.load_from_string(graph.model))
    node = attention_of(model)
    assert graph.plugin_nodes == 1
    assert not model.functions
    assert (len(node.inputs), len(node.outputs)) == (10, 2)
    turned = [each for each in model.graph if each.op_type == TRANSPOSED_VALUES_OP]
    assert [node.inputs[i].producer() for i in (2, 4)] == turned
    for each in (node, *turned):
        assert each.domain == "longlive"
        assert each.attributes["plugin_namespace"].as_string() == "longlive"
        assert each.attributes["plugin_version"].as_string() == "1"
    shape = turned[0].inputs[0].shape
    assert shape is not None
    assert node.attributes["scale"].as_float() == pytest.approx(int(shape[3]) ** -0.5)
    assert {site.name for site in graph.sites} == {"cross_attention.0"}


def test_what_is_rounded_in_another_way_is_refused(step: Path) -> None:
    model = loaded(step)
    attention = attention_of(model)
    attention.replace_input_with(1, attention.inputs[0])
    with pytest.raises(EngineError, match="are not rounded as this version rounds them"):
        to_plugin_inputs(model)
