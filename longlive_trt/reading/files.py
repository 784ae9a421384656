"""Files as they are given: ordinary ones of a sane size, and nothing that is waited for."""

import os
import stat
import sys
from io import BufferedReader
from pathlib import Path

from longlive_trt.reading.failures import ReadingError

MIB = 1 << 20
STDIN = ("-", "/dev/stdin")

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def file_size(path: Path) -> int:
    """The size of an ordinary file; anything else is refused, before it is opened."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise ReadingError(f"cannot be read ({_reason(error)})") from None
    for is_kind, name in _KINDS:
        if is_kind(status.st_mode):
            raise ReadingError(f"{name}, where a file is expected")
    return status.st_size


def open_file(path: Path) -> BufferedReader:
    file_size(path)
    try:
        return path.open("rb")
    except OSError as error:
        raise ReadingError(f"cannot be read ({_reason(error)})") from None


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """A whole file, if it is no larger than that."""
    with open_file(path) as file:
        try:
            size, data = os.fstat(file.fileno()).st_size, b""
            if size <= most_bytes:
                data = file.read(most_bytes + 1)
        except OSError as error:
            raise ReadingError(f"cannot be read ({_reason(error)})") from None
    size = max(size, len(data))
    if size > most_bytes:
        raise ReadingError(f"{size} bytes large; at most {most_bytes // MIB} MiB are read")
    return data


def read_stdin(most_bytes: int) -> str:
    """Standard input to its end, if that comes within so many bytes."""
    try:
        data = sys.stdin.buffer.read(most_bytes + 1)
    except (OSError, ValueError, AttributeError) as error:
        raise ReadingError(f"cannot be read ({_reason(error)})") from None
    if len(data) > most_bytes:
        raise ReadingError(f"larger than {most_bytes // MIB} MiB")
    return decoded(data)


def read_text(path: Path, most_bytes: int) -> str:
    return decoded(read_bytes(path, most_bytes))


def decoded(data: bytes) -> str:
    """UTF-8, with or without a byte order mark."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        problem = f"not valid UTF-8 at byte {error.start} (0x{data[error.start]:02x})"
        line = data.count(b"\n", 0, error.start) + 1
        raise ReadingError(f"{problem}; save the file as UTF-8", line) from None


def _reason(error: OSError | ValueError | AttributeError) -> str:
    return getattr(error, "strerror", None) or str(error)
