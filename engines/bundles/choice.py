"""Which bundle of a catalog suits a machine, and why the others do not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longlive_trt.architectures import FIRST_WITH_FP8, Architecture
from longlive_trt.console.wording import counted
from longlive_trt.engines.bundles.catalog import CatalogEntry
from longlive_trt.engines.compatibility import (
    BuiltEngines,
    GpuModel,
    Obstacle,
    build_obstacle,
    hardware_obstacle,
    library_obstacle,
    memory_obstacle,
    numbers,
)
from longlive_trt.engines.registry import DEFAULT, KINDS
from longlive_trt.errors import BundleError

# What each saves: FP8 halves the weights and doubles the rate where the hardware has it.
_ON_GPU = ("fp8", "bf16", "fp16", "int8", "fp32")
# Processors compute in fp32, and convert from anything shorter.
_ON_CPU = ("fp32", "int8", "fp16", "fp8")

_REASONS = {
    Obstacle.UNKNOWN_KIND: (
        "engines of kind {kind} are unknown to this version; update longlive-trt"
    ),
    Obstacle.NOT_INSTALLED: "{kind} is not installed: {install}",
    Obstacle.OLDER_LIBRARY: "{kind} is {version}: {install}",
    Obstacle.OTHER_LIBRARY: (
        "it was built with {kind} {needed} and runs with no other; {version} is installed"
    ),
    Obstacle.STRIPPED: (
        "it was built without its weights (--strip): pull it, and `longlive-trt refit` it"
    ),
    Obstacle.NOT_ON_CPU: "{kind} has no {precision} arithmetic on a CPU",
    Obstacle.NO_GPU: "it needs a GPU ({target}), and there is none here",
    Obstacle.OTHER_GPU: "it was built for {made_for}, and the GPU is {gpu}",
    Obstacle.NO_FP8: "FP8 needs {first_with_fp8} or newer, and the GPU is {architecture}",
    Obstacle.TOO_LITTLE_MEMORY: "it needs more than {needed_gb:.1f} GB, of {memory_gb:.1f} GB here",
}


@dataclass(frozen=True)
class MachineGpu:
    name: str
    capability: str
    memory_bytes: int

    @property
    def model(self) -> GpuModel:
        return GpuModel(self.name, Architecture.of_capability(self.capability))


@dataclass(frozen=True)
class Machine:
    gpu: MachineGpu | None
    memory_bytes: int
    versions: Mapping[str, str | None]
    """Of every engine kind's library, None where it is not installed."""

    def __str__(self) -> str:
        gpu = (
            f"{self.gpu.name} ({self.gpu.model.architecture}, {self.gpu.memory_bytes / 1e9:.0f} GB)"
            if self.gpu
            else "no NVIDIA GPU"
        )
        installed = [f"{kind} {version}" for kind, version in self.versions.items() if version]
        memory = f"{self.memory_bytes / 1e9:.0f} GB of memory"
        return ", ".join([gpu, memory, *(installed or ["no engine library"])])


@dataclass(frozen=True)
class Preference:
    config: str | None = None
    precisions: tuple[str, ...] = ()
    """The first that fits is taken; empty leaves it to the machine."""


@dataclass(frozen=True)
class Verdict:
    entry: CatalogEntry
    obstacle: str | None
    """Why it cannot run here; None if it can."""
    reason: str


@dataclass(frozen=True)
class Choice:
    best: CatalogEntry
    verdicts: tuple[Verdict, ...]
    """The chosen one first, then those that would do, then the others."""


def choose(
    entries: Sequence[CatalogEntry], machine: Machine, preference: Preference, where: str
) -> Choice:
    judged = [(_obstacle(entry, machine, preference), entry) for entry in entries]
    fitting = [entry for obstacle, entry in judged if obstacle is None]
    if not fitting:
        raise BundleError(_nothing_fits(judged, machine, where))
    fitting.sort(key=lambda entry: _rank(entry, preference))
    fit = [Verdict(entry, None, _merit(entry)) for entry in fitting]
    unfit = [Verdict(entry, why, "") for why, entry in judged if why is not None]
    return Choice(fitting[0], (*fit, *unfit))


def _obstacle(entry: CatalogEntry, machine: Machine, preference: Preference) -> str | None:
    if preference.config is not None and entry.config != preference.config:
        return f"it is {entry.config}, and {preference.config} was asked for"
    if preference.precisions and entry.precision not in preference.precisions:
        return f"it is {entry.precision}, and {' or '.join(preference.precisions)} was asked for"
    engines = _engines(entry)
    gpu = machine.gpu if engines.needs_gpu else None
    memory_bytes = gpu.memory_bytes if gpu else machine.memory_bytes
    obstacle = (
        hardware_obstacle(engines, gpu.model if gpu else None)
        or build_obstacle(engines)
        or library_obstacle(engines, machine.versions.get(entry.kind))
        or memory_obstacle(entry.memory_bytes, memory_bytes)
    )
    return None if obstacle is None else _reason(obstacle, entry, machine, memory_bytes)


def _reason(obstacle: Obstacle, entry: CatalogEntry, machine: Machine, memory_bytes: int) -> str:
    engines, kind = _engines(entry), KINDS.get(entry.kind)
    gpu = machine.gpu.model if machine.gpu else None
    return _REASONS[obstacle].format(
        kind=entry.kind,
        needed=entry.version,
        version=machine.versions.get(entry.kind),
        target=entry.target,
        precision=entry.precision,
        made_for=engines.made_for,
        gpu=gpu,
        architecture=gpu.architecture if gpu else "",
        first_with_fp8=FIRST_WITH_FP8,
        install=kind.install_command(entry.version) if kind else "",
        needed_gb=entry.memory_bytes / 1e9,
        memory_gb=memory_bytes / 1e9,
    )


def _engines(entry: CatalogEntry) -> BuiltEngines:
    return BuiltEngines(entry.kind, entry.version, entry.target, entry.precision, entry.options)


def _needs_gpu(entry: CatalogEntry) -> bool:
    return _engines(entry).needs_gpu


def _rank(entry: CatalogEntry, preference: Preference) -> tuple[object, ...]:
    order = preference.precisions or (_ON_GPU if _needs_gpu(entry) else _ON_CPU)
    newest = tuple(-number for number in numbers(entry.version))
    precision = order.index(entry.precision) if entry.precision in order else len(order)
    return (
        not _needs_gpu(entry),
        KINDS[entry.kind].speed_rank,
        precision,
        -entry.width * entry.height,
        -len(entry.graphs),
        newest,
        entry.path,
    )


def _merit(entry: CatalogEntry) -> str:
    where = f"runs on the GPU ({entry.target})" if _needs_gpu(entry) else "runs on the CPU"
    return f"{where}, {entry.precision}, from {entry.memory_bytes / 1e9:.1f} GB of memory"


def _nothing_fits(
    judged: Sequence[tuple[str | None, CatalogEntry]], machine: Machine, where: str
) -> str:
    if not judged:
        return f"{where}: the catalog is empty; push a bundle first"
    reasons = "\n".join(f"  {entry.path}: {obstacle}" for obstacle, entry in judged)
    fastest = min(KINDS.values(), key=lambda kind: kind.speed_rank)
    engine = fastest if machine.gpu else DEFAULT
    return (
        f"{where}: none of {counted(len(judged), 'bundle')} runs on this machine ({machine})\n"
        f"{reasons}\n"
        f"install what is missing, or build one here: "
        f"longlive-trt build --onnx DIR --engine {engine.name} --out BUNDLE"
    )
