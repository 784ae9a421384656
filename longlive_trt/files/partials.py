"""Who owns a file or folder that is not finished.

What a run has not finished lies beside its target under a hidden name with a random token. A lock
file of the same token is locked while the run lives, on shared disks too, so that others can tell
a run that is at work from one that was killed. Process numbers say nothing: another container, or
another machine, counts its own.
"""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from longlive_trt.errors import OutputError, UsageError

_MAGIC = b"longlive-trt"
_OLD = ".old"
_LOCK_NAME = re.compile(r"(\..+\.[0-9a-f]{16})\.lock")
_CLAIM_NAME = re.compile(r"\..+\.claim")
_CLAIM_ATTEMPTS, _CLAIM_PAUSE_S = 10, 0.05
_LONGEST_STEM_BYTES = 100
_ELSEWHERE_ABANDONED_S = 24 * 3600
"""Where a lock may not reach the machine that holds it, silence must last so long."""


class Ownership:
    """The hidden names of one run beside one target, until it is released."""

    def __init__(self, target: Path) -> None:
        self._target = target
        discard_abandoned(target.parent)
        self._lock, self._file = _new_lock(target)
        self._stem = self._lock.name.removesuffix(".lock")

    def name(self, ending: str = "partial") -> Path:
        return self._target.with_name(f"{self._stem}.{ending}")

    def release(self) -> None:
        """Afterwards anybody may remove what still has these names."""
        if self._file >= 0:
            self._lock.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1


class Claim:
    """A target that one run at a time writes to."""

    def __init__(self, target: Path) -> None:
        self._lock = target.with_name(f".{_stem_of(target)}.claim")
        self._file = _claimed(self._lock, target)

    def release(self) -> None:
        if self._file >= 0:
            self._lock.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A hidden folder beside a path; it goes with the block, or after a kill with the next run."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    ownership = Ownership(beside)
    folder = ownership.name("scratch")
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        ownership.release()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; ``path`` becomes an empty file. Who is killed gives it free."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def discard_abandoned(folder: Path) -> None:
    """Remove what killed runs left in a folder; what others are at work on stays."""
    with suppress(OSError):
        names = sorted(path.name for path in folder.iterdir())
        for name in names:
            if lock := _LOCK_NAME.fullmatch(name):
                stem = f"{lock[1]}."
                owned = [folder / other for other in names if other.startswith(stem)]
                _discard_if_abandoned(folder / name, [path for path in owned if path.name != name])
            elif _CLAIM_NAME.fullmatch(name):
                _discard_if_abandoned(folder / name, [])


def _discard_if_abandoned(lock: Path, owned: list[Path]) -> None:
    with suppress(OSError), _opened(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        content = os.read(file, 1 << 12)
        if _is_abandoned(content, [lock, *owned]):
            target = lock.with_name(os.fsdecode(content.partition(b"\n")[2]) or lock.name)
            for path in owned:
                _put_back_or_remove(path, target)
            lock.unlink(missing_ok=True)


@contextmanager
def _opened(lock: Path) -> Iterator[int]:
    file = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)


def _is_abandoned(content: bytes, paths: list[Path]) -> bool:
    """Of a lock that nobody holds, as far as can be told here."""
    magic, _, machine = content.partition(b"\n")[0].partition(b" ")
    if content and magic != _MAGIC:
        return False
    if machine in (b"", _this_machine()):
        return True
    return time.time() - max(map(_last_change, paths)) > _ELSEWHERE_ABANDONED_S


def _put_back_or_remove(path: Path, target: Path) -> None:
    """An old folder that was being replaced gets its name back if nothing else has it."""
    if path.suffix == _OLD and not os.path.lexists(target):
        path.rename(target)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _last_change(path: Path) -> float:
    inside = path.rglob("*") if path.is_dir() else ()
    times = [0.0]
    for item in (path, *inside):
        with suppress(OSError):
            times.append(item.lstat().st_mtime)
    return max(times)


def _new_lock(target: Path) -> tuple[Path, int]:
    while True:
        lock = target.with_name(f".{_stem_of(target)}.{secrets.token_hex(8)}.lock")
        file = _open_for(target, lock, os.O_EXCL)
        # A run that cleans up may hold it for a moment; a file system without locks refuses.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if _is_still(lock, file):
            _sign(file, target)
            return lock, file
        os.close(file)


def _claimed(lock: Path, target: Path) -> int:
    for _ in range(_CLAIM_ATTEMPTS):
        file = _open_for(target, lock)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Perhaps a run that cleans up, which is over in a moment.
            os.close(file)
            time.sleep(_CLAIM_PAUSE_S)
            continue
        except OSError:
            return file
        if _is_still(lock, file):
            _sign(file, target)
            return file
        os.close(file)
    raise UsageError(
        f"{target}: another run is writing it; wait for its end, or choose another name"
    )


def _open_for(target: Path, lock: Path, flags: int = 0) -> int:
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
    except OSError as error:
        advice = "free some space or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise OutputError(
            f"{target}: cannot be written ({error.strerror}); {advice}choose another place"
        ) from None


def _sign(file: int, target: Path) -> None:
    text = b" ".join((_MAGIC, _this_machine())) + b"\n" + os.fsencode(target.name)
    # A full disk takes no text, and an empty lock is understood too.
    with suppress(OSError):
        os.pwrite(file, text, 0)


def _is_still(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _stem_of(target: Path) -> str:
    """Short enough for a file system's names once an ending follows, and of this target alone."""
    name = target.name
    if len(os.fsencode(name)) <= _LONGEST_STEM_BYTES:
        return name
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f"{name[: _LONGEST_STEM_BYTES // 4]}-{digest[:12]}"


@cache
def _this_machine() -> bytes:
    """The same in all containers of one running system."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        return b"unknown"
