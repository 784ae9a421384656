"""The Hadamard matrix of attention in int8."""

import numpy as np
import pytest

from longlive_trt import hadamard


@pytest.mark.parametrize(("channels", "block"), [(128, 128), (64, 64), (96, 32), (12, 4), (6, 2)])
def test_it_is_orthonormal_in_blocks(channels: int, block: int) -> None:
    assert hadamard.block_size(channels) == block
    matrix = hadamard.signs(channels) * hadamard.unit(channels)
    assert np.allclose(matrix @ matrix.T, np.eye(channels), atol=1e-6)
    assert ((matrix != 0).sum(0) == block).all()


def test_signs_are_those_of_shared_bits() -> None:
    found = hadamard.signs(16)
    expected = [[(-1) ** (i & j).bit_count() for j in range(16)] for i in range(16)]
    assert np.array_equal(found, expected)


def test_one_large_channel_is_shared_out_and_products_stay() -> None:
    q, k = np.random.default_rng(0).standard_normal((2, 50, 128)).astype(np.float32)
    q[:, 17], k[:, 17] = 30, 40
    mixed_q, mixed_k = (hadamard.multiplied(x) for x in (q, k))
    assert np.abs(mixed_k).max() < 10
    assert np.allclose(mixed_q @ mixed_k.T, q @ k.T, rtol=1e-4, atol=1e-3)
