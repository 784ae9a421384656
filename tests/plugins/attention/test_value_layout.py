"""The layout of 8-bit attention's values."""

import numpy as np

from longlive_trt.plugins.attention.value_layout import (
    transposed_values,
    value_order,
    value_position,
)


def test_the_transposed_layout_is_a_permutation_of_each_group():
    order = value_order(48)
    assert sorted(order) == list(range(48))
    assert all(order[i] // 16 == i // 16 for i in range(48))


def test_a_thread_of_the_accumulator_finds_its_columns_side_by_side():
    """Columns 2t, 2t + 1, 2t + 8, 2t + 9 of an accumulator row belong to thread t of a quad."""
    order = value_order(16)
    for thread in range(4):
        wanted = [2 * thread, 2 * thread + 1, 2 * thread + 8, 2 * thread + 9]
        assert order[4 * thread : 4 * thread + 4].tolist() == wanted


def test_transposed_values_can_be_read_back():
    v = np.random.default_rng(7).normal(size=(2, 21, 3, 4))
    packed = transposed_values(v)
    assert packed.shape == (2, 3, 4, 32)
    positions = [value_position(token) for token in range(21)]
    np.testing.assert_array_equal(packed[..., positions].transpose(0, 3, 1, 2), v)
    unused = sorted(set(range(32)) - set(positions))
    assert (packed[..., unused] == 0).all()
