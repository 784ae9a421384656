"""Which bundle of a catalog suits a machine, and why the others do not."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longlive_trt.engines.bundles.catalog import Entry
from longlive_trt.errors import BundleError
from longlive_trt.extras import engine_upgrade, install_command

ONNXRUNTIME = "onnxruntime"
_COMPILED = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx"}
"""Engines that need a GPU, and the extra that installs what runs them; the fastest first."""

# What each saves: FP8 halves the weights and doubles the rate where the hardware has it.
_ON_GPU = ("fp8", "bf16", "fp16", "int8", "fp32")
# Processors compute in fp32, and convert from anything shorter.
_ON_CPU = ("fp32", "int8", "fp16")
_FP8_FROM = (8, 9)
_AMPERE = (8, 0)
_RESERVED = 0.9
"""The share of the memory that a bundle may fill; the rest is for activations and others."""


@dataclass(frozen=True)
class MachineGpu:
    name: str
    capability: str
    memory_bytes: int

    @property
    def architecture(self) -> str:
        return "sm" + self.capability.replace(".", "")


@dataclass(frozen=True)
class Machine:
    gpu: MachineGpu | None
    memory_bytes: int
    versions: Mapping[str, str | None]
    """Of every engine kind's library, None where it is not installed."""

    def __str__(self) -> str:
        gpu = (
            f"{self.gpu.name} ({self.gpu.architecture}, {self.gpu.memory_bytes / 1e9:.0f} GB)"
            if self.gpu
            else "no NVIDIA GPU"
        )
        installed = [f"{kind} {found}" for kind, found in self.versions.items() if found]
        memory = f"{self.memory_bytes / 1e9:.0f} GB of memory"
        return ", ".join([gpu, memory, *(installed or ["no engine library"])])


@dataclass(frozen=True)
class Wish:
    config: str | None = None
    precisions: tuple[str, ...] = ()
    """The first that fits is taken; empty leaves it to the machine."""


@dataclass(frozen=True)
class Verdict:
    entry: Entry
    obstacle: str | None
    """Why it cannot run here; None if it can."""
    reason: str


@dataclass(frozen=True)
class Choice:
    best: Entry
    verdicts: tuple[Verdict, ...]
    """The chosen one first, then those that would do, then the others."""


def choose(entries: Sequence[Entry], machine: Machine, wish: Wish, where: str) -> Choice:
    judged = [(_obstacle(entry, machine, wish), entry) for entry in entries]
    fitting = [entry for obstacle, entry in judged if obstacle is None]
    if not fitting:
        raise BundleError(_nothing_fits(judged, machine, where))
    fitting.sort(key=lambda entry: _rank(entry, wish))
    fit = [Verdict(entry, None, _merit(entry)) for entry in fitting]
    unfit = [Verdict(entry, why, "") for why, entry in judged if why is not None]
    return Choice(fitting[0], (*fit, *unfit))


def _obstacle(entry: Entry, machine: Machine, wish: Wish) -> str | None:
    if wish.config is not None and entry.config != wish.config:
        return f"it is {entry.config}, and {wish.config} was asked for"
    if wish.precisions and entry.precision not in wish.precisions:
        return f"it is {entry.precision}, and {' or '.join(wish.precisions)} was asked for"
    return (
        _wrong_hardware(entry, machine)
        or _wrong_library(entry, machine)
        or _too_little_memory(entry, machine)
    )


def _wrong_hardware(entry: Entry, machine: Machine) -> str | None:
    if not _needs_gpu(entry):
        if entry.precision in _ON_CPU:
            return None
        return f"{ONNXRUNTIME} has no {entry.precision} arithmetic on a CPU"
    if machine.gpu is None:
        return f"it needs a GPU ({entry.target}), and there is none here"
    if not _targets(entry, machine.gpu):
        made_for = entry.options.get("gpu_name") or entry.target
        return (
            f"it was built for {made_for}, and the GPU is {machine.gpu.name} "
            f"({machine.gpu.architecture})"
        )
    if entry.precision == "fp8" and _numbers(machine.gpu.capability) < _FP8_FROM:
        return f"FP8 needs sm89 or newer, and the GPU is {machine.gpu.architecture}"
    return None


