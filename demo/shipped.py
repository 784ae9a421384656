"""The demo's weights as they come with the package, and how they are written."""

import hashlib
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from longlive_trt.demo.generator import Generator
from longlive_trt.demo.geometry import WEIGHTS
from longlive_trt.errors import CheckpointError

SUMS = "SHA256SUMS"


def weights(name: str, folder: Path = WEIGHTS) -> dict[str, Tensor]:
    """One file's tensors, after a look at its hash."""
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights; they come with the package")
    known = dict(line.split()[::-1] for line in (folder / SUMS).read_text().splitlines())
    if _digest(path) != known.get(path.name):
        raise CheckpointError(f"{path}: not the weights that {SUMS} lists; fetch the file again")
    return load_file(path)


def ship(model: Generator, folder: Path) -> None:
    """Write transformer and text encoder in halves, and the hashes of all files there."""
    for name, part in (("transformer", model.transformer), ("text_encoder", model.text)):
        halves = {k: v.half().contiguous().cpu() for k, v in part.state_dict().items()}
        save_file(halves, folder / f"{name}.safetensors")
    write_sums(folder)


def write_sums(folder: Path) -> None:
    lines = [f"{_digest(path)}  {path.name}\n" for path in sorted(folder.glob("*.safetensors"))]
    (folder / SUMS).write_text("".join(lines))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
