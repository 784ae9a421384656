"""What is refused before any launch, by the name of the argument; no GPU needed."""

import struct
from dataclasses import replace

import numpy as np
import pytest

from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention import portable
from longlive_trt.plugins.attention.arguments import (
    KVPiece,
    Scales,
    check_call,
    check_scale,
    check_scales,
)
from longlive_trt.plugins.attention.hopper import SinkWindowAttention
from longlive_trt.plugins.attention.variants import MAX_PIECES
from longlive_trt.plugins.cuda import driver
from longlive_trt.plugins.cuda.tensors import DeviceTensor, as_device_tensor, stream_handle

ADDRESS = 1 << 20


def tensor(*shape, dtype="bfloat16", pointer=ADDRESS, device=0):
    return DeviceTensor.contiguous(pointer, shape, dtype, device)


Q = tensor(1, 100, 2, 128)
K = tensor(1, 300, 2, 128)
V = K
LENGTH = tensor(1, dtype="int64")
PIECE = KVPiece(K, V, LENGTH)
PADDED = replace(PIECE, rest_alike=True)
NARROW_V = tensor(1, 2, 128, 304, dtype="float8_e4m3")


def check(q=Q, pieces=(PIECE,), out=Q, dtype="bfloat16"):
    return check_call(q, pieces, out, dtype=dtype, head_dim=128, device=0)


def misaligned(view):
    return replace(view, pointer=view.pointer + 2)


def strided(view, axis, stride):
    strides = list(view.strides)
    strides[axis] = stride
    return replace(view, strides=tuple(strides))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": replace(Q, dtype="float32")}, "q has dtype float32: allowed is bfloat16"),
        ({"q": tensor(100, 2, 128)}, "q has rank 3 .*: it must have rank 4"),
        ({"q": tensor(1, 100, 2, 96)}, "q has shape .*: its axis head_dim must be 128"),
        ({"q": strided(Q, 3, 2)}, "q has stride 2 on its last axis: it must be 1"),
        ({"q": strided(Q, 1, 257)}, "q has stride 257 elements on axis 1: .* multiple of 8"),
        ({"q": strided(Q, 1, -256)}, "q has stride -256 elements on axis 1: it must be positive"),
        ({"q": replace(Q, device=1)}, "q is on cuda:1: it must be on cuda:0"),
        ({"q": misaligned(Q)}, "q starts at address 0x100002: it must be a multiple of 16 bytes"),
        ({"q": replace(Q, pointer=0)}, "q is a null pointer"),
        ({"q": "tensor"}, "q is a str: pass a DeviceTensor, a torch tensor"),
        ({"out": tensor(1, 99, 2, 128)}, "out has shape .*: its axis tokens must be 100"),
        ({"out": replace(Q, dtype="float16")}, "out has dtype float16: allowed is bfloat16"),
        ({"pieces": ()}, "pieces has 0 entries: allowed is 1 to 3"),
        ({"pieces": (PIECE,) * (MAX_PIECES + 1)}, "pieces has 4 entries: allowed is 1 to 3"),
        ({"pieces": (KVPiece(tensor(2, 300, 2, 128), V),)}, r"pieces\[0\].k .* batch must be 1"),
        ({"pieces": (KVPiece(K, tensor(1, 299, 2, 128)),)}, r"pieces\[0\].v .* must be 300"),
        ({"pieces": (PIECE, KVPiece(K, misaligned(V)))}, r"pieces\[1\].v starts at address"),
        ({"pieces": (KVPiece(K, V, 301),)}, "length is 301: allowed is 0 to 300, its capacity"),
        ({"pieces": (KVPiece(K, V, -1),)}, "length is -1: allowed is 0 to 300"),
        (
            {"pieces": (KVPiece(K, V, tensor(1, dtype="float32")),)},
            "length has dtype float32: allowed is int64",
        ),
        (
            {"pieces": (KVPiece(K, V, tensor(2, dtype="int64")),)},
            r"length has shape \[2\]: it must be one number",
        ),
        (
            {"pieces": (KVPiece(K, V, replace(LENGTH, pointer=ADDRESS + 4)),)},
            "length is not aligned to 8 bytes",
        ),
        ({"pieces": (PADDED, PIECE)}, "has 2 entries: with rest_alike, allowed is 1"),
        (
            {"pieces": (replace(PADDED, length=17),)},
            r"pieces\[0\].rest_alike is true: its length must lie on the device",
        ),
        (
            {
                "q": replace(Q, dtype="int8"),
                "dtype": "int8",
                "pieces": (replace(PADDED, k=replace(K, dtype="int8"), v=NARROW_V),),
            },
            r"pieces\[0\].rest_alike is true: int8 attention does not take that",
        ),
    ],
)
def test_bad_calls_name_the_argument(change, message):
    with pytest.raises(PluginError, match=message):
        check(**change)


