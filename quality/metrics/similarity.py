"""How alike pictures are: PSNR, SSIM and MS-SSIM, as their papers define them, in numpy.

Pictures are uint8 [n, height, width, 3]; there is one number for each of the n.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from longlive_trt.errors import UsageError

Pixels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float64]
_Values = npt.NDArray[np.float32]

IDENTICAL_DB = 100.0
"""What equal pictures count for, where an average is taken."""
SMALLEST = 11
"""Pixels of a side: the window of SSIM."""
_WHITE, _MIDDLE = 255.0, 128.0
_C1, _C2 = (0.01 * _WHITE) ** 2, (0.03 * _WHITE) ** 2
_SIGMA = 1.5
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def require_alike(a: Any, b: Any, what: str) -> None:
    """Refuse pictures of different counts or sizes."""
    if a.shape == b.shape:
        return
    if a.shape[1:] != b.shape[1:]:
        raise UsageError(f"{what}: {_size(a)} pixels, against {_size(b)}; compare equal sizes")
    raise UsageError(f"{what}: {len(a)} pictures, against {len(b)}; compare videos of one length")


def _size(pictures: Any) -> str:
    return f"{pictures.shape[2]} x {pictures.shape[1]}"


def squared_error(a: Pixels, b: Pixels) -> Numbers:
    """The mean over pixels and channels."""
    difference = a.astype(np.float32) - b.astype(np.float32)
    return np.asarray(np.square(difference).mean(axis=(1, 2, 3), dtype=np.float64))


def psnr_db(error: float) -> float:
    """Of a mean squared error; equal pictures count for ``IDENTICAL_DB``, and none for more."""
    if error <= 0:
        return IDENTICAL_DB
    return min(IDENTICAL_DB, 10 * math.log10(_WHITE**2 / error))


def ssim(a: Pixels, b: Pixels) -> Numbers:
    """With a Gaussian window of 11 pixels (sigma 1.5), and the mean over channels."""
    _require_size(a)
    return _structure(_centered(a), _centered(b))[0]


def ms_ssim(a: Pixels, b: Pixels) -> Numbers:
    """Five scales; where small pictures have fewer, their weights are made to sum to one."""
    _require_size(a)
    weights = _weights(min(a.shape[1:3]))
    first, second, product = _centered(a), _centered(b), np.ones(len(a))
    for number, weight in enumerate(weights):
        whole, contrast = _structure(first, second)
        factor = whole if number + 1 == len(weights) else contrast
        product *= np.maximum(factor, 0) ** weight
        first, second = _halved(first), _halved(second)
    return product


def _weights(side: int) -> Numbers:
    fitting = [weight for n, weight in enumerate(_SCALES) if side >> n >= SMALLEST]
    return np.array(fitting) / sum(fitting)


def _require_size(pictures: Pixels) -> None:
    if min(pictures.shape[1:3]) < SMALLEST:
        raise UsageError(
            f"pictures of {_size(pictures)} pixels: SSIM looks at {SMALLEST} x {SMALLEST} at once; "
            "compare larger ones"
        )


def _centered(pictures: Pixels) -> _Values:
    """Around zero, so that single precision holds the variances of bright pictures too."""
    return pictures.astype(np.float32) - np.float32(_MIDDLE)


def _structure(a: _Values, b: _Values) -> tuple[Numbers, Numbers]:
    """SSIM, and its factor of contrast and structure alone."""
    mean_a, mean_b = _blurred(a), _blurred(b)
    spread = _blurred(a * a) + _blurred(b * b) - mean_a**2 - mean_b**2
    shared = _blurred(a * b) - mean_a * mean_b
    contrast = (2 * shared + _C2) / (spread + _C2)
    mean_a, mean_b = mean_a + np.float32(_MIDDLE), mean_b + np.float32(_MIDDLE)
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    axes = (1, 2, 3)
    whole: Numbers = (luminance * contrast).mean(axis=axes, dtype=np.float64)
    return whole, contrast.mean(axis=axes, dtype=np.float64)


def _blurred(values: _Values) -> _Values:
    """Where the whole window lies inside."""
    offsets = np.arange(SMALLEST) - SMALLEST // 2
    kernel = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    rows = values.shape[1] - SMALLEST + 1
    down = sum(weight * values[:, n : n + rows] for n, weight in enumerate(kernel))
    columns = values.shape[2] - SMALLEST + 1
    across = sum(weight * down[:, :, n : n + columns] for n, weight in enumerate(kernel))
    return np.asarray(across, np.float32)


def _halved(values: _Values) -> _Values:
    rows, columns = values.shape[1] // 2 * 2, values.shape[2] // 2 * 2
    even = values[:, :rows, :columns]
    return (
        even[:, ::2, ::2] + even[:, 1::2, ::2] + even[:, ::2, 1::2] + even[:, 1::2, 1::2]
    ) / np.float32(4)
