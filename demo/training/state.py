"""A flow or distillation leg's checkpoint as a model, and as the weights that are shipped."""

import argparse
import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from longlive_trt.demo.generator import Generator
from longlive_trt.demo.geometry import WEIGHTS, model_config
from longlive_trt.demo.training.flow import takes_muon
from longlive_trt.demo.training.legs import load_state
from longlive_trt.demo.training.optimizer import MuonAdam
from longlive_trt.errors import CheckpointError

SUMS = "SHA256SUMS"


def load_generator(state: Path, device: torch.device) -> Generator:
    """The running average of a leg's weights."""
    model = Generator(model_config()).to(device)
    optimizer = MuonAdam(model, takes_muon, 0.0, 0.0)
    optimizer.load(load_state(state, device)["optimizer"])
    optimizer.swap_average()
    return model.eval().requires_grad_(False)


def ship(model: Generator, folder: Path) -> None:
    """Write transformer and text encoder in halves, and everything's hashes."""
    for name, part in (("transformer", model.transformer), ("text_encoder", model.text)):
        weights = {k: v.half().contiguous().cpu() for k, v in part.state_dict().items()}
        save_file(weights, folder / f"{name}.safetensors")
    lines = [f"{_digest(path)}  {path.name}" for path in sorted(folder.glob("*.safetensors"))]
    (folder / SUMS).write_text("\n".join(lines) + "\n")


def shipped_weights(name: str, folder: Path = WEIGHTS) -> dict[str, torch.Tensor]:
    """One file's tensors, after a look at its hash."""
    path = folder / f"{name}.safetensors"
    known = dict(line.split()[::-1] for line in (folder / SUMS).read_text().splitlines())
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights; they come with the package")
    if _digest(path) != known.get(path.name):
        raise CheckpointError(
            f"{path}: not the weights that {folder / SUMS} lists; fetch the file again"
        )
    return load_file(path)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Ship a checkpoint's weights.")
    parser.add_argument("state", type=Path)
    parser.add_argument("--folder", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    ship(load_generator(arguments.state, torch.device("cpu")), arguments.folder)


if __name__ == "__main__":
    main()
