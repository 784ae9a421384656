"""The newest picture of a video in the making, in a file that is whole whenever one looks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from longlive_trt.errors import LongLiveError
from longlive_trt.files import publish_file
from longlive_trt.runtime.output.base import Pixels, reason
from longlive_trt.runtime.output.png import encode_png

SUFFIX = ".png"


class Preview:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._failed = False

    def renew(self, rows: Sequence[Pixels]) -> str | None:
        """Of the videos that are made together, side by side; what to tell if it failed.

        A preview that cannot be written ends no video: it is not tried again.
        """
        if self._failed:
            return None
        picture = np.concatenate([row[-1] for row in rows], axis=1)
        try:
            with publish_file(self.path) as partial:
                partial.write_bytes(encode_png(np.ascontiguousarray(picture)))
        except (OSError, LongLiveError) as error:
            self._failed = True
            return f"{self.path}: no longer renewed ({reason(error)})"
        return None
