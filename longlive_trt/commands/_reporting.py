"""How long-running commands show what they are doing."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Report = Callable[[str, int, int], None]


@contextmanager
def stage_reporter() -> Iterator[Report]:
    """A live bar on a terminal; a line a stage elsewhere. All on stderr."""
    if not sys.stderr.isatty():
        yield _line_reporter()
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def report(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        yield report


def _line_reporter() -> Report:
    last = ""

    def report(what: str, _done: int, _total: int) -> None:
        nonlocal last
        if what != last:
            last = what
            sys.stderr.write(what + "\n")
            sys.stderr.flush()

    return report
