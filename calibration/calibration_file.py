"""The calibration file: what was measured, on which checkpoint, from which prompts."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from longlive_trt.calibration.mixed_keys import MIXED_KEYS
from longlive_trt.calibration.modelopt import LayerRanges
from longlive_trt.calibration.recipes import recipe_named
from longlive_trt.calibration.vae.ranges import VaeRanges
from longlive_trt.calibration.values import ValueRanges, is_signed
from longlive_trt.configs import ModelConfig, TransformerConfig
from longlive_trt.console.printing import plain, quoted
from longlive_trt.contract import SMOOTHING_SCALE
from longlive_trt.errors import UsageError
from longlive_trt.files import publish_file
from longlive_trt.reading.documents import parse_json
from longlive_trt.reading.failures import ReadingError, refusing
from longlive_trt.reading.shapes import structured
from longlive_trt.reading.tensors import FLOATS, TensorHeader, read_header

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
class _Facts:
    """What the file says beside its tensors."""

    recipe: str
    origin: Origin
    layers: tuple[str, ...]
    statistics: Mapping[str, Mapping[str, float]]
    versions: Mapping[str, str]
    vae_layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Calibration:
    origin: Origin
    recipe: str
    layers: Mapping[str, LayerRanges]
    channels: Mapping[str, Tensor]
    """Largest magnitude of every input channel of a layer, and of every attention head; and what
    values have in common (``ValueRanges``)."""
    statistics: Mapping[str, Mapping[str, float]]
    """Largest, mean and least range of a layer over the videos."""
    versions: Mapping[str, str]
    vae: VaeRanges | None = None

    def head_amax(self, block: int, part: str) -> Tensor:
        return self.channels[f"blocks.{block}.self_attn.{part}_heads"]

    def values(self, block: int) -> ValueRanges | None:
        return ValueRanges.of(self.channels, f"blocks.{block}.self_attn")

    def value_amax(self, block: int) -> Tensor:
        """Of every head's values as attention in eight bits has them: around zero, if possible."""
        amax, values = self.head_amax(block, "v"), self.values(block)
        return amax if values is None else values.amax.unflatten(0, (len(amax), -1)).amax(1)

    def has_ranges(self, part: str) -> bool:
        """Of every head, in every block."""
        names = (f"blocks.{block}.self_attn.{part}_heads" for block in range(self.blocks))
        return all(name in self.channels for name in names)

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
    with refusing(UsageError, f"{path}: not a calibration file, or cut short", "calibrate again"):
        header = read_header(path)
        facts = parse_json(header.metadata.get(_METADATA, ""))
        if not isinstance(facts, dict):
            raise ReadingError("it does not say what it holds")
    file_format = facts.pop("format", None)
    if file_format != FORMAT:
        raise UsageError(
            f"{path}: of another version (format {quoted(file_format)}, expected {FORMAT}); "
            f"calibrate again"
        )
    with refusing(UsageError, f"{path}: incomplete or altered", "calibrate again"):
        return _calibration(structured(_Facts, facts), _tensors(header))


def _tensors(header: TensorHeader) -> dict[str, Tensor]:
    for name, entry in header.entries.items():
        if entry.dtype not in FLOATS:
            raise ReadingError(f"{name} holds no ranges but {entry.dtype}")
    tensors = {name: torch.from_numpy(values) for name, values in header.read_all().items()}
    for name, tensor in tensors.items():
        is_range = is_signed(name) or bool((tensor >= 0).all())
        if not (torch.isfinite(tensor).all() and is_range):
            raise ReadingError(f"{name}: ranges are finite and not negative")
    return tensors


def _calibration(facts: _Facts, tensors: Mapping[str, Tensor]) -> Calibration:
    try:
        recipe = recipe_named(facts.recipe).name
    except UsageError as error:
        raise ReadingError(str(error)) from None
    return Calibration(
        origin=facts.origin,
        recipe=recipe,
        layers={name: _ranges(name, tensors) for name in facts.layers},
        channels={
            name.removeprefix("channels."): tensor
            for name, tensor in tensors.items()
            if name.startswith("channels.")
        },
        statistics=facts.statistics,
        versions=facts.versions,
        vae=_vae_ranges(facts, tensors),
    )


def _vae_ranges(facts: _Facts, tensors: Mapping[str, Tensor]) -> VaeRanges | None:
    """Older files have none."""
    if not facts.vae_layers:
        return None
    layers = {name: _ranges(f"vae.{name}", tensors) for name in facts.vae_layers}
    return VaeRanges(facts.origin.vae, layers)


def _ranges(name: str, tensors: Mapping[str, Tensor]) -> LayerRanges:
    for kind in ("input_amax", "weight_amax"):
        if f"{kind}.{name}" not in tensors:
            raise ReadingError(f"the ranges of {plain(name)} are missing")
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
    if not calibration.has_ranges("q"):
        raise UsageError(
            "the calibration was made before the ranges of queries were kept, which attention in "
            "fp8 needs; calibrate again, or leave --attention out"
        )


def require_mixed_ranges(calibration: Calibration) -> None:
    """What attention in int8 needs, and calibrations of earlier versions have not."""
    if calibration.has_ranges(MIXED_KEYS) and calibration.values(0) is not None:
        return
    precision = recipe_named(calibration.recipe).format.name
    raise UsageError(
        f"the calibration was made before attention in int8, and has no ranges of its keys; make "
        f"another: longlive-trt calibrate --onnx EXPORT --precision {precision} --attention int8 "
        f"--out QUANTIZED, without --calibration; or take --attention fp8"
    )


def _require_whole(calibration: Calibration, path: Path, config: TransformerConfig) -> None:
    heads = [f"blocks.{i}.self_attn.{part}_heads" for i in range(config.layers) for part in "kv"]
    missing = [name for name in (*calibration.layers, *heads) if name not in calibration.channels]
    if missing:
        raise UsageError(f"{path}: no ranges of {missing[0]} inside; calibrate again")
