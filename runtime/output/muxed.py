"""What writers share that encode with PyAV and mux into a hidden file."""

import os
from fractions import Fraction
from pathlib import Path

import av
from av.container import OutputContainer
from av.video.stream import VideoStream

from longlive_trt.errors import OutputError
from longlive_trt.runtime.output.base import PublishingWriter, reason


class MuxedWriter(PublishingWriter):
    _stream: VideoStream

    def _open(self, kind: str, options: dict[str, str] | None = None) -> OutputContainer:
        self._partial = self._hidden("partial")
        self._file = PrefixFile(self._partial)
        self._container = av.open(self._file, "w", format=kind, options=options or {})
        return self._container

    def _encode(self, picture: av.VideoFrame) -> None:
        picture.pts = self.frames_written
        self._container.mux(self._stream.encode(picture))
        self._file.check()

    def _complete(self) -> None:
        """Write what the encoder still holds, and all of it to the disk."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._file.sync()
        self._file.close()

    def _discard(self) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)


class PrefixFile:
    """A file for a muxer that stays a prefix of the stream once a write has failed.

    libavformat loses errors of its last writes, so the first one is kept for ``sync`` to raise.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be created ({reason(error)}); choose another place"
            ) from None
        self._error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self._error is None:
            try:
                self._write_all(memoryview(data))
            except OSError as error:
                self._error = error
        return len(data)

    def _write_all(self, data: memoryview) -> None:
        while data:
            data = data[self._file.write(data) :]

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def sync(self) -> None:
        self.check()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def exact_fps(fps: float | Fraction) -> Fraction:
    """23.976023976 is 24000/1001: rates are exact in whole numbers or over 1001."""
    return Fraction(fps).limit_denominator(1001)
