"""What goes beside a video: raw latents, and the record of how it was made. Whole or not at all."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file

from longlive_trt.console.printing import storable
from longlive_trt.console.signals import interrupts_deferred
from longlive_trt.errors import OutputError
from longlive_trt.files import publish_file
from longlive_trt.runtime.output.base import make_folder, reason
from longlive_trt.runtime.output.sidecar import sidecar_path


def write_latents(
    path: str | Path, latents: npt.NDArray[np.generic], *, overwrite: bool = True
) -> None:
    """A safetensors file with the float32 tensor ``latents``."""
    tensor = np.ascontiguousarray(latents, dtype=np.float32)
    _write_whole(Path(path), lambda target: save_file({"latents": tensor}, target), overwrite)


def write_sidecar(video: str | Path, values: Mapping[str, object]) -> Path:
    """``video.mp4.json`` beside ``video.mp4``."""
    path = sidecar_path(video)
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"
    _write_whole(path, lambda target: _write_text(target, text))
    return path


def _write_text(target: Path, text: str) -> None:
    target.write_text(storable(text), encoding="utf-8")


def _write_whole(path: Path, write: Callable[[Path], None], overwrite: bool = True) -> None:
    make_folder(path.parent)
    try:
        with interrupts_deferred(), publish_file(path, overwrite=overwrite) as partial:
            write(partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{path}: cannot be written ({reason(error)}); free some space or choose another place"
        ) from error
