"""Decoded frames as numbers, in a safetensors file that is written as they come."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from longlive_trt.basics import Array
from longlive_trt.contract import FRAMES
from longlive_trt.files import publish_file, require_space
from longlive_trt.runtime.output.base import make_folder

_ITEM_BYTES = 4
_ALIGNMENT_BYTES = 8


class FramesFile:
    """The tensor ``frames`` [batch, frames, 3, height, width], each row from its start."""

    def __init__(self, file: BinaryIO, shape: tuple[int, int, int, int, int]) -> None:
        self._file, self._shape = file, shape
        header = _header(shape)
        file.write(header)
        row_bytes = _ITEM_BYTES * prod(shape[1:])
        self._positions = [len(header) + row * row_bytes for row in range(shape[0])]

    def write(self, row: int, frames: Array) -> None:
        """The frames of a row that follow those before."""
        data = np.ascontiguousarray(frames, dtype=np.float32)
        self._file.seek(self._positions[row])
        self._positions[row] += self._file.write(data.data)


@contextmanager
def frames_file(
    path: Path, shape: tuple[int, int, int, int, int], *, overwrite: bool
) -> Iterator[FramesFile]:
    """It has its name once all frames are in it."""
    require_space(path, _ITEM_BYTES * prod(shape))
    make_folder(path.parent)
    with publish_file(path, overwrite=overwrite) as partial, partial.open("wb") as file:
        yield FramesFile(file, shape)


def _header(shape: tuple[int, ...]) -> bytes:
    entry = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, _ITEM_BYTES * prod(shape)]}
    text = json.dumps({FRAMES: entry}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(_ALIGNMENT_BYTES, "little") + text
