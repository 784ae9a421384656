"""A flow or distillation leg's checkpoint as a model, and as the weights that are shipped."""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from longlive_trt.configs import ModelConfig
from longlive_trt.demo.generator import Generator
from longlive_trt.demo.geometry import WEIGHTS, model_config
from longlive_trt.demo.shipped import write_sums
from longlive_trt.demo.training.flow import takes_muon
from longlive_trt.demo.training.legs import load_state, save_state
from longlive_trt.demo.training.optimizer import MuonAdam


def load_generator(state: Path, device: torch.device, config: ModelConfig) -> Generator:
    """The running average of a leg's weights."""
    model = Generator(config).to(device)
    optimizer = MuonAdam(model, takes_muon, 0.0, 0.0)
    optimizer.load(load_state(state, device)["optimizer"])
    optimizer.swap_average()
    return model.eval().requires_grad_(False)


def slim(state: Path, to: Path) -> None:
    """The running average in place of the weights: half the size, and as good to go on from."""
    kept = load_state(state, torch.device("cpu"))
    del kept["optimizer"]["values"]
    save_state(to, kept)


def ship(model: Generator, folder: Path) -> None:
    """Write transformer and text encoder in halves, and the hashes of all files there."""
    for name, part in (("transformer", model.transformer), ("text_encoder", model.text)):
        halves = {k: v.half().contiguous().cpu() for k, v in part.state_dict().items()}
        save_file(halves, folder / f"{name}.safetensors")
    write_sums(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ship a checkpoint's weights.")
    parser.add_argument("state", type=Path)
    parser.add_argument("--folder", type=Path, default=WEIGHTS)
    parser.add_argument("--slim", type=Path, help="write a checkpoint of half the size instead")
    arguments = parser.parse_args()
    if arguments.slim is not None:
        slim(arguments.state, arguments.slim)
        return
    ship(load_generator(arguments.state, torch.device("cpu"), model_config()), arguments.folder)


if __name__ == "__main__":
    main()