def test_a_good_call_passes():
    call = check(pieces=(PIECE, KVPiece(K, V, 17), KVPiece(K, V, 0)))
    assert [piece.tokens for piece in call.pieces] == [300, 17, 0]
    assert [piece.length_pointer for piece in call.pieces] == [ADDRESS, 0, 0]
    assert call.padded_pieces()[2] is None


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_scales_are_refused(scale):
    with pytest.raises(PluginError, match=r"scale is .*: it must be a positive finite number"):
        check_scale(scale, 128)


def test_8_bit_calls_need_their_scales():
    q = replace(Q, dtype="int8")
    vector = tensor(2, dtype="float32")
    with pytest.raises(PluginError, match="scales is None"):
        check_scales(None, q)
    with pytest.raises(PluginError, match="scales were given: bfloat16 attention takes none"):
        check_scales(Scales(vector, vector, vector), Q)
    with pytest.raises(PluginError, match=r"scales\.k has shape \[3\]: its axis heads must be 2"):
        check_scales(Scales(vector, tensor(3, dtype="float32"), vector), q)
    checked = check_scales(Scales(tensor(1, 2, 100, dtype="float32"), vector, vector), q)
    assert checked.q_strides == (200, 100, 1)
    assert check_scales(Scales(vector, vector, vector), q).q_strides == (0, 1, 0)


def test_8_bit_values_come_transposed():
    q, k = replace(Q, dtype="int8"), replace(K, dtype="int8")
    good = tensor(1, 2, 128, 304, dtype="float8_e4m3")
    check(q=q, pieces=(KVPiece(k, good),), dtype="int8")
    short = tensor(1, 2, 128, 288, dtype="float8_e4m3")
    with pytest.raises(PluginError, match=r"v holds 288 tokens: it must hold at least the 300"):
        check(q=q, pieces=(KVPiece(k, short),), dtype="int8")
    with pytest.raises(PluginError, match=r"v has dtype int8: allowed is float8_e4m3"):
        check(q=q, pieces=(KVPiece(k, replace(good, dtype="int8")),), dtype="int8")
    odd = tensor(1, 2, 128, 300, dtype="float8_e4m3")
    with pytest.raises(PluginError, match=r"stride 300 elements on axis 2: .* multiple of 16"):
        check(q=q, pieces=(KVPiece(k, odd),), dtype="int8")


@pytest.mark.parametrize(
    ("dtype", "head_dim", "message"),
    [
        ("float32", 128, "dtype is float32: allowed is bfloat16, float16, float8_e4m3, int8"),
        ("bfloat16", 96, "head_dim is 96: allowed is 64 or 128"),
        ("int8", 64, "head_dim is 64: int8 attention takes 128 only"),
    ],
)
def test_unsupported_kernels_are_refused_before_a_device_is_looked_for(dtype, head_dim, message):
    with pytest.raises(PluginError, match=message):
        SinkWindowAttention(dtype, head_dim)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (10, 0)])
def test_the_hopper_kernel_needs_hopper(capability, fake_cuda):
    fake_cuda(capability=capability)
    with pytest.raises(PluginError, match=r"GPU has compute capability .*: this kernel needs 9\.0"):
        SinkWindowAttention()


def test_unknown_capabilities_are_refused():
    with pytest.raises(PluginError, match=r"compute capability 7\.5 is not supported"):
        driver.architecture_of((7, 5))


def test_host_memory_is_refused_through_dlpack():
    pytest.importorskip("cuda.core")
    with pytest.raises(PluginError, match="q is in host memory"):
        as_device_tensor(np.zeros((1, 1, 1, 128), np.float16), "q")


def test_a_torch_tensor_on_the_cpu_is_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(PluginError, match="q is on cpu: it must be on a CUDA device"):
        as_device_tensor(torch.zeros(1), "q")


def test_streams_come_as_handles_or_objects():
    class Stream:
        cuda_stream = 7

    assert stream_handle(5) == 5
    assert stream_handle(Stream()) == 7
    with pytest.raises(PluginError, match="stream is a str"):
        stream_handle("default")


def test_portable_parameters_have_the_kernels_layout():
    packed = portable._pack(check(pieces=(PIECE, KVPiece(K, V, 17))), 0.25)
    assert len(packed) == 8 * 32 + 3 * 8 + 6 * 4 + 8
    assert struct.unpack_from("<4Q", packed, 0) == (ADDRESS, 51200, 512, 256)
    assert struct.unpack_from("<3Q6if", packed, 256) == (ADDRESS, 0, 0, 300, 17, 0, 1, 2, 100, 0.25)
