"""What a video begins with, where that is somebody's picture or clip, or latents that were kept."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from longlive_trt.basics import Array
from longlive_trt.configs import ModelConfig
from longlive_trt.console.wording import counted
from longlive_trt.contract import ENCODE_FIRST, LATENTS
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.errors import UsageError
from longlive_trt.files import sha256_file
from longlive_trt.reading.clips import Clip, Pixels, open_clip
from longlive_trt.reading.failures import ReadingError, refusing
from longlive_trt.reading.tensors import FLOATS, read_header

LATENTS_SUFFIX = ".safetensors"
_SAME_RATE = 0.01


@dataclass(frozen=True)
class Start:
    """Whole blocks that are given; the video goes on from them."""

    path: Path
    sha256: str
    frames: int
    """Latent frames."""
    clip: Clip | None = None
    """What they are made of, where they are not ``latents``."""
    first_picture: int = 0
    latents: Array | None = field(default=None, repr=False)
    """[1 or B, frames, C, h, w]"""
    notices: tuple[str, ...] = ()

    def pictures(self, config: ModelConfig) -> Iterator[Pixels]:
        """What the encoder is to read."""
        assert self.clip is not None and config.video_size is not None
        count = config.video_frames(self.frames)
        if not self.clip.is_picture:
            yield from self.clip.pictures(
                config.video_size, config.fps, first=self.first_picture, count=count
            )
            return
        (picture,) = self.clip.pictures(config.video_size, config.fps, first=0, count=1)
        for _ in range(count):
            yield picture


def open_start(path: Path, bundle: Bundle, config: ModelConfig, rows: int) -> Start:
    """Refuses, before any engine is loaded, what no video can begin with."""
    if path.suffix.lower() == LATENTS_SUFFIX:
        return _of_latents(path, config, rows)
    return _of_clip(path, bundle, config)


def _of_latents(path: Path, config: ModelConfig, rows: int) -> Start:
    advice = "give latents as `generate --latents-out` keeps them"
    with refusing(UsageError, path, advice):
        header = read_header(path)
        entry = header.entries.get(LATENTS)
        if entry is None or entry.dtype not in FLOATS:
            raise ReadingError(f"no tensor {LATENTS} of floating-point numbers inside")
        shape, block = entry.shape, config.rollout.frames_per_block
        if len(shape) != 5 or shape[2:] != config.latent_shape or shape[0] not in {1, rows}:
            wanted = [1 if rows == 1 else f"1 or {rows}", "frames", *config.latent_shape]
            raise ReadingError(f"{LATENTS} is {list(shape)}, and this video needs {wanted}")
        if not shape[1] or shape[1] % block:
            raise ReadingError(
                f"{counted(shape[1], 'latent frame')}, and a video begins with whole blocks of "
                f"{block}"
            )
        latents = header.read(LATENTS).astype(np.float32)
        if not np.isfinite(latents).all():
            raise ReadingError(f"{LATENTS} holds NaN or infinity")
    return Start(
        path,
        sha256_file(path),
        shape[1],
        latents=latents,
        notices=(f"{path}: the video begins with its {counted(shape[1], 'latent frame')}",),
    )


def _of_clip(path: Path, bundle: Bundle, config: ModelConfig) -> Start:
    bundle.require(ENCODE_FIRST, "beginning with a picture or a clip")
    with refusing(UsageError, path, "give another picture or clip"):
        clip = open_clip(path)
        held = clip.count(config.fps)
        frames = _whole_blocks(clip, held, config)
    size = config.video_size
    assert size is not None
    used = config.video_frames(frames)
    first = 0 if clip.is_picture else held - used
    told = (_fitting(clip, size), *clip.remarks, _taking(clip, held, used, config))
    notice = f"{path}: {'; '.join(told)}"
    return Start(path, sha256_file(path), frames, clip=clip, first_picture=first, notices=(notice,))


def _whole_blocks(clip: Clip, held: int, config: ModelConfig) -> int:
    """Latent frames of the last pictures that make whole blocks."""
    block = config.rollout.frames_per_block
    least = config.video_frames(block)
    if clip.is_picture:
        return block
    if held < least:
        raise ReadingError(
            f"{counted(held, 'picture')} at {config.fps:g} frames/s, and a video begins with "
            f"{least} ({least / config.fps:.2f} s) or more; a single picture is held for so long"
        )
    latents = 1 + (held - 1) // config.temporal_factor
    return latents // block * block


def _fitting(clip: Clip, size: tuple[int, int]) -> str:
    """The rule that its pictures go by."""
    height, width = size
    shown = f"{clip.width} x {clip.height}"
    if (clip.width, clip.height) == (width, height):
        return f"{shown}, as it is"
    scaled = clip.fit(size)
    if scaled == (width, height):
        return f"{shown}, scaled to {width} x {height}"
    return (
        f"{shown}, scaled to {scaled[0]} x {scaled[1]} and cropped to {width} x {height} around "
        "the middle"
    )


def _taking(clip: Clip, held: int, used: int, config: ModelConfig) -> str:
    fps = config.fps
    if clip.fps is None:
        return f"the video begins with it, held for {counted(used, 'frame')} ({used / fps:.2f} s)"
    own = float(clip.fps)
    rate = f"of {own:.4g} frames/s those that are shown {fps:g} times a second; "
    if own < fps:
        rate = f"{own:.4g} frames/s, so that each is shown for {fps / own:.3g} of the video's; "
    if abs(own - fps) < _SAME_RATE:
        rate = ""
    which = f"all {used}" if used == held else f"the last {used} of {held}"
    return f"{rate}the video begins with {which} pictures ({used / fps:.2f} s)"
