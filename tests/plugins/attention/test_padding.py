"""One key that counts for all those behind it, against float64 over all of them."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from longlive_trt.plugins.attention.hopper import SinkWindowAttention
from longlive_trt.plugins.attention.portable import PortableAttention
from tests.plugins.conftest import make_problem

pytestmark = pytest.mark.gpu

CAPABILITIES = {SinkWindowAttention: ((9, 0), True), PortableAttention: ((8, 0), False)}
LENGTHS = [(1, 512), (12, 512), (121, 512), (128, 512), (129, 512), (511, 512), (512, 512), (7, 7)]


def padded_problem(tokens, valid, capacity, dtype, head_dim=128, batch=1):
    """Keys behind the valid ones are like the last of these; what lies there itself is NaN.

    Some channels have a mean, and some are larger than the others.
    """
    problem = make_problem(
        batch, tokens, 3, [(valid, capacity)], dtype=dtype, head_dim=head_dim, seed=valid
    )
    piece = problem.pieces[0]
    problem.q[..., ::17] *= 4
    for part in (piece.k, piece.v):
        part[..., ::5] += 1
    rest = torch.arange(capacity, device="cuda").clamp(max=valid - 1)
    problem.pieces = [replace(piece, rest_alike=True)]
    return problem.to(piece.k[:, rest], piece.v[:, rest])


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("valid", "capacity"), LENGTHS)
@pytest.mark.parametrize("kind", CAPABILITIES)
def test_the_last_key_counts_for_those_like_it(kind, valid, capacity, dtype, head_dim, need_gpu):
    need_gpu(*CAPABILITIES[kind])
    problem = padded_problem(700, valid, capacity, dtype, head_dim, batch=2)
    kind(dtype, head_dim)(problem.q, problem.pieces, problem.out)
    assert problem.out.isfinite().all()
    assert problem.error() <= 2 * problem.reference_error()


@pytest.mark.parametrize("split", [True, False])
def test_tiles_that_are_split_along_the_keys_count_it_once(split, need_gpu):
    need_gpu((9, 0), exactly=True)
    problem = padded_problem(300, 15000, 20000, "bfloat16")
    SinkWindowAttention(split=split)(problem.q, problem.pieces, problem.out)
    assert problem.out.isfinite().all()
    assert problem.error() <= 2 * problem.reference_error()
