"""The Fréchet distance, against the formula with a general matrix root."""

import numpy as np
import pytest

from longlive_trt.quality.metrics.frechet import features, frechet_distance


def test_it_is_that_of_the_formula() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    random = np.random.default_rng(1)
    a = random.normal(size=(200, 6)) @ random.normal(size=(6, 6))
    b = random.normal(size=(150, 6)) @ random.normal(size=(6, 6)) + 0.5
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(first @ second).real
    gap = a.mean(0) - b.mean(0)
    expected = gap @ gap + np.trace(first + second - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_features_are_means_of_cells() -> None:
    picture = np.zeros((2, 30, 41, 3), np.uint8)
    picture[0, :7, :10] = (255, 0, 0)
    found = features(picture)
    assert found.shape == (2, 96)
    assert found[0, :3] == pytest.approx([100, 0, 0], abs=1e-3)
    assert not found[1].any()
    assert found[0, 3] == pytest.approx(0, abs=1e-2), "an even cell has no contrast"


def test_another_look_is_further_away_than_noise() -> None:
    random = np.random.default_rng(2)
    scenes = random.integers(0, 200, (120, 4, 4, 3)).repeat(8, 1).repeat(8, 2)
    noisy = np.clip(scenes + random.normal(0, 3, scenes.shape), 0, 255).astype(np.uint8)
    gray = scenes.mean(-1, keepdims=True).repeat(3, -1).astype(np.uint8)
    own = features(scenes.astype(np.uint8))
    assert frechet_distance(own, features(noisy)) * 10 < frechet_distance(own, features(gray))
