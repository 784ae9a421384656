"""How a finished file or folder gets its name, and what happens to an older one."""

import ctypes
import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longlive_trt.errors import LongLiveError, OutputError, UsageError
from longlive_trt.files.facts import real_path
from longlive_trt.files.ours import Ours, foreign_file, require_place, require_replaceable
from longlive_trt.files.partials import Ownership

logger = logging.getLogger(__name__)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NUMPY_WROTE = re.compile(r"\d+ requested and \d+ written")
_FULL_TEXTS = tuple(os.strerror(number) for number in sorted(_FULL))


@contextmanager
def publish_file(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when the block ends well.

    Without ``overwrite``, what appeared there meanwhile stays, and the file gets a free name.
    """
    path = real_path(path)
    require_ordinary(path)
    require_place(path)
    ownership = Ownership(path)
    partial = ownership.name()
    try:
        with blamed_on(path, partial):
            yield partial
            make_readable(partial)
            given = give_name(partial, path, overwrite=overwrite)
            if given != path:
                logger.warning("%s: appeared meanwhile and stays; what was made is %s", path, given)
    finally:
        partial.unlink(missing_ok=True)
        ownership.release()


@contextmanager
def publish_directory(path: Path, kind: Ours) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place when the block ends well.

    An older folder of the same kind stays whole until the new one is ready, and then goes.
    """
    # A link stays a link; what it points to is replaced.
    path = real_path(path)
    if path in (Path.cwd(), *Path.cwd().parents):
        raise UsageError(f"{path}: the folder you are in cannot be replaced; give another one")
    require_replaceable(path, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    ownership = Ownership(path)
    partial = ownership.name()
    try:
        with blamed_on(path, partial):
            partial.mkdir()
            yield partial
            _put_in_place(partial, path, kind, ownership.name("old"))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        ownership.release()


def replace_directory(path: Path, ready: Path, kind: Ours) -> None:
    """Give a finished folder its name; an older one of that name and kind goes."""
    path = real_path(path)
    ownership = Ownership(path)
    try:
        _put_in_place(ready, path, kind, ownership.name("old"))
    finally:
        ownership.release()


def give_name(ready: Path, path: Path, *, overwrite: bool) -> Path:
    """Give a finished file or folder its name, or a free one like it if the name was taken
    meanwhile; what name it got.
    """
    if overwrite:
        ready.replace(path)
        return path
    number = 1
    while True:
        target = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        if _rename_to_free(ready, target):
            return target
        number += 1


def require_ordinary(path: Path) -> None:
    """Refuse to put a file where a folder, a device or a pipe is."""
    if path.is_dir():
        raise UsageError(f"{path}: a folder is in the way; give the name of a file")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: a device or a pipe, not an ordinary file; choose another name")


def make_readable(path: Path) -> None:
    """Some libraries write files that only their owner may read."""
    path.chmod(0o666 & ~_umask())


@contextmanager
def blamed_on(path: Path, partial: Path) -> Iterator[None]:
    """Where the disk is full, say what could not be written, whatever was being read for it."""
    try:
        yield
    except Exception as error:
        if not _is_full(error, partial):
            raise
        raise OutputError(
            f"{path}: cannot be written ({_reason(error)}); free some space or choose another place"
        ) from error


def _is_full(error: Exception, partial: Path) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if _is_name(name)]
        is_there = not names or any(os.fspath(partial) in name for name in names)
        return error.errno in _FULL and is_there
    if isinstance(error, OutputError | UsageError):
        return False
    said = str(error)
    if any(text in said for text in _FULL_TEXTS) or _is_failed_write(said, partial):
        return True
    return not isinstance(error, LongLiveError) and _has_no_space(partial.parent)


def _is_failed_write(said: str, partial: Path) -> bool:
    """In the words of onnxruntime, and of numpy, which names no file."""
    names_it = os.fspath(partial) in said and "write" in said.lower()
    return names_it or _NUMPY_WROTE.fullmatch(said) is not None


def _is_name(name: object) -> bool:
    return isinstance(name, str | bytes)


def _has_no_space(folder: Path) -> bool:
    """Libraries do not always say why a write failed."""
    try:
        return os.statvfs(folder).f_bavail == 0
    except OSError:
        return False


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    return next((known for known in _FULL_TEXTS if known in text), "a write failed")


def _put_in_place(ready: Path, path: Path, kind: Ours, aside: Path) -> None:
    if not path.is_dir():
        ready.replace(path)
        return
    old = _exchange(ready, path, aside)
    if foreign_file(old, kind) is None:
        shutil.rmtree(old, ignore_errors=True)
        return
    # Somebody put it there while the new folder was made.
    kept = give_name(old, path.with_name(f"{path.name}-replaced"), overwrite=False)
    logger.warning("%s: held files that are not of %s; they are kept in %s", path, kind.what, kept)


def _exchange(ready: Path, path: Path, aside: Path) -> Path:
    """Swap two folders in one step, so that at every moment a whole one has the name; where the
    old one is now.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    at_cwd, swap = -100, 2
    if not libc.renameat2(at_cwd, os.fsencode(ready), at_cwd, os.fsencode(path), swap):
        return ready
    # A file system without the call: the old folder goes aside for a moment.
    path.replace(aside)
    ready.replace(path)
    return aside


def _rename_to_free(ready: Path, target: Path) -> bool:
    """Whether the name was free; no other run can take it in between."""
    libc = ctypes.CDLL(None, use_errno=True)
    at_cwd, no_replace = -100, 1
    if not libc.renameat2(at_cwd, os.fsencode(ready), at_cwd, os.fsencode(target), no_replace):
        return True
    if os.path.lexists(target):
        return False
    # A file system without the call.
    ready.rename(target)
    return True


def _umask() -> int:
    """Read, not set and set back: other threads may be making files."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("Umask:")[2].split()[0], 8)
