"""The plugins of attention in int8: their contract with TensorRT, through its own validator."""

import numpy as np
import pytest

from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention import tensorrt_integer, tensorrt_plugin
from longlive_trt.plugins.attention.tensorrt_integer import (
    TACTICS,
    VALUES_ENTRY,
    attention_kernel,
    plugin_hashes,
    values_kernel,
    workspace_floats,
)
from longlive_trt.plugins.attention.tensorrt_plugin import ENTRY
from tests.plugins.attention import tensorrt_stub as trt

BLOCKS = 132
SCALE = 128**-0.5
INT8, FP8, INT64 = trt.DataType.INT8, trt.DataType.FP8, trt.DataType.INT64
FLOAT, BF16, HALF = trt.DataType.FLOAT, trt.DataType.BF16, trt.DataType.HALF


@pytest.fixture
def registered(monkeypatch):
    validator = trt.find_validator()
    if validator is None:
        pytest.skip("the package tensorrt-cu13-bindings is not installed")
    plugin = trt.install(validator, monkeypatch)
    tensorrt_plugin.register(multiprocessors=BLOCKS)
    tensorrt_integer.register(multiprocessors=BLOCKS)
    return plugin


def pitch(tokens):
    return None if tokens is None else -(-tokens // 16) * 16


def shapes(tokens=4680, cached=14040, heads=12, head_dim=128):
    own, cache = (1, tokens, heads, head_dim), (1, cached, heads, head_dim)
    values = [(1, heads, head_dim, pitch(count)) for count in (tokens, cached)]
    rows = (1, tokens, heads, 1)
    return [own, own, values[0], cache, values[1], (1,), rows, (heads,), (heads,), own]


def build(kind=BF16, tactic=1, input_shapes=None):
    types = [INT8, INT8, FP8, INT8, FP8, INT64, FLOAT, FLOAT, FLOAT, kind]
    attributes = {"scale": np.array([SCALE], np.float32)}
    name = "IntegerSinkWindowAttention"
    return trt.build_plugin(name, types, input_shapes or shapes(), attributes, tactic)


def build_values(tokens=4680, heads=12, head_dim=128):
    return trt.build_plugin("TransposedValues", [FP8], [(1, tokens, heads, head_dim)], {}, 1)


def test_the_validator_accepts_both_beside_the_other(registered):
    names = {"SinkWindowAttention", "IntegerSinkWindowAttention", "TransposedValues"}
    assert names <= vars(registered.op.longlive).keys()
    tensorrt_integer.register(multiprocessors=BLOCKS)


@pytest.mark.parametrize("kind", [BF16, HALF])
def test_the_output_has_the_type_of_plain_queries(registered, kind):
    built = build(kind)
    assert built.output_types == [kind, FLOAT]
    assert built.output_shapes == [(1, 4680, 12, 128), (workspace_floats(BLOCKS),)]


def test_types_are_those_of_eight_bits(registered):
    built = build()
    per_combination = [
        built.combinations[i : i + 12] for i in range(0, len(built.combinations), 12)
    ]
    offered = {tuple(d.type for d in combination) for combination in per_combination}
    eight = (INT8, INT8, FP8, INT8, FP8, INT64, FLOAT, FLOAT, FLOAT)
    assert offered == {(*eight, kind, kind, FLOAT) for kind in (BF16, HALF)}
    assert sorted(built.tactics) == sorted(TACTICS)


@pytest.mark.parametrize("tactic", TACTICS)
def test_the_launch_is_the_variants(registered, tactic):
    built, variant = build(tactic=tactic), TACTICS[tactic]
    assert built.launch.grid_x.expr.value == BLOCKS
    assert built.launch.block_x.expr.value == variant.threads
    assert built.launch.shared_mem.expr.value == variant.shared_bytes("int8", 128)
    # Rows of transposed values are longer than 4,680 and 14,040 tokens.
    assert built.arguments == [1, 12, 4680, 14040, 4688, 14048]
    assert trt.parameter_kinds(built.code, ENTRY) == [".u64"] * 10 + [".u32"] * 6 + [".u64"] * 2
    assert b".target sm_90a" in built.code


def test_dynamic_lengths_reach_the_kernel_as_symbols(registered):
    built = build(input_shapes=shapes(tokens=None, cached=None))
    assert built.arguments == [1, 12, None, None, None, None]


@pytest.mark.parametrize(
    ("tokens", "width", "tiles"), [(1, 16, 1), (128, 128, 2), (4680, 4688, 37)]
)
def test_values_get_rows_of_whole_groups(registered, tokens, width, tiles):
    built = build_values(tokens)
    assert built.output_types == [FP8]
    assert built.output_shapes == [(1, 12, 128, width)]
    assert built.arguments == [12, tokens, width]
    assert (built.launch.grid_x.expr.value, built.launch.grid_y.expr.value) == (tiles, 12)
    assert built.name == VALUES_ENTRY
    assert trt.parameter_kinds(built.code, VALUES_ENTRY) == [".u64"] + [".u32"] * 3 + [".u64"]


def test_other_head_sizes_are_refused(registered):
    with pytest.raises(PluginError, match="q has a dynamic or unsupported head size"):
        build(input_shapes=shapes(head_dim=64))
    with pytest.raises(PluginError, match="v has a dynamic or unsupported head size"):
        build_values(head_dim=64)


def test_impossible_kernels_are_refused():
    with pytest.raises(PluginError, match="the output is float32: allowed is bfloat16 or float16"):
        attention_kernel("float32", SCALE, 1)
    with pytest.raises(PluginError, match="tactic is 9: allowed is 1, 2"):
        attention_kernel("bfloat16", SCALE, 9)


def test_hashes_tell_codes_apart():
    found = [plugin_hashes(dtype, scale) for dtype, scale in (("bfloat16", 1.0), ("float16", 1.0))]
    found.append(plugin_hashes("bfloat16", 0.5))
    assert len({hashes["longlive::IntegerSinkWindowAttention"] for hashes in found}) == 3
    assert len({hashes["longlive::TransposedValues"] for hashes in found}) == 1
    assert b".entry transposed_values_plugin(" in values_kernel().ptx
