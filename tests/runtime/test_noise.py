"""Noise by number, against the published generator written out here."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longlive_trt.configs.replay import Replay, Switch
from longlive_trt.runtime.noise import ReplayNoise, SeededNoise

Shape = tuple[int, ...]

_WORD = 2**64 - 1


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    """Philox 4x64 with ten rounds (Salmon et al., 2011)."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c0, 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c2, 2**64)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & _WORD, (k1 + 0xBB67AE8584CAA73B) & _WORD
    return [c0, c1, c2, c3]


def expected_noise(seed: int, block: int, number: int, size: int) -> list[float]:
    pairs = (size + 1) // 2
    words: list[int] = []
    for index in range(1, 1 + math.ceil(2 * pairs / 4)):
        words += philox((seed, 0), (index, 0, number, block))
    uniform = [((word >> 11) + 0.5) * 2.0**-53 for word in words]
    radius = [math.sqrt(-2 * math.log(u)) for u in uniform[:pairs]]
    angle = [2 * math.pi * u for u in uniform[pairs : 2 * pairs]]
    waves = [[r * f(a) for r, a in zip(radius, angle, strict=True)] for f in (math.cos, math.sin)]
    return (waves[0] + waves[1])[:size]


def draw(
    seed: int, block: int, number: int, shape: tuple[int, ...] = (1, 1, 1, 2, 4)
) -> np.ndarray:
    drawn = SeededNoise(seed, shape, number + 1).block(block)
    return [drawn.initial, *drawn.renoise][number]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**64 - 1),
    block=st.integers(0, 2**40),
    number=st.integers(0, 5),
    size=st.integers(1, 13),
)
def test_every_number_is_the_published_generators(
    seed: int, block: int, number: int, size: int
) -> None:
    found = draw(seed, block, number, (1, 1, 1, 1, size)).ravel()
    np.testing.assert_allclose(found, expected_noise(seed, block, number, size), rtol=2e-7)


@pytest.mark.parametrize(
    ("seed", "block", "number", "values"),
    [
        (0, 0, 0, [-2.9867554, -0.2909111, 1.9778856, 1.0654514]),
        (0, 0, 1, [-0.3805518, -2.113188, 1.0897591, -0.48342526]),
        (0, 1, 0, [1.3363917, 0.08603631, 1.3919306, 0.93630326]),
        (1, 0, 0, [1.2507465, 0.54240316, -0.059472058, 0.061802976]),
        (2**64 - 1, 12345, 3, [-0.5133784, -0.71621853, -1.5354537, 0.68069845]),
    ],
)
def test_values_that_must_never_change(
    seed: int, block: int, number: int, values: list[float]
) -> None:
    found = draw(seed, block, number).ravel()[:4]
    np.testing.assert_allclose(found, np.array(values, np.float32), rtol=2e-7)


def test_every_seed_block_and_pass_has_noise_of_its_own() -> None:
    numbers = [(s, b, n) for s in (0, 1, 2**64 - 1) for b in (0, 1, 2, 1000) for n in range(4)]
    drawn = {draw(*number).tobytes() for number in numbers}
    assert len(drawn) == len(numbers)


def test_order_does_not_matter() -> None:
    source = SeededNoise(9, (1, 2, 3, 4, 5), 4)
    forward = [source.block(index) for index in range(4)]
    backward = [source.block(index) for index in reversed(range(4))][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert np.array_equal(one.initial, other.initial)
        assert all(map(np.array_equal, one.renoise, other.renoise))


def test_shapes_and_types() -> None:
    noise = SeededNoise(0, (2, 3, 4, 5, 6), 4).block(0)
    assert [array.shape for array in (noise.initial, *noise.renoise)] == [(2, 3, 4, 5, 6)] * 4
    assert {array.dtype for array in (noise.initial, *noise.renoise)} == {np.dtype(np.float32)}
    assert SeededNoise(0, (1, 1, 1, 1, 1), 1).block(0).renoise == []


def test_it_is_standard_normal() -> None:
    values = SeededNoise(3, (4, 3, 16, 32, 32), 2).block(7)
    for array in (values.initial, values.renoise[0]):
        count = array.size
        assert abs(array.mean()) < 5 / math.sqrt(count)
        assert abs(array.var() - 1) < 5 * math.sqrt(2 / count)
        assert abs((array**3).mean()) < 5 * math.sqrt(15 / count)
        assert abs((array**4).mean() - 3) < 5 * math.sqrt(96 / count)
        assert np.isfinite(array).all()
    flat, other = values.initial.ravel(), values.renoise[0].ravel()
    limit = 5 / math.sqrt(flat.size)
    assert abs(np.mean(flat * other)) < limit
    assert abs(np.mean(flat[:-1] * flat[1:])) < limit
    half = flat.size // 2
    assert abs(np.mean(flat[:half] * flat[half:])) < limit


def test_replayed_noise_is_that_of_the_file() -> None:
    random = np.random.default_rng(0)
    noise = random.standard_normal((2, 6, 1, 2, 2), np.float32)
    renoise = random.standard_normal((3, 2, 2, 2, 1, 2, 2), np.float32)
    source = ReplayNoise(Replay(noise, renoise, {}, (Switch(0, 0),)), block_frames=2)
    for block in (2, 0, 1):
        found = source.block(block)
        assert np.array_equal(found.initial, noise[:, 2 * block : 2 * block + 2])
        assert np.array_equal(np.stack(found.renoise), renoise[block])
