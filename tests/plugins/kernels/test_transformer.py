"""The transformer's kernels: numpy against torch in float64, and the device against numpy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.value_layout import transposed_values
from longlive_trt.plugins.cuda import compilation
from longlive_trt.plugins.cuda.compilation import KernelSource, compile_kernel
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.streams import Gpu, Stream
from longlive_trt.plugins.cuda.tensors import DeviceTensor, as_device_tensor
from longlive_trt.plugins.kernels.base import GraphKernel
from longlive_trt.plugins.kernels.registry import KERNELS

torch = pytest.importorskip("torch")
F = torch.nn.functional

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "int8": np.dtype(np.int8),
}
COMPUTE = ("float32", "float16", "bfloat16")
NARROW = {"float8_e4m3": 3.3e-2, "int8": 1.5e-2, "float32": 2e-6}
# Where a value lies between two numbers of eight bits, the device may take the other one.
NARROW_DEVICE = 6e-3
# What rounding the result once costs, with a little room.
ROUNDING = {"float32": 2e-6, "float16": 3e-4, "bfloat16": 2.4e-3}
# The kernels of attention round probabilities too.
ATTENTION = {"float16": 1e-3, "bfloat16": 5e-3}
EPSILON = 1e-6


@dataclass
class Case:
    """Inputs that are not yet rounded: float64 is for the compute type, all else stays."""

    kernel: str
    inputs: list[Any]
    reference: Callable[..., Any]
    parameters: dict[str, Any] = field(default_factory=dict)
    narrow: dict[int, str] = field(default_factory=dict)
    """Types of outputs that are not in the compute type."""

    def make(self) -> GraphKernel:
        return KERNELS[self.kernel](**self.parameters)

    def rounded(self, dtype: str) -> list[Any]:
        wanted = DTYPES[dtype]
        return [x.astype(wanted) if x.dtype == np.float64 else x for x in self.inputs]

    def computed(self, inputs: Sequence[Any], dtype: str) -> list[Any]:
        shapes = self.make().output_shapes([x.shape for x in inputs])
        outputs = [empty(shape, self.type_of(i, dtype)) for i, shape in enumerate(shapes)]
        self.make().compute(inputs, outputs)
        return outputs

    def type_of(self, output: int, dtype: str) -> str:
        return self.narrow.get(output, dtype)

    def allowed(self, output: int, dtype: str) -> float:
        narrow = self.narrow.get(output)
        return ROUNDING[dtype] if narrow is None else NARROW[narrow]


def empty(shape: Sequence[int], dtype: str) -> Any:
    return np.full(shape, 99 if dtype == "int8" else np.nan, DTYPES[dtype])


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def angles(tokens: int, head_dim: int) -> list[Any]:
    turn = np.random.default_rng(tokens).uniform(0, 2 * np.pi, (tokens, head_dim // 2))
    return [np.cos(turn).astype(np.float32), np.sin(turn).astype(np.float32)]


def norm(x: Any) -> Any:
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON)


def rms(x: Any, weight: Any) -> Any:
    return F.rms_norm(x, x.shape[-1:], eps=EPSILON) * weight


def turned(x: Any, cosine: Any, sine: Any) -> Any:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    factors = torch.complex(cosine, sine)[:, None]
    return torch.view_as_real(pairs * factors).flatten(-2)


def attention(q: Any, k: Any, v: Any) -> Any:
    heads = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(-2)


def gemm(activation: str = "none", *, bias: bool = True, heads: int | None = None) -> Case:
    def reference(x: Any, weight: Any, *bias: Any) -> Any:
        product = x @ weight + (bias[0] if bias else 0)
        product = F.gelu(product, approximate="tanh") if activation == "gelu" else product
        return product.unflatten(-1, (heads, -1)) if heads else product

    inputs = [normal(2, 77, 320), normal(320, 192) / 16, normal(192)]
    parameters = {"activation": activation, "heads": heads}
    return Case("gemm", inputs[: 2 + bias], reference, parameters)


def thin_gemm() -> Case:
    inputs = [normal(1, 256), normal(256, 1536) / 16, normal(1536)]
    return Case("gemm", inputs, lambda x, weight, bias: x @ weight + bias)


def layer_norm(affine: bool, dim: int) -> Case:
    x = 3 * normal(2, 77, dim) + 5
    if affine:
        return Case(
            "layer_norm",
            [x, normal(dim), normal(dim, seed=1)],
            lambda x, weight, bias: norm(x) * weight + bias,
            {"norm": "affine", "epsilon": EPSILON},
        )
    return Case(
        "layer_norm",
        [x, normal(5, dim)],
        lambda x, table: norm(x) * (1 + table[3]) + table[1],
        {"scale_row": 3, "shift_row": 1, "epsilon": EPSILON},
    )


def residual(kind: str, gate: bool, dim: int) -> Case:
    def reference(x: Any, y: Any, *rest: Any) -> list[Any]:
        total = x + (rest[0][4] if gate else 1) * y
        if kind == "none":
            return [total]
        if kind == "affine":
            return [total, norm(total) * rest[-2] + rest[-1]]
        return [total, norm(total) * (1 + rest[0][0]) + rest[0][2]]

    inputs = [normal(2, 77, dim), normal(2, 77, dim, seed=1)]
    if gate or kind == "modulate":
        inputs.append(normal(5, dim))
    if kind == "affine":
        inputs += [normal(dim), normal(dim, seed=1)]
    parameters = {"norm": kind, "scale_row": 0, "shift_row": 2, "epsilon": EPSILON}
    return Case("residual_norm", inputs, reference, {**parameters, "gate_row": 4 if gate else None})


def rms_norm(heads: int, head_dim: int) -> Case:
    dim = heads * head_dim
    return Case(
        "rms_norm",
        [normal(2, 77, dim), normal(dim)],
        lambda x, weight: rms(x, weight).unflatten(-1, (heads, -1)),
        {"heads": heads, "epsilon": EPSILON},
    )


def qkv(heads: int, head_dim: int, plain_key: bool) -> Case:
    dim = heads * head_dim

    def reference(x: Any, weight_q: Any, weight_k: Any, cosine: Any, sine: Any) -> list[Any]:
        q, k, v = x.split(dim, -1)
        normed = (rms(q, weight_q), rms(k, weight_k), v)
        q, k, v = (part.unflatten(-1, (heads, -1)) for part in normed)
        return [turned(q, cosine, sine), turned(k, cosine, sine), v, *[k] * plain_key]

    parameters = {"heads": heads, "plain_key": plain_key, "epsilon": EPSILON}
    inputs = [normal(2, 77, 3 * dim), normal(dim), normal(dim, seed=1), *angles(77, head_dim)]
    return Case("qkv_norm_rope", inputs, reference, parameters)


def rotate(heads: int, head_dim: int) -> Case:
    return Case("rotate", [normal(2, 77, heads, head_dim), *angles(77, head_dim)], turned)


def self_attention(head_dim: int, cached: int, valid: int) -> Case:
    def reference(q: Any, k: Any, v: Any, k_cache: Any, v_cache: Any, valid: Any) -> Any:
        count = int(valid[0])
        keys = torch.cat([k, k_cache[:, :count]], 1)
        return attention(q, keys, torch.cat([v, v_cache[:, :count]], 1))

    new = [normal(2, 77, 3, head_dim, seed=i) for i in range(3)]
    kept = [normal(2, cached, 3, head_dim, seed=i + 3) for i in range(2)]
    for tensor in kept:
        tensor[:, valid:] = np.nan
    return Case("attention", [*new, *kept, np.array([valid])], reference)


def cross_attention(head_dim: int) -> Case:
    inputs = [normal(2, n, 3, head_dim, seed=i) for i, n in enumerate((77, 40, 40))]
    return Case("cross_attention", inputs, attention)


def padded_cross_attention(head_dim: int, own: int) -> Case:
    """Of 40 keys, those behind some are like the last of these; nothing reads them."""

    def reference(q: Any, k: Any, v: Any, count: Any) -> Any:
        rest = torch.arange(k.shape[1]).clamp(max=int(count) - 1)
        return attention(q, k[:, rest], v[:, rest])

    inputs = cross_attention(head_dim).inputs
    for part in inputs[1:]:
        part[:, own:] = np.nan
    return Case("cross_attention", [*inputs, np.array([[own]])], reference)


def eight_bits(*shape: int, seed: int = 0) -> Any:
    return (64 * normal(*shape, seed=seed)).clip(-448, 448).astype(DTYPES["float8_e4m3"])


def narrow_gemm(activation: str = "none", *, narrow: bool = False) -> Case:
    scale = 1 / 1024 / 16

    def reference(x: Any, weight: Any, bias: Any, *factor: Any) -> Any:
        product = scale * x @ weight.T + bias
        product = F.gelu(product, approximate="tanh") if activation == "gelu" else product
        return product * factor[0] if narrow else product

    inputs = [eight_bits(2, 77, 320), eight_bits(192, 320, seed=1), normal(192)]
    parameters = {"activation": activation, "scale": scale, "narrow": narrow}
    if not narrow:
        return Case("gemm", inputs, reference, parameters)
    inputs.append(np.array([16], np.float32))
    return Case("gemm", inputs, reference, parameters, {0: "float8_e4m3"})


def narrowed_case(case: Case, unit: float, output: int = 0) -> Case:
    """The same with one output in eight bits."""

    def reference(*inputs: Any) -> Any:
        results = case.reference(*inputs)
        results = results if isinstance(results, list) else [results]
        results[output] = results[output] / unit
        return results

    parameters = {**case.parameters, "output_scale": unit}
    return Case(case.kernel, case.inputs, reference, parameters, {output: "float8_e4m3"})


def narrow_qkv(heads: int, head_dim: int) -> Case:
    plain = qkv(heads, head_dim, False)
    scales = [np.linspace(0.04, 0.1, heads, dtype=np.float32) * (i + 1) for i in range(3)]

    def reference(*inputs: Any) -> list[Any]:
        results = zip(plain.reference(*inputs[:5]), inputs[5:], strict=True)
        return [result / scale[:, None] for result, scale in results]

    inputs = [*plain.inputs, *scales]
    return Case(plain.kernel, inputs, reference, plain.parameters, dict.fromkeys(range(3), FLOAT8))


def mixed(x: Any) -> Any:
    """Times the orthonormal Hadamard matrix, written out by its definition."""
    count = x.shape[-1]
    entries = [[(-1) ** (i & j).bit_count() for j in range(count)] for i in range(count)]
    return x @ torch.tensor(entries, dtype=x.dtype) / count**0.5


def mixed_qkv(heads: int, head_dim: int) -> Case:
    """With outliers in every 17th channel of q and k."""
    plain = qkv(heads, head_dim, False)
    plain.inputs[1][::17] *= 8
    plain.inputs[2][::17] *= 8

    def reference(*inputs: Any) -> list[Any]:
        q, k, v = plain.reference(*inputs[:5])
        return [mixed(q), mixed(k), v]

    return Case(plain.kernel, plain.inputs, reference, {**plain.parameters, "hadamard": True})


def integer_qkv(heads: int, head_dim: int) -> Case:
    whole = mixed_qkv(heads, head_dim)
    scales = [np.linspace(0.09, 0.1, heads, dtype=np.float32), np.full(heads, 0.01, np.float32)]

    def reference(*inputs: Any) -> list[Any]:
        q, k, v = whole.reference(*inputs[:5])
        rows = q.abs().amax(-1) / 127
        units = [rows[..., None], *(scale[:, None] for scale in inputs[5:])]
        return [*(x / unit for x, unit in zip((q, k, v), units, strict=True)), rows]

    types = dict(enumerate(("int8", "int8", FLOAT8, "float32")))
    return Case(whole.kernel, [*whole.inputs, *scales], reference, whole.parameters, types)


def integer_qkv_beside_plain_keys(heads: int, head_dim: int) -> Case:
    whole, plain = integer_qkv(heads, head_dim), qkv(heads, head_dim, True)

    def reference(*inputs: Any) -> list[Any]:
        return [*whole.reference(*inputs), plain.reference(*inputs[:5])[3]]

    parameters = {**whole.parameters, "plain_key": True}
    return Case(whole.kernel, whole.inputs, reference, parameters, whole.narrow)


def with_transposed_values(case: Case) -> Case:
    def reference(*inputs: Any) -> list[Any]:
        results = case.reference(*inputs)
        results[2] = torch.from_numpy(transposed_values(results[2].numpy()))
        return results

    parameters = {**case.parameters, "transposed": True}
    return Case(case.kernel, case.inputs, reference, parameters, case.narrow)


def integer_rotate(heads: int, head_dim: int) -> Case:
    """With outliers in every 17th channel."""
    plain = rotate(heads, head_dim)
    plain.inputs[0][..., ::17] *= 8
    scale = np.linspace(0.09, 0.1, heads, dtype=np.float32)

    def reference(x: Any, cosine: Any, sine: Any, scale: Any) -> Any:
        return mixed(turned(x, cosine, sine)) / scale[:, None]

    return Case("rotate", [*plain.inputs, scale], reference, narrow={0: "int8"})


def integers(*shape: int, seed: int = 0) -> Any:
    return np.clip(np.rint(normal(*shape, seed=seed) * 30), -127, 127).astype(np.int8)


def integer_attention(cached: int, valid: int, output_scale: float | None = None) -> Case:
    """The case of float8, with other queries and keys, and a scale for each row of queries."""
    case = narrow_attention(cached, valid, output_scale)
    q, k = (integers(2, 77, 3, 128, seed=seed) for seed in range(2))
    k_cache = integers(2, cached, 3, 128, seed=3)
    rows = np.random.default_rng(5).uniform(0.01, 0.05, (2, 77, 3)).astype(np.float32)
    units = [rows, np.full(3, 0.03, np.float32), case.inputs[8]]
    v, v_cache = case.inputs[2], case.inputs[4]

    def reference(*inputs: Any) -> Any:
        return case.reference(inputs[0] * inputs[6][..., None], *inputs[1:6], *ones, *inputs[7:])

    ones = [torch.ones(3, dtype=torch.float64)]
    return Case(
        case.kernel,
        [q, k, v, k_cache, v_cache, case.inputs[5], *units],
        reference,
        case.parameters,
        case.narrow,
    )


def heads_case(kernel: str, kind: str) -> Case:
    scale = np.linspace(0.03, 0.04, 3, dtype=np.float32)
    if kernel == "widen_heads":
        x = eight_bits(2, 77, 3, 64) if kind == FLOAT8 else np.arange(-63, 65, dtype=np.int8)
        x = np.broadcast_to(np.resize(x, (2, 77, 3, 64)), (2, 77, 3, 64)).copy()
        return Case(kernel, [x, scale], lambda x, scale: x * scale[:, None])
    return Case(
        *(kernel, [normal(2, 77, 3, 64), scale]),
        lambda x, scale: x / scale[:, None],
        narrow={0: kind},
    )


def values_case(quantized: bool, tokens: int) -> Case:
    def reference(v: Any, *scale: Any) -> Any:
        v = v if quantized else v / scale[0][:, None]
        return torch.from_numpy(transposed_values(v.numpy()))

    shape, scale = (2, tokens, 3, 128), np.linspace(0.01, 0.04, 3, dtype=np.float32)
    inputs = [eight_bits(*shape)] if quantized else [normal(*shape), scale]
    return Case("transposed_values", inputs, reference, narrow={0: FLOAT8})


def narrow_attention(cached: int, valid: int, output_scale: float | None = None) -> Case:
    scales = [np.linspace(0.9, 1.1, 3, dtype=np.float32) / 64 for _ in range(3)]
    v, v_cache = eight_bits(2, 77, 3, 128, seed=2), eight_bits(2, cached, 3, 128, seed=4)
    q, k = (eight_bits(2, 77, 3, 128, seed=seed) for seed in range(2))
    k_cache = eight_bits(2, cached, 3, 128, seed=3)

    def reference(*inputs: Any) -> Any:
        units = [scale[:, None] for scale in inputs[6:]]
        keys = torch.cat([inputs[1], inputs[3][:, :valid]], 1) * units[1]
        values = torch.cat([as_double(v), as_double(v_cache)[:, :valid]], 1) * units[2]
        return attention(inputs[0] * units[0], keys, values) / (output_scale or 1)

    inputs = [q, k, transposed_values(v), k_cache, transposed_values(v_cache)]
    return Case(
        *("narrow_attention", [*inputs, np.array([valid]), *scales], reference),
        {"output_scale": output_scale},
        {0: FLOAT8} if output_scale else {},
    )


FLOAT8 = "float8_e4m3"
CASES = {
    "gemm": gemm(),
    "gemm no bias": gemm(bias=False),
    "gemm gelu": gemm("gelu"),
    "gemm gelu no bias": gemm("gelu", bias=False),
    "gemm heads": gemm(heads=3),
    "gemm one row": thin_gemm(),
    "norm": layer_norm(False, 1536),
    "norm odd": layer_norm(False, 320),
    "norm affine": layer_norm(True, 1536),
    **{
        f"residual {kind} gate {gate} {dim}": residual(kind, gate, dim)
        for kind in ("none", "modulate", "affine")
        for gate in (False, True)
        for dim in (320, 1536)
    },
    "rms": rms_norm(12, 128),
    "rms small heads": rms_norm(5, 8),
    "qkv": qkv(12, 128, False),
    "qkv plain": qkv(12, 128, True),
    "qkv 64": qkv(5, 64, True),
    "qkv hadamard": mixed_qkv(12, 128),
    "qkv hadamard 64": mixed_qkv(5, 64),
    "rotate": rotate(12, 128),
    "rotate 64": rotate(5, 64),
    "attention": self_attention(128, 60, 33),
    "attention full": self_attention(64, 60, 60),
    "attention first": self_attention(128, 60, 0),
    "attention no cache": self_attention(64, 0, 0),
    "cross": cross_attention(128),
    "cross 64": cross_attention(64),
    "cross, padded": padded_cross_attention(128, 12),
    "cross, padded 64": padded_cross_attention(64, 1),
    "cross, not padded": padded_cross_attention(128, 40),
}
EIGHT_BITS = {
    "gemm": narrow_gemm(),
    "gemm gelu": narrow_gemm("gelu"),
    "gemm gelu narrow": narrow_gemm("gelu", narrow=True),
    "norm": narrowed_case(layer_norm(False, 1536), 0.02),
    "norm affine": narrowed_case(layer_norm(True, 320), 0.02),
    "residual modulate": narrowed_case(residual("modulate", True, 1536), 0.08, output=1),
    "residual affine": narrowed_case(residual("affine", False, 320), 0.02, output=1),
    "quantize": Case(
        "quantize", [normal(2, 77, 320)], lambda x: x / 0.02, {"scale": 0.02}, {0: FLOAT8}
    ),
    "qkv": narrow_qkv(12, 128),
    "qkv 64": narrow_qkv(5, 64),
    "qkv int8": integer_qkv(12, 128),
    "qkv int8 64": integer_qkv(5, 64),
    "qkv int8 plain": integer_qkv_beside_plain_keys(12, 128),
    "qkv int8 plain 64": integer_qkv_beside_plain_keys(5, 64),
    "qkv transposed": with_transposed_values(narrow_qkv(12, 128)),
    "qkv int8 transposed": with_transposed_values(integer_qkv(12, 128)),
    "qkv int8 transposed 64": with_transposed_values(integer_qkv(5, 64)),
    "qkv int8 transposed plain": with_transposed_values(integer_qkv_beside_plain_keys(12, 128)),
    "rotate int8": integer_rotate(12, 128),
    "rotate int8 64": integer_rotate(5, 64),
    **{
        f"{kernel} {kind}": heads_case(kernel, kind)
        for kernel in ("narrow_heads", "widen_heads")
        for kind in (FLOAT8, "int8")
    },
    "values": values_case(False, 77),
    "values in eight bits": values_case(True, 77),
    "values of whole groups": values_case(True, 48),
    "no values": values_case(True, 0),
    "attention": narrow_attention(60, 33),
    "attention first": narrow_attention(60, 0),
    "attention no cache": narrow_attention(0, 0),
    "attention narrow": narrow_attention(60, 60, 0.005),
    "attention int8": integer_attention(60, 33),
    "attention int8 first": integer_attention(60, 0),
    "attention int8 narrow": integer_attention(60, 60, 0.005),
    "16-bit attention narrow": narrowed_case(self_attention(128, 60, 33), 0.005),
    "cross-attention narrow": narrowed_case(cross_attention(128), 0.005),
    "padded cross-attention narrow": narrowed_case(padded_cross_attention(128, 12), 0.02),
}


def as_double(array: Any) -> Any:
    return torch.from_numpy(np.asarray(array).astype(np.float64))


def relative(found: Any, expected: Any) -> float:
    difference, expected = (np.asarray(x, np.float64) for x in (found - expected, expected))
    return float(np.linalg.norm(difference) / np.linalg.norm(expected))


@pytest.mark.parametrize("dtype", COMPUTE)
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name) for name, case in CASES.items()]
    + [pytest.param(case, id=f"8 bits: {name}") for name, case in EIGHT_BITS.items()],
)
def test_numpy_agrees_with_torch(case: Case, dtype: str) -> None:
    inputs = case.rounded(dtype)
    expected = case.reference(*map(as_double, inputs))
    expected = expected if isinstance(expected, list) else [expected]
    found = case.computed(inputs, dtype)
    assert len(found) == len(expected)
    for output, (x, wanted) in enumerate(zip(found, expected, strict=True)):
        assert x.shape == tuple(wanted.shape)
        error = relative(x.astype(np.float64), wanted.numpy()) if x.size else 0
        assert error <= case.allowed(output, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", list(CASES))
def test_the_device_agrees_with_numpy(name: str, dtype: str, need_gpu: Any) -> None:
    need_gpu((8, 0))
    case = CASES[name]
    inputs = case.rounded(dtype)
    expected = case.computed(inputs, dtype)
    outputs = launched(case, inputs, expected)
    allowed = ATTENTION[dtype] if "attention" in case.kernel else ROUNDING[dtype]
    for found, wanted in zip(outputs, expected, strict=True):
        assert relative(on_host(found), wanted.astype(np.float64)) <= allowed


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", list(EIGHT_BITS))
def test_the_device_agrees_with_numpy_in_eight_bits(name: str, dtype: str, need_gpu: Any) -> None:
    case = EIGHT_BITS[name]
    need_gpu((9, 0) if "attention" in case.kernel else (8, 9))
    inputs = case.rounded(dtype)
    expected = case.computed(inputs, dtype)
    outputs = launched(case, inputs, expected)
    for index, (found, wanted) in enumerate(zip(outputs, expected, strict=True)):
        # Probabilities are rounded to eight bits too; sums of eight bits keep fewer bits.
        allowed = ROUNDING[dtype] if index not in case.narrow else NARROW_DEVICE
        if "attention" in case.kernel:
            allowed = 4e-2
        elif case.kernel == "gemm":
            allowed = 2e-2 if case.narrow else 5e-3
        present = found_of(case, index, on_host(found), case.inputs[0].shape[1])
        error = relative(present, wanted.astype(np.float64)) if wanted.size else 0
        assert error <= allowed


def found_of(case: Case, index: int, output: Any, tokens: int) -> Any:
    """Nobody reads what lies beyond the last value of a padded layout: it may be anything."""
    if case.kernel == "transposed_values" or (index == 2 and case.parameters.get("transposed")):
        batch, heads, dim, _ = output.shape
        is_token = transposed_values(np.ones((batch, tokens, heads, dim))) > 0
        return np.where(is_token, output, 0)
    return output


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["gemm gelu", "residual modulate gate True 1536", "attention"])
def test_a_captured_launch_can_be_replayed(name: str, need_gpu: Any) -> None:
    need_gpu((8, 0))
    case = CASES[name]
    inputs = [on_device(x) for x in case.rounded("bfloat16")]
    kernel = case.make()
    shapes = kernel.output_shapes([tuple(x.shape) for x in inputs])
    outputs = [torch.empty(*s, dtype=torch.bfloat16, device="cuda") for s in shapes]
    tensors = (
        [as_device_tensor(x, "x") for x in inputs],
        [as_device_tensor(x, "y") for x in outputs],
    )
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    place = Placement(Stream(Gpu(), stream.cuda_stream))
    kernel.launch(*tensors, place)
    stream.synchronize()
    first = [x.clone() for x in outputs]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        kernel.launch(*tensors, place)
    for x in outputs:
        x.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(x, wanted) for x, wanted in zip(outputs, first, strict=True))


@pytest.mark.parametrize(
    ("kernel", "parameters", "message"),
    [
        ("gemm", {"activation": "relu"}, "activation is 'relu': choose one of none, gelu"),
        ("residual_norm", {"norm": "batch"}, "norm is 'batch': choose one of none, modulate"),
        ("layer_norm", {"norm": "none"}, "norm is not none"),
        ("layer_norm", {"gate_row": 1}, "has no gate_row"),
        ("residual_norm", {"norm": "none", "output_scale": 1.0}, "and norm is none"),
        ("gemm", {"narrow": True}, "needs factors in 8 bits, and their scale"),
    ],
)
def test_impossible_parameters(kernel: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        KERNELS[kernel](**parameters)


@pytest.mark.parametrize(
    ("kernel", "parameters", "shapes", "message"),
    [
        ("gemm", {}, [(2, 8), (16, 8)], r"rows of 8 values do not fit a weight of shape \[16, 8\]"),
        ("gemm", {"heads": 3}, [(2, 8), (8, 8)], "8 values cannot be split into 3 heads"),
        ("layer_norm", {"scale_row": 5}, [(2, 8), (5, 8)], "the table has 5 rows: 5"),
        ("layer_norm", {}, [(2, 8), (5, 16)], r"table has shape \[5, 16\]: it must be \[5, 8\]"),
        ("residual_norm", {"norm": "none"}, [(2, 8), (1, 8)], r"y has shape \[1, 8\]"),
        ("rms_norm", {"heads": 2}, [(2, 8), (4,)], r"weight has shape \[4\]: it must be \[8\]"),
        ("rotate", {}, [(1, 5, 2, 8), (5, 4), (4, 4)], r"sine has shape \[4, 4\]"),
        ("rotate", {}, [(1, 5, 2, 8), (5, 4), (5, 4), (3,)], r"scale has shape \[3\]"),
        ("gemm", {"scale": 1.0}, [(2, 8), (8, 16)], r"do not fit a weight of shape \[8, 16\]"),
        ("narrow_heads", {}, [(1, 5, 2, 8), (3,)], r"scale has shape \[3\]: it must be \[2\]"),
        (
            *("qkv_norm_rope", {"heads": 2, "plain_key": True}),
            [(1, 5, 48), (16,), (16,), (5, 4), (5, 4), (2,), (2,), (2,)],
            "keys are kept plain without scales",
        ),
        (
            *("qkv_norm_rope", {"heads": 2, "hadamard": True}),
            [(1, 5, 48), (16,), (16,), (5, 4), (5, 4), (2,), (2,), (2,)],
            "with a Hadamard matrix of k and v",
        ),
        (
            *("qkv_norm_rope", {"heads": 2, "transposed": True}),
            [(1, 5, 48), (16,), (16,), (5, 4), (5, 4)],
            "values are transposed in eight bits only",
        ),
    ],
)
def test_shapes_that_do_not_fit(
    kernel: str, parameters: dict[str, Any], shapes: Any, message: str
) -> None:
    with pytest.raises(PluginError, match=message):
        KERNELS[kernel](**parameters).output_shapes(shapes)


@pytest.mark.parametrize(
    ("case", "dtype", "message"),
    [
        (qkv(3, 12, False), "float16", "3 heads of 12 values: the kernels are for heads of 64 or"),
        (rotate(3, 12), "float16", "3 heads of 12 values"),
        (cross_attention(12), "float16", "head_dim is 12: allowed is 64 or 128"),
        (residual("modulate", True, 36), "float16", "rows of 36 values: allowed are multiples of"),
        (residual("modulate", True, 320), "float32", "has dtype float32: allowed is bfloat16 or"),
        (gemm(), "float32", "a product of float32 to float32: allowed are float16, bfloat16"),
    ],
)
def test_the_device_refuses_what_it_has_no_kernel_for(
    case: Case, dtype: str, message: str, fake_cuda: Callable[..., Any]
) -> None:
    fake_cuda()
    inputs = [
        pretended(x.shape, dtype if x.dtype == np.float64 else "float32") for x in case.inputs
    ]
    shapes = case.make().output_shapes([x.shape for x in inputs])
    with pytest.raises(PluginError, match=message):
        outputs = [pretended(shape, dtype) for shape in shapes]
        case.make().launch(inputs, outputs, Placement(Gpu().stream()))


def test_numpy_takes_any_head(relative_error: Any) -> None:
    case = qkv(3, 12, True)
    expected = case.reference(*map(as_double, case.inputs))
    found = case.computed(case.rounded("float32"), "float32")
    assert max(map(relative_error, found, expected)) <= ROUNDING["float32"]


@pytest.mark.skipif(
    compilation.find_nvcc() is None and not compilation.nvrtc_is_available(),
    reason="neither nvcc nor NVRTC is installed",
)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(
    ("entry", "constants"),
    [
        ("residual_norm", {"LL_GATE": 1, "LL_NORM": 1}),
        ("layer_norm", {"LL_NORM": 2}),
        ("qkv_norm_rope", {"LL_HEAD_DIM": 128, "LL_PLAIN": 1}),
        ("qkv_norm_rope", {"LL_HEAD_DIM": 64, "LL_PLAIN": 0, "LL_HADAMARD": 1}),
        ("rms_norm", {}),
        ("rotate", {"LL_HEAD_DIM": 64}),
        ("rotate", {"LL_HEAD_DIM": 128, "LL_INT8": 1}),
    ],
)
def test_kernels_compile(
    entry: str, constants: dict[str, int], architecture: str, tmp_path: Path
) -> None:
    source = KernelSource(f"rows/{entry}.cu", entry, {"LL_ELEMENT": 1, "LL_DIM": 1536, **constants})
    assert entry.encode() in compile_kernel(source, architecture, cache_dir=tmp_path)


@pytest.mark.skipif(
    compilation.find_nvcc() is None and not compilation.nvrtc_is_available(),
    reason="neither nvcc nor NVRTC is installed",
)
@pytest.mark.parametrize(
    ("entry", "constants"),
    [
        *((name, {}) for name in ("quantize", "narrow_heads", "widen_heads")),
        *((name, {}) for name in ("transposed_values", "moved_values")),
        ("qkv_norm_rope", {"LL_PLAIN": 0, "LL_QUANTIZE": 2, "LL_TRANSPOSED": 1}),
        (
            "qkv_norm_rope",
            {"LL_PLAIN": 1, "LL_QUANTIZE": 3, "LL_HADAMARD": 1, "LL_TRANSPOSED": 1},
        ),
    ],
)
def test_kernels_of_eight_bits_compile(
    entry: str, constants: dict[str, int], tmp_path: Path
) -> None:
    source = KernelSource(f"rows/{entry}.cu", entry, {"LL_ELEMENT": 1, **constants})
    assert entry.encode() in compile_kernel(source, "sm_90a", cache_dir=tmp_path)


def pretended(shape: tuple[int, ...], dtype: str) -> DeviceTensor:
    return DeviceTensor.contiguous(1 << 20, shape, dtype)


def on_device(array: Any) -> Any:
    if array.dtype == ml_dtypes.float8_e4m3fn:
        return torch.from_numpy(array.view(np.int8)).cuda().view(torch.float8_e4m3fn)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).cuda().view(torch.bfloat16)
    return torch.from_numpy(array).cuda()


def on_host(tensor: Any) -> Any:
    return tensor.double().cpu().numpy()


def launched(case: Case, inputs: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    given = [on_device(x) for x in inputs]
    outputs = [on_device(np.full_like(x, 99 if x.dtype == np.int8 else np.nan)) for x in like]
    tensors = [[as_device_tensor(x, "x") for x in group] for group in (given, outputs)]
    with Placement(Stream(Gpu(), torch.cuda.current_stream().cuda_stream)) as place:
        case.make().launch(tensors[0], tensors[1], place)
        torch.cuda.synchronize()
    return outputs
