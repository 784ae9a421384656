"""The kernel for every GPU since Ampere, against float64."""

import pytest

torch = pytest.importorskip("torch")

from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.arguments import KVPiece
from longlive_trt.plugins.attention.portable import PortableAttention
from tests.plugins.attention.test_hopper import SHAPES
from tests.plugins.conftest import device_length, make_problem, random_normal

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def ampere(need_gpu):
    return need_gpu((8, 0))


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("batch", "tokens", "heads", "pieces"), SHAPES)
def test_error_is_that_of_the_same_precision(batch, tokens, heads, pieces, dtype, head_dim):
    problem = make_problem(batch, tokens, heads, pieces, dtype=dtype, head_dim=head_dim, seed=8)
    PortableAttention(dtype, head_dim)(problem.q, problem.pieces, problem.out)
    assert problem.out.isfinite().all()
    assert problem.error() <= 2 * problem.reference_error()


def test_without_any_key_the_output_is_zero():
    q = random_normal((1, 300, 2, 128), "bfloat16", 5)
    out = torch.full_like(q, float("nan"))
    PortableAttention()(q, [KVPiece(q, q, device_length(0))], out)
    assert (out == 0).all()


def test_repeats_are_bit_equal():
    problem = make_problem(1, 700, 4, [(700, 700), (900, 900)])
    attention = PortableAttention()
    attention(problem.q, problem.pieces, problem.out)
    again = torch.full_like(problem.out, float("nan"))
    attention(problem.q, problem.pieces, again)
    assert torch.equal(again, problem.out)


def test_8_bit_types_are_refused():
    with pytest.raises(PluginError, match="dtype is int8: allowed is bfloat16 or float16"):
        PortableAttention("int8")
