"""The Hopper kernel against float64, on inputs whose invalid parts are NaN."""

import pytest

torch = pytest.importorskip("torch")

from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.arguments import KVPiece
from longlive_trt.plugins.attention.hopper import SinkWindowAttention
from longlive_trt.plugins.attention.variants import Variant
from longlive_trt.plugins.cuda.tensors import DeviceTensor
from tests.plugins.conftest import device_length, make_problem, random_normal

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def hopper(need_gpu):
    return need_gpu((9, 0), exactly=True)


SHAPES = [
    pytest.param(1, 1, 1, [(1, 1)], id="one token"),
    pytest.param(1, 65, 2, [(0, 5), (3, 9), (0, 1)], id="empty pieces"),
    pytest.param(1, 257, 40, [(129, 200)], id="many heads"),
    pytest.param(2, 1000, 3, [(1000, 1200), (513, 513)], id="batch"),
    pytest.param(2, 1560, 3, [(1560, 1560), (3120, 4680), (1560, 1560)], id="split along keys"),
    pytest.param(1, 4680, 4, [(512, 512)], id="cross-attention"),
]


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("batch", "tokens", "heads", "pieces"), SHAPES)
def test_error_is_that_of_the_same_precision(batch, tokens, heads, pieces, dtype, head_dim):
    attention = SinkWindowAttention(dtype, head_dim)
    problem = make_problem(batch, tokens, heads, pieces, dtype=dtype, head_dim=head_dim, seed=3)
    attention(problem.q, problem.pieces, problem.out)
    assert problem.out.isfinite().all()
    assert problem.error() <= 2 * problem.reference_error()


@pytest.mark.parametrize(
    "variant",
    [
        Variant(3, 80, 3),
        Variant(3, 80, 3, ordered=False),
        Variant(3, 64, 4),
        Variant(2, 128, 2),
        Variant(2, 176, 1),
        Variant(3, 128, 2, pipelined=False),
    ],
    ids=str,
)
@pytest.mark.parametrize("split", [True, False])
def test_every_variant_agrees(variant, split):
    attention = SinkWindowAttention(variant=variant, split=split)
    problem = make_problem(1, 1111, 5, [(600, 700), (1801, 2000), (1111, 1111)], seed=4)
    attention(problem.q, problem.pieces, problem.out)
    assert problem.error() <= 2 * problem.reference_error()


def test_without_any_key_the_output_is_zero():
    q = random_normal((1, 300, 2, 128), "bfloat16", 5)
    out = torch.full_like(q, float("nan"))
    SinkWindowAttention()(q, [KVPiece(q, q, device_length(0))], out)
    assert (out == 0).all()


def test_lengths_beyond_the_capacity_are_clamped_on_the_device():
    problem = make_problem(1, 100, 2, [(200, 200)])
    problem.pieces[0].length.fill_(10**9)
    SinkWindowAttention()(problem.q, problem.pieces, problem.out)
    assert problem.error() <= 2 * problem.reference_error()


def test_strided_inputs_are_read_in_place():
    packed = random_normal((1, 300, 3, 2, 128), "bfloat16", 6)
    q, k, v = packed.unbind(2)
    reference = make_problem(1, 300, 2, [(300, 300)])
    attention = SinkWindowAttention()
    attention(q.contiguous(), [KVPiece(k.contiguous(), v.contiguous())], reference.out)
    out = torch.full_like(packed, float("nan"))[:, :, 1]
    attention(q, [KVPiece(k, v)], out)
    assert torch.equal(out, reference.out)


def test_a_host_length_equals_a_device_length():
    problem = make_problem(1, 500, 2, [(300, 400)])
    attention = SinkWindowAttention()
    attention(problem.q, problem.pieces, problem.out)
    again = torch.full_like(problem.out, float("nan"))
    piece = problem.pieces[0]
    attention(problem.q, [KVPiece(piece.k, piece.v, 300)], again)
    assert torch.equal(again, problem.out)


def test_repeats_are_bit_equal():
    problem = make_problem(1, 1560, 12, [(1560, 1560), (3120, 3120)])
    attention = SinkWindowAttention()
    attention(problem.q, problem.pieces, problem.out)
    for _ in range(100):
        again = torch.full_like(problem.out, float("nan"))
        attention(problem.q, problem.pieces, again)
        assert torch.equal(again, problem.out)


def test_a_captured_graph_follows_the_device_lengths():
    problem = make_problem(1, 300, 2, [(640, 640)])
    attention = SinkWindowAttention()
    attention(problem.q, problem.pieces, problem.out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention(problem.q, problem.pieces, problem.out)
    problem.pieces[0].length.fill_(100)
    graph.replay()
    piece = problem.pieces[0]
    eager = torch.full_like(problem.out, float("nan"))
    attention(problem.q, [KVPiece(piece.k, piece.v, 100)], eager)
    assert torch.equal(eager, problem.out)


class OnlyDlpack:
    """A tensor of some other library."""

    def __init__(self, tensor):
        self._tensor = tensor

    def __dlpack__(self, **options):
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._tensor.__dlpack_device__()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_any_library_with_dlpack_will_do(dtype):
    problem = make_problem(1, 300, 2, [(200, 300)], dtype=dtype)
    wrapped = [
        KVPiece(OnlyDlpack(p.k), OnlyDlpack(p.v), OnlyDlpack(p.length)) for p in problem.pieces
    ]
    stream = torch.cuda.current_stream()
    attention = SinkWindowAttention(dtype)
    attention(OnlyDlpack(problem.q), wrapped, OnlyDlpack(problem.out), stream=stream)
    assert problem.error() <= 2 * problem.reference_error()


def test_pointers_will_do():
    problem = make_problem(1, 300, 2, [(300, 300)])

    def view(tensor):
        return DeviceTensor.contiguous(tensor.data_ptr(), tuple(tensor.shape), "bfloat16")

    piece = problem.pieces[0]
    attention = SinkWindowAttention()
    attention(view(problem.q), [KVPiece(view(piece.k), view(piece.v))], view(problem.out))
    torch.cuda.synchronize()
    assert problem.error() <= 2 * problem.reference_error()


def test_a_tensor_on_the_cpu_is_refused_by_name():
    q = random_normal((1, 8, 1, 128), "bfloat16", 1)
    with pytest.raises(PluginError, match=r"pieces\[0\]\.v is on cpu"):
        SinkWindowAttention()(q, [KVPiece(q, q.cpu())], torch.empty_like(q))
