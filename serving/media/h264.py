"""Blocks of pictures as H.264, each block for itself: it begins with a key frame, and its bytes
depend on nothing but its pictures.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.codec.context import Flags
from av.video.codeccontext import VideoCodecContext

from longlive_trt.errors import OutputError
from longlive_trt.runtime.output.base import Pixels
from longlive_trt.runtime.output.h264 import (
    ENCODER,
    PIXEL_FORMAT,
    even,
    has_encoder,
    set_colors,
    yuv_frame,
)

_OPTIONS = {
    "preset": "superfast",
    "tune": "zerolatency",
    "crf": "20",
    # Samples with their lengths before them, as MP4 and WebCodecs (with a description) take them.
    "x264-params": "keyint=infinite:scenecut=0:annexb=0:bframes=0:repeat-headers=0",
}


@dataclass(frozen=True)
class Sample:
    """One picture, encoded; what follows a key frame needs nothing from before it."""

    data: bytes
    is_key: bool


@dataclass(frozen=True)
class StreamFacts:
    """What a decoder must know before the first sample."""

    width: int
    height: int
    codec: str
    description: bytes
    """The avcC record."""


class BlockEncoder:
    def __init__(self, width: int, height: int, fps: Fraction) -> None:
        if not has_encoder():
            raise OutputError(
                "this build of PyAV has no H.264 encoder (libx264); install the av package from "
                "PyPI"
            )
        self._size = (even(width), even(height))
        self._fps = fps
        self.facts = self._describe()

    def encode(self, pixels: Iterable[Pixels]) -> Iterator[Sample]:
        """One sample for each picture, as soon as it is there."""
        context = self._context()
        for number, picture in enumerate(pixels):
            for packet in context.encode(self._frame(picture, number)):
                yield Sample(bytes(packet), packet.is_keyframe)
        for packet in context.encode(None):
            yield Sample(bytes(packet), packet.is_keyframe)

    def _context(self) -> VideoCodecContext:
        context = av.CodecContext.create(ENCODER, "w")
        assert isinstance(context, VideoCodecContext)
        context.width, context.height = self._size
        context.pix_fmt = PIXEL_FORMAT
        context.framerate, context.time_base = self._fps, 1 / self._fps
        set_colors(context)
        context.flags |= Flags.global_header
        context.thread_count = 1
        context.options = dict(_OPTIONS)
        return context

    def _frame(self, picture: Pixels, number: int) -> av.VideoFrame:
        frame = yuv_frame(picture)
        frame.pts, frame.time_base = number, 1 / self._fps
        return frame

    def _describe(self) -> StreamFacts:
        context = self._context()
        width, height = self._size
        first = self._frame(np.zeros((height, width, 3), np.uint8), 0)
        context.encode(first)
        description = bytes(context.extradata or b"")
        profile, compatible, level = description[1:4]
        codec = f"avc1.{profile:02x}{compatible:02x}{level:02x}"
        return StreamFacts(width, height, codec, description)
