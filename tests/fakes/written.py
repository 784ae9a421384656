"""A small decoder's graphs as they are written for a GPU, whole and in parts, run on a CPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from longlive_trt.configs import ModelConfig, VaeConfig
from longlive_trt.configs.schema import LatentConfig
from longlive_trt.contract import BASE_GRAPHS, TILE_GRAPHS, VAE, VAE_GRAPHS
from longlive_trt.engines.graphs.vae import build_vae_graphs
from longlive_trt.engines.renewal import renewable
from longlive_trt.precision import PRECISIONS
from longlive_trt.runtime.decoding.host import VaeStream
from longlive_trt.runtime.decoding.tiled import Part, TiledStream
from tests.fakes.decoders import StateWeights, seeded_decoder, stored
from tests.fakes.sessions import KernelEngine
from tests.fakes.streams import make_latents

Array = np.ndarray[Any, np.dtype[Any]]
FP16 = PRECISIONS["fp16"]
SIZE = (8, 16)
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
