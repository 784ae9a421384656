"""What was shown, on disk: samples are appended and never moved, so that a download that runs while
a prompt takes pictures back stays whole.
"""

import threading
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from longlive_trt.serving.media.h264 import Sample, StreamFacts
from longlive_trt.serving.media.mp4 import Timing, file_head


@dataclass(frozen=True)
class Excerpt:
    """Pictures that follow each other, and where their samples lie."""

    head: bytes
    offsets: "array[int]"
    sizes: "array[int]"
    first_frame: int

    @property
    def frames(self) -> int:
        return len(self.sizes)

    @property
    def bytes(self) -> int:
        return len(self.head) + sum(self.sizes)


class Recording:
    def __init__(self, path: Path, stream: StreamFacts, timing: Timing, begin: int = 0) -> None:
        """``begin`` is the number of the first picture."""
        self._path, self._stream, self._timing, self._begin = path, stream, timing, begin
        self._file = path.open("wb", buffering=0)
        self._lock = threading.Lock()
        self._end = 0
        self._offsets, self._sizes, self._keys = array("Q"), array("I"), bytearray()
        self.failure: str | None = None

    @property
    def frames(self) -> int:
        return len(self._sizes)

    def add(self, frame: int, sample: Sample) -> None:
        """The picture that follows; one that does not is left out."""
        with self._lock:
            if self.failure or frame != self._begin + len(self._sizes):
                return
            try:
                written = self._file.write(sample.data)
            except OSError as error:
                self.failure = error.strerror or str(error)
                return
            if written != len(sample.data):
                self.failure = "the disk is full"
                return
            self._offsets.append(self._end)
            self._sizes.append(len(sample.data))
            self._keys.append(sample.is_key)
            self._end += len(sample.data)

    def cut(self, frame: int) -> None:
        """Pictures from here on were taken back."""
        with self._lock:
            kept = max(0, frame - self._begin)
            del self._offsets[kept:], self._sizes[kept:], self._keys[kept:]

    def restart(self) -> None:
        with self._lock:
            self._begin = 0
            del self._offsets[:], self._sizes[:], self._keys[:]

    def excerpt(self, last_s: float | None = None, until: int | None = None) -> Excerpt | None:
        """All of it or the last seconds, from a key frame on; None if nothing is there."""
        with self._lock:
            end = len(self._sizes) if until is None else min(until - self._begin, len(self._sizes))
            start = 0 if last_s is None else max(0, end - round(last_s * float(self._timing.fps)))
            while start > 0 and not self._keys[start]:
                start -= 1
            if end <= start:
                return None
            offsets, sizes = self._offsets[start:end], self._sizes[start:end]
            keys = [number for number, key in enumerate(self._keys[start:end]) if key]
        head = file_head(self._stream, self._timing, sizes, keys)
        return Excerpt(head, offsets, sizes, self._begin + start)

    def read(self, excerpt: Excerpt) -> Iterator[bytes]:
        """The excerpt as a whole MP4, piece by piece."""
        yield excerpt.head
        with self._path.open("rb") as file:
            for offset, size in zip(excerpt.offsets, excerpt.sizes, strict=True):
                file.seek(offset)
                yield file.read(size)

    def close(self, *, keep: bool = False) -> None:
        self._file.close()
        if not keep:
            self._path.unlink(missing_ok=True)
