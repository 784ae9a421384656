"""How long work is shown: what is being done, how much of it is, and how long the rest will take.

Work is counted in stages (graphs, rollouts) or in bytes; ``Reporters`` has a ``Report`` for each.
On a terminal they move one bar; elsewhere there is a line a stage, and one now and then.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TextIO

from longlive_trt.basics import Report, unheard
from longlive_trt.console.printing import escaped
from longlive_trt.console.wording import byte_size, duration

if TYPE_CHECKING:
    from rich.console import Console

Unit = Literal["stages", "bytes"]
Clock = Callable[[], float]

LINE_INTERVAL_S = 10.0


@dataclass(frozen=True)
class Reporters:
    stages: Report = unheard
    bytes: Report = unheard
    close: Callable[[], None] = lambda: None
    """Ends the bar. What is reported later begins another."""


SILENT = Reporters()


class Pace:
    """How fast some work goes, from when it was first heard of."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._work: tuple[Unit, int] | None = None
        self._begun_s, self._begun = 0.0, 0

    def describe(self, unit: Unit, done: int, total: int) -> str:
        """How much is done, how fast, and what is left: nothing of what is yet unknown."""
        now = self._clock()
        if self._work != (unit, total) or done < self._begun:
            self._work, self._begun_s, self._begun = (unit, total), now, done
        elapsed_s, fresh = now - self._begun_s, done - self._begun
        rate = fresh / elapsed_s if elapsed_s > 0 else 0.0
        words = [_amount(unit, done, total)]
        if unit == "bytes" and rate:
            words.append(f"{byte_size(rate)}/s")
        if rate and elapsed_s >= 1:
            words.append(f"{duration((total - done) / rate)} left")
        return ", ".join(words)


def _amount(unit: Unit, done: int, total: int) -> str:
    if unit == "bytes":
        return f"{byte_size(done)} of {byte_size(total)}"
    return f"{done} of {total}"


def reporters(
    stream: TextIO | None = None, *, patience_s: float = 0.0, clock: Clock = time.monotonic
) -> Reporters:
    """For stderr. A log hears nothing of what takes less than ``patience_s``."""
    stream = stream or sys.stderr
    if stream.isatty():
        from longlive_trt.console.printing import console

        return on_terminal(console(stderr=True) if stream is sys.stderr else console(file=stream))
    lines = _Lines(stream, patience_s, clock)
    return Reporters(partial(lines.report, "stages"), partial(lines.report, "bytes"))


@contextmanager
def reporting(*, patience_s: float = 0.0) -> Iterator[Reporters]:
    shown = reporters(patience_s=patience_s)
    try:
        yield shown
    finally:
        shown.close()


def on_terminal(console: "Console") -> Reporters:
    bar = _Bar(console)
    return Reporters(partial(bar.report, "stages"), partial(bar.report, "bytes"), bar.close)


class _Bar:
    """Appears at the first report, and goes at the last."""

    def __init__(self, console: "Console") -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._pace = Pace()
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[pace]}", markup=False),
            console=console,
            transient=True,
        )

    def report(self, unit: Unit, what: str, done: int, total: int) -> None:
        pace = self._pace.describe(unit, done, total)
        is_new = not self._bars.tasks
        task = self._bars.add_task("", pace="") if is_new else self._bars.task_ids[0]
        self._bars.update(task, description=escaped(what), completed=done, total=total, pace=pace)
        if is_new:
            self._bars.start()
        if done == total:
            self.close()

    def close(self) -> None:
        self._bars.stop()
        for task in self._bars.task_ids:
            self._bars.remove_task(task)


class _Lines:
    def __init__(self, stream: TextIO, patience_s: float, clock: Clock) -> None:
        self._stream, self._clock, self._pace = stream, clock, Pace(clock)
        self._what, self._said_s = "", 0.0
        self._patient_until_s = clock() + patience_s

    def report(self, unit: Unit, what: str, done: int, total: int) -> None:
        pace, now = self._pace.describe(unit, done, total), self._clock()
        if now < self._patient_until_s:
            return
        if what != self._what:
            self._say(what, now)
        elif now - self._said_s >= LINE_INTERVAL_S:
            self._say(f"{what}: {pace}", now)
        self._what = what

    def _say(self, line: str, now: float) -> None:
        self._said_s = now
        self._stream.write(escaped(line) + "\n")
        self._stream.flush()
