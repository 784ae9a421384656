"""The demo's export, put together from what is shipped: graphs without weights, and weights.

It is what ``longlive-trt export`` makes of the same weights, byte for byte, and needs no torch.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from safetensors import safe_open

from longlive_trt.contract import (
    COMPONENT_OF,
    ONNX_SUFFIX,
    TRANSPOSED_KEY,
    VAE,
    VAE_ENCODER,
    weight_prefix,
)
from longlive_trt.contract import weights_file as file_of
from longlive_trt.demo.geometry import WEIGHTS
from longlive_trt.demo.shipped import weights_path
from longlive_trt.errors import CheckpointError
from longlive_trt.exports import RECORD_NAME, ExportRecord, check_hashes, read_export
from longlive_trt.files import sha256_file

GRAPHS = Path(__file__).with_name("onnx")
FILE_OF = {VAE_ENCODER: VAE}
"""Whose weights hold those of a component that has no file of its own."""


@dataclass(frozen=True)
class _Place:
    """Where a graph looks for a tensor in its component's file."""

    position: int
    shape: tuple[int, ...]
    is_transposed: bool


def assemble(folder: Path, *, graphs: Path = GRAPHS, weights: Path = WEIGHTS) -> None:
    """Fill an empty folder."""
    record = read_export(graphs)
    check_hashes(graphs, record)
    for name in record.files:
        shutil.copyfile(graphs / name, folder / name)
    checkpoints = {}
    for component in sorted({COMPONENT_OF[graph] for graph in record.graphs}):
        source = weights_path(FILE_OF.get(component, component), weights)
        checkpoints[component] = sha256_file(source)
        _write(source, _places(record, graphs, component), folder / file_of(component))
    files = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
    whole = replace(record, checkpoints=checkpoints, files=files)
    (folder / RECORD_NAME).write_text(whole.to_json(), encoding="utf-8")


def _places(record: ExportRecord, graphs: Path, component: str) -> dict[str, _Place]:
    """Of the component's tensors, by their names in the checkpoint."""
    places: dict[str, _Place] = {}
    for graph in record.graphs:
        if COMPONENT_OF[graph] == component:
            model = onnx.load(graphs / f"{graph}{ONNX_SUFFIX}", load_external_data=False)
            places |= _places_in(model, component)
    return places


def _places_in(model: onnx.ModelProto, component: str) -> dict[str, _Place]:
    said = {entry.key: entry.value for entry in model.metadata_props}
    transposed = set(json.loads(said[TRANSPOSED_KEY]))
    places = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            stored = {entry.key: entry.value for entry in tensor.external_data}
            name = tensor.name.removeprefix(weight_prefix(component))
            shape = tuple(tensor.dims)
            places[name] = _Place(int(stored["offset"]), shape, name in transposed)
    return places


def _write(source: Path, places: Mapping[str, _Place], target: Path) -> None:
    with safe_open(source, "np") as tensors, target.open("wb") as file:
        for name, place in places.items():
            tensor = tensors.get_tensor(name).astype(np.float32)
            stored = np.ascontiguousarray(tensor.T if place.is_transposed else tensor)
            if stored.shape != place.shape:
                raise CheckpointError(
                    f"{source}: {name} is {list(tensor.shape)}, and the graphs in {GRAPHS} are for "
                    "another model; make them anew: python -m longlive_trt.making.demo"
                )
            file.seek(place.position)
            file.write(stored.data)
