"""Graphs of Wan's decoder computed by torch: tracing takes far longer than running them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from longlive_trt.configs import ModelConfig, VaeConfig
from longlive_trt.contract import (
    BASE_GRAPHS,
    FEATURES,
    FRAMES,
    HISTORY,
    TILE_GRAPHS,
    TILE_HEIGHT,
    TILE_WIDTH,
    VAE,
    VAE_GRAPHS,
    multiple_of,
    next_of,
    stem_of,
)
from longlive_trt.engines.base import TensorSpec, TensorTable
from longlive_trt.export.components import vae_specs
from longlive_trt.export.models.vae import VaeDecoder
from longlive_trt.export.tiles import tile_specs
from longlive_trt.export.tracing import GraphSpec, Size, flat_inputs

Run = Callable[[torch.Tensor, Sequence[torch.Tensor] | None], tuple[torch.Tensor, Any]]


def torch_engines(config: ModelConfig) -> dict[str, "TorchEngine"]:
    """By their graphs' names; random weights."""
    vae = config.vae
    assert isinstance(vae, VaeConfig) and config.video_size is not None
    torch.manual_seed(0)
    model = VaeDecoder(vae).eval().requires_grad_(False)
    tiles = tile_specs(config, VAE)
    specs = {spec.name: spec for spec in (*vae_specs(config), *tiles)}
    scale = 2**vae.tiled_doublings
    of_tile = multiple_of(TILE_HEIGHT, scale), multiple_of(TILE_WIDTH, scale)
    features = [flat_inputs(specs[name].inputs)[0].shape for name in TILE_GRAPHS[VAE]]
    # A base's features are a tile that is the whole frame.
    sides = [side * vae.spatial_factor // scale for side in config.latent.size]
    counts = (1, vae.feature_frames)
    whole = [(*shape[:2], n, *sides) for shape, n in zip(features, counts, strict=True)]
    after = vae.temporal_factor

    def frames(height: int | str, width: int | str) -> list[tuple[int | str, ...]]:
        return [("batch", count, 3, height, width) for count in (1, after)]

    def decode(latents: torch.Tensor, caches: Any) -> tuple[torch.Tensor, Any]:
        return model.decode_next(latents, caches) if caches else model.decode_first(latents)

    return {
        name: TorchEngine(specs[name], run, {output: shape})
        for names, run, output, shapes in (
            (VAE_GRAPHS, decode, FRAMES, frames(*config.video_size)),
            (BASE_GRAPHS[VAE], model.base, FEATURES, whole),
            (TILE_GRAPHS[VAE], model.rest, FRAMES, frames(*of_tile)),
        )
        for name, shape in zip(names, shapes, strict=True)
    }


class TorchEngine(TensorTable):
    def __init__(
        self, spec: GraphSpec, run: Run, outputs: Mapping[str, tuple[int | str, ...]]
    ) -> None:
        self.name, self._run = spec.name, run
        self._inputs = {i.name: _spec(i.name, _plain(i.shape)) for i in flat_inputs(spec.inputs)}
        self._outputs = {name: _spec(name, shape) for name, shape in outputs.items()}

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> "_Binding":
        self._require_inputs(inputs)
        return _Binding(self._run, inputs, outputs)

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class _Binding:
    _run: Run
    _inputs: Mapping[str, Any]
    _outputs: Mapping[str, Any]

    def run(self) -> None:
        tensors = {name: torch.from_numpy(array) for name, array in self._inputs.items()}
        histories = sorted(
            (name for name in tensors if stem_of(name) == HISTORY),
            key=lambda name: int(name.rpartition(".")[2]),
        )
        (given,) = (tensor for name, tensor in tensors.items() if name not in histories)
        made, renewed = self._run(given, [tensors[name] for name in histories] or None)
        for name, array in self._outputs.items():
            if not stem_of(name):
                array[...] = (made.clamp(-1, 1) if name == FRAMES else made).numpy()
        for number, cache in enumerate(renewed):
            self._outputs[next_of(f"{HISTORY}.{number}")][...] = cache.numpy()


def _spec(name: str, shape: tuple[int | str, ...]) -> TensorSpec:
    return TensorSpec(name, np.dtype(np.float32), shape)


def _plain(shape: Sequence[Size]) -> tuple[int | str, ...]:
    return tuple(multiple_of(s[1], s[0]) if isinstance(s, tuple) else s for s in shape)
