"""Bundles by folder or by name, opened: the public API's beginning."""

import logging
from collections.abc import Callable
from pathlib import Path

from longlive_trt.basics import Report, unheard
from longlive_trt.engines.bundles.bundle import MANIFEST_NAME, no_bundle, open_bundle
from longlive_trt.engines.loader import DEVICES, DeviceChoice
from longlive_trt.errors import UsageError
from longlive_trt.making.demo import demo_bundle
from longlive_trt.runtime.pipeline import Pipeline

logger = logging.getLogger(__name__)

DEMO = "demo"


def load(
    bundle: str | Path,
    *,
    device: DeviceChoice = "auto",
    decode_device: str | None = None,
    low_memory: bool = False,
    notify: Callable[[str], None] = logger.warning,
    progress: Report = unheard,
) -> Pipeline:
    """Open a bundle; every byte of it is checked. Engines are loaded when a video needs them.

    ``bundle``: its folder, or ``demo``, which is built when it is first asked for.
    ``device``: ``cpu``, ``cuda``, or ``auto``, which is what the bundle was built for.
    ``decode_device``: another GPU that decodes, such as ``cuda:1``.
    ``low_memory``: hold the text encoder only while it encodes, and decode frame by frame, in
    tiles where the bundle has graphs for them.
    ``notify`` is told that the demo is being built, and ``progress`` how far that is, and how many
    bytes are checked.
    """
    if device not in DEVICES:
        raise UsageError(f"device is {device!r}; allowed: {', '.join(DEVICES)}")
    folder = find_bundle(bundle, notify=notify, progress=progress)
    opened = open_bundle(folder, progress)
    return Pipeline(opened, device, decode_device=decode_device, low_memory=low_memory)


def find_bundle(
    bundle: str | Path,
    *,
    notify: Callable[[str], None] = logger.warning,
    progress: Report = unheard,
) -> Path:
    """A bundle's folder. The demo's is built, if need be."""
    if is_demo(bundle):
        return demo_bundle(notify, progress)
    folder = Path(bundle)
    if not folder.is_dir():
        or_demo = "" if folder.exists() else f", or {DEMO}"
        raise UsageError(f"{bundle}: no such bundle: {no_bundle(folder)}{or_demo}")
    return folder


def is_demo(bundle: str | Path) -> bool:
    """A bundle in a folder of that name is another one."""
    return str(bundle) == DEMO and not (Path(bundle) / MANIFEST_NAME).is_file()
