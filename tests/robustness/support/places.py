"""Places that belong to somebody, and what must be true of them afterwards."""

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import av

from longlive_trt.cli import main

MakeBundle = Callable[..., Path]
Tree = Mapping[str, tuple[str, bytes]]


def snapshot(folder: Path) -> Tree:
    """Every entry below a folder by its name: its kind, and what it holds or leads to."""
    return {path.relative_to(folder).as_posix(): _entry(path) for path in folder.rglob("*")}


def _entry(path: Path) -> tuple[str, bytes]:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return "link", os.fsencode(path.readlink())
    if stat.S_ISREG(mode):
        return "file", path.read_bytes()
    return ("folder" if stat.S_ISDIR(mode) else "other"), b""


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def frames_in(video: Path) -> int:
    with av.open(str(video)) as container:
        return sum(1 for _ in container.decode(video=0))


def write(path: Path, text: str = "mine") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
