"""LoRA adapters in a checkpoint's files, and merged in float32 while loading."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from longlive_trt.adapters import (
    FILE_PATTERNS,
    AdapterSource,
    Pair,
    Settings,
    pair_up,
)
from longlive_trt.adapters import MULTIPLIERS as MULTIPLIERS
from longlive_trt.export.checkpoints.components import recognize
from longlive_trt.export.checkpoints.files import (
    Entries,
    StoredTensor,
    file_sha256,
    require_finite,
)
from longlive_trt.export.checkpoints.folders import TensorSet, open_tensors, weights_in
from longlive_trt.export.checkpoints.weights import Weights, combined_digest

logger = logging.getLogger(__name__)

_ENTRIES = Entries(("generator_lora",), advice="An adapter has tensors named *.lora_A.weight")


@dataclass(frozen=True)
class _StoredSide:
    tensor: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def is_floating_point(self) -> bool:
        return self.tensor.dtype.is_floating_point

    def read(self) -> torch.Tensor:
        return self.tensor.read().float()


LoraPair = Pair[_StoredSide]


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
        merged = torch.addmm(weight.float(), pair.b.read(), pair.a.read(), alpha=pair.scale)
        require_finite(merged, f"{name} with its LoRA adapter")
        return merged

    def digest(self) -> str:
        scales = {module: pair.scale for module, pair in self._pairs.items()}
        return combined_digest(self._base.digest(), [file_sha256(f) for f in self._files], scales)

    def _pair(self, name: str) -> LoraPair | None:
        return self._pairs.get(name.removesuffix(".weight")) if name.endswith(".weight") else None


def open_lora(path: Path) -> TensorSet:
    return open_tensors(weights_in(path, FILE_PATTERNS) if path.is_dir() else path, _ENTRIES)


def merge_lora(base: Weights, lora: TensorSet, alpha: float | None) -> MergedWeights:
    sides = {name: _StoredSide(tensor) for name, tensor in lora.tensors.items()}
    shapes = {name: base.shape(name) for name in base.names}
    source = AdapterSource(lora.path, sides, lora.metadata)
    pairs, settings = pair_up(source, shapes, alpha, recognize)
    _report(lora, pairs, settings)
    return MergedWeights(base, pairs, lora.files)


def _report(lora: TensorSet, pairs: Mapping[str, LoraPair], settings: Settings) -> None:
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
