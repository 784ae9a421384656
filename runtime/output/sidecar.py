"""The record beside a video: where it is, and whether it is one of ours."""

import os
from itertools import count
from pathlib import Path

from longlive_trt.reading.documents import JSON_BYTES, parse_json
from longlive_trt.reading.failures import ReadingError
from longlive_trt.reading.files import read_bytes

_FIELDS = {"bundle_key", "engine", "config", "prompts", "video_frames"}


def sidecar_path(video: str | Path) -> Path:
    video = Path(video)
    return video.with_name(video.name + ".json")


def is_sidecar(path: Path) -> bool:
    """Whether a file is the record of some video, and not somebody's own."""
    try:
        values = parse_json(read_bytes(path, JSON_BYTES))
    except ReadingError:
        return False
    return isinstance(values, dict) and values.keys() >= _FIELDS


def free_name(path: Path) -> Path:
    """The name, or a numbered one like it, that neither a file nor a video's record has yet."""
    names = (path if n == 1 else path.with_name(f"{path.stem}-{n}{path.suffix}") for n in count(1))
    return next(
        name
        for name in names
        if not os.path.lexists(name) and not os.path.lexists(sidecar_path(name))
    )
