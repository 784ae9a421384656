"""The demo's weights as they come with the package: found, and held against their hashes."""

from pathlib import Path

from longlive_trt.demo.geometry import WEIGHTS
from longlive_trt.errors import CheckpointError
from longlive_trt.files import sha256_file

SUMS = "SHA256SUMS"


def weights_path(name: str, folder: Path = WEIGHTS) -> Path:
    """One file of weights, after a look at its hash."""
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights; they come with the package")
    known = dict(line.split()[::-1] for line in (folder / SUMS).read_text().splitlines())
    if sha256_file(path) != known.get(path.name):
        raise CheckpointError(
            f"{path}: not the weights that {SUMS} lists; install the package again"
        )
    return path


def write_sums(folder: Path) -> None:
    lines = [f"{sha256_file(path)}  {path.name}\n" for path in sorted(folder.glob("*.safetensors"))]
    (folder / SUMS).write_text("".join(lines))
