"""Checkpoints in every published format, opened as tensors that are loaded one at a time.

Which format a path holds is found out from its content. Opening checks everything that can be
checked without reading weights; loading a tensor checks that it is finite.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from longlive_trt.console.printing import quoted
from longlive_trt.errors import UsageError
from longlive_trt.export.checkpoints.components import (
    TEXT_ENCODER,
    TINY_VAE,
    TRANSFORMER,
    VAE,
    VAE_ENCODER,
    Component,
    strip_wrappers,
)
from longlive_trt.export.checkpoints.decoders import DecoderFacts, LastRows, as_stored, facts_of
from longlive_trt.export.checkpoints.files import Entries, StoredTensor, file_sha256
from longlive_trt.export.checkpoints.fit import Shapes, fit
from longlive_trt.export.checkpoints.folders import (
    TensorSet,
    open_tensors,
    require_path,
    weights_in,
)
from longlive_trt.export.checkpoints.lora import MULTIPLIERS, merge_lora, open_lora
from longlive_trt.export.checkpoints.random import RandomWeights
from longlive_trt.export.checkpoints.safetensors import write_safetensors
from longlive_trt.export.checkpoints.weights import Weights, combined_digest

__all__ = [
    "Weights",
    "encoder_width",
    "open_taehv",
    "open_text_encoder",
    "open_transformer",
    "open_vae",
    "open_vae_encoder",
    "random_weights",
    "recognized_decoder",
    "write_safetensors",
]

logger = logging.getLogger(__name__)

_PLAIN_ENTRIES = Entries(
    ("generator", "model", "state_dict"),
    advice="If these are EMA weights, ask for EMA; else give the file with the plain weights",
)
_EMA_ENTRIES = Entries(
    ("generator_ema",),
    bare=False,
    advice="It has no EMA weights: ask for the plain ones, without EMA",
)


def open_transformer(
    path: Path,
    expected: Shapes,
    *,
    lora: Path | None = None,
    lora_alpha: float | None = None,
    use_ema: bool = False,
) -> Weights:
    """The transformer, with the adapter (if any) merged in float32."""
    _require_sound_alpha(lora, lora_alpha)
    for given in filter(None, (path, lora)):
        require_path(given)
    base = _open(TRANSFORMER, path, expected, _EMA_ENTRIES if use_ema else _PLAIN_ENTRIES)
    return base if lora is None else merge_lora(base, open_lora(lora), lora_alpha)


def recognized_decoder(path: Path) -> DecoderFacts | None:
    """What a file says of its decoder, as keys of a configuration; None where it is none."""
    source = open_tensors(_weights_at(VAE, require_path(path)), _PLAIN_ENTRIES)
    shapes = {strip_wrappers(name): tensor.shape for name, tensor in source.tensors.items()}
    return facts_of(source.path, shapes)


def open_vae(path: Path, expected: Shapes) -> Weights:
    return _open(VAE, path, expected, _PLAIN_ENTRIES)


def open_vae_encoder(path: Path, expected: Shapes) -> Weights:
    return _open(VAE_ENCODER, path, expected, _PLAIN_ENTRIES)


def encoder_width(path: Path) -> int | None:
    """Of a VAE file's first encoder layer; None where it holds no encoder."""
    source = open_tensors(_weights_at(VAE_ENCODER, require_path(path)), _PLAIN_ENTRIES)
    shapes = {strip_wrappers(name): tensor.shape for name, tensor in source.tensors.items()}
    if not any(VAE_ENCODER.signature.match(name) for name in shapes):
        return None
    found = (shapes.get(name) for name in ("encoder.conv1.weight", "encoder.conv_in.weight"))
    return next((shape[0] for shape in found if shape), 0)


def open_taehv(path: Path, expected: Shapes) -> Weights:
    """A decoder that makes more frames than are wanted makes the last ones of each latent."""
    source = open_tensors(_weights_at(TINY_VAE, require_path(path)), _PLAIN_ENTRIES)
    stored = {strip_wrappers(name): tensor.shape for name, tensor in source.tensors.items()}
    return LastRows(_fitted(TINY_VAE, source, as_stored(expected, stored)), expected)


def open_text_encoder(path: Path, expected: Shapes) -> Weights:
    return _open(TEXT_ENCODER, path, expected, _PLAIN_ENTRIES)


def random_weights(expected: Shapes, seed: int) -> Weights:
    return RandomWeights(expected, seed)


class StoredWeights(Weights):
    def __init__(self, source: TensorSet, tensors: Mapping[str, StoredTensor]) -> None:
        self._source = source
        self._tensors = tensors

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def load(self, name: str) -> torch.Tensor:
        return self._tensors[name].read()

    def digest(self) -> str:
        return combined_digest(
            self._source.entry, [file_sha256(path) for path in self._source.files]
        )


def _open(component: Component, path: Path, expected: Shapes, entries: Entries) -> Weights:
    source = open_tensors(_weights_at(component, require_path(path)), entries)
    return _fitted(component, source, expected)


def _fitted(component: Component, source: TensorSet, expected: Shapes) -> Weights:
    tensors = fit(component, source, expected)
    logger.info("%s: %s, %d tensors", component.title, source.path, len(tensors))
    return StoredWeights(source, tensors)


def _weights_at(component: Component, path: Path) -> Path:
    """A model's root has one folder for each component; Wan's own has all files in one."""
    if not path.is_dir():
        return path
    inner = path / component.option.removeprefix("--").replace("-", "_")
    return weights_in(inner if inner.is_dir() else path, component.file_patterns)


def _require_sound_alpha(lora: Path | None, alpha: float | None) -> None:
    if alpha is not None and lora is None:
        raise UsageError("a LoRA alpha was given without a LoRA adapter: name the adapter too")
    if alpha is not None and alpha not in MULTIPLIERS:
        raise UsageError(
            f"the LoRA alpha must be a finite number, {MULTIPLIERS}, not {quoted(alpha)}"
        )
