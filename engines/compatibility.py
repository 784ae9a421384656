"""Can engines run here? The one rule: for bundles that are opened, and for those of a catalog."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from itertools import zip_longest

from longlive_trt.architectures import AMPERE, Architecture
from longlive_trt.contract import CPU
from longlive_trt.engines.bundles.bundle import Manifest
from longlive_trt.engines.registry import KINDS

RESERVED = 0.9
"""The share of the memory that a bundle may fill; the rest is for activations and others."""
NOT_ON_CPU = ("bf16",)
"""Precisions that no library computes in on a CPU."""


class Obstacle(Enum):
    """Why engines do not run somewhere."""

    UNKNOWN_KIND = auto()
    NOT_INSTALLED = auto()
    OLDER_LIBRARY = auto()
    """Than what compiled them."""
    OTHER_LIBRARY = auto()
    """Of another version than the one that they run with."""
    STRIPPED = auto()
    NOT_ON_CPU = auto()
    NO_GPU = auto()
    OTHER_GPU = auto()
    NO_FP8 = auto()
    TOO_LITTLE_MEMORY = auto()


@dataclass(frozen=True)
class BuiltEngines:
    """What decides where engines run, as manifests and catalogs have it."""

    kind: str
    version: str
    target: str
    precision: str
    options: Mapping[str, object]

    @classmethod
    def of(cls, manifest: Manifest) -> "BuiltEngines":
        engine = manifest.engine
        precision, options = manifest.precision, manifest.options
        return cls(engine.kind, engine.version, engine.target, precision, options)

    @property
    def needs_gpu(self) -> bool:
        return self.target != CPU

    @property
    def made_for(self) -> str:
        """The GPU model, where they are for one alone."""
        return str(self.options.get("gpu_name") or self.target)


@dataclass(frozen=True)
class GpuModel:
    name: str
    architecture: Architecture

    def __str__(self) -> str:
        return f"{self.name} ({self.architecture})"


def build_obstacle(engines: BuiltEngines) -> Obstacle | None:
    """Why they run nowhere as they are."""
    if engines.kind not in KINDS:
        return Obstacle.UNKNOWN_KIND
    return Obstacle.STRIPPED if engines.options.get("strip") else None


def library_obstacle(engines: BuiltEngines, version: str | None) -> Obstacle | None:
    """``version``: of their kind's library here; None where it is not installed."""
    if version is None:
        return Obstacle.NOT_INSTALLED
    if KINDS[engines.kind].runs_older:
        return Obstacle.OLDER_LIBRARY if is_older(version, engines.version) else None
    if engines.options.get("version_compatible"):
        same_major = numbers(version)[:1] == numbers(engines.version)[:1]
        runs = same_major and not is_older(version, engines.version)
    else:
        runs = is_same(version, engines.version)
    return None if runs else Obstacle.OTHER_LIBRARY


def hardware_obstacle(engines: BuiltEngines, gpu: GpuModel | None) -> Obstacle | None:
    """``gpu``: the one that they are to run on; None for the CPU."""
    if gpu is None:
        if engines.needs_gpu:
            return Obstacle.NO_GPU
        return Obstacle.NOT_ON_CPU if engines.precision in NOT_ON_CPU else None
    if not engines.needs_gpu:
        return None
    if not _is_for(engines, gpu):
        return Obstacle.OTHER_GPU
    lacks_fp8 = engines.precision == "fp8" and not gpu.architecture.has_fp8
    return Obstacle.NO_FP8 if lacks_fp8 else None


def memory_obstacle(needed_bytes: int, memory_bytes: int) -> Obstacle | None:
    return None if needed_bytes <= memory_bytes * RESERVED else Obstacle.TOO_LITTLE_MEMORY


def _is_for(engines: BuiltEngines, gpu: GpuModel) -> bool:
    """Compiled engines are for one GPU model, unless they were built for more."""
    compatibility = engines.options.get("hardware_compatibility")
    if compatibility == "ampere-plus":
        return gpu.architecture >= AMPERE
    any_model = compatibility or engines.options.get("gpu_name") in (None, "", gpu.name)
    return str(gpu.architecture) == engines.target and bool(any_model)


def numbers(version: str) -> tuple[int, ...]:
    """Of a release: what is behind a ``+`` or a letter does not count."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, release[0].split("."))) if release else ()


def is_older(version: str, other: str) -> bool:
    pairs = list(zip_longest(numbers(version), numbers(other), fillvalue=0))
    return [own for own, _ in pairs] < [theirs for _, theirs in pairs]


def is_same(version: str, other: str) -> bool:
    """A package and its library may write one version with and without its build number."""
    own, theirs = numbers(version), numbers(other)
    length = min(len(own), len(theirs))
    return version == other or (length > 1 and own[:length] == theirs[:length])
