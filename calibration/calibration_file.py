"""The calibration file: what was measured, on which checkpoint, from which prompts."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from longlive_trt.calibration.modelopt import LayerRanges
from longlive_trt.calibration.recipes import recipe_named
from longlive_trt.calibration.vae.ranges import VaeRanges
from longlive_trt.configs import ModelConfig, TransformerConfig
from longlive_trt.contract import SMOOTHING_SCALE
from longlive_trt.errors import UsageError
from longlive_trt.files import publish_file

FORMAT = 1
_METADATA = "longlive_calibration"
FILE_NAME = "calibration.safetensors"


@dataclass(frozen=True)
class Origin:
    """What decides a calibration's numbers, but for the code."""

    checkpoint: str
    transformer: str
    """Hash of the transformer's configuration."""
    rollout: str
    prompts: str
    videos: int
    blocks: int
    seed: int
    compute: str
    text_states: str
    """``encoder``, or ``synthetic`` for a model without one."""
    vae: str = ""
    """Digest of the VAE's checkpoint, where its convolutions were watched too."""


@dataclass(frozen=True)
class Calibration:
    origin: Origin
    recipe: str
    layers: Mapping[str, LayerRanges]
    channels: Mapping[str, Tensor]
    """Largest magnitude of every input channel of a layer, and of every attention head."""
    statistics: Mapping[str, Mapping[str, float]]
    """Largest, mean and least range of a layer over the videos."""
    versions: Mapping[str, str]
    vae: VaeRanges | None = None

    def head_amax(self, block: int, part: str) -> Tensor:
        return self.channels[f"blocks.{block}.self_attn.{part}_heads"]

    @property
    def has_query_ranges(self) -> bool:
        return all(
            f"blocks.{block}.self_attn.q_heads" in self.channels for block in range(self.blocks)
        )

    @property
    def blocks(self) -> int:
        return sum(name.endswith(".self_attn.k_heads") for name in self.channels)

    def to_bytes(self) -> bytes:
        tensors = {f"channels.{name}": tensor for name, tensor in self.channels.items()}
        vae = self.vae.layers if self.vae else {}
        layers = {**self.layers, **{f"vae.{name}": ranges for name, ranges in vae.items()}}
        for name, ranges in layers.items():
            for key, value in vars(ranges).items():
                if value is not None:
                    tensors[f"{key}.{name}"] = value
        facts = {
            "format": FORMAT,
            "recipe": self.recipe,
            "origin": asdict(self.origin),
            "layers": list(self.layers),
            "vae_layers": list(vae),
            "statistics": self.statistics,
            "versions": self.versions,
        }
        # One entry, because several would be written in a random order.
        metadata = {_METADATA: json.dumps(facts, sort_keys=True)}
        return save({name: value.contiguous() for name, value in tensors.items()}, metadata)

    def sha256(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()


def value_hash(config: object) -> str:
    values = asdict(config)  # type: ignore[call-overload]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def save_calibration(calibration: Calibration, path: Path) -> None:
    with publish_file(path) as partial:
        partial.write_bytes(calibration.to_bytes())


def load_calibration(path: Path) -> Calibration:
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give one that `longlive-trt calibrate` made")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        raise UsageError(f"{path}: not a calibration file, or cut short; calibrate again") from None
    try:
        facts = json.loads(metadata[_METADATA])
        file_format = facts["format"]
    except (KeyError, ValueError, TypeError):
        raise UsageError(f"{path}: not a calibration file; calibrate again") from None
    if file_format != FORMAT:
        raise UsageError(
            f"{path}: of another version (format {file_format}, expected {FORMAT}); calibrate again"
        )
    try:
        return _calibration(facts, tensors)
    except (KeyError, ValueError, TypeError, AttributeError, UsageError):
        raise UsageError(f"{path}: incomplete or altered; calibrate again") from None


def _calibration(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Calibration:
    for tensor in tensors.values():
        if not (torch.isfinite(tensor).all() and (tensor >= 0).all()):
            raise ValueError("ranges are finite and not negative")
    return Calibration(
        origin=Origin(**facts["origin"]),
        recipe=recipe_named(facts["recipe"]).name,
        layers={name: _ranges(name, tensors) for name in facts["layers"]},
        channels={
            name.removeprefix("channels."): tensor
            for name, tensor in tensors.items()
            if name.startswith("channels.")
        },
        statistics=facts["statistics"],
        versions=facts["versions"],
        vae=_vae_ranges(facts, tensors),
    )


def _vae_ranges(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> VaeRanges | None:
    """Older files have none."""
    names = facts.get("vae_layers", [])
    if not names:
        return None
    layers = {name: _ranges(f"vae.{name}", tensors) for name in names}
    return VaeRanges(facts["origin"]["vae"], layers)


def _ranges(name: str, tensors: Mapping[str, Tensor]) -> LayerRanges:
    return LayerRanges(
        tensors[f"input_amax.{name}"],
        tensors[f"weight_amax.{name}"],
        tensors.get(f"{SMOOTHING_SCALE}.{name}"),
    )


def require_fit(
    calibration: Calibration, path: Path, config: ModelConfig, checkpoint: str, precision: str
) -> None:
    """Refuse a calibration of another model, checkpoint or precision."""
    origin = calibration.origin
    calibrated = recipe_named(calibration.recipe).format.name
    if origin.transformer != value_hash(config.transformer):
        raise UsageError(
            f"{path}: made for a transformer of another shape than {config.name}; "
            f"calibrate this model"
        )
    if origin.checkpoint != checkpoint:
        raise UsageError(
            f"{path}: made for another checkpoint (digest {origin.checkpoint[:12]}, this one has "
            f"{checkpoint[:12]}); calibrate this checkpoint"
        )
    if calibrated != precision:
        raise UsageError(
            f"{path}: made for {calibrated} ({calibration.recipe}), and {precision} was asked for; "
            f"ask for {calibrated}, or calibrate for {precision}"
        )
    _require_whole(calibration, path, config.transformer)


def require_query_ranges(calibration: Calibration) -> None:
    """Calibrations of earlier versions watched keys and values only."""
    if not calibration.has_query_ranges:
        raise UsageError(
            "the calibration was made before the ranges of queries were kept, which attention in "
            "fp8 needs; calibrate again, or leave --attention out"
        )


def _require_whole(calibration: Calibration, path: Path, config: TransformerConfig) -> None:
    heads = [f"blocks.{i}.self_attn.{part}_heads" for i in range(config.layers) for part in "kv"]
    missing = [name for name in (*calibration.layers, *heads) if name not in calibration.channels]
    if missing:
        raise UsageError(f"{path}: no ranges of {missing[0]} inside; calibrate again")
