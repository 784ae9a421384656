"""The plugin's own kernel, compiled to PTX as engines embed it and launched as TensorRT would."""

import ctypes

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from longlive_trt.plugins.attention import tensorrt_integer
from longlive_trt.plugins.attention.tensorrt_plugin import TACTICS, plugin_kernel, workspace_floats
from longlive_trt.plugins.attention.value_layout import padded_tokens, transposed_values
from longlive_trt.plugins.cuda import driver
from tests.plugins.attention.integer_model import Rounded, exact
from tests.plugins.attention.test_integer_error import ALLOWED, SETS
from tests.plugins.conftest import make_problem, relative

pytestmark = pytest.mark.gpu

CASES = [(head_dim, tactic) for head_dim in TACTICS for tactic in TACTICS[head_dim]]


def make_workspace(head_dim, blocks):
    return torch.full((workspace_floats(head_dim, blocks),), float("nan"), device="cuda")


def launch(problem, kernel, blocks, workspace):
    cache, own = problem.pieces
    batch, tokens, heads, _ = problem.q.shape
    pointers = [problem.q, own.k, own.v, cache.k, cache.v, cache.length]
    arguments = [ctypes.c_void_p(tensor.data_ptr()) for tensor in pointers]
    arguments += [ctypes.c_int(n) for n in (batch, heads, tokens, cache.k.shape[1])]
    outputs = (problem.out.data_ptr(), 0 if workspace is None else workspace.data_ptr())
    arguments += [ctypes.c_void_p(pointer) for pointer in outputs]
    loaded = driver.load_image(kernel.ptx, "ptx", kernel.name, kernel.shared_bytes, 0)
    stream = torch.cuda.current_stream().cuda_stream
    loaded.launch((blocks,), kernel.threads, kernel.shared_bytes, stream, arguments)


@pytest.mark.parametrize(("head_dim", "tactic"), CASES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "valid", "capacity"),
    [
        (1, 1, 1, 0, 1),
        (1, 200, 2, 300, 400),
        (2, 1000, 3, 1000, 1000),
        (1, 1560, 12, 3120, 6240),
        (1, 63, 150, 1, 64),
    ],
)
def test_error_is_that_of_the_same_precision(
    need_gpu, batch, tokens, heads, valid, capacity, dtype, head_dim, tactic
):
    facts = need_gpu((9, 0), exactly=True)
    pieces = [(valid, capacity), (tokens, tokens)]
    problem = make_problem(batch, tokens, heads, pieces, dtype=dtype, head_dim=head_dim, seed=2)
    kernel = plugin_kernel(dtype, head_dim, head_dim**-0.5, tactic)
    blocks = facts.multiprocessors
    launch(problem, kernel, blocks, make_workspace(head_dim, blocks))
    assert problem.out.isfinite().all()
    assert problem.error() <= 2 * problem.reference_error()


def test_repeats_are_bit_equal_whatever_the_workspace_holds(need_gpu):
    blocks = need_gpu((9, 0), exactly=True).multiprocessors
    problem = make_problem(1, 1560, 12, [(3120, 4680), (1560, 1560)])
    kernel = plugin_kernel("bfloat16", 128, 128**-0.5, 1)
    workspace = make_workspace(128, blocks)
    launch(problem, kernel, blocks, workspace)
    first = problem.out.clone()
    for fill in (float("nan"), 0.0, 1.0):
        for _ in range(10):
            problem.out.fill_(float("nan"))
            workspace.fill_(fill)
            launch(problem, kernel, blocks, workspace)
            assert torch.equal(problem.out, first)


def test_more_workspaces_than_counter_sets_still_give_the_result(need_gpu):
    blocks = need_gpu((9, 0), exactly=True).multiprocessors
    problem = make_problem(1, 1560, 12, [(3120, 4680), (1560, 1560)])
    kernel = plugin_kernel("bfloat16", 128, 128**-0.5, 1)
    size = workspace_floats(128, blocks)
    pool = torch.empty(size + 64 * 80, device="cuda")
    for index in range(80):
        problem.out.fill_(float("nan"))
        launch(problem, kernel, blocks, pool[64 * index :])
    assert problem.error() <= 2 * problem.reference_error()


