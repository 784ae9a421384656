"""What was shown, on disk, in files of a few minutes each.

Samples are appended and never moved: a download that runs while a prompt takes pictures back, or
while the oldest are given up, stays whole.
"""

import os
import threading
import weakref
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from longlive_trt.serving.media.h264 import Sample, StreamFacts
from longlive_trt.serving.media.mp4 import Timing, file_head

SEGMENTS = 16
"""A recording that has grown to its limit gives up the oldest of so many parts."""


class _Segment:
    """A file of samples that begins with a key frame; it closes with its last user."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("w+b", buffering=0)
        self.offsets, self.sizes, self.keys = array("Q"), array("I"), bytearray()
        self.bytes = 0
        weakref.finalize(self, self.file.close)

    def add(self, sample: Sample) -> str | None:
        """Why the sample could not be kept, if so."""
        try:
            written = self.file.write(sample.data)
        except OSError as error:
            return error.strerror or str(error)
        if written != len(sample.data):
            return "the disk is full"
        self.offsets.append(self.bytes)
        self.sizes.append(written)
        self.keys.append(sample.is_key)
        self.bytes += written
        return None

    def keep(self, samples: int) -> None:
        del self.offsets[samples:], self.sizes[samples:], self.keys[samples:]

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.file.fileno(), size, offset)


@dataclass(frozen=True)
class Excerpt:
    """Pictures that follow each other, and where their samples lie."""

    head: bytes
    places: Sequence[tuple[_Segment, "array[int]", "array[int]"]] = field(repr=False)
    first_frame: int

    @property
    def frames(self) -> int:
        return sum(len(sizes) for _, _, sizes in self.places)

    @property
    def size_bytes(self) -> int:
        return len(self.head) + sum(sum(sizes) for _, _, sizes in self.places)

    def read(self) -> Iterator[bytes]:
        """The whole MP4, piece by piece."""
        yield self.head
        for segment, offsets, sizes in self.places:
            for offset, size in zip(offsets, sizes, strict=True):
                yield segment.read(offset, size)


class Recording:
    def __init__(
        self,
        path: Path,
        stream: StreamFacts,
        timing: Timing,
        begin: int = 0,
        most_bytes: int = 4 << 30,
    ) -> None:
        """``begin`` is the number of the first picture; of a longer video the last bytes stay."""
        self._path, self._stream, self._timing, self._begin = path, stream, timing, begin
        self._first = begin
        self._segment_bytes = most_bytes // SEGMENTS
        self._lock = threading.Lock()
        self._made = 0
        self._segments: list[_Segment] = []
        self._new_segment()
        self.failure: str | None = None

    @property
    def frames(self) -> int:
        return sum(len(segment.sizes) for segment in self._segments)

    @property
    def begin(self) -> int:
        """The first picture that is still there."""
        return self._begin

    @property
    def total(self) -> int:
        """Pictures of the video, those that are no longer there too."""
        return self._begin - self._first + self.frames

    def add(self, frame: int, sample: Sample) -> None:
        """The picture that follows; one that does not is left out."""
        with self._lock:
            if self.failure or not self._segments or frame != self._begin + self.frames:
                return
            try:
                self._make_room(sample)
            except OSError as error:
                self.failure = error.strerror or str(error)
                return
            self.failure = self._segments[-1].add(sample)

    def samples(self, first: int, end: int) -> list[Sample] | None:
        """Of these pictures; None where they are not all there."""
        with self._lock:
            start, stop = first - self._begin, end - self._begin
            if start < 0 or stop > self.frames:
                return None
            return [
                Sample(segment.read(offset, size), bool(key))
                for segment, part in self._parts(start, stop)
                for offset, size, key in zip(
                    segment.offsets[part], segment.sizes[part], segment.keys[part], strict=True
                )
            ]

    def _make_room(self, sample: Sample) -> None:
        if sample.is_key and self._segments[-1].bytes >= self._segment_bytes:
            self._new_segment()
            if len(self._segments) > SEGMENTS:
                self._begin += len(self._segments[0].sizes)
                self._give_up(self._segments.pop(0))

    def _new_segment(self) -> None:
        self._made += 1
        self._segments.append(_Segment(self._path.with_suffix(f".{self._made}")))

    def _give_up(self, segment: _Segment) -> None:
        segment.path.unlink(missing_ok=True)

    def cut(self, frame: int) -> None:
        """Pictures from here on were taken back."""
        with self._lock:
            self._keep(max(0, frame - self._begin))

    def _keep(self, samples: int) -> None:
        for segment in self._segments:
            segment.keep(max(0, samples))
            samples -= len(segment.sizes)
        while len(self._segments) > 1 and not self._segments[-1].sizes:
            self._give_up(self._segments.pop())

    def restart(self) -> None:
        with self._lock:
            self._begin = self._first = 0
            self._keep(0)

    def excerpt(self, last_s: float | None = None, until: int | None = None) -> Excerpt | None:
        """What is there or the last seconds, from a key frame on; None if nothing is."""
        with self._lock:
            end = self.frames if until is None else min(until - self._begin, self.frames)
            keys = b"".join(segment.keys for segment in self._segments)
            start = 0 if last_s is None else max(0, end - round(last_s * float(self._timing.fps)))
            while start > 0 and not keys[start]:
                start -= 1
            if end <= start:
                return None
            places = self._places(start, end)
        sizes = array("I", (size for _, _, part in places for size in part))
        first = [number for number, key in enumerate(keys[start:end]) if key]
        head = file_head(self._stream, self._timing, sizes, first)
        return Excerpt(head, places, self._begin + start)

    def _places(self, start: int, end: int) -> list[tuple[_Segment, "array[int]", "array[int]"]]:
        return [
            (segment, segment.offsets[part], segment.sizes[part])
            for segment, part in self._parts(start, end)
        ]

    def _parts(self, start: int, end: int) -> list[tuple[_Segment, slice]]:
        parts, before = [], 0
        for segment in self._segments:
            parts.append((segment, slice(max(0, start - before), max(0, end - before))))
            before += len(segment.sizes)
        return parts

    def close(self) -> None:
        """Downloads that have begun go on; the files are gone."""
        with self._lock:
            while self._segments:
                self._give_up(self._segments.pop())