def _wrong_library(entry: Entry, machine: Machine) -> str | None:
    if entry.kind not in (ONNXRUNTIME, *_COMPILED):
        return f"engines of kind {entry.kind} are unknown to this version; update longlive-trt"
    found = machine.versions.get(entry.kind)
    if found is None:
        return f"{entry.kind} is not installed: {_install(entry)}"
    if entry.kind == ONNXRUNTIME:
        older = _numbers(found) < _numbers(entry.version)
        return f"onnxruntime is {found}: {engine_upgrade(entry.version)}" if older else None
    if entry.options.get("strip"):
        return "it was built without its weights (--strip): pull it, and `longlive-trt refit` it"
    if not _runs_with(found, entry):
        return (
            f"it was built with {entry.kind} {entry.version} and runs with no other; {found} is "
            f"installed"
        )
    return None


def _runs_with(found: str, entry: Entry) -> bool:
    own, built = _numbers(found), _numbers(entry.version)
    if entry.options.get("version_compatible"):
        return own[:1] == built[:1] and own >= built
    # Package and library may write the same version with and without its build number.
    return all(one == other for one, other in zip(own, built, strict=False))


def _too_little_memory(entry: Entry, machine: Machine) -> str | None:
    gpu = machine.gpu if _needs_gpu(entry) else None
    memory = gpu.memory_bytes if gpu else machine.memory_bytes
    if entry.memory_bytes <= memory * _RESERVED:
        return None
    return f"it needs more than {entry.memory_bytes / 1e9:.1f} GB, of {memory / 1e9:.1f} GB here"


def _install(entry: Entry) -> str:
    if entry.kind == ONNXRUNTIME:
        return install_command("gpu" if _needs_gpu(entry) else "cpu")
    return install_command(_COMPILED[entry.kind])


def _needs_gpu(entry: Entry) -> bool:
    return entry.target != "cpu"


def _targets(entry: Entry, gpu: MachineGpu) -> bool:
    """Engines are for one GPU model, unless they were built for more."""
    compatibility = entry.options.get("hardware_compatibility")
    if compatibility == "ampere-plus":
        return _numbers(gpu.capability) >= _AMPERE
    any_model = compatibility or entry.options.get("gpu_name") in (None, "", gpu.name)
    return gpu.architecture == entry.target and bool(any_model)


def _rank(entry: Entry, wish: Wish) -> tuple[object, ...]:
    kinds = [*_COMPILED, ONNXRUNTIME]
    order = wish.precisions or (_ON_GPU if _needs_gpu(entry) else _ON_CPU)
    newest = tuple(-number for number in _numbers(entry.version))
    precision = order.index(entry.precision) if entry.precision in order else len(order)
    return (
        not _needs_gpu(entry),
        kinds.index(entry.kind),
        precision,
        -entry.width * entry.height,
        -len(entry.graphs),
        newest,
        entry.path,
    )


def _merit(entry: Entry) -> str:
    where = f"runs on the GPU ({entry.target})" if _needs_gpu(entry) else "runs on the CPU"
    return f"{where}, {entry.precision}, from {entry.memory_bytes / 1e9:.1f} GB of memory"


def _nothing_fits(judged: Sequence[tuple[str | None, Entry]], machine: Machine, where: str) -> str:
    if not judged:
        return f"{where}: the catalog is empty; push a bundle first"
    reasons = "\n".join(f"  {entry.path}: {obstacle}" for obstacle, entry in judged)
    engine = "tensorrt" if machine.gpu else ONNXRUNTIME
    return (
        f"{where}: none of {len(judged)} bundles runs on this machine ({machine})\n{reasons}\n"
        f"install what is missing, or build one here: "
        f"longlive-trt build --onnx DIR --engine {engine} --out BUNDLE"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0]))
