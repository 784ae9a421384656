"""LoRA adapters: read, checked against the model, and merged in float32 while loading."""

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longlive_trt.console.printing import quoted
from longlive_trt.errors import CheckpointError
from longlive_trt.export.checkpoints.components import recognize, strip_wrappers
from longlive_trt.export.checkpoints.files import (
    Entries,
    StoredTensor,
    file_sha256,
    quoted_names,
    require_finite,
)
from longlive_trt.export.checkpoints.fit import Shapes, format_problems
from longlive_trt.export.checkpoints.folders import TensorSet, open_tensors, weights_in
from longlive_trt.export.checkpoints.weights import Weights, combined_digest
from longlive_trt.reading.documents import JSON_BYTES, parse_json
from longlive_trt.reading.failures import ReadingError, refusing
from longlive_trt.reading.files import read_bytes
from longlive_trt.reading.ranges import Range

logger = logging.getLogger(__name__)

_ENTRIES = Entries(("generator_lora",), advice="An adapter has tensors named *.lora_A.weight")
_FILE_PATTERNS = ("adapter_model.*", "lora.*")
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
MULTIPLIERS = Range(-1e6, 1e6)
"""Of an adapter: its alpha, and its rank."""
_UNSUPPORTED_SETTINGS = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern")


@dataclass(frozen=True)
class LoraPair:
    a: StoredTensor
    b: StoredTensor
    scale: float

    def merged_into(self, weight: torch.Tensor) -> torch.Tensor:
        a, b = self.a.read().float(), self.b.read().float()
        return torch.addmm(weight.float(), b, a, alpha=self.scale)


@dataclass(frozen=True)
class _Settings:
    rank: float | None
    alpha: float | None
    alpha_source: str


class MergedWeights(Weights):
    def __init__(self, base: Weights, pairs: Mapping[str, LoraPair], files: tuple[Path, ...]):
        self._base = base
        self._pairs = pairs
        self._files = files
        self.adapted_modules = tuple(pairs)

    @property
    def names(self) -> tuple[str, ...]:
        return self._base.names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32 if self._pair(name) else self._base.dtype(name)

    def load(self, name: str) -> torch.Tensor:
        weight, pair = self._base.load(name), self._pair(name)
        if pair is None:
            return weight
        merged = pair.merged_into(weight)
        require_finite(merged, f"{name} with its LoRA adapter")
        return merged

    def digest(self) -> str:
        scales = {module: pair.scale for module, pair in self._pairs.items()}
        return combined_digest(self._base.digest(), [file_sha256(f) for f in self._files], scales)

    def _pair(self, name: str) -> LoraPair | None:
        return self._pairs.get(name.removesuffix(".weight")) if name.endswith(".weight") else None


def open_lora(path: Path) -> TensorSet:
    return open_tensors(weights_in(path, _FILE_PATTERNS) if path.is_dir() else path, _ENTRIES)


def merge_lora(base: Weights, lora: TensorSet, alpha: float | None) -> MergedWeights:
    settings = _settings(lora, alpha)
    sides = _pair_up(lora)
    shapes = {name: base.shape(name) for name in base.names}
    _require_fit(lora, sides, shapes, settings.rank)
    pairs = {module: _pair(*sides[module], settings) for module in sides}
    _report(lora, pairs, settings)
    return MergedWeights(base, pairs, lora.files)


def _settings(lora: TensorSet, alpha: float | None) -> _Settings:
    config = _adapter_config(lora.path)
    rank = _number(lora, config.get("r", lora.metadata.get("rank")), "rank")
    for value, source in (
        (alpha, "the option"),
        (config.get("lora_alpha"), "adapter_config.json"),
        (lora.metadata.get("alpha"), "the file's metadata"),
    ):
        if value is not None:
            return _Settings(rank, _number(lora, value, "alpha"), source)
    return _Settings(rank, None, "none is given, so the rank")


def _adapter_config(weights: Path) -> dict[str, Any]:
    path = weights.with_name("adapter_config.json")
    if not weights.name.startswith("adapter_model") or not path.is_file():
        return {}
    with refusing(CheckpointError, f"{path} is not a JSON object", "get the adapter again"):
        config = parse_json(read_bytes(path, JSON_BYTES))
        if not isinstance(config, dict):
            raise ReadingError(f"it holds a {type(config).__name__}")
    used = [name for name in _UNSUPPORTED_SETTINGS if config.get(name)]
    if used:
        raise CheckpointError(
            f"{path} sets {quoted_names(used)}, which changes what the adapter does: "
            "only plain LoRA can be merged"
        )
    return config


