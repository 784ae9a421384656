"""Measured kernel times, kept between builds: the second build of a model is a quick one.

A cache is good for one compiler version on one kind of GPU, so these are its file's name.
"""

import logging
import re
from pathlib import Path
from typing import Any

from longlive_trt.engines.bundles.bundle import EngineKind
from longlive_trt.files import cache_folder, locked, publish_file

logger = logging.getLogger(__name__)


def default_folder() -> Path:
    return cache_folder("timing")


def cache_path(folder: Path, kind: EngineKind, gpu_name: str) -> Path:
    key = "-".join((kind.kind, kind.version, kind.target, gpu_name))
    return folder / (re.sub(r"[^A-Za-z0-9.]+", "-", key).strip("-") + ".timing")


def load(config: Any, path: Path) -> None:
    """Start from the times that earlier builds measured."""
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        logger.warning("%s: not usable by this compiler; starting an empty timing cache", path)
        config.set_timing_cache(config.create_timing_cache(b""), False)


def save(config: Any, path: Path) -> None:
    """Add this build's times to those that other builds have saved meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        ours = config.get_timing_cache()
        if path.is_file():
            theirs = config.create_timing_cache(path.read_bytes())
            if theirs is not None:
                ours.combine(theirs, True)
        with publish_file(path) as partial:
            partial.write_bytes(bytes(ours.serialize()))
