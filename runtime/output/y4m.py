"""Frames on standard output, as players and encoders take them: ``| ffplay -``, ``| ffmpeg -i -``.

YUV4MPEG2 tells size and rate and nothing of colors, so that its colors are those which players
take for granted: BT.601 within limits, a color sample for a square of four.
"""

import sys
from fractions import Fraction
from pathlib import Path

from av.video.reformatter import Colorspace

from longlive_trt.console.streams import STDOUT
from longlive_trt.console.wording import counted
from longlive_trt.errors import OutputError
from longlive_trt.runtime.output.base import FrameWriter, Pixels, reason
from longlive_trt.runtime.output.h264 import even, yuv_frame


class Y4mWriter(FrameWriter):
    def __init__(self, fps: Fraction, height: int, width: int) -> None:
        super().__init__(Path(STDOUT), height, width)
        self._stream = sys.stdout.buffer
        self._is_gone = False
        size, rate = f"W{even(width)} H{even(height)}", f"F{fps.numerator}:{fps.denominator}"
        self._send(f"YUV4MPEG2 {size} {rate} Ip A1:1 C420mpeg2 XCOLORRANGE=LIMITED\n".encode())

    def _write_frame(self, frame: Pixels) -> None:
        picture = yuv_frame(frame, Colorspace.ITU601).to_ndarray()
        self._send(b"FRAME\n" + picture.tobytes())

    def _send(self, data: bytes) -> None:
        try:
            self._stream.write(data)
            self._stream.flush()
        except OSError as error:
            self._is_gone = True
            self.frames_kept = self.frames_written
            raise OutputError(
                f"stdout: took {counted(self.frames_written, 'frame')} and no more "
                f"({reason(error)}); keep its reader running, or give --out video.mp4"
            ) from error

    def _finish(self) -> None:
        """Every frame has been sent."""

    def _discard(self) -> None:
        """What was sent cannot be taken back."""

    def _salvage(self) -> int:
        return self.frames_written
