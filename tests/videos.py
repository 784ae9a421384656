"""Videos of the stand-in bundle, whole, through the Python API and through the command."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

import longlive_trt as ll
from longlive_trt.cli import main

SIZE = (32, 48)
FIRST_FRAMES, FRAMES = 9, 12

Array = np.ndarray[Any, Any]


def latents(blocks: Sequence[ll.VideoBlock]) -> Array:
    return np.concatenate([block.latents for block in blocks], axis=1)


def frames(blocks: Sequence[ll.VideoBlock]) -> Array:
    return np.concatenate([block.frames for block in blocks])


def make(pipeline: ll.Pipeline, *arguments: Any, **options: Any) -> tuple[Array, Array]:
    with pipeline.video(*arguments, **options) as video:
        blocks = list(video)
        return latents(blocks), frames(blocks)


def same(one: tuple[Array, Array], other: tuple[Array, Array]) -> bool:
    return all(map(np.array_equal, one, other))


def generate(bundle: Path, *arguments: object) -> tuple[Array, Array]:
    """What the command makes."""
    outputs = ("--latents-out", "latents", "--out", "frames/", "--overwrite", "--quiet")
    assert main([str(part) for part in ("generate", "--bundle", bundle, *arguments, *outputs)]) == 0
    pictures = [np.asarray(Image.open(path)) for path in sorted(Path("frames").glob("*.png"))]
    return load_file("latents")["latents"], np.stack(pictures)
