import numpy as np
import pytest

from longlive_trt.runtime.output import palette

RNG = np.random.default_rng(0)


def mean_square_error(frame: np.ndarray, colors: np.ndarray, indices: np.ndarray) -> float:
    return float(np.mean((colors[indices].astype(float) - frame) ** 2))


def smooth(height: int = 48, width: int = 64) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    planes = (columns * 255 // width, rows * 255 // height, (rows + columns) * 2)
    return np.stack(planes, -1).astype(np.uint8)


@pytest.mark.parametrize("count", [1, 2, 256])
def test_up_to_256_colors_are_kept(count):
    # One color a bin: bins are 8 levels wide.
    colors = RNG.permutation(np.stack(np.mgrid[0:8, 0:8, 0:8], -1).reshape(-1, 3))[:count] * 32 + 4
    frame = colors[np.arange(64 * 64) % count].reshape(64, 64, 3).astype(np.uint8)
    found = {tuple(color) for color in palette.median_cut(frame)}
    assert {tuple(color) for color in colors} <= found


def test_flat_areas_do_not_dither():
    frame = np.full((16, 16, 3), (201, 33, 77), np.uint8)
    indices, colors = palette.quantize(frame)
    np.testing.assert_array_equal(colors[indices], frame)


def test_a_palette_of_the_picture_beats_a_fixed_one():
    frame = smooth()
    indices, colors = palette.quantize(frame)
    levels = [np.linspace(0, 255, n).round() for n in (6, 7, 6)]
    fixed = np.stack(
        [axis[np.abs(frame[..., i, None] - axis).argmin(-1)] for i, axis in enumerate(levels)], -1
    )
    assert mean_square_error(frame, colors, indices) < np.mean((fixed - frame) ** 2) / 3


def test_dithering_breaks_up_the_bands_of_a_slow_gradient():
    frame = smooth(240, 416)
    indices, colors = palette.quantize(frame)
    plain = np.take(
        palette._nearest_color(palette._bins(frame), colors.astype(np.float32)),
        palette._bins(frame),
    )

    def error_of_means(shown: np.ndarray) -> float:
        tiles = (colors[shown].astype(float) - frame).reshape(30, 8, 52, 8, 3).mean((1, 3))
        return float(np.square(tiles).mean())

    assert error_of_means(indices) < error_of_means(plain) * 0.8


def test_thresholds_are_all_different_and_balanced():
    pattern = palette._bayer(8)
    np.testing.assert_allclose(np.sort(pattern.ravel()), (np.arange(64) + 0.5) / 64)


@pytest.mark.parametrize("shape", [(1, 1), (7, 13)])
def test_any_size(shape):
    frame = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    indices, colors = palette.quantize(frame)
    assert indices.shape == shape
    assert colors.shape == (256, 3)
