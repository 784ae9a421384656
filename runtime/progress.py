"""What a run tells while it runs: to a person, to a log, to a script, or nothing.

A ``Meter`` turns finished blocks into figures; a ``Progress`` shows them. Frames are video frames.
"""

import json
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, Self, TextIO

import psutil
import rich.progress as bars
from rich.console import Console
from rich.text import Text

from longlive_trt.console.printing import console, escaped
from longlive_trt.console.reporting import SILENT, Reporters, on_terminal, reporters
from longlive_trt.console.wording import counted, duration

Mode = Literal["auto", "rich", "quiet", "json"]

_RATE_BLOCKS = 10
_PLAIN_INTERVAL_S = 5.0
_PATIENCE_S = 2.0
"""A log hears of checking and loading only where that takes longer."""


@dataclass(frozen=True)
class Started:
    blocks: int | None
    """None: endless."""
    video_frames: int | None
    fps: float
    output: str | None = None


@dataclass(frozen=True)
class BlockDone:
    index: int
    blocks: int | None
    video_frames: int
    """So far."""
    elapsed_s: float
    frames_per_second: float | None
    """Over the last blocks; None while the clock has not moved."""
    eta_s: float | None
    resident_bytes: int


@dataclass(frozen=True)
class Finished:
    blocks: int
    video_frames: int
    elapsed_s: float
    frames_per_second: float | None
    resident_bytes: int
    output: str | None
    interrupted: bool


