"""A folder of PNG files: frame_000000.png, frame_000001.png, ..."""

import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np

from longlive_trt.files import Ours, give_name, replace_directory
from longlive_trt.runtime.output.base import Pixels, PublishingWriter, make_folder

_FRAME_NAME = re.compile(r"frame_\d{6,}\.png")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB_8_BIT = (8, 2, 0, 0, 0)
_FILTER_UP = 2


def _frames_in(folder: Path) -> frozenset[str]:
    return frozenset(path.name for path in folder.iterdir() if _FRAME_NAME.fullmatch(path.name))


FRAMES = Ours("a folder of frames", _frames_in)


class PngFolderWriter(PublishingWriter):
    def __init__(self, path: Path, height: int, width: int, *, overwrite: bool = False) -> None:
        super().__init__(path, height, width, overwrite=overwrite)
        self._partial = self._ownership.name()
        make_folder(self._partial)

    def _write_frame(self, frame: Pixels) -> None:
        target = self._partial / f"frame_{self.frames_written:06d}.png"
        try:
            target.write_bytes(encode_png(frame))
        except OSError:
            target.unlink(missing_ok=True)
            raise

    def _finish(self) -> None:
        self._publish(self._partial)

    def _give_name(self, ready: Path) -> Path:
        if self._overwrite:
            replace_directory(self._target, ready, FRAMES)
            return self._target
        try:
            # An empty folder is no obstacle, and one that was filled meanwhile is.
            return ready.rename(self._target)
        except OSError:
            return give_name(ready, self._target, overwrite=False)

    def _discard(self) -> None:
        shutil.rmtree(self._partial)

    def _salvage(self) -> int:
        if self.frames_written:
            self._finish()
        else:
            self._discard()
        return self.frames_written


def encode_png(frame: Pixels) -> bytes:
    height, width, _ = frame.shape
    rows = frame.reshape(height, width * 3)
    # Each row as the difference to the one above (modulo 256): about half the size.
    filtered = np.empty((height, 1 + width * 3), np.uint8)
    filtered[:, 0] = _FILTER_UP
    filtered[0, 1:] = rows[0]
    filtered[1:, 1:] = rows[1:] - rows[:-1]
    header = struct.pack(">II5B", width, height, *_RGB_8_BIT)
    pixels = zlib.compress(filtered.tobytes(), 4)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)
