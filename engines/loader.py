"""A bundle's graphs as engines, whatever compiled them."""

import re
from typing import Literal

from longlive_trt.architectures import FIRST_WITH_FP8
from longlive_trt.console.printing import plain
from longlive_trt.contract import CPU
from longlive_trt.engines.base import Engine
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.engines.compatibility import (
    BuiltEngines,
    GpuModel,
    Obstacle,
    build_obstacle,
    hardware_obstacle,
    library_obstacle,
)
from longlive_trt.engines.registry import DEFAULT, KINDS, Kind
from longlive_trt.errors import BundleError, PluginError, UsageError
from longlive_trt.plugins.cuda.driver import device_facts
from longlive_trt.plugins.cuda.streams import Stream

DeviceChoice = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[DeviceChoice, ...] = ("auto", "cpu", "cuda")
_GPU_NAME = re.compile(r"cuda:(\d{1,4})")

_REASONS = {
    Obstacle.UNKNOWN_KIND: (
        "engines of kind {kind}, which this version cannot run; build with --engine {default}"
    ),
    Obstacle.STRIPPED: (
        "its engines were built without their weights (--strip); run `longlive-trt refit {folder} "
        "--onnx FOLDER --out BUNDLE` on this machine"
    ),
    Obstacle.OLDER_LIBRARY: (
        "built with {kind} {needed}, and {version} is installed; run `{install}`, or build the "
        "bundle again here"
    ),
    Obstacle.OTHER_LIBRARY: "engines of {kind} {needed}, and {version} is installed; {rebuild}",
    Obstacle.NOT_ON_CPU: (
        "{kind} has no {precision} arithmetic on a CPU; run it with --device cuda, or build with "
        "--precision fp32 or fp16"
    ),
    Obstacle.OTHER_GPU: "engines for {made_for}, and this machine has {gpu}; {rebuild}",
    Obstacle.NO_FP8: (
        "engines in fp8, which begins with {first_with_fp8}, and this machine has {gpu}; build "
        "with --precision bf16"
    ),
}


def runs_on_gpu(bundle: Bundle, device: DeviceChoice) -> bool:
    """Where the engines run: they were compiled for a GPU, or one was asked for."""
    target = bundle.manifest.engine.target
    if device == "cpu" and target != CPU:
        raise BundleError(
            f"{bundle.folder}: engines for {target} do not run on a CPU; leave --device out, or "
            f"build a bundle for CPUs (`longlive-trt build --engine {DEFAULT.name}` without "
            f"--gpu)"
        )
    return target != CPU or device == "cuda"


def require_runnable(bundle: Bundle, device: DeviceChoice = "auto") -> None:
    """Refuse a bundle whose engines cannot run here, before any of them is loaded."""
    on_gpu, engines = runs_on_gpu(bundle, device), BuiltEngines.of(bundle.manifest)
    _refuse(bundle, build_obstacle(engines))
    kind = KINDS[engines.kind]
    version = kind.library_version()
    _refuse(bundle, library_obstacle(engines, version), version=version)
    gpu = _gpu_here(bundle, engines) if on_gpu else None
    _refuse(bundle, hardware_obstacle(engines, gpu), gpu=gpu)
    if on_gpu:
        kind.load_gpu_libraries()


def decode_ordinal(bundle: Bundle, device: DeviceChoice, decode_device: str | None) -> int | None:
    """The GPU that decodes, if that is another one than the transformer's."""
    if decode_device is None:
        return None
    chosen = _GPU_NAME.fullmatch(decode_device)
    if chosen is None:
        raise UsageError(
            f"--decode-device {plain(decode_device)}: give another GPU by its number, as cuda:1"
        )
    ordinal = int(chosen[1])
    if not runs_on_gpu(bundle, device):
        raise UsageError(
            f"--decode-device {decode_device}: {bundle.folder} runs on a CPU here, and decodes "
            f"there; leave the option out, or run it on a GPU"
        )
    if ordinal == 0:
        raise UsageError(
            f"--decode-device {decode_device}: the transformer runs there already; leave the "
            f"option out, or give another GPU, as cuda:1"
        )
    try:
        facts = device_facts(ordinal)
    except PluginError:
        raise UsageError(
            f"--decode-device {decode_device}: this machine has no such GPU; leave the option out"
        ) from None
    engines = BuiltEngines.of(bundle.manifest)
    gpu = GpuModel(facts.name, facts.architecture)
    _refuse(bundle, hardware_obstacle(engines, gpu), gpu=gpu)
    return ordinal


def load_engine(
    bundle: Bundle, graph: str, *, threads: int | None = None, stream: Stream | None = None
) -> Engine:
    """One graph's engine: with a stream, on its GPU."""
    kind = KINDS[bundle.manifest.engine.kind]
    return kind.load(bundle, graph, stream=stream, threads=threads)


def _gpu_here(bundle: Bundle, engines: BuiltEngines) -> GpuModel:
    try:
        facts = device_facts()
    except PluginError as error:
        wanted, remedy = "a GPU was asked for", "use --device cpu"
        if engines.needs_gpu:
            wanted = f"engines for {engines.made_for}"
            remedy = (
                f"run `longlive-trt pull --auto`, or build with --engine {DEFAULT.name} and "
                "without --gpu for a CPU"
            )
        raise BundleError(
            f"{bundle.folder}: {wanted}, and this machine has no GPU that can be used "
            f"({error}); {remedy}"
        ) from None
    return GpuModel(facts.name, facts.architecture)


def _refuse(
    bundle: Bundle, obstacle: Obstacle | None, *, version: str = "", gpu: GpuModel | None = None
) -> None:
    if obstacle is None:
        return
    engines = BuiltEngines.of(bundle.manifest)
    kind = KINDS.get(engines.kind)
    reason = _REASONS[obstacle].format(
        kind=engines.kind,
        needed=engines.version,
        version=version,
        precision=engines.precision,
        made_for=engines.made_for,
        gpu=gpu,
        folder=bundle.folder,
        default=DEFAULT.name,
        first_with_fp8=FIRST_WITH_FP8,
        install=kind.install_command(engines.version) if kind else "",
        rebuild=_rebuild(kind, engines, gpu) if kind else "",
    )
    raise BundleError(f"{bundle.folder}: {reason}")


def _rebuild(kind: Kind, engines: BuiltEngines, gpu: GpuModel | None) -> str:
    if not kind.needs_gpu and gpu is not None:
        return f"build with --gpu {gpu.architecture}"
    return (
        f"run `longlive-trt build --engine {kind.name} --precision {engines.precision}` on this "
        "machine, or `longlive-trt pull --auto`"
    )