class Progress(Protocol):
    reporters: Reporters
    """For what comes before the first block."""

    def started(self, event: Started) -> None: ...
    def block(self, event: BlockDone) -> None: ...
    def notice(self, text: str) -> None: ...
    def finished(self, event: Finished) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class Meter:
    def __init__(
        self,
        blocks: int | None,
        *,
        first_block: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._blocks, self._next, self._first = blocks, first_block, first_block
        self._clock, self._start = clock, clock()
        self._video_frames = 0
        self._recent = deque([(self._start, 0)], maxlen=_RATE_BLOCKS + 1)

    def block(self, video_frames: int) -> BlockDone:
        """One more block is done, which made this many video frames."""
        now = self._clock()
        self._video_frames += video_frames
        self._next += 1
        self._recent.append((now, self._video_frames))
        since, frames_then = self._recent[0]
        return BlockDone(
            index=self._next - 1,
            blocks=self._blocks,
            video_frames=self._video_frames,
            elapsed_s=now - self._start,
            frames_per_second=_rate(self._video_frames - frames_then, now - since),
            eta_s=self._eta_s((now - since) / (len(self._recent) - 1)),
            resident_bytes=resident_bytes(),
        )

    def _eta_s(self, block_s: float) -> float | None:
        return None if self._blocks is None else block_s * (self._blocks - self._next)

    def finished(self, output: str | None, interrupted: bool = False) -> Finished:
        elapsed_s = self._clock() - self._start
        return Finished(
            blocks=self._next - self._first,
            video_frames=self._video_frames,
            elapsed_s=elapsed_s,
            frames_per_second=_rate(self._video_frames, elapsed_s),
            resident_bytes=resident_bytes(),
            output=output,
            interrupted=interrupted,
        )


class QuietProgress:
    reporters = SILENT

    def started(self, event: Started) -> None:
        pass

    def block(self, event: BlockDone) -> None:
        pass

    def notice(self, text: str) -> None:
        pass

    def finished(self, event: Finished) -> None:
        pass

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class JsonProgress(QuietProgress):
    """One object a line, flushed, with the key ``event``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def started(self, event: Started) -> None:
        self._say("started", asdict(event))

    def block(self, event: BlockDone) -> None:
        self._say("block", asdict(event))

    def notice(self, text: str) -> None:
        self._say("notice", {"text": text})

    def finished(self, event: Finished) -> None:
        self._say("finished", asdict(event))

    def _say(self, event: str, values: dict[str, object]) -> None:
        self._stream.write(json.dumps({"event": event, **values}, allow_nan=False) + "\n")
        self._stream.flush()


class PlainProgress(QuietProgress):
    """Lines for a log: the first block, the last one, and one now and then between."""

    def __init__(self, stream: TextIO, interval_s: float = _PLAIN_INTERVAL_S) -> None:
        self._stream, self._interval_s = stream, interval_s
        self._said_s: float | None = None
        self.reporters = reporters(stream, patience_s=_PATIENCE_S)

    def started(self, event: Started) -> None:
        self._say(_describe_start(event))

    def block(self, event: BlockDone) -> None:
        is_due = self._said_s is None or event.elapsed_s - self._said_s >= self._interval_s
        if is_due or event.index + 1 == event.blocks:
            self._said_s = event.elapsed_s
            self._say(_describe_block(event))

    def notice(self, text: str) -> None:
        self._say(f"note: {text}")

    def finished(self, event: Finished) -> None:
        self._say(_describe_end(event))

    def _say(self, line: str) -> None:
        self._stream.write(escaped(line) + "\n")
        self._stream.flush()


class RichProgress(QuietProgress):
    def __init__(self, console: Console) -> None:
        self._console = console
        self.reporters = on_terminal(console)
        self._bars = bars.Progress(
            bars.SpinnerColumn(),
            bars.BarColumn(),
            bars.TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
        )
        self._task: bars.TaskID | None = None

    def started(self, event: Started) -> None:
        self.reporters.close()
        self._console.print(Text(escaped(_describe_start(event))))
        self._task = self._bars.add_task("first block", total=event.blocks)
        self._bars.start()

    def block(self, event: BlockDone) -> None:
        if self._task is not None:
            done = event.index + 1
            self._bars.update(self._task, completed=done, description=_describe_block(event))

    def notice(self, text: str) -> None:
        self._console.print(Text(escaped(f"note: {text}"), style="yellow"))

    def finished(self, event: Finished) -> None:
        self.close()
        self._console.print(Text(escaped(_describe_end(event))))

    def close(self) -> None:
        self.reporters.close()
        self._bars.stop()


def make_progress(
    mode: Mode,
    *,
    stdout: TextIO | None = None,
    stderr: TextIO | None = None,
) -> Progress:
    """``auto`` is a live bar where stderr is a terminal, and plain lines elsewhere."""
    errors = stderr or sys.stderr
    if mode == "quiet":
        return QuietProgress()
    if mode == "json":
        return JsonProgress(stdout or sys.stdout)
    if mode == "rich" or errors.isatty():
        forced = True if mode == "rich" else None
        return RichProgress(console(file=errors, force_terminal=forced))
    return PlainProgress(errors)


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def _rate(frames: int, seconds: float) -> float | None:
    return frames / seconds if seconds > 0 else None


def _describe_start(event: Started) -> str:
    if event.blocks is None:
        length = "an endless video"
    else:
        frames = (
            "" if event.video_frames is None else f", {counted(event.video_frames, 'video frame')}"
        )
        length = f"{counted(event.blocks, 'block')}{frames}"
    output = f" to {event.output}" if event.output else ""
    return f"making {length} at {event.fps:g} frames/s{output}"


def _describe_block(event: BlockDone) -> str:
    total = "" if event.blocks is None else f"/{event.blocks}"
    left = "" if event.eta_s is None else f", {duration(event.eta_s)} left"
    return (
        f"block {event.index + 1}{total}, {counted(event.video_frames, 'video frame')}, "
        f"{_speed(event.frames_per_second)}{left}, {_memory(event.resident_bytes)}"
    )


def _describe_end(event: Finished) -> str:
    outcome = "interrupted after" if event.interrupted else "made"
    output = f": {event.output}" if event.output else ""
    return (
        f"{outcome} {counted(event.blocks, 'block')}, "
        f"{counted(event.video_frames, 'video frame')} in "
        f"{duration(event.elapsed_s)} ({_speed(event.frames_per_second)}){output}"
    )


def _speed(frames_per_second: float | None) -> str:
    return "- frames/s" if frames_per_second is None else f"{frames_per_second:.1f} frames/s"


def _memory(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
