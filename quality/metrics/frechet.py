"""How far two collections of pictures are apart: a Fréchet distance of plain features.

The features are colors, contrasts and edges on a grid, in percent. They need no weights, so the
number is no FID; it ranks builds and settings of one model.
"""

import numpy as np
import numpy.typing as npt

from longlive_trt.quality.metrics.similarity import Pixels

Points = npt.NDArray[np.float64]

_GRID = 4


def features(pictures: Pixels) -> Points:
    """One row a picture of [n, height, width, 3]: 16 cells of 6 numbers."""
    unit = pictures.astype(np.float32) / 2.55
    luma = unit.mean(axis=3)
    across, down = (np.abs(np.diff(luma, axis=axis, append=0)) for axis in (2, 1))
    across[:, :, -1], down[:, -1] = 0, 0
    planes = np.concatenate([unit, np.stack([luma**2, across, down], axis=3)], axis=3)
    cells = _by_cell(planes)
    # The spread of brightness within a cell, of the mean of its squares.
    mean = cells[..., :3].mean(axis=-1)
    cells[..., 3] = np.sqrt(np.maximum(cells[..., 3] - mean**2, 0))
    return cells.reshape(len(pictures), -1).astype(np.float64)


def _by_cell(planes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    rows, columns = (
        np.linspace(0, side, _GRID, endpoint=False).astype(int) for side in planes.shape[1:3]
    )
    sums = np.add.reduceat(np.add.reduceat(planes, rows, axis=1), columns, axis=2)
    heights, widths = (
        np.diff([*starts, side])
        for starts, side in zip((rows, columns), planes.shape[1:3], strict=True)
    )
    return np.asarray(sums / np.outer(heights, widths)[None, :, :, None], np.float32)


def frechet_distance(a: Points, b: Points) -> float:
    """Of two normal distributions with the means and covariances of points [n, d]."""
    gap = a.mean(axis=0) - b.mean(axis=0)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = _root(first)
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    return max(0.0, float(gap @ gap + np.trace(first) + np.trace(second) - 2 * shared))


def _root(covariance: Points) -> Points:
    """The symmetric square root."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)