def _number(lora: TensorSet, value: object, what: str) -> float | None:
    if value is None:
        return None
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise CheckpointError(f"{lora.path}: the {what} {quoted(value)} is not a number")
    if number not in MULTIPLIERS:
        raise CheckpointError(f"{lora.path}: the {what} is {quoted(value)}; allowed: {MULTIPLIERS}")
    return number


def _pair_up(lora: TensorSet) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    sides: dict[str, dict[str, StoredTensor]] = {}
    problems: dict[str, str] = {}
    for raw, tensor in lora.tensors.items():
        found = _KEY.fullmatch(_module_key(raw))
        if found is None or found["side"] in sides.get(found["module"], {}):
            problems[raw] = "a second adapter" if found else "not a LoRA tensor"
        else:
            sides.setdefault(found["module"], {})[found["side"]] = tensor
    problems |= {m: f"has lora_{next(iter(s))} only" for m, s in sides.items() if len(s) == 1}
    if problems or not sides:
        raise CheckpointError(_not_an_adapter(lora, problems))
    return {module: (found["A"], found["B"]) for module, found in sides.items()}


def _module_key(raw: str) -> str:
    return strip_wrappers(raw.removeprefix("base_model."))


def _not_an_adapter(lora: TensorSet, problems: Mapping[str, str]) -> str:
    what = recognize(lora.tensors)
    other = f"It is {what}" if what and "LoRA" not in what else ""
    summary = f"{lora.path} is no usable LoRA adapter; entries not as expected: {len(problems)}"
    return "\n".join(filter(None, [summary, format_problems(problems), other]))


def _require_fit(
    lora: TensorSet,
    sides: Mapping[str, tuple[StoredTensor, StoredTensor]],
    shapes: Shapes,
    rank: float | None,
) -> None:
    checked = {module: _problem(*pair, shapes, module, rank) for module, pair in sides.items()}
    problems = {module: problem for module, problem in checked.items() if problem}
    if problems:
        raise CheckpointError(
            f"{lora.path} does not fit the transformer; modules that differ: {len(problems)} of "
            f"{len(sides)}\n{format_problems(problems)}\nUse an adapter trained on this model"
        )


def _problem(
    a: StoredTensor, b: StoredTensor, shapes: Shapes, module: str, rank: float | None
) -> str | None:
    weight = shapes.get(f"{module}.weight")
    if weight is None:
        return "the model has no such module"
    if len(weight) != 2 or len(a.shape) != 2 or len(b.shape) != 2:
        return f"only matrices can be adapted, the weight is {list(weight)}"
    if a.shape[0] != b.shape[1] or a.shape[0] == 0:
        return f"lora_A is of rank {a.shape[0]}, lora_B of rank {b.shape[1]}"
    if rank is not None and a.shape[0] != rank:
        return f"is of rank {a.shape[0]}, but the adapter's settings say {rank:g}"
    if (b.shape[0], a.shape[1]) != tuple(weight):
        return f"made for a weight of {[b.shape[0], a.shape[1]]}, the model's is {list(weight)}"
    if not (a.dtype.is_floating_point and b.dtype.is_floating_point):
        return "holds whole numbers, not weights"
    return None


def _pair(a: StoredTensor, b: StoredTensor, settings: _Settings) -> LoraPair:
    rank = a.shape[0]
    return LoraPair(a, b, 1.0 if settings.alpha is None else settings.alpha / rank)


def _report(lora: TensorSet, pairs: Mapping[str, LoraPair], settings: _Settings) -> None:
    kinds = sorted({re.sub(r"\.\d+\.", ".*.", module, count=1) for module in pairs})
    logger.info(
        "%s: rank %s, alpha from %s, scale %s; %d modules adapted: %s",
        lora.path,
        _span({pair.a.shape[0] for pair in pairs.values()}),
        settings.alpha_source,
        _span({pair.scale for pair in pairs.values()}),
        len(pairs),
        ", ".join(kinds),
    )


def _span(values: set[float]) -> str:
    return " to ".join(f"{value:g}" for value in sorted({min(values), max(values)}))
