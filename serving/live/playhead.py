"""What of a video has been on a screen: from what viewers say, and from the clock between."""

import math
from dataclasses import dataclass

from longlive_trt.serving.live.clock import VideoClock

_GAIN_S = 0.5
_TRUST_S = 1.5
"""A viewer that reports at all does so more often; without news the picture stands still."""


@dataclass
class Playhead:
    """Times are those of one monotonic clock, which the caller reads.

    Before anybody reports, the video is taken to run from its first available picture on: this is
    how clients are paced that show nothing, or say nothing.
    """

    clock: VideoClock
    begin: int = 0
    """The first picture there is."""
    available: int = -1
    """The newest picture that was handed out."""
    paused: bool = False
    _anchor_frame: float = -1.0
    _anchor_s: float | None = None
    _reported: bool = False
    _news_s: float = 0.0
    _gained: float = 0.0
    """Pictures by which viewers are ahead of time."""

    def __post_init__(self) -> None:
        self.available = self.begin - 1
        self._anchor_frame = self.begin - 1.0

    def shown(self, now: float) -> int:
        """The newest picture that may be on a screen; ``begin - 1`` before the first."""
        return math.floor(self._position(now))

    def first_unseen(self, now: float, margin_s: float) -> int:
        """The first block of which no picture will have been seen when a cut arrives."""
        if self._anchor_s is None:
            return self.clock.block_of(self.begin)
        ahead = 0.0 if self.paused else margin_s * float(self.clock.fps)
        seen = math.floor(min(self._position(now) + ahead, self.available))
        return max(self.clock.block_of(seen) + 1, self.clock.block_of(self.begin))

    def due_in(self, frame: int, now: float) -> float:
        """Seconds until a picture's turn comes; 0 if it has come."""
        return max(0.0, (frame - self._position(now)) / float(self.clock.fps))

    def handed_out(self, frame: int, now: float) -> None:
        if frame < self.begin:
            return
        if self._anchor_s is None:
            self._anchor_s = now
            self._anchor_frame = float(frame)
        elif self._position(now) >= self.available:
            # It had run dry: time that was waited through is not made up for.
            self._gained = 0.0
            self._move(float(self.available), now)
        self.available = max(self.available, frame)

    def report(self, frame: int, now: float) -> None:
        """A viewer shows this picture; of several viewers, the one that is ahead counts."""
        frame = min(frame, self.available)
        if frame < self.begin:
            return
        ahead = frame - self._position(now)
        if ahead >= 0:
            # A viewer that swallows pictures faster than time does not make time go faster.
            ahead = min(ahead, max(0.0, _GAIN_S * float(self.clock.fps) - self._gained))
            self._gained += ahead
            self._move(self._position(now) + ahead, now)
        elif not self._reported or -ahead > 0.25 * float(self.clock.fps):
            # The clock ran ahead of every viewer: what was not shown stays unseen.
            self._gained = max(0.0, self._gained + ahead)
            self._move(float(frame), now)
        self._reported = True
        self._news_s = now

    def cut(self, frame: int, now: float) -> None:
        """Pictures from here on were taken back."""
        position = min(self._position(now), frame - 1.0)
        self.available = min(self.available, frame - 1)
        self._move(position, now)

    def pause(self, now: float) -> None:
        if not self.paused:
            self._move(self._position(now), now)
            self.paused = True

    def resume(self, now: float) -> None:
        if self.paused:
            self.paused = False
            self._move(self._anchor_frame, now)
            self._news_s = now

    def _move(self, frame: float, now: float) -> None:
        self._anchor_frame = frame
        if self._anchor_s is not None:
            self._anchor_s = now

    def _position(self, now: float) -> float:
        if self._anchor_s is None or self.paused:
            return self._anchor_frame
        elapsed = now - self._anchor_s
        if self._reported:
            elapsed = min(elapsed, self._news_s + _TRUST_S - self._anchor_s)
        moved = self._anchor_frame + max(0.0, elapsed) * float(self.clock.fps)
        return min(moved, float(self.available))
