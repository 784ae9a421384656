"""How long-running commands show what they are doing."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from longlive_trt.basics import Report
from longlive_trt.exports import TensorInfo
from longlive_trt.printing import console, escaped, storable


@contextmanager
def stage_reporter() -> Iterator[Report]:
    """A live bar on a terminal; a line a stage elsewhere. All on stderr."""
    if not sys.stderr.isatty():
        yield _line_reporter()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def report(what: str, done: int, total: int) -> None:
            progress.update(task, description=escaped(what), completed=done, total=total)

        yield report


def _line_reporter() -> Report:
    last = ""

    def report(what: str, _done: int, _total: int) -> None:
        nonlocal last
        if what != last:
            last = what
            sys.stderr.write(escaped(what) + "\n")
            sys.stderr.flush()

    return report


def command_line() -> str:
    """What was typed, for a record of what made a file."""
    return storable(shlex.join(["longlive-trt", *sys.argv[1:]]))


def folded(tensors: tuple[TensorInfo, ...]) -> list[tuple[str, str, str]]:
    """One row for the tensors that come once a layer."""
    rows: dict[tuple[str, str, str], int] = {}
    for tensor in tensors:
        stem, _, number = tensor.name.rpartition(".")
        name = f"{stem}.*" if number.isdigit() else tensor.name
        key = (name, tensor.dtype, " x ".join(map(str, tensor.shape)))
        rows[key] = rows.get(key, 0) + 1
    return [
        (f"{name} ({count})" if name.endswith(".*") else name, dtype, shape)
        for (name, dtype, shape), count in rows.items()
    ]
