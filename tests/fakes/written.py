"""A small decoder's graphs as they are written for a GPU, whole and in parts, run on a CPU."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from longlive_trt.configs import ModelConfig, VaeConfig
from longlive_trt.configs.schema import LatentConfig
from longlive_trt.contract import BASE_GRAPHS, TILE_GRAPHS, VAE, VAE_GRAPHS
from longlive_trt.engines.build import build
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.compiler import BuildOptions
from longlive_trt.engines.graphs.vae import build_vae_graphs
from longlive_trt.engines.renewal import renewable
from longlive_trt.exports import RECORD_NAME, ExportRecord, graph_info
from longlive_trt.precision import PRECISIONS
from longlive_trt.runtime.decoding.host import VaeStream
from longlive_trt.runtime.decoding.tiled import Part, TiledStream
from tests.fakes.decoders import StateWeights, seeded_decoder, stored
from tests.fakes.sessions import KernelEngine
from tests.fakes.streams import make_latents

Array = np.ndarray[Any, np.dtype[Any]]
FP16 = PRECISIONS["fp16"]
SIZE = (8, 16)
PARTS = {*BASE_GRAPHS[VAE], *TILE_GRAPHS[VAE]}
TWO = VaeConfig(
    dim=16, multipliers=(1, 1, 1), res_blocks=1, temporal_upsample=(True, True), tiles=True
)
THREE = replace(TWO, multipliers=(1, 1, 1, 1), temporal_upsample=(True, False, True))


class Written:
    """All graphs of one decoder as engines."""

    def __init__(self, vae: VaeConfig, folder: Path, batch: int = 1) -> None:
        size = LatentConfig(height=SIZE[0], width=SIZE[1])
        self.config, self.vae, self.batch = (
            ModelConfig(name="tiled", latent=size, vae=vae),
            vae,
            batch,
        )
        weights = StateWeights(seeded_decoder(vae))
        exported, self.folder = stored(weights, folder / "export"), folder / "graphs"
        self.folder.mkdir()
        build_vae_graphs(self.config, exported, FP16, self.folder, batch=batch, tiles=True)
        pairs = (VAE_GRAPHS, BASE_GRAPHS[VAE], TILE_GRAPHS[VAE])
        self.engines = {
            name: KernelEngine(self.folder / f"{name}.onnx") for pair in pairs for name in pair
        }

    def whole(self, output: str = "frames") -> VaeStream:
        first, following = (self.engines[name] for name in VAE_GRAPHS)
        return VaeStream(first, following, self.batch, output)

    def tiled(self, core: int, output: str = "frames") -> TiledStream:
        base, tile = (
            Part(self.engines[first], self.engines[following], self.in_place(following))
            for first, following in (BASE_GRAPHS[VAE], TILE_GRAPHS[VAE])
        )
        return TiledStream(base, tile, self.vae, self.batch, output, latents=SIZE, core=core)

    def in_place(self, graph: str) -> frozenset[str]:
        return renewable(ir.load(self.folder / f"{graph}.onnx"))

    def latents(self, frames: int) -> Array:
        return np.asarray(make_latents(self.config, frames, self.batch))


def exported(folder: Path, vae: VaeConfig, size: tuple[int, int]) -> Path:
    """An export as far as this compiler reads it: weights, and what its record says."""
    latent = LatentConfig(height=size[0], width=size[1])
    config = ModelConfig(name="tiled", latent=latent, vae=vae)
    stored(StateWeights(seeded_decoder(vae)), folder)
    for name in {*VAE_GRAPHS, *PARTS}:
        path, (inputs, outputs) = folder / f"{name}.onnx", _described(config, name)
        graph = ir.Graph([], [], nodes=[], name=name, opset_imports={"": 22})
        model = ir.load(path) if path.exists() else ir.Model(graph, ir_version=10)
        model.graph.inputs.extend(inputs)
        model.graph.outputs.extend(outputs)
        ir.save(model, path)
    paths = sorted(folder.iterdir())
    graphs = {p.stem: graph_info(ir.load(p)) for p in paths if p.suffix == ".onnx"}
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    record = ExportRecord("fp32", config, {VAE: "seeded"}, graphs, files, {})
    (folder / RECORD_NAME).write_text(record.to_json())
    return folder


def _described(config: ModelConfig, graph: str) -> tuple[list[ir.Value], list[ir.Value]]:
    """Inputs and outputs, as far as a manifest is checked for them."""
    assert config.video_size is not None
    inputs, outputs = [], []
    if graph not in TILE_GRAPHS[VAE]:
        inputs.append(_value("latents", ["batch", "latent_frames", *config.latent_shape]))
    if graph in VAE_GRAPHS:
        frames = 1 if graph == VAE_GRAPHS[0] else "4*latent_frames"
        outputs.append(_value("pixels", ["batch", frames, *config.video_size, 3]))
    return inputs, outputs


def _value(name: str, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def built(folder: Path, vae: VaeConfig, size: tuple[int, int], gpu: str = "sm90") -> Bundle:
    source = exported(folder / "export", vae, size)
    build(source, folder / "bundle", "fp16", options=BuildOptions(gpu=gpu))
    return open_bundle(folder / "bundle")
