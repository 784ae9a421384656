"""Clips and pictures as other programs write them."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

Pixels = np.ndarray[Any, Any]


def shades(count: int, size: tuple[int, int], first: int = 0) -> list[Pixels]:
    """Pictures of one shade each, which tells their number: 10, 15, 20, ..."""
    return [np.full((*size, 3), 10 + 5 * (first + n), np.uint8) for n in range(count)]


def write_clip(
    path: Path,
    pictures: Sequence[Pixels],
    fps: float = 16,
    *,
    codec: str = "libx264rgb",
    pixel_format: str = "rgb24",
    aspect: Fraction | None = None,
    turned: int = 0,
    times_ms: Sequence[int] | None = None,
    options: Mapping[str, str] | None = None,
) -> Path:
    """Without loss, in the codec that is meant unless told. ``turned``: degrees, by its metadata.
    ``times_ms``: of each picture, in place of a rate."""
    height, width = pictures[0].shape[:2]
    with av.open(str(path), "w") as container:
        chosen = {"qp": "0"} if codec.startswith("libx264") else {}
        rate = Fraction(fps).limit_denominator(1001)
        stream: Any = container.add_stream(codec, rate=rate, options={**chosen, **(options or {})})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        if aspect is not None:
            stream.sample_aspect_ratio = aspect
        if turned:
            stream.set_display_rotation(turned)
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number if times_ms is None else times_ms[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """A file with nothing to see."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_picture(path: Path, picture: Pixels) -> Path:
    Image.fromarray(picture).save(path)
    return path
