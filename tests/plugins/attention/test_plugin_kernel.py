"""The plugin's own kernel, compiled to PTX as engines embed it and launched as TensorRT would."""

import ctypes

import pytest

torch = pytest.importorskip("torch")

from longlive_trt.plugins.attention.tensorrt_plugin import TACTICS, plugin_kernel, workspace_floats
from longlive_trt.plugins.cuda import driver
from tests.plugins.conftest import make_problem

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
