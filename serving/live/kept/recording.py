"""What was shown, on disk: a download that runs while a prompt takes pictures back stays whole."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from longlive_trt.serving.live.kept.segments import Places, Segments
from longlive_trt.serving.media.h264 import Sample, StreamFacts
from longlive_trt.serving.media.mp4 import Timing, file_head


@dataclass(frozen=True)
class Excerpt:
    """Pictures that follow each other, and where their samples lie."""

    head: bytes
    places: Sequence[Places] = field(repr=False)
    first_frame: int

    @property
    def frames(self) -> int:
        return sum(len(one.sizes) for one in self.places)

    @property
    def size_bytes(self) -> int:
        return len(self.head) + sum(sum(one.sizes) for one in self.places)

    def read(self) -> Iterator[bytes]:
        """The whole MP4, piece by piece."""
        yield self.head
        for one in self.places:
            for number in range(len(one.sizes)):
                yield one.read(number)


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
        self._stream, self._timing = stream, timing
        self._kept = Segments(path, begin, most_bytes)
        self._lock = self._kept.lock

    @property
    def frames(self) -> int:
        return self._kept.count

    @property
    def begin(self) -> int:
        """The first picture that is still there."""
        return self._kept.begin

    @property
    def total(self) -> int:
        """Pictures of the video, those that are no longer there too."""
        return self._kept.total

    @property
    def failure(self) -> str | None:
        return self._kept.failure

    def add(self, frame: int, sample: Sample) -> None:
        """The picture that follows; one that does not is left out."""
        with self._lock:
            self._kept.add(frame, sample.data, is_key=sample.is_key)

    def samples(self, first: int, end: int) -> list[Sample] | None:
        """Of these pictures; None where they are not all there."""
        with self._lock:
            if first < self._kept.begin or end > self._kept.end:
                return None
            places = self._kept.places(first, end)
        return [
            Sample(one.read(number), bool(key))
            for one in places
            for number, key in enumerate(one.keys)
        ]

    def cut(self, frame: int) -> None:
        """Pictures from here on were taken back."""
        with self._lock:
            self._kept.cut(frame)

    def restart(self) -> None:
        with self._lock:
            self._kept.restart()

    def excerpt(self, last_s: float | None = None, until: int | None = None) -> Excerpt | None:
        """What is there or the last seconds, from a key frame on; None if nothing is."""
        with self._lock:
            begin, end = self._kept.begin, self._kept.end
            end = end if until is None else min(until, end)
            keys = b"".join(one.keys for one in self._kept.places(begin, end))
            start = begin if last_s is None else max(begin, end - self._frames_in(last_s))
            while start > begin and not keys[start - begin]:
                start -= 1
            if end <= start:
                return None
            places = self._kept.places(start, end)
        sizes = array("I", (size for one in places for size in one.sizes))
        first = [number for number, key in enumerate(keys[start - begin :]) if key]
        head = file_head(self._stream, self._timing, sizes, first)
        return Excerpt(head, places, start)

    def _frames_in(self, seconds: float) -> int:
        return round(seconds * float(self._timing.fps))

    def close(self) -> None:
        """Downloads that have begun go on; the files are gone."""
        with self._lock:
            self._kept.close()
