"""H.264 in MP4 or MOV.

The encoder's packets go to a hidden file as a fragmented MP4, which plays up to its last whole
fragment whatever happens. ``close`` copies them, without encoding again, into an ordinary file with
its index in front (faststart) and renames that; where the copy has no room, the fragmented file
takes its place.
"""

import os
from fractions import Fraction
from pathlib import Path

import av
from av.video.stream import VideoStream

from longlive_trt.errors import OutputError
from longlive_trt.runtime.output.base import Pixels, reason
from longlive_trt.runtime.output.h264 import (
    ENCODER,
    PIXEL_FORMAT,
    even,
    has_encoder,
    set_colors,
    yuv_frame,
)
from longlive_trt.runtime.output.muxed import MuxedWriter, exact_fps
from longlive_trt.runtime.output.tags import MakeTags, Tags, no_tags

_FRAGMENTED = {
    "movflags": "frag_keyframe+empty_moov+default_base_moof+delay_moov",
    "flush_packets": "1",
}


class Mp4Writer(MuxedWriter):
    def __init__(
        self,
        path: Path,
        fps: float | Fraction,
        height: int,
        width: int,
        crf: int = 18,
        preset: str = "veryfast",
        *,
        overwrite: bool = False,
        tags: MakeTags = no_tags,
    ) -> None:
        """``tags`` are asked for at the beginning, for what a killed run leaves, and at the end."""
        if not has_encoder():
            raise OutputError(
                f"{path}: this build of PyAV has no H.264 encoder (libx264); install the av "
                "package from PyPI, or write a .gif or a folder of PNG files"
            )
        super().__init__(path, height, width, overwrite=overwrite)
        if height % 2 or width % 2:
            self.notices.append(
                f"H.264 needs even sizes: {width}x{height} is padded to "
                f"{even(width)}x{even(height)} by repeating the edge"
            )
        self._format = path.suffix[1:].lower() or "mp4"
        self._tags = tags
        self._open(self._format, _FRAGMENTED).metadata.update(tags())
        self._stream = self._add_stream(exact_fps(fps), {"crf": str(crf), "preset": preset})

    def _add_stream(self, fps: Fraction, options: dict[str, str]) -> VideoStream:
        stream = self._container.add_stream(ENCODER, rate=fps, options=options)
        stream.height, stream.width = even(self.height), even(self.width)
        stream.pix_fmt = PIXEL_FORMAT
        # A fragment ends where a group of pictures does: about one second is at stake.
        stream.gop_size = max(1, round(fps))
        set_colors(stream.codec_context)
        return stream

    def _write_frame(self, frame: Pixels) -> None:
        self._encode(yuv_frame(frame))

    def _finish(self) -> None:
        self._complete()
        faststart = self._hidden("copy")
        try:
            remux(self._partial, faststart, self._format, self._tags())
        except (OSError, av.FFmpegError) as error:
            faststart.unlink(missing_ok=True)
            self.notices.append(
                f"{self.path} is whole, but stays a fragmented file, which some editors do not "
                f"take: its copy with the index in front failed ({reason(error)})"
            )
            self._publish(self._partial)
        else:
            self._publish(faststart)
            self._partial.unlink()

    def _salvage(self) -> int:
        self._file.close()
        os.truncate(self._partial, end_of_last_fragment(self._partial))
        frames = count_packets(self._partial)
        if frames:
            self._publish(self._partial)
        else:
            self._partial.unlink()
        return frames


def remux(source: Path, target: Path, container_format: str, tags: Tags) -> None:
    options = {"movflags": "faststart"}
    copied = 0
    with (
        av.open(source) as reader,
        av.open(target, "w", format=container_format, options=options) as writer,
    ):
        (video,) = reader.streams.video
        writer.metadata.update(tags)
        copy = writer.add_stream_from_template(video)
        for packet in reader.demux(video):
            if packet.dts is not None:
                packet.stream = copy
                writer.mux(packet)
                copied += 1
    # libavformat may lose an error of its last writes.
    if not _is_faststart(target) or count_packets(target) != copied:
        raise OSError(f"{target.name} came out incomplete")
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _is_faststart(path: Path) -> bool:
    boxes = _boxes(path)
    order = [name for name, _, _ in boxes if name in (b"moov", b"mdat")]
    return order == [b"moov", b"mdat"] and boxes[-1][2] == path.stat().st_size


def count_packets(path: Path) -> int:
    try:
        with av.open(path) as container:
            return sum(packet.size > 0 for packet in container.demux(video=0))
    except av.FFmpegError:
        return 0


def end_of_last_fragment(path: Path) -> int:
    """The size of what plays of a fragmented file: up to its last whole ``mdat``."""
    ends = [end for name, _, end in _boxes(path) if name == b"mdat"]
    size = path.stat().st_size
    return max((end for end in ends if end <= size), default=0)


def _boxes(path: Path) -> list[tuple[bytes, int, int]]:
    """Name, start and end of every top-level box; the last may end past the end of the file."""
    boxes = []
    start, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while start + 8 <= size:
            file.seek(start)
            header = file.read(16)
            length = int.from_bytes(header[:4], "big")
            if length == 1:
                length = int.from_bytes(header[8:16], "big")
            if length < 8:
                break
            boxes.append((header[4:8], start, start + length))
            start += length
    return boxes
