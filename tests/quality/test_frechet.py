"""The Fréchet distance, against formulas of others, and what it says of few videos."""

import numpy as np
import pytest

from longlive_trt.quality.metrics.frechet import (
    FULL_POINTS,
    FULL_VIDEOS,
    LEAST_VIDEOS,
    Points,
    diagonal_distance,
    distance_of,
    frechet_distance,
)

Pairs = list[tuple[Points, Points]]


def exactly(mean: Points, covariance: Points, count: int, seed: int) -> Points:
    """Points with this very mean and covariance."""
    drawn = np.random.default_rng(seed).normal(size=(count, len(mean)))
    drawn -= drawn.mean(0)
    white = drawn @ np.linalg.inv(np.linalg.cholesky(np.cov(drawn, rowvar=False))).T
    return np.asarray(white @ np.linalg.cholesky(covariance).T + mean)


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
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_covariances_that_commute_have_a_closed_form() -> None:
    axes = np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))[0]
    first, second = np.array([4.0, 1, 0.25, 9, 1]), np.array([1.0, 1, 4, 0.01, 16])
    gap = np.arange(5) / 4
    a = exactly(np.zeros(5), axes @ np.diag(first) @ axes.T, 60, 4)
    b = exactly(gap, axes @ np.diag(second) @ axes.T, 40, 5)
    expected = gap @ gap + np.square(np.sqrt(first) - np.sqrt(second)).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_without_covariances_both_are_one() -> None:
    a = exactly(np.zeros(4), np.diag([1.0, 2, 3, 4]), 50, 6)
    b = exactly(np.ones(4), np.diag([4.0, 3, 2, 1]), 50, 7)
    assert diagonal_distance(a, b) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_fewer_points_than_numbers_are_no_accident() -> None:
    """A covariance without full rank has a root all the same."""
    random = np.random.default_rng(8)
    a, b = random.normal(size=(5, 20)), random.normal(size=(6, 20)) + 3
    assert np.isfinite(frechet_distance(a, b)) and frechet_distance(a, b) > 20 * 4
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def videos(count: int, clips: int, numbers: int, shift: float = 0.0, seed: int = 0) -> Pairs:
    """Videos whose clips are alike, compared with others of the same or of shifted scenes."""
    random = np.random.default_rng(seed)

    def one() -> Points:
        return np.asarray(random.normal(size=numbers) + 0.2 * random.normal(size=(clips, numbers)))

    return [(one(), one() + shift) for _ in range(count)]


def test_too_few_videos_have_no_distance() -> None:
    assert distance_of([]) is None
    assert distance_of(videos(LEAST_VIDEOS - 1, 50, 3)) is None
    assert distance_of(videos(LEAST_VIDEOS, 2, 3)) is not None


def test_few_videos_or_few_clips_are_compared_by_means_and_spreads() -> None:
    numbers, enough = 3, FULL_POINTS * 3
    for count, clips, kind in (
        (FULL_VIDEOS - 1, enough, "diagonal"),
        (FULL_VIDEOS, enough, "full"),
        (FULL_VIDEOS, 1, "full"),
        (enough - 1, 1, "full"),
    ):
        found = distance_of(videos(count, clips, numbers))
        is_enough = count >= FULL_VIDEOS and count * clips >= enough
        assert found is not None and found.kind == ("full" if is_enough else "diagonal")
        if count >= FULL_VIDEOS:
            assert found.kind == kind
    few = distance_of(videos(FULL_VIDEOS, 1, FULL_VIDEOS))
    assert few is not None and few.kind == "diagonal" and few.points == FULL_VIDEOS


@pytest.mark.parametrize("count", [LEAST_VIDEOS, 40])
def test_chance_is_what_the_same_scenes_come_to(count: int) -> None:
    """Of equal ones about one in 20 is above it; of others nearly all."""
    same = [distance_of(videos(count, 5, 6, seed=n)) for n in range(40)]
    above = sum(d is not None and d.value > d.chance for d in same)
    assert above <= 6
    shifted = [distance_of(videos(count, 5, 6, shift=1.5, seed=n)) for n in range(20)]
    assert sum(d is not None and d.value > d.chance for d in shifted) >= 18


def test_clips_of_one_video_are_not_taken_for_many() -> None:
    """Chance that took each clip for a draw would be far smaller."""
    pairs = videos(20, 10, 4)
    whole = distance_of(pairs)
    cut = distance_of([(a[n : n + 1], b[n : n + 1]) for a, b in pairs for n in range(10)])
    assert whole is not None and cut is not None
    assert cut.value == pytest.approx(whole.value) and cut.chance < whole.chance / 2
    assert distance_of(pairs) == whole, "the same videos have the same figures"
