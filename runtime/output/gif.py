"""GIF, with a palette of its own for every frame, so that frames need not be kept in memory."""

import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np

from longlive_trt.errors import UsageError
from longlive_trt.runtime.output.base import Pixels
from longlive_trt.runtime.output.muxed import MuxedWriter, exact_fps
from longlive_trt.runtime.output.palette import quantize

_MAX_FPS = 50
_PICTURE, _EXTENSION, _TRAILER = b"\x2c\x21\x3b"


class GifWriter(MuxedWriter):
    def __init__(
        self,
        path: Path,
        fps: float | Fraction,
        height: int,
        width: int,
        *,
        overwrite: bool = False,
    ) -> None:
        if fps > _MAX_FPS:
            raise UsageError(
                f"{path}: a GIF shows at most {_MAX_FPS} frames/s, and this video has "
                f"{float(fps):g}; write an .mp4 file"
            )
        super().__init__(path, height, width, overwrite=overwrite)
        self._stream = self._open("gif").add_stream("gif", rate=exact_fps(fps))
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = "pal8"

    def _write_frame(self, frame: Pixels) -> None:
        indices, palette = quantize(frame)
        argb = np.pad(palette, ((0, 0), (1, 0)), constant_values=255)
        # PyAV takes such a pair for this format, which its type hints leave out.
        self._encode(av.VideoFrame.from_ndarray(cast(Pixels, (indices, argb)), format="pal8"))

    def _finish(self) -> None:
        self._complete()
        self._publish(self._partial)

    def _salvage(self) -> int:
        self._file.close()
        data = self._partial.read_bytes()
        frames, end = whole_pictures(data)
        if not frames:
            self._partial.unlink()
            return 0
        os.truncate(self._partial, end)
        # A GIF plays without its last byte, should even that find no room.
        with suppress(OSError), self._partial.open("ab") as file:
            file.write(bytes([_TRAILER]))
        self._publish(self._partial)
        return frames


def whole_pictures(data: bytes) -> tuple[int, int]:
    """How many pictures of a cut-off GIF are whole, and where the last of them ends."""
    position = 13 + _color_table_bytes(data[10]) if len(data) > 13 else len(data)
    pictures, end = 0, 0
    while position < len(data) and data[position] in (_PICTURE, _EXTENSION):
        is_picture = data[position] == _PICTURE
        if is_picture and position + 10 > len(data):
            break
        table_bytes = _color_table_bytes(data[position + 9]) if is_picture else 0
        position = _end_of_sub_blocks(data, position + (11 + table_bytes if is_picture else 2))
        if is_picture and position <= len(data):
            pictures, end = pictures + 1, position
    return pictures, end


def _color_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _end_of_sub_blocks(data: bytes, position: int) -> int:
    """Past the end of the data where it was cut off."""
    while position < len(data) and data[position]:
        position += 1 + data[position]
    return position + 1
