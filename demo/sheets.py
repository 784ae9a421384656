"""Contact sheets: clips as rows of frames in one PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

_BACKGROUND = 24


def save_rows(path: Path, clips: Tensor, moments: Sequence[int], gap: int = 3) -> None:
    """One row a clip of ``clips`` [B, T, H, W, 3] uint8, one column a moment."""
    picked = clips[:, list(moments)].cpu().numpy()
    rows, columns, height, width, _ = picked.shape
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    sheet = np.full(shape, _BACKGROUND, np.uint8)
    for i in range(rows):
        for j in range(columns):
            y, x = i * (height + gap), j * (width + gap)
            sheet[y : y + height, x : x + width] = picked[i, j]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path)


def save_grid(path: Path, images: Tensor, columns: int) -> None:
    """Images [n, H, W, 3] uint8 in a grid."""
    whole = len(images) // columns * columns
    save_rows(path, images[:whole].unflatten(0, (-1, columns)), range(columns))
