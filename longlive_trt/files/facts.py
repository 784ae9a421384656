"""What is known of files and places without changing them."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from longlive_trt.console.wording import byte_size
from longlive_trt.errors import OutputError, UsageError

_CHUNK_BYTES = 1 << 22


def uncounted(_size: int) -> None:
    """Bytes that nobody counts."""


def sha256_file(path: Path, count: Callable[[int], None] = uncounted) -> str:
    """``count`` is called with the size of each piece that was read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            count(len(chunk))
    return digest.hexdigest()


def free_bytes(path: Path) -> int:
    """What the disk that would hold ``path`` still takes."""
    existing = next(
        place for place in (path.absolute(), *path.absolute().parents) if place.exists()
    )
    return shutil.disk_usage(existing).free


def require_space(out: Path, needed: int) -> None:
    """Refuse, before any work, what the disk would not take."""
    free = free_bytes(out)
    if needed > free:
        raise OutputError(
            f"{out}: {byte_size(needed)} are needed and {byte_size(free)} are free; "
            f"free some space or give --out on another disk"
        )


def real_path(path: str | Path) -> Path:
    """Where a path leads, links followed; it need not exist."""
    # Not Path.resolve(): it fails in its own way, and not on every loop.
    real = Path(os.path.realpath(path))
    try:
        is_loop = real.is_symlink()
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be used ({error.strerror}); choose another name"
        ) from None
    if is_loop:
        raise OutputError(f"{path}: a link that leads to itself; choose another name")
    return real


def is_inside(path: Path, folder: Path) -> bool:
    return real_path(path).is_relative_to(real_path(folder))


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
