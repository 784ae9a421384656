"""Pieces of a growing row on disk, in files of which the oldest are given up.

Pieces are appended and never moved: whoever reads while some are taken back, or the oldest are
given up, has them whole.
"""

import os
import threading
import weakref
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

SEGMENTS = 16
"""A row that has grown to its limit gives up the oldest of so many parts."""


class Segment:
    """A file of pieces; it closes with its last user."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("w+b", buffering=0)
        self.offsets, self.sizes, self.keys = array("Q"), array("I"), bytearray()
        self.bytes = 0
        weakref.finalize(self, self.file.close)

    def add(self, data: bytes, *, is_key: bool) -> str | None:
        """Why the piece could not be kept, if so."""
        try:
            written = self.file.write(data)
        except OSError as error:
            return error.strerror or str(error)
        if written != len(data):
            return "the disk is full"
        self.offsets.append(self.bytes)
        self.sizes.append(written)
        self.keys.append(is_key)
        self.bytes += written
        return None

    def keep(self, count: int) -> None:
        del self.offsets[count:], self.sizes[count:], self.keys[count:]

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.file.fileno(), size, offset)


@dataclass(frozen=True)
class Places:
    """Where pieces of one segment lie."""

    segment: Segment = field(repr=False)
    offsets: Sequence[int]
    sizes: Sequence[int]
    keys: bytes

    def read(self, number: int) -> bytes:
        return self.segment.read(self.offsets[number], self.sizes[number])


class Segments:
    """Pieces by number. Where several threads use it, they hold ``lock``."""

    def __init__(self, path: Path, begin: int, most_bytes: int) -> None:
        """``begin`` is the number of the first piece; of a longer row the last bytes stay."""
        self._path, self._first = path, begin
        self.begin = begin
        """The first that is still there."""
        self._segment_bytes = most_bytes // SEGMENTS
        self.lock = threading.Lock()
        self._made = 0
        self._segments: list[Segment] = []
        self._new_segment()
        self.failure: str | None = None

    @property
    def count(self) -> int:
        return sum(len(segment.sizes) for segment in self._segments)

    @property
    def end(self) -> int:
        """The number of the piece that follows."""
        return self.begin + self.count

    @property
    def total(self) -> int:
        """Those that are no longer there too."""
        return self.end - self._first

    def add(self, number: int, data: bytes, *, is_key: bool) -> None:
        """The piece that follows; one that does not is left out. A key begins a file."""
        if self.failure or not self._segments or number != self.end:
            return
        try:
            self._make_room(is_key=is_key)
        except OSError as error:
            self.failure = error.strerror or str(error)
            return
        self.failure = self._segments[-1].add(data, is_key=is_key)

    def places(self, first: int, end: int) -> list[Places]:
        """Of the pieces from one to before another."""
        found, before = [], self.begin
        for segment in self._segments:
            part = slice(max(0, first - before), max(0, end - before))
            of_part = (segment.offsets[part], segment.sizes[part], bytes(segment.keys[part]))
            found.append(Places(segment, *of_part))
            before += len(segment.sizes)
        return found

    def cut(self, number: int) -> None:
        """Pieces from here on were taken back."""
        left = max(0, number - self.begin)
        for segment in self._segments:
            segment.keep(max(0, left))
            left -= len(segment.sizes)
        while len(self._segments) > 1 and not self._segments[-1].sizes:
            self._give_up(self._segments.pop())

    def restart(self) -> None:
        self.cut(self.begin)
        self.begin = self._first = 0

    def close(self) -> None:
        """Who reads already goes on; the files are gone."""
        while self._segments:
            self._give_up(self._segments.pop())

    def _make_room(self, *, is_key: bool) -> None:
        if is_key and self._segments[-1].bytes >= self._segment_bytes:
            self._new_segment()
            if len(self._segments) > SEGMENTS:
                self.begin += len(self._segments[0].sizes)
                self._give_up(self._segments.pop(0))

    def _new_segment(self) -> None:
        self._made += 1
        self._segments.append(Segment(self._path.with_suffix(f".{self._made}")))

    def _give_up(self, segment: Segment) -> None:
        segment.path.unlink(missing_ok=True)
