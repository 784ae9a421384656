"""Runs a command in this process on something hostile, and says what it did wrong."""

import contextlib
import io
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from longlive_trt.cli import main

SECONDS = 20
LONGEST_LINE = 1700
_USAGE = re.compile(r"Usage: longlive-trt .*\nTry 'longlive-trt .*--help' for help\.\n\nError: ")
_STAGES = re.compile(r"(building|pushing|pulling|packing|unpacking|tracing|writing|checking) \S+")


class Stuck(BaseException):
    """The command did not end in time."""


def faults(arguments: Sequence[object], codes: Sequence[int] = (0, 1, 2)) -> list[str]:
    """What is wrong with how a command took its arguments; nothing is as it should be."""
    code, out, err = outcome([str(argument) for argument in arguments])
    found = [] if code in codes else [f"exit code {code}: {err or out}"]
    if code in (1, 2):
        found += complaint_faults(err)
    return [fault[-3000:] for fault in found]


def outcome(arguments: list[str]) -> tuple[int | str, str, str]:
    """Exit code, or the traceback of what escaped; what was printed."""
    out, err = io.StringIO(), io.StringIO()
    code: int | str
    try:
        with _limited(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
    except Stuck:
        code = f"not over after {SECONDS} s"
    except BaseException:
        code = traceback.format_exc()
    return code, out.getvalue(), err.getvalue()


def complaint_faults(err: str) -> list[str]:
    """One line that says what was wrong, and nothing else but stages that it reached."""
    text = _USAGE.sub("error: ", err)
    lines = [line for line in text.splitlines() if line and not _STAGES.match(line)]
    complaints = [line for line in lines if line.startswith("error: ")]
    found = [] if len(complaints) == 1 else [f"not one line of error: {err!r}"]
    found += [f"a line of {len(line)} characters" for line in lines if len(line) > LONGEST_LINE]
    return found + (["a traceback"] if "Traceback" in err else [])


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise Stuck

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def inventory(folder: Path) -> dict[str, tuple[int, int]]:
    """What is there, to see later whether any of it was touched."""
    paths = (path for path in folder.rglob("*") if not path.is_dir())
    return {str(path): (s.st_size, s.st_mtime_ns) for path in paths for s in [path.lstat()]}


def fail_unless_clean(found: Sequence[str]) -> None:
    if found:
        sys.stderr.write("\n".join(found) + "\n")
    assert not found
