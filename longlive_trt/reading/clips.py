"""Pictures and clips that somebody has: as pictures of the size and the rate that are asked for."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from longlive_trt.console.printing import plain
from longlive_trt.reading.failures import ReadingError
from longlive_trt.reading.files import open_file
from longlive_trt.reading.ranges import Range

Pixels = npt.NDArray[np.uint8]
"""[height, width, 3]"""

LONGEST_S = 60
"""Of a clip."""
_SIDE = Range(2, 16_384)
# Formats that name other files, or addresses, are none of these.
_FORMATS = (
    *("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "yuv4mpegpipe", "gif", "apng"),
    *("png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe", "ppm_pipe"),
)
_KNOWN = "MP4, MOV, MKV, WebM, AVI, GIF, PNG, JPEG, WebP, BMP or TIFF"
_SLACK_S = Fraction(1, 1000)
_WHOLE = 255
"""Of a pixel that nothing shines through."""
_HDR = (16, 18)
"""Transfer curves, as video standards number them: PQ and HLG."""


@dataclass(frozen=True)
class Clip:
    """What a file shows, as a viewer sees it."""

    path: Path
    width: int
    height: int
    fps: Fraction | None
    """None for a single picture."""
    rotation: int = 0
    """Degrees, counterclockwise, by which a camera says that its pictures are to be turned."""
    remarks: tuple[str, ...] = ()
    """What is not seen as in every other viewer."""

    @property
    def is_picture(self) -> bool:
        return self.fps is None

    def count(self, fps: float) -> int:
        """How many pictures there are at a rate; every one of them is decoded for it."""
        return sum(1 for _ in self._shown(fps))

    def pictures(
        self, size: tuple[int, int], fps: float, *, first: int, count: int
    ) -> Iterator[Pixels]:
        """``count`` pictures from number ``first`` on, of height and width ``size``."""
        shown: VideoFrame | None = None
        for number, frame in enumerate(self._shown(fps)):
            if not first <= number < first + count:
                continue
            if frame is not shown:
                # One that stays on the screen is scaled once.
                shown, fitted = frame, self._fitted(frame, size)
            yield fitted

    def fit(self, size: tuple[int, int]) -> tuple[int, int]:
        """The width and height that it is scaled to before it is cropped around the middle."""
        height, width = size
        factor = max(Fraction(width, self.width), Fraction(height, self.height))
        return max(width, round(self.width * factor)), max(height, round(self.height * factor))

    def _fitted(self, frame: VideoFrame, size: tuple[int, int]) -> Pixels:
        width, height = self.fit(size)
        is_turned = self.rotation % 180 != 0
        stored = (height, width) if is_turned else (width, height)
        smaller = height * width < frame.height * frame.width
        scaled = _opaque(frame).to_ndarray(
            format="rgb24",
            width=stored[0],
            height=stored[1],
            interpolation="AREA" if smaller else "BICUBIC",
        )
        turned = np.rot90(scaled, self.rotation // 90)
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
        return np.ascontiguousarray(turned[top : top + size[0], left : left + size[1]])

    def _shown(self, fps: float) -> Iterator[VideoFrame]:
        """What is on the screen at every tick of a clock of this rate."""
        with _opened(self.path) as container:
            frames = container.decode(_pictures_of(container))
            if self.fps is None:
                yield next(frames)
                return
            yield from _ticks(frames, self.fps, Fraction(fps).limit_denominator(1001))


def open_clip(path: Path) -> Clip:
    """What a file holds; nothing but its beginning is decoded."""
    with _opened(path) as container:
        stream = _pictures_of(container)
        frames = container.decode(stream)
        shown = deque((frame for _, frame in zip(range(2), frames, strict=False)), maxlen=2)
        if not shown:
            raise ReadingError("no picture inside")
        frame = shown[0]
        rotation = int(getattr(frame, "rotation", 0) or 0) % 360
        rotation = rotation if rotation % 90 == 0 else 0
        width, height = _viewed(frame, stream)
        for side in (width, height):
            if side not in _SIDE:
                raise ReadingError(f"pictures of {width} x {height}; each side may be {_SIDE}")
        # Whatever a single picture lies in, it is one; of a clip that was cut, more are told.
        is_still = len(shown) == 1 and (_is_still(container) or stream.frames in (0, 1))
        rate = None if is_still else _rate(stream)
        turned = (height, width) if rotation % 180 else (width, height)
        return Clip(path, *turned, rate, rotation, tuple(_remarks(frame)))


def _is_still(container: InputContainer) -> bool:
    name = container.format.name
    return name.endswith("_pipe") or name in ("gif", "apng")


def _viewed(frame: VideoFrame, stream: Any) -> tuple[int, int]:
    """Width and height of what a viewer sees, whose pixels are square."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    wide = aspect if Fraction(1, 4) <= aspect <= 4 else Fraction(1)
    return round(frame.width * wide), frame.height


