"""The passes around attention against their float64 references."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention import reference
from longlive_trt.plugins.kernels import companions
from longlive_trt.plugins.kernels.companions import RopeTables
from tests.plugins.conftest import random_normal

pytestmark = pytest.mark.gpu

# Results are rounded at the same points as the reference's: they differ where a float32 sum falls
# on the other side of a rounding boundary, which is rare.
TOLERANCE = 1e-3


@pytest.fixture(autouse=True)
def gpu(need_gpu):
    return need_gpu((8, 0))


def host(tensor):
    return tensor.double().cpu().numpy()


def make_tables(tokens, head_dim):
    generator = np.random.default_rng(1)
    angles = generator.uniform(0, 2 * np.pi, size=(tokens, head_dim // 2))
    return [torch.tensor(f(angles), dtype=torch.float32).cuda() for f in (np.cos, np.sin)]


def run_rope(batch, tokens, heads, head_dim, dtype, with_values=True):
    dim = heads * head_dim
    packed = random_normal((batch, tokens, 3 * dim), dtype, 1)
    q, k, v = packed.split(dim, dim=-1)
    weights = [1 + 0.1 * random_normal((dim,), dtype, 2 + i) for i in range(2)]
    tables = make_tables(tokens, head_dim)
    cache = torch.full(
        (2, batch, tokens + 7, heads, head_dim), float("nan"), dtype=q.dtype, device="cuda"
    )
    q_out = torch.full_like(cache[0, :, :tokens], float("nan")).contiguous()
    slots = [cache[0, :, 3 : 3 + tokens], cache[1, :, 3 : 3 + tokens]]
    inputs, outputs = [q, k, v], [q_out, *slots]
    if not with_values:
        inputs, outputs = inputs[:2], outputs[:2]
    companions.qk_norm_rope(inputs, tuple(weights), RopeTables(*tables), outputs)
    expected = [
        reference.norm_rope(host(x), host(w), *map(host, tables), heads=heads, dtype=dtype)
        for x, w in zip((q, k), weights, strict=True)
    ]
    return q_out, slots, cache, expected, v


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "head_dim"), [(1, 1, 12, 128), (2, 77, 12, 128), (1, 50, 5, 64)]
)
def test_norm_and_rope_go_straight_to_their_slot(batch, tokens, heads, head_dim, dtype):
    q_out, slots, cache, expected, v = run_rope(batch, tokens, heads, head_dim, dtype)
    for actual, wanted in zip((q_out, slots[0]), expected, strict=True):
        rounded = reference.rounded(wanted, dtype)
        assert reference.relative_error(host(actual), rounded) <= TOLERANCE
    assert torch.equal(slots[1].reshape(v.shape), v)
    assert cache[:, :, :3].isnan().all()
    assert cache[:, :, 3 + tokens :].isnan().all()


def test_int8_queries_and_keys(need_gpu):
    need_gpu((8, 9))
    batch, tokens, heads = 2, 33, 12
    dim = heads * 128
    q, k = (random_normal((batch, tokens, dim), "bfloat16", i) for i in (1, 2))
    weights = tuple(torch.ones(dim, dtype=q.dtype, device="cuda") for _ in range(2))
    tables = make_tables(tokens, 128)
    outputs = [
        torch.zeros(batch, tokens, heads, 128, dtype=torch.int8, device="cuda") for _ in range(2)
    ]
    key_scale = torch.full((heads,), 4.0 / 127, device="cuda")
    query_scale = torch.full((batch, heads, tokens), float("nan"), device="cuda")
    companions.qk_norm_rope(
        [q, k],
        weights,
        RopeTables(*tables),
        outputs,
        quantize="int8",
        key_scale=key_scale,
        query_scale=query_scale,
    )
    one = np.ones(dim)
    exact = [
        reference.norm_rope(host(x), one, *map(host, tables), heads=heads, dtype="bfloat16")
        for x in (q, k)
    ]
    wanted_scale = np.abs(exact[0]).max(-1).transpose(0, 2, 1) / 127
    np.testing.assert_allclose(host(query_scale), wanted_scale, rtol=1e-2)
    restored = host(outputs[0]) * host(query_scale).transpose(0, 2, 1)[..., None]
    assert reference.relative_error(restored, exact[0]) <= 8e-3
    clipped = np.clip(exact[1], -4.0, 4.0)
    assert reference.relative_error(host(outputs[1]) * 4.0 / 127, clipped) <= 1.2e-2


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("rows", "groups", "dim"), [(12, 3, 1536), (5, 1, 1000), (64, 64, 64)])
def test_norm_modulate(rows, groups, dim, dtype, affine):
    x = random_normal((rows, dim), dtype, 1) * 3 + 1
    scale, shift = (random_normal((groups, dim), dtype, i) for i in (2, 3))
    out = torch.full_like(x, float("nan"))
    companions.norm_modulate(x, scale, shift, out, affine=affine)
    wanted = reference.norm_modulate(host(x), host(scale), host(shift), dtype=dtype, affine=affine)
    assert reference.relative_error(host(out), wanted) <= TOLERANCE


def test_norm_modulate_to_8_bits(need_gpu):
    need_gpu((8, 9))
    x = random_normal((24, 1536), "bfloat16", 1)
    scale, shift = (random_normal((3, 1536), "bfloat16", i) for i in (2, 3))
    out = torch.zeros(24, 1536, dtype=torch.float8_e4m3fn, device="cuda")
    factor = torch.tensor([0.03], device="cuda")
    companions.norm_modulate(x, scale, shift, out, output_scale=factor)
    wanted = reference.norm_modulate(host(x), host(scale), host(shift), dtype="bfloat16")
    assert reference.relative_error(host(out.float()) * 0.03, wanted) <= 4e-2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gated_residual_in_place(dtype):
    residual, update = (random_normal((30, 1536), dtype, i) for i in (1, 2))
    gate = random_normal((3, 1536), dtype, 3)
    wanted = reference.gated_residual(host(residual), host(update), host(gate), dtype=dtype)
    companions.gated_residual(residual, update, gate, residual)
    assert reference.relative_error(host(residual), wanted) <= TOLERANCE


@pytest.mark.parametrize("first_token", [0, 8, 21])
def test_values_land_in_the_transposed_layout(need_gpu, first_token):
    need_gpu((8, 9))
    tokens, pitch = 150, 208
    v = random_normal((2, tokens, 3, 128), "bfloat16", 4)
    scale = torch.tensor([0.01, 0.02, 0.03], device="cuda")
    out = torch.full((2, 3, 128, pitch), 0x55, dtype=torch.uint8, device="cuda")
    companions.quantize_values(v, scale, out.view(torch.float8_e4m3fn), first_token=first_token)
    scaled = (v.float() * (1 / scale)[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    expected = np.full((2, 3, 128, pitch), 0x55, dtype=np.uint8)
    bytes_of = scaled.view(torch.uint8).cpu().numpy().transpose(0, 2, 3, 1)
    positions = [reference.value_position(first_token + token) for token in range(tokens)]
    expected[..., positions] = bytes_of
    np.testing.assert_array_equal(out.cpu().numpy(), expected)


def test_groups_must_divide_the_rows():
    x = random_normal((10, 64), "bfloat16", 1)
    with pytest.raises(PluginError, match="gate has 3 groups: they must divide the 10 rows"):
        companions.gated_residual(x, x, x[:3], x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": 1}, "inputs has 1 entries and outputs 3: allowed is 2"),
        ({"quantize": "fp4"}, "quantize is 'fp4': choose one of none, float8_e4m3, int8"),
        ({"quantize": "int8"}, "inputs has values: quantized values go through quantize_values"),
    ],
)
def test_bad_rope_requests_are_refused(change, message):
    x = random_normal((1, 4, 128), "bfloat16", 1)
    out = x.unflatten(-1, (1, 128))
    weight, tables = x[0, 0], RopeTables(*make_tables(4, 128))
    inputs = [x] * change.pop("inputs", 3)
    with pytest.raises(PluginError, match=message):
        companions.qk_norm_rope(inputs, (weight, weight), tables, [out] * 3, **change)
