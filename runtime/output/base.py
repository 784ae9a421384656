"""What every writer shares: nothing appears under the final name before it is whole.

Whatever ends a run, the frames so far stay: ``close`` publishes them, and belongs in a ``finally``
block; a failed write (a full disk) publishes what can be saved at once and raises ``OutputError``.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import av
import numpy as np
import numpy.typing as npt

from longlive_trt.console.signals import interrupts_deferred
from longlive_trt.console.wording import counted
from longlive_trt.errors import OutputError
from longlive_trt.files import Claim, Ownership, give_name, real_path, require_place
from longlive_trt.runtime.output.sidecar import is_sidecar, sidecar_path

Pixels = npt.NDArray[np.uint8]


class FrameWriter(ABC):
    """Takes RGB frames [n, height, width, 3]; ``notices`` is what the user should be told."""

    def __init__(self, path: Path, height: int, width: int) -> None:
        self.path = path
        self.height, self.width = height, width
        self.frames_written = 0
        self.frames_kept = 0
        """Those in the file that was published."""
        self.notices: list[str] = []
        self._closed = False

    def write(self, pixels: Pixels) -> None:
        self._check(pixels)
        with interrupts_deferred(), self._saving_on_failure():
            for frame in pixels:
                self._write_frame(np.ascontiguousarray(frame))
                self.frames_written += 1

    def close(self) -> None:
        """Publish the frames so far; without any, leave nothing. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        with interrupts_deferred(), self._saving_on_failure():
            if self.frames_written:
                self._finish()
                self.frames_kept = self.frames_written
            else:
                self._discard()
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, pixels: Pixels) -> None:
        if self._closed:
            raise ValueError(f"{self.path} is closed")
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (self.height, self.width, 3):
            raise ValueError(
                f"frames of {pixels.dtype} {pixels.shape}; "
                f"expected uint8 [n, {self.height}, {self.width}, 3]"
            )

    @contextmanager
    def _saving_on_failure(self) -> Iterator[None]:
        try:
            yield
        except (OSError, av.FFmpegError) as error:
            self._closed = True
            self.frames_kept = kept = self._salvaged()
            raise OutputError(
                f"{self.path}: writing failed after {counted(self.frames_written, 'frame')} "
                f"({reason(error)}); "
                + (f"the first {kept} are kept there" if kept else "none could be kept")
                + "; free some space or choose another place"
            ) from error

    def _salvaged(self) -> int:
        try:
            return self._salvage()
        except OSError:
            return 0
        finally:
            self._release()

    def _release(self) -> None:  # noqa: B027 - there may be nothing to release
        """Nothing is written any more."""

    @abstractmethod
    def _write_frame(self, frame: Pixels) -> None: ...

    @abstractmethod
    def _finish(self) -> None:
        """Complete the file and publish it."""

    @abstractmethod
    def _discard(self) -> None:
        """Leave nothing behind."""

    @abstractmethod
    def _salvage(self) -> int:
        """After a failure, publish what plays; return its number of frames. Needs no space."""


class NullWriter(FrameWriter):
    """Counts frames and keeps none."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__(Path(os.devnull), height, width)

    def _write_frame(self, frame: Pixels) -> None:
        pass

    def _finish(self) -> None:
        pass

    def _discard(self) -> None:
        pass

    def _salvage(self) -> int:
        return 0


class PublishingWriter(FrameWriter):
    """Writes under hidden names beside its target, which no other run may write to meanwhile."""

    def __init__(self, path: Path, height: int, width: int, *, overwrite: bool) -> None:
        super().__init__(path, height, width)
        require_place(path)
        make_folder(path.parent)
        self._overwrite, self._target = overwrite, real_path(path)
        self._claim = Claim(self._target)
        self._ownership = Ownership(self._target)

    def _hidden(self, name: str) -> Path:
        """Ends as the target does, so that players know what a killed run left."""
        return self._ownership.name(f"{name}{self._target.suffix}")

    def _publish(self, ready: Path) -> None:
        # The record of an older video would tell of another one.
        record = sidecar_path(self._target)
        if (self._overwrite or not self._target.exists()) and is_sidecar(record):
            record.unlink()
        self._tell_name(self._give_name(ready))

    def _give_name(self, ready: Path) -> Path:
        return give_name(ready, self._target, overwrite=self._overwrite)

    def _tell_name(self, given: Path) -> None:
        if given != self._target:
            self.notices.append(
                f"{self.path}: appeared while the video was made, and stays; the video is {given}"
            )
            self.path = given

    def _release(self) -> None:
        self._ownership.release()
        self._claim.release()


def reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot make this folder ({reason(error)}); choose another place"
        ) from None
