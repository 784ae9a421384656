"""Files that appear whole or not at all, and their hashes."""

import ctypes
import fcntl
import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from longlive_trt.errors import UsageError

_CHUNK_BYTES = 1 << 22


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def publish_file(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when the block ends well."""
    discard_partials(path)
    partial = _partial_name(path)
    try:
        yield partial
        # Some libraries write files that only their owner may read.
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def publish_directory(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place when the block ends well.

    An older folder of that name stays whole until the new one is ready, and then goes.
    """
    # A link stays a link; what it points to is replaced.
    path = path.resolve()
    if path in (Path.cwd(), *Path.cwd().parents):
        raise UsageError(f"{path}: the folder you are in cannot be replaced; give another one")
    with scratch_directory(path) as partial:
        yield partial
        replace_directory(path, partial)


@contextmanager
def scratch_directory(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` that goes when the block ends.

    One that a killed run left goes with the next.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    discard_partials(path)
    partial = _partial_name(path)
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; ``path`` becomes an empty file. Who is killed gives it free."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cache_folder(concern: str) -> Path:
    """Where a user's programs keep what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:
        raise UsageError(
            "this user has no home folder: set XDG_CACHE_HOME to a folder that can be written"
        ) from None
    return folder / "longlive-trt" / concern


def replace_directory(path: Path, ready: Path) -> None:
    """Give a finished folder its name; an older one of that name goes."""
    if path.exists():
        _exchange(ready, path)
        shutil.rmtree(ready, ignore_errors=True)
    else:
        ready.replace(path)


def free_bytes(path: Path) -> int:
    """What the disk that would hold ``path`` still takes."""
    existing = next(
        place for place in (path.absolute(), *path.absolute().parents) if place.exists()
    )
    return shutil.disk_usage(existing).free


def discard_partials(path: Path) -> None:
    """Remove what killed runs left beside ``path``; those of other running processes stay."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        owner = leftover.name.split(".")[-2]
        if owner.isdigit() and (int(owner) == os.getpid() or not psutil.pid_exists(int(owner))):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _umask() -> int:
    """Read, not set and set back: other threads may be making files."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("Umask:")[2].split()[0], 8)


def _partial_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _exchange(first: Path, second: Path) -> None:
    """Swap two names in one step, so that at every moment one whole folder has each."""
    libc = ctypes.CDLL(None, use_errno=True)
    at_cwd, swap = -100, 2
    if libc.renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), swap):
        # A file system without the call: the old folder goes aside for a moment.
        aside = second.with_name(f".{second.name}.old.{os.getpid()}.partial")
        second.replace(aside)
        first.replace(second)
        shutil.rmtree(aside)
