"""Likeness of pictures, against scikit-image and torchmetrics."""

from collections.abc import Callable

import numpy as np
import pytest

from longlive_trt.errors import UsageError
from longlive_trt.quality.metrics.similarity import (
    IDENTICAL_DB,
    ms_ssim,
    psnr_db,
    require_alike,
    squared_error,
    ssim,
)

TOLERANCE = 1e-4
Pairs = Callable[..., tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Smooth pictures and a spoiled copy of each; some are bright, where variances cancel."""

    def make(height: int, width: int, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(height)
        y, x = np.mgrid[:height, :width]
        waves = np.stack([np.sin(x / (5 + k)) * np.cos(y / (9 - k)) for k in range(3)], axis=-1)
        level = np.linspace(60, 235, count)[:, None, None, None]
        first = level + 20 * waves + random.normal(0, 4, (count, height, width, 3))
        strength = (1 + 6 * np.arange(count))[:, None, None, None]
        second = first + strength * random.normal(size=first.shape)
        return tuple(np.clip(p, 0, 255).astype(np.uint8) for p in (first, second))  # type: ignore[return-value]

    return make


def test_psnr_is_that_of_scikit_image(pairs: Pairs) -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    first, second = pairs(48, 64)
    found = [psnr_db(error) for error in squared_error(first, second)]
    expected = [
        metrics.peak_signal_noise_ratio(a, b, data_range=255)
        for a, b in zip(first, second, strict=True)
    ]
    assert np.allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert min(expected) < 30 < max(expected)


@pytest.mark.parametrize("size", [(48, 64), (11, 40), (97, 161)])
def test_ssim_is_that_of_scikit_image(pairs: Pairs, size: tuple[int, int]) -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    first, second = pairs(*size)
    expected = [
        metrics.structural_similarity(
            a, b, data_range=255, channel_axis=-1, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(first, second, strict=True)
    ]  # fmt: skip
    assert np.allclose(ssim(first, second), expected, rtol=0, atol=TOLERANCE)
    assert np.ptp(expected) > 0.05


@pytest.mark.parametrize(("size", "scales"), [((192, 208), 5), ((112, 160), 4)])
def test_ms_ssim_is_that_of_torchmetrics(pairs: Pairs, size: tuple[int, int], scales: int) -> None:
    functional = pytest.importorskip(
        "torchmetrics.functional.image", reason="torchmetrics is not installed"
    )
    torch = pytest.importorskip("torch")
    first, second = pairs(*size, count=2)
    weights = np.array((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)[:scales])
    for a, b, found in zip(first, second, ms_ssim(first, second), strict=True):
        one, other = (torch.from_numpy(p).permute(2, 0, 1)[None].float() for p in (a, b))
        expected = functional.multiscale_structural_similarity_index_measure(
            one, other, data_range=255.0, betas=tuple(weights / weights.sum()), normalize="relu"
        )
        assert found == pytest.approx(float(expected), abs=TOLERANCE)


def test_equal_pictures_are_as_alike_as_can_be(pairs: Pairs) -> None:
    first, _ = pairs(32, 48)
    assert squared_error(first, first).tolist() == [0, 0, 0]
    assert psnr_db(0.0) == IDENTICAL_DB
    assert np.allclose(ssim(first, first), 1) and np.allclose(ms_ssim(first, first), 1)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 32, 50, 3), "48 x 32 pixels, against 50 x 32"),
        ((2, 32, 48, 3), "3 pictures, against 2"),
    ],
)
def test_videos_that_differ_are_refused(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        require_alike(np.zeros((3, 32, 48, 3), np.uint8), np.zeros(shape, np.uint8), "a and b")


def test_pictures_smaller_than_the_window_are_refused() -> None:
    small = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(UsageError, match="8 x 8 pixels: SSIM looks at 11 x 11"):
        ssim(small, small)
