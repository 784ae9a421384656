"""The references against independent formulations."""

import numpy as np
import pytest

from longlive_trt.plugins.attention import reference


@pytest.fixture
def generator():
    return np.random.default_rng(7)


def test_attention_is_softmax_over_the_valid_keys_of_all_pieces(generator):
    q = generator.normal(size=(2, 3, 2, 8))
    pieces = []
    for valid, capacity in ((2, 4), (0, 3), (5, 5)):
        k, v = generator.normal(size=(2, 2, capacity, 2, 8))
        k[:, valid:], v[:, valid:] = np.nan, np.nan
        pieces.append((k, v, valid))
    out = reference.attention(q, pieces, 0.3)
    for batch, token, head in np.ndindex(2, 3, 2):
        rows = [(k[batch, i, head], v[batch, i, head]) for k, v, n in pieces for i in range(n)]
        weights = np.array([np.exp(0.3 * q[batch, token, head] @ key) for key, _ in rows])
        wanted = sum(w * value for w, (_, value) in zip(weights, rows, strict=True))
        np.testing.assert_allclose(out[batch, token, head], wanted / weights.sum(), rtol=1e-12)


def test_attention_to_nothing_is_zero(generator):
    q = generator.normal(size=(1, 3, 2, 8))
    assert (reference.attention(q, [(q, q, 0)], 1.0) == 0).all()


def test_the_transposed_layout_is_a_permutation_of_each_group():
    order = reference.value_order(48)
    assert sorted(order) == list(range(48))
    assert all(order[i] // 16 == i // 16 for i in range(48))


def test_a_thread_of_the_accumulator_finds_its_columns_side_by_side():
    """Columns 2t, 2t + 1, 2t + 8, 2t + 9 of an accumulator row belong to thread t of a quad."""
    order = reference.value_order(16)
    for thread in range(4):
        wanted = [2 * thread, 2 * thread + 1, 2 * thread + 8, 2 * thread + 9]
        assert order[4 * thread : 4 * thread + 4].tolist() == wanted


def test_transposed_values_can_be_read_back(generator):
    v = generator.normal(size=(2, 21, 3, 4))
    packed = reference.transposed_values(v)
    assert packed.shape == (2, 3, 4, 32)
    positions = [reference.value_position(token) for token in range(21)]
    np.testing.assert_array_equal(packed[..., positions].transpose(0, 3, 1, 2), v)
    unused = sorted(set(range(32)) - set(positions))
    assert (packed[..., unused] == 0).all()


def test_rotation_is_complex_multiplication(generator):
    x = generator.normal(size=(1, 5, 16))
    angles = generator.uniform(0, 6, size=(5, 4))
    ones = np.ones(16)
    out = reference.norm_rope(x, ones, np.cos(angles), np.sin(angles), heads=2, dtype="float32")
    normal = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    turned = normal.reshape(1, 5, 2, 4, 2) @ [1, 1j] * np.exp(1j * angles)[None, :, None]
    wanted = np.stack([turned.real, turned.imag], -1).reshape(1, 5, 2, 8)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-6)


def test_rounding_points_are_those_of_unfused_bfloat16():
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    x, update = (torch.randn(6, 32).bfloat16() for _ in range(2))
    scale, shift, gate = (torch.randn(2, 32).bfloat16() for _ in range(3))
    per_row = [t.repeat_interleave(3, 0) for t in (scale, shift, gate)]
    normal = torch.nn.functional.layer_norm(x, (32,), eps=1e-6)
    wanted = normal * (1 + per_row[0]) + per_row[1]
    arrays = [t.float().numpy() for t in (x, update, scale, shift, gate)]
    ours = reference.norm_modulate(arrays[0], arrays[2], arrays[3], dtype="bfloat16")
    np.testing.assert_array_equal(ours, wanted.double().numpy())
    gated = reference.gated_residual(arrays[0], arrays[1], arrays[4], dtype="bfloat16")
    np.testing.assert_array_equal(gated, (x + update * per_row[2]).double().numpy())


def test_relative_error_is_nan_when_anything_is():
    assert np.isnan(reference.relative_error([1.0, np.nan], [1.0, 1.0]))
    assert reference.relative_error([1.0, 1.5], [1.0, 1.0]) == pytest.approx(0.5 / 2**0.5)
