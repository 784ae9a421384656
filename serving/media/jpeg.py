"""Pictures as JPEG, for browsers without WebCodecs."""

from fractions import Fraction

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import ColorRange, Colorspace

from longlive_trt.runtime.output.base import Pixels

_WORST, _BEST = 31, 2


def encode_jpeg(picture: Pixels, quality: int = 80) -> bytes:
    """``quality`` from 1 to 100, as cameras count it, about."""
    context = av.CodecContext.create("mjpeg", "w")
    assert isinstance(context, VideoCodecContext)
    height, width = picture.shape[:2]
    context.width, context.height = width, height
    context.pix_fmt, context.time_base = "yuvj420p", Fraction(1, 25)
    context.color_range = ColorRange.JPEG
    scale = round(_WORST - (_WORST - _BEST) * quality / 100)
    context.qmin = context.qmax = max(_BEST, scale)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
        # JFIF's own matrix.
        format="yuvj420p",
        dst_colorspace=Colorspace.ITU601,
        dst_color_range=ColorRange.JPEG,
    )
    frame.pts = 0
    packets = [*context.encode(frame), *context.encode(None)]
    return b"".join(bytes(packet) for packet in packets)
