"""A folder of PNG files: frame_000000.png, frame_000001.png, ..."""

import re
import struct
import zlib
from pathlib import Path

import numpy as np

from longlive_trt.errors import OutputError
from longlive_trt.runtime.output.base import FrameWriter, Pixels, make_folder, partial_path

_FRAME_NAME = re.compile(r"frame_\d{6,}\.png")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB_8_BIT = (8, 2, 0, 0, 0)
_FILTER_UP = 2


class PngFolderWriter(FrameWriter):
    def __init__(self, path: Path, height: int, width: int) -> None:
        super().__init__(path, height, width)
        make_folder(path.parent)
        self._partial = partial_path(path)
        make_folder(self._partial)

    def _write_frame(self, frame: Pixels) -> None:
        target = self._partial / f"frame_{self.frames_written:06d}.png"
        try:
            target.write_bytes(encode_png(frame))
        except OSError:
            target.unlink(missing_ok=True)
            raise

    def _finish(self) -> None:
        if not self.path.exists():
            self._partial.rename(self.path)
            return
        replaced = partial_path(self.path)
        self.path.rename(replaced)
        self._partial.rename(self.path)
        remove_frames(replaced)

    def _discard(self) -> None:
        remove_frames(self._partial)

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


def foreign_files(folder: Path) -> list[str]:
    """What in a folder is not a frame: replacing the folder would lose it."""
    return sorted(file.name for file in folder.iterdir() if not _FRAME_NAME.fullmatch(file.name))


def remove_frames(folder: Path) -> None:
    for file in folder.iterdir():
        if _FRAME_NAME.fullmatch(file.name):
            file.unlink()
    try:
        folder.rmdir()
    except OSError:
        raise OutputError(
            f"{folder}: holds files that are not frames, from the replaced folder; "
            "move them where they belong"
        ) from None
