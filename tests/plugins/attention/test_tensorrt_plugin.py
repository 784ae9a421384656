"""The plugin's contract with TensorRT, through TensorRT's own validator and its build sequence."""

import struct

import numpy as np
import pytest

from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention import tensorrt_plugin
from longlive_trt.plugins.attention.tensorrt_plugin import (
    ENTRY,
    TACTICS,
    plugin_kernel,
    plugin_source,
    workspace_floats,
)
from tests.plugins.attention import tensorrt_stub as trt

BLOCKS = 132
SCALE = 128**-0.5


@pytest.fixture
def plugin(monkeypatch):
    validator = trt.find_validator()
    if validator is None:
        pytest.skip("the package tensorrt-cu13-bindings is not installed")
    return trt.install(validator, monkeypatch)


@pytest.fixture
def registered(plugin):
    tensorrt_plugin.register(multiprocessors=BLOCKS)
    return plugin


def shapes(batch=1, tokens=4680, heads=12, head_dim=128, cached=14040):
    own, cache = (batch, tokens, heads, head_dim), (batch, cached, heads, head_dim)
    return [own, own, own, cache, cache, (1,)]


def build(dtype=trt.DataType.BF16, tactic=1, input_shapes=None):
    return trt.build_plugin(
        "SinkWindowAttention",
        [dtype] * 5 + [trt.DataType.INT64],
        input_shapes or shapes(),
        {"scale": np.array([SCALE], np.float32)},
        tactic,
    )


def test_the_validator_accepts_the_registration(registered):
    assert "SinkWindowAttention" in vars(registered.op.longlive)


def test_a_second_registration_does_nothing(registered):
    tensorrt_plugin.register(multiprocessors=BLOCKS)


def test_the_output_is_like_q_and_the_second_is_working_memory(registered):
    built = build()
    assert built.output_types == [trt.DataType.BF16, trt.DataType.FLOAT]
    assert built.output_shapes == [(1, 4680, 12, 128), (workspace_floats(128, BLOCKS),)]


def test_both_16_bit_types_are_offered_with_every_tactic(registered):
    built = build()
    assert sorted(built.tactics) == sorted(TACTICS[128])
    per_combination = [built.combinations[i : i + 8] for i in range(0, len(built.combinations), 8)]
    offered = {tuple(d.type for d in combination) for combination in per_combination}
    int64, float32 = trt.DataType.INT64, trt.DataType.FLOAT
    assert offered == {
        (kind,) * 5 + (int64, kind, float32) for kind in (trt.DataType.BF16, trt.DataType.HALF)
    }


@pytest.mark.parametrize("tactic", TACTICS[128])
def test_the_launch_is_the_variants(registered, tactic):
    built = build(tactic=tactic)
    variant = TACTICS[128][tactic]
    launch = built.launch
    assert launch.grid_x.expr.value == BLOCKS
    assert launch.block_x.expr.value == variant.threads
    assert launch.shared_mem.expr.value == variant.shared_bytes("bfloat16", 128)
    assert built.arguments == [1, 12, 4680, 14040]
    assert built.name == ENTRY
    assert f".entry {ENTRY}(".encode() in built.code
    assert b".target sm_90a" in built.code


def test_the_kernels_parameters_are_inputs_then_integers_then_outputs(registered):
    kinds = trt.parameter_kinds(build().code, ENTRY)
    assert kinds == [".u64"] * 6 + [".u32"] * 4 + [".u64"] * 2


def test_dynamic_lengths_reach_the_kernel_as_symbols(registered):
    built = build(input_shapes=shapes(tokens=None, cached=None))
    assert built.arguments == [1, 12, None, None]
    assert built.output_shapes[0] == (1, None, 12, 128)


def test_a_dynamic_head_size_is_refused(registered):
    with pytest.raises(PluginError, match="q has a dynamic or unsupported head size"):
        build(input_shapes=shapes(head_dim=None))


def test_the_scale_is_part_of_the_code():
    one, other = (plugin_source("bfloat16", 128, s, TACTICS[128][1]) for s in (1.0, 0.5))
    (bits,) = struct.unpack("<i", struct.pack("<f", 1.4426950408889634))
    assert one.constants["LL_SCALE_BITS"] == bits
    assert other.constants["LL_SCALE_BITS"] != bits


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (("float32", 128, 1.0, 1), "dtype is float32: allowed is bfloat16 or float16"),
        (("bfloat16", 96, 1.0, 1), "head_dim is 96: allowed is 64 or 128"),
        (("bfloat16", 128, 1.0, 9), "tactic is 9: allowed is 1, 2, 3"),
    ],
)
def test_impossible_kernels_are_refused(request_, message):
    with pytest.raises(PluginError, match=message):
        plugin_kernel(*request_)


def test_without_tensorrt_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(trt.sys.modules, "tensorrt", None)
    with pytest.raises(PluginError, match=r"tensorrt\.plugin cannot be imported"):
        tensorrt_plugin.register()
