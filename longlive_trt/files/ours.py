"""Which folders this program made, and what in them it did not make.

A folder is ours if its own record says so: a bundle's manifest, sealed by its sha256, or an
export's record. It may be replaced only where it holds nothing that the record does not name.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longlive_trt.errors import UsageError
from longlive_trt.files.facts import real_path
from longlive_trt.reading.documents import parse_json
from longlive_trt.reading.failures import ReadingError

MANIFEST_NAME = "manifest.json"
RECORD_NAME = "export.json"

_RECORD_LIMIT_BYTES = 16 << 20
_SEAL = re.compile(rb'"sha256": "([0-9a-f]{64})"')
# pathlib leaves one slash of two.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SYSTEM, _SHARED_MEMORY = ("/dev", "/proc", "/sys"), "/dev/shm"  # noqa: S108 - refused or allowed
_RECORD_FIELDS = {"precision": str, "config": dict, "graphs": dict, "checkpoints": dict}


@dataclass(frozen=True)
class Ours:
    """A kind of folder that may replace an older one of its kind."""

    what: str
    listing: Callable[[Path], frozenset[str] | None]
    """The files that such a folder's own record names; None for any other folder."""


def require_replaceable(out: Path, kind: Ours) -> None:
    """Refuse, before any work, a place where something of somebody else's would be lost."""
    real = real_path(out)
    if real.exists() and not real.is_dir():
        raise UsageError(f"{out}: a file is in the way; give --out another folder")
    require_place(out)
    if real.is_mount():
        raise UsageError(
            f"{out}: a disk is mounted there, which cannot be exchanged for another folder; give "
            "--out a folder inside it"
        )
    if real.is_dir() and (foreign := foreign_file(real, kind)) is not None:
        if kind.listing(real) is None:
            raise UsageError(
                f"{out}: not empty and not {kind.what} (it holds {foreign}); give --out another "
                "folder"
            )
        raise UsageError(
            f"{out}: holds {foreign}, which does not belong to {kind.what} and would be lost; "
            "move it elsewhere, or give --out another folder"
        )


def require_place(path: str | Path) -> None:
    """Refuse an output where none belongs: in the system's own folders, where it is a device or is
    lost, and inside a bundle or an export, which it would overwrite or spoil.
    """
    if os.fspath(path) == "-":
        raise UsageError("-: standard output is not taken here; give a name, or ./- for that one")
    if _ADDRESS.match(os.fspath(path)):
        raise UsageError(
            f"{path}: an address, where a file or folder is written; give a name on this machine, "
            "and send a bundle there with `longlive-trt push`"
        )
    real = real_path(path)
    if any(real.is_relative_to(top) for top in _SYSTEM) and not real.is_relative_to(_SHARED_MEMORY):
        raise UsageError(f"{path}: a place of the system's own; choose one on a disk")
    for folder in real.parents:
        for kind in (BUNDLE, EXPORT):
            if kind.listing(folder) is not None:
                raise UsageError(
                    f"{path}: inside {kind.what} ({folder}), which holds its own files only; "
                    "choose a place outside it"
                )


def foreign_file(folder: Path, kind: Ours) -> str | None:
    """The first file or empty folder that is not of this kind; None in an empty folder."""
    listed = kind.listing(folder) or frozenset()
    return next((name for name in _names_in(folder) if name not in listed), None)


def is_sealed(data: bytes) -> bool:
    """Whether a manifest's text still has the sha256 that it names."""
    seal = _SEAL.search(data)
    if seal is None:
        return False
    unsealed = data[: seal.start(1)] + data[seal.end(1) :]
    return hashlib.sha256(unsealed).hexdigest().encode() == seal[1]


def seal_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _names_in(folder: Path) -> Iterator[str]:
    for place, folders, files in os.walk(folder, onerror=_raise):
        folders.sort()
        inner = Path(place).relative_to(folder)
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in sorted([*files, *links]):
            yield (inner / name).as_posix()
        if not folders and not files and place != os.fspath(folder):
            yield f"{inner.as_posix()}/"


def _raise(error: OSError) -> None:
    """A folder that cannot be looked into may hold anything."""
    raise error


def _bundle_listing(folder: Path) -> frozenset[str] | None:
    data = _read_record(folder / MANIFEST_NAME)
    if data is None or not is_sealed(data):
        return None
    files = _values(data).get("files")
    return frozenset({*files, MANIFEST_NAME}) if isinstance(files, dict) else None


def _export_listing(folder: Path) -> frozenset[str] | None:
    data = _read_record(folder / RECORD_NAME)
    values = _values(data) if data is not None else {}
    files = values.get("files")
    is_record = all(isinstance(values.get(key), kind) for key, kind in _RECORD_FIELDS.items())
    if not is_record or not isinstance(files, dict):
        return None
    if not all(isinstance(sha256, str) and _SHA256.fullmatch(sha256) for sha256 in files.values()):
        return None
    return frozenset({*files, RECORD_NAME})


def _read_record(path: Path) -> bytes | None:
    """A file that may be a record; None for what is none by its kind or size."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _RECORD_LIMIT_BYTES:
            return None
        return path.read_bytes()
    except OSError:
        return None


def _values(data: bytes) -> dict[str, Any]:
    try:
        values = parse_json(data)
    except ReadingError:
        return {}
    return values if isinstance(values, dict) else {}


BUNDLE = Ours("a bundle", _bundle_listing)
EXPORT = Ours("an export", _export_listing)
