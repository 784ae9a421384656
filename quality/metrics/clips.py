"""What clips look like and how they move, in numbers: by a VAE's encoder, which needs no download.

A clip is three latent frames from a beginning of its own. Its numbers are, of each channel of the
latents and in tenths, the mean, the spread over the picture, and the change from frame to frame.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from longlive_trt.configs import ModelConfig
from longlive_trt.quality.metrics.similarity import Pixels
from longlive_trt.runtime.starting.encoding import EncoderStream

LATENT_FRAMES = 3
EVERY = 36
"""Pictures from the beginning of a clip to that of the next."""
_TENTHS = 10.0


class ClipReader:
    """The encoder of ``model``, for clips of any size."""

    def __init__(self, open_stream: Callable[[], EncoderStream], config: ModelConfig) -> None:
        """``open_stream``: loads the encoder, when the first clip comes."""
        assert config.video_size is not None
        self._open_stream, self._size = open_stream, config.video_size
        self.model = config.name
        self.pictures = config.video_frames(LATENT_FRAMES)
        """Of a clip."""

    def __call__(self, clip: Pixels) -> list[float]:
        """Of pictures [n, height, width, 3]."""
        fitting = clip if clip.shape[1:3] == self._size else self._scaled(clip)
        return numbers_of(self._stream.encode(fitting)[0])

    @cached_property
    def _stream(self) -> EncoderStream:
        return self._open_stream()

    def _scaled(self, clip: Pixels) -> Pixels:
        from PIL import Image

        height, width = self._size
        images = (Image.fromarray(np.ascontiguousarray(picture)) for picture in clip)
        return np.stack(
            [np.asarray(i.resize((width, height), Image.Resampling.BOX)) for i in images]
        )


def numbers_of(latents: npt.NDArray[np.float32]) -> list[float]:
    """Three for each channel of latents [frames, channels, height, width]."""
    values = latents.astype(np.float64)
    mean = values.mean(axis=(0, 2, 3))
    spread = values.std(axis=(2, 3)).mean(axis=0)
    change = np.abs(np.diff(values, axis=0)).mean(axis=(0, 2, 3))
    return (np.concatenate([mean, spread, change]) * _TENTHS).tolist()  # type: ignore[no-any-return]


def clip_starts(stretches: Iterable[tuple[int, int]], pictures: int) -> list[list[int]]:
    """Where clips begin, by the stretches of a video's pictures; no two of them overlap."""
    free, starts = 0, []
    for begin, end in stretches:
        own = list(range(max(begin, free), end - pictures + 1, EVERY))
        free = own[-1] + pictures if own else free
        starts.append(own)
    return starts


@dataclass
class ClipCutter:
    """Cuts clips out of a video whose pictures come block by block."""

    starts: Sequence[int]
    """Rising, and each clip ends before the next begins."""
    pictures: int
    _held: list[Pixels] = field(default_factory=list)
    _done: int = 0

    def add(self, block: Pixels) -> Iterator[Pixels]:
        """The clips that are whole with this block."""
        first, self._done = self._done, self._done + len(block)
        for start in self.starts:
            begin, end = max(start, first), min(start + self.pictures, self._done)
            if begin >= end:
                continue
            self._held.append(block[begin - first : end - first])
            if end == start + self.pictures:
                yield np.concatenate(self._held)
                self._held = []