def _rate(stream: Any) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate
    if not rate or float(rate) not in Range(0, 1000, above=True):
        raise ReadingError(f"a rate of {rate or 'no'} frames/s; from 0 to 1000 are read")
    return Fraction(rate)


def _ticks(frames: Iterator[VideoFrame], own: Fraction, fps: Fraction) -> Iterator[VideoFrame]:
    tick, now = 0, Fraction(0)
    begin: Fraction | None = None
    previous: VideoFrame | None = None
    for number, frame in enumerate(frames):
        time = number / own
        if frame.pts is not None and frame.time_base is not None:
            time = frame.pts * frame.time_base
        begin = time if begin is None else begin
        now = max(now, time - begin)
        _require_short(now)
        while previous is not None and tick / fps < now - _SLACK_S:
            yield previous
            tick += 1
        previous = frame
    if previous is None:
        return
    end = now + _held(previous, own)
    _require_short(end)
    while tick / fps < end - _SLACK_S:
        yield previous
        tick += 1


def _held(frame: VideoFrame, own: Fraction) -> Fraction:
    """How long the last picture stays on the screen: as long as the file says, or as others do."""
    told = Fraction(frame.duration or 0) * (frame.time_base or 0)
    return told if 0 < told <= LONGEST_S else 1 / own


def _require_short(seconds: Fraction) -> None:
    if seconds > LONGEST_S:
        raise ReadingError(f"longer than {LONGEST_S} s; cut it to what the video goes on from")


def _pictures_of(container: InputContainer) -> VideoStream:
    """The first stream of pictures that is not a cover of what is heard."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise ReadingError("no pictures inside, only other streams")


def _opaque(frame: VideoFrame) -> VideoFrame:
    """On white, where something of it is transparent."""
    if not _has_transparency(frame):
        return frame
    values = frame.to_ndarray(format="rgba").astype(np.uint16)
    colors, alpha = values[..., :3], values[..., 3:]
    mixed = (colors * alpha + 255 * (255 - alpha) + 127) // 255
    return VideoFrame.from_ndarray(mixed.astype(np.uint8), format="rgb24")


def _has_transparency(frame: VideoFrame) -> bool:
    layout = frame.format
    if not layout.has_palette and not any(component.is_alpha for component in layout.components):
        return False
    return bool(frame.to_ndarray(format="rgba")[..., 3].min() < _WHOLE)


def _remarks(frame: VideoFrame) -> Iterator[str]:
    if _has_transparency(frame):
        yield "what is transparent is white"
    if frame.color_trc in _HDR:
        yield "colors of high dynamic range are taken as they are, and look pale"


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    """A file of one of the known formats that has pictures; damage is a ReadingError."""
    with open_file(path) as file:
        try:
            options = {"format_whitelist": ",".join(_FORMATS)}
            with av.open(file, "r", options=options, metadata_errors="ignore") as container:
                yield container
        except StopIteration:
            raise ReadingError("no picture inside") from None
        except (av.FFmpegError, OSError, ValueError) as error:
            if _is_animated_webp(path):
                raise ReadingError(
                    "an animated WebP, which is not read; save it as GIF, PNG or MP4"
                ) from None
            raise ReadingError(f"not a picture or a clip to be read ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    said = getattr(error, "strerror", None) or str(error)
    return f"{plain(said)}; known are {_KNOWN}"


def _is_animated_webp(path: Path) -> bool:
    with open_file(path) as file:
        head = file.read(21)
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20:] and head[20] & 2)
