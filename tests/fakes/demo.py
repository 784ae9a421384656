"""The demo model with weights that have learned nothing."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from longlive_trt.demo.assembly import FILE_OF
from longlive_trt.demo.geometry import model_config
from longlive_trt.demo.shipped import write_sums
from longlive_trt.export.components import Sources, components


def write_weights(folder: Path) -> None:
    folder.mkdir()
    files: dict[str, dict[str, torch.Tensor]] = {}
    for part in components(model_config(), Sources(random_seed=5)):
        halves = {name: part.weights.load(name).to(torch.float16) for name in part.weights.names}
        files.setdefault(FILE_OF.get(part.name, part.name), {}).update(halves)
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
    write_sums(folder)
