"""Standard streams that may be closed, full, or gone with the terminal.

What is said on stderr never ends the work: words that nobody can read are dropped.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, cast

from longlive_trt.errors import UsageError

STDOUT = "-"
"""Its name in the place of a file's."""
_STDERR = 2


def is_stdout(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path) == STDOUT


def require_piped_stdout(what: str, remedy: str) -> None:
    """Bytes have no place on a terminal."""
    if sys.stdout.isatty():
        raise UsageError(f"{STDOUT}: {what} to stdout, which is a terminal; {remedy}")


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let a command's work outlive its terminal."""
    _open_missing()
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    stderr = sys.stderr
    # In a test or a notebook, it is somebody else's.
    if stderr is sys.__stderr__:
        sys.stderr = _Dropping.text()
    try:
        yield
    finally:
        sys.stderr = stderr


def drop_output() -> None:
    """What stdout does not take would be tried again at exit, with a complaint of Python's."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Dropping(io.RawIOBase):
    """Stderr as far as it takes what is written."""

    @classmethod
    def text(cls) -> io.TextIOWrapper:
        known = sys.__stderr__
        encoding = known.encoding if known is not None else "utf-8"
        return io.TextIOWrapper(
            cast(BinaryIO, cls()), encoding, "backslashreplace", write_through=True
        )

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return _STDERR

    def isatty(self) -> bool:
        return os.isatty(_STDERR)

    def write(self, data: "bytes | memoryview") -> int:  # type: ignore[override]
        left = memoryview(data)
        with suppress(OSError):
            while left:
                left = left[os.write(_STDERR, left) :]
        return len(data)


def _open_missing() -> None:
    """A file that is opened later must not become what C libraries think is stderr."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
