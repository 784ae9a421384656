"""Which writer an output path asks for, and whether it may be written at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

from longlive_trt.console.streams import is_stdout, require_piped_stdout
from longlive_trt.errors import OutputError, UsageError
from longlive_trt.files import foreign_file, require_place
from longlive_trt.runtime.output.base import FrameWriter, NullWriter, reason
from longlive_trt.runtime.output.gif import GifWriter
from longlive_trt.runtime.output.mp4 import Mp4Writer
from longlive_trt.runtime.output.muxed import exact_fps
from longlive_trt.runtime.output.png import FRAMES, PngFolderWriter
from longlive_trt.runtime.output.sidecar import is_sidecar, sidecar_path
from longlive_trt.runtime.output.tags import MakeTags, no_tags
from longlive_trt.runtime.output.y4m import Y4mWriter

_LEAST_FPS, _MOST_FPS = 0.1, 240
_VIDEO_SUFFIXES = (".mp4", ".mov")
_FILE_SUFFIXES = (*_VIDEO_SUFFIXES, ".gif")


def open_writer(
    path: str | Path | None,
    fps: float | Fraction,
    height: int,
    width: int,
    overwrite: bool,
    tags: MakeTags = no_tags,
) -> FrameWriter:
    """The writer for a path's ending, after ``check_output``; None counts frames only."""
    if path is None:
        return NullWriter(height, width)
    check_output(path, overwrite)
    check_fps(path, fps)
    if is_stdout(path):
        return Y4mWriter(exact_fps(fps), height, width)
    target = _absolute(path)
    if _is_folder(path):
        return PngFolderWriter(target, height, width, overwrite=overwrite)
    if target.suffix.lower() == ".gif":
        return GifWriter(target, fps, height, width, overwrite=overwrite)
    return Mp4Writer(target, fps, height, width, overwrite=overwrite, tags=tags)


def check_output(path: str | Path, overwrite: bool) -> None:
    """Refuse, before any work, a video path that cannot be written or would lose something."""
    if is_stdout(path):
        require_piped_stdout("frames go", "pipe them to a player, such as | ffplay -")
        return
    require_place(path)
    if Path(path).name.endswith("."):
        raise UsageError(f"{path}: ends with a dot; end it with one of {', '.join(_FILE_SUFFIXES)}")
    if _has_no_ending(path):
        raise UsageError(
            f"{path}: no ending says what to make; {path}.mp4 is a video, and {path}/ a folder of "
            "PNG files"
        )
    if _is_folder(path):
        with _looked_at(path):
            _check_frame_folder(_absolute(path), overwrite)
    elif Path(path).suffix.lower() in _FILE_SUFFIXES:
        check_file_output(path, overwrite)
        _check_sidecar(sidecar_path(path), overwrite)
    else:
        raise UsageError(
            f"{path}: no kind of video has the ending {Path(path).suffix!r}; use one of "
            f"{', '.join(_FILE_SUFFIXES)}, or end the name with / for a folder of PNG files"
        )


def check_fps(path: str | Path, fps: float | Fraction) -> None:
    """Pictures in a folder have no rate."""
    if (is_stdout(path) or not _is_folder(path)) and not _LEAST_FPS <= fps <= _MOST_FPS:
        raise UsageError(
            f"{path}: players show {_LEAST_FPS:g} to {_MOST_FPS} frames/s, and this video has "
            f"{float(fps):g}; choose another fps"
        )


def check_file_output(path: str | Path, overwrite: bool) -> None:
    require_place(path)
    with _looked_at(path):
        _check_file(_absolute(path), overwrite)


def _check_file(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; give the name of a file, such as {path}/video.mp4")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: is not an ordinary file; choose another name")
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: already exists; add --overwrite, or choose another name")
    _check_writable(path.parent)


def _check_sidecar(path: Path, overwrite: bool) -> None:
    """The record of a video that is gone may be replaced; another file of that name not."""
    with _looked_at(path):
        if path.is_dir() or (path.exists() and not overwrite and not is_sidecar(path)):
            raise UsageError(
                f"{path}: in the way of the video's record; move it, or choose another name"
            )


def _check_frame_folder(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file, not a folder for PNG files; choose another name")
    if folder.is_dir() and (foreign := foreign_file(folder, FRAMES)):
        raise UsageError(
            f"{folder}: holds other files than frames ({foreign}); choose a new or an empty folder"
        )
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UsageError(f"{folder}: already holds frames; add --overwrite, or choose another one")
    _check_writable(folder.parent)


def _has_no_ending(path: str | Path) -> bool:
    """A text that is no folder's name and does not say that it will be one. A ``Path`` cannot end
    with a slash, and without an ending it is a folder.
    """
    is_plain = isinstance(path, str) and not Path(path).suffix and not path.endswith("/")
    return is_plain and not os.path.lexists(path)


def _is_folder(path: str | Path) -> bool:
    suffix = Path(path).suffix.lower()
    if _ends_with_slash(path) or not suffix:
        return True
    return suffix not in _FILE_SUFFIXES and os.path.isdir(path)  # noqa: PTH112 - never raises


def _ends_with_slash(path: str | Path) -> bool:
    return os.fspath(path).endswith("/")


def _absolute(path: str | Path) -> Path:
    # Path.absolute() would keep "..", whose parent is not the folder beside it.
    return Path(os.path.abspath(path))  # noqa: PTH100


@contextmanager
def _looked_at(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be used ({reason(error)}); choose another name"
        ) from None


def _check_writable(folder: Path) -> None:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        # Permissions alone do not tell: the file system may be read-only, or the user root.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise OutputError(
            f"{existing}: cannot be written to ({reason(error)}); choose another folder"
        ) from None
