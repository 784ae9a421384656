"""The error of attention in int8 on data of several kinds, outliers and rising maxima included.

Against float64 on unrounded inputs; the kernel is that of ``integer_model``. On a GPU,
``test_eight_bit.py`` runs the kernel itself on the same data.
"""

from collections.abc import Iterator

import numpy as np
import pytest

from tests.plugins.attention.integer_model import (
    LARGEST_FLOAT8,
    PROBABILITY_EXPONENT,
    RESCALE_LIMIT,
    Array,
    Rounded,
    attended,
    exact,
)

QUERIES, KEYS, DIM = 32, 18_720, 128
# Values and probabilities in float8 alone cost 3.7e-2 to 3.9e-2 of values around zero that are
# attended to evenly. Of the peaks' 4.8e-2, keys in units of a whole head are 3.4e-2; a unit for
# each key would leave 3.9e-2, for one more product of every score.
ALLOWED = {
    "normal": 4.2e-2,
    "values with a mean": 1e-3,
    "peaks": 5e-2,
    "outliers": 4e-2,
    "outliers, values with a mean": 4e-2,
    "keys with a mean": 4.2e-2,
}
ROUNDED_PROBABILITIES = 4e-2


def sets() -> Iterator[tuple[str, tuple[Array, Array, Array]]]:
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((count, DIM)) for count in (QUERIES, KEYS, KEYS))
    yield "normal", (q, k, v)
    yield "values with a mean", (q, k, v + random.standard_normal(DIM))
    yield "peaks", (4 * q, k, v)
    large = np.where(np.arange(DIM) % 17, 1, 8)
    yield "outliers", (q * large, k * large, v)
    yield "outliers, values with a mean", (q * large, k * large, v + random.standard_normal(DIM))
    yield "keys with a mean", (q, k + 2 * (large == 8), v)


SETS = dict(sets())


def error(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", SETS)
def test_the_error_is_small_on_every_kind_of_data(name: str) -> None:
    q, k, v = SETS[name]
    found = attended(Rounded.of(q, k, v)).output
    assert error(found, exact(q, k, v)) <= ALLOWED[name]


def test_outliers_are_what_the_matrix_is_for() -> None:
    q, k, v = SETS["outliers"]
    found = attended(Rounded.of(q, k, v, mixes=False)).output
    assert error(found, exact(q, k, v)) > 7e-2


def test_float8_is_farther_away() -> None:
    """By so much, on data with outliers and on peaks; both have the values' mean taken."""
    for name, times in (("outliers", 5), ("peaks", 1.5)):
        q, k, v = SETS[name]
        expected = exact(q, k, v)
        float8 = attended(Rounded.of(q, k, v, mixes=False, dtype="float8_e4m3")).output
        int8 = attended(Rounded.of(q, k, v)).output
        assert error(float8, expected) > times * error(int8, expected)


def rising(growth: float) -> tuple[Array, Array, Array]:
    """Every block of keys has a maximum that is larger by so many powers of two."""
    random = np.random.default_rng(1)
    q, v = random.standard_normal((2, 40 * 128, DIM))
    q = q[:QUERIES]
    q[:, 0] = 4.0
    k = 0.3 * random.standard_normal((40 * 128, DIM))
    powers = np.arange(40).repeat(128) * growth
    k[:, 0] = powers * np.log(2) * DIM**0.5 / 4.0
    return q, k, v


@pytest.mark.parametrize("growth", [0.5, 1.9, 3.9, 4.1, 9.0])
def test_rising_maxima_saturate_nothing(growth: float) -> None:
    """However the maximum is put off, no probability is larger than float8 holds."""
    q, k, v = rising(growth)
    x = Rounded.of(q, k, v)
    made = attended(x)
    assert made.largest <= 2 ** (RESCALE_LIMIT + PROBABILITY_EXPONENT) <= LARGEST_FLOAT8
    # Rounding q, k and v aside, which such ranges make coarse.
    assert error(made.output, exact(*x.values) + x.center) <= ROUNDED_PROBABILITIES


def test_a_maximum_that_is_put_off_too_long_would_be_seen() -> None:
    x = Rounded.of(*rising(1.9))
    made = attended(x, limit=3 * RESCALE_LIMIT)
    assert made.largest > LARGEST_FLOAT8
    assert error(made.output, exact(*x.values) + x.center) > 2 * ROUNDED_PROBABILITIES


def test_a_row_of_zeros_attends_evenly() -> None:
    q, k, v = (x.copy() for x in SETS["normal"])
    q[0] = 0
    found = attended(Rounded.of(q, k, v)).output
    assert np.abs(found[0] - v.mean(0)).max() < 1e-2
