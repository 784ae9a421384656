"""Pictures as H.264 takes them: even sizes, BT.709, one color sample for a square of four."""

from typing import Any, Final

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from longlive_trt.runtime.output.base import Pixels

ENCODER: Final = "libx264"
PIXEL_FORMAT = "yuv420p"
_BT709 = 1


def has_encoder() -> bool:
    return ENCODER in av.codecs_available


def even(size: int) -> int:
    return size + size % 2


def set_colors(context: Any) -> None:
    context.color_range = ColorRange.MPEG
    context.colorspace = context.color_primaries = context.color_trc = _BT709


def yuv_frame(
    picture: Pixels,
    colorspace: Colorspace = Colorspace.ITU709,
    reformatter: VideoReformatter | None = None,
) -> av.VideoFrame:
    """The edge is repeated where a size is odd. Whoever makes many keeps a reformatter for them."""
    height, width = picture.shape[:2]
    padded = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
    # Threads would be started for every picture, which takes longer than small pictures do.
    return (reformatter or VideoReformatter()).reformat(
        frame,
        format=PIXEL_FORMAT,
        dst_colorspace=colorspace,
        dst_color_range=ColorRange.MPEG,
        threads=1,
    )
