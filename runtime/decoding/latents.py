"""Latents that were kept, and the pictures that a bundle's decoder makes of them later."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longlive_trt.basics import Array
from longlive_trt.contract import FRAMES, LATENTS, PIXELS
from longlive_trt.engines.base import TensorSpec, specs_of
from longlive_trt.engines.bundles.bundle import BATCH, Bundle
from longlive_trt.errors import UsageError
from longlive_trt.reading.failures import refusing
from longlive_trt.reading.tensors import FLOATS, TensorHeader, read_header
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.decoding.choice import BundledDecoder

_WRITTEN_BY = "give a file that `generate --latents-out` wrote"
_DIMENSIONS = 5

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LatentsFile:
    """A safetensors file whose tensor ``latents`` is [batch, frames, channels, height, width]."""

    header: TensorHeader

    @classmethod
    def open(cls, path: Path) -> "LatentsFile":
        """Whether there are such latents is found out here, before they are read."""
        if not path.exists():
            raise UsageError(f"{path}: no such file; {_WRITTEN_BY}")
        with refusing(UsageError, f"{path}: not a readable safetensors file", _WRITTEN_BY):
            header = read_header(path)
        entry = header.entries.get(LATENTS)
        if entry is None:
            held = ", ".join(sorted(header.entries)[:5]) or "nothing"
            raise UsageError(f"{path}: has no tensor {LATENTS} (it holds {held}); {_WRITTEN_BY}")
        if len(entry.shape) != _DIMENSIONS or not all(entry.shape):
            raise UsageError(
                f"{path}: {LATENTS} is {list(entry.shape)}; it needs [batch, frames, channels, "
                "height, width], none of them 0"
            )
        if entry.dtype not in FLOATS:
            raise UsageError(
                f"{path}: {LATENTS} is stored as {entry.dtype}; save it as {' or '.join(FLOATS)}"
            )
        BATCH.require(f"{path}: the batch of {LATENTS}", entry.shape[0])
        return cls(header)

    @property
    def path(self) -> Path:
        return self.header.path

    @property
    def shape(self) -> Shape:
        return self.header.entries[LATENTS].shape

    @property
    def rows(self) -> int:
        """Videos side by side."""
        return self.shape[0]

    @property
    def frames(self) -> int:
        return self.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a latent frame."""
        return self.shape[3], self.shape[4]

    def read(self) -> Array:
        with refusing(UsageError, self.path, _WRITTEN_BY):
            values = self.header.read(LATENTS).astype(np.float32)
        if not np.isfinite(values).all():
            raise UsageError(f"{self.path}: {LATENTS} holds NaN or infinity; make them again")
        return values


@dataclass(frozen=True)
class LatentsDecoding:
    """What decoding a file with one of a bundle's decoders takes and gives."""

    latents: LatentsFile
    bundle: Bundle
    decoder: BundledDecoder

    def __post_init__(self) -> None:
        expected, found = self._spec(self._first, LATENTS).shape[2:], self.latents.shape[2:]
        pairs = zip(expected, found, strict=True)
        if any(isinstance(want, int) and want != have for want, have in pairs):
            wanted = " x ".join(map(str, expected))
            raise UsageError(
                f"{self.latents.path}: latent frames of {' x '.join(map(str, found))} (channels, "
                f"height, width), and the decoder of {self.bundle.folder} takes {wanted}; give "
                "latents of that model and size, or export its decoder for these"
            )

    @property
    def video_size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        height, width = self.latents.size
        factor = self.decoder.config.spatial_factor
        return height * factor, width * factor

    @property
    def video_frames(self) -> int:
        """Of each video."""
        return 1 + self.decoder.config.temporal_factor * (self.latents.frames - 1)

    def pieces(self, engines: Engines, *, as_numbers: bool) -> Iterator[tuple[int, Array]]:
        """(row, pictures [n, ...]) of one latent frame after another, video after video.

        Pictures are bytes [n, H, W, 3], or numbers [n, 3, H, W] in the decoder's own range.
        """
        values, side_by_side = self.latents.read(), self._side_by_side
        output = FRAMES if as_numbers else PIXELS
        stream = engines.stream_of(self.decoder, side_by_side, output, self.latents.size)
        for start in range(0, self.latents.rows, side_by_side):
            rows = values[start : start + side_by_side]
            # Engines that take so many videos take no fewer.
            missing = side_by_side - len(rows)
            filled = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
            stream.begin()
            for frame in range(self.latents.frames):
                pictures = stream.decode(filled[:, frame : frame + 1])
                for row in range(len(rows)):
                    yield start + row, pictures[row]

    @property
    def _first(self) -> str:
        return self.decoder.graphs[0]

    @property
    def _side_by_side(self) -> int:
        """Videos that the engines take at once; where they take any number, one needs the least."""
        batch = self._spec(self._first, LATENTS).shape[0]
        built_for = self.bundle.manifest.options.get("batch", 1)
        return batch if isinstance(batch, int) else int(built_for)

    def _spec(self, graph: str, name: str) -> TensorSpec:
        return specs_of(self.bundle.manifest.graphs[graph].inputs)[name]