def test_without_a_workspace_tiles_are_cut_along_their_rows(need_gpu):
    blocks = need_gpu((9, 0), exactly=True).multiprocessors
    problem = make_problem(1, 1560, 12, [(3120, 4680), (1560, 1560)])
    launch(problem, plugin_kernel("bfloat16", 128, 128**-0.5, 1), blocks, None)
    assert problem.error() <= 2 * problem.reference_error()


def on_device(values, dtype):
    return torch.from_numpy(np.ascontiguousarray(values)).to("cuda").to(dtype)


def run_kernel(kernel, grid, tensors, integers, outputs):
    arguments = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    arguments += [ctypes.c_int(number) for number in integers]
    arguments += [ctypes.c_void_p(tensor.data_ptr()) for tensor in outputs]
    loaded = driver.load_image(kernel.ptx, "ptx", kernel.name, kernel.shared_bytes, 0)
    stream = torch.cuda.current_stream().cuda_stream
    loaded.launch(grid, kernel.threads, kernel.shared_bytes, stream, arguments)


def turned(v):
    """[1, tokens, 1, 128] float8, by the plugin, in memory that was full of NaN."""
    tokens, width = v.shape[1], padded_tokens(v.shape[1])
    out = torch.full((1, 1, 128, width), 0x7F, dtype=torch.uint8, device="cuda")
    kernel, grid = tensorrt_integer.values_kernel(), (tokens // 128 + 1, 1)
    run_kernel(kernel, grid, [v], (1, tokens, width), [out])
    return out


@pytest.mark.parametrize("tokens", [1, 15, 16, 100, 128, 1560])
def test_values_are_turned_as_the_layout_says(need_gpu, tokens):
    need_gpu((9, 0), exactly=True)
    values = torch.randn(1, tokens, 1, 128, device="cuda").to(torch.float8_e4m3fn)
    codes = values.view(torch.uint8).cpu().numpy()
    expected = transposed_values(codes)
    is_token = transposed_values(np.ones_like(codes)) == 1
    np.testing.assert_array_equal(turned(values).cpu().numpy()[is_token], expected[is_token])


@pytest.mark.parametrize("tactic", tensorrt_integer.TACTICS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("tokens", [1, 32, 300])
@pytest.mark.parametrize("name", SETS)
def test_integers_err_as_little_as_in_our_own_launch(need_gpu, name, tokens, dtype, tactic):
    """Outliers and means included; what lies beyond the valid length is NaN."""
    blocks = need_gpu((9, 0), exactly=True).multiprocessors
    q, k, v = SETS[name]
    q = np.resize(q, (tokens, 128))
    x = Rounded.of(q, k, v)
    valid = len(k) - tokens
    unused = ((0, 70), (0, 0))
    cached = (
        np.pad(x.k[:valid], unused, constant_values=-127),
        np.pad(x.v[:valid], unused, constant_values=np.nan),
    )
    queries, own_k, kept_k = (
        on_device(part[None, :, None], torch.int8) for part in (x.q, x.k[valid:], cached[0])
    )
    own_v, kept_v = (
        turned(on_device(part[None, :, None], torch.float8_e4m3fn))
        for part in (x.v[valid:], cached[1])
    )
    units = (x.q_scale[None, :, None], np.array([x.k_scale]), np.array([x.v_scale]))
    scales = [on_device(unit, torch.float32) for unit in units]
    length = torch.tensor([valid], dtype=torch.int64, device="cuda")
    out = torch.full(queries.shape, torch.nan, dtype=getattr(torch, dtype), device="cuda")
    workspace = torch.full((tensorrt_integer.workspace_floats(blocks),), torch.nan, device="cuda")
    run_kernel(
        tensorrt_integer.attention_kernel(dtype, 128**-0.5, tactic),
        (blocks,),
        [queries, own_k, own_v, kept_k, kept_v, length, *scales, out],
        (1, 1, tokens, valid + 70, own_v.shape[3], kept_v.shape[3]),
        [out, workspace],
    )
    found = out[0, :, 0].double().cpu() + torch.from_numpy(x.center)
    # A row more or less of 32 is no fair sample of the error.
    allowed = ALLOWED[name] * (2 if tokens == 1 else 1)
    assert relative(found, torch.from_numpy(exact(q, k, v))) <= allowed
