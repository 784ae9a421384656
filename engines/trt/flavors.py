"""TensorRT and TensorRT-RTX are one compiler, but for what stands here."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from longlive_trt.architectures import AMPERE, Architecture
from longlive_trt.contract import TENSORRT, TENSORRT_RTX
from longlive_trt.engines.compiler import BuildOptions
from longlive_trt.errors import EngineError, UsageError

_EVERYWHERE = frozenset(
    {
        "gpu",
        "batch",
        "attention",
        "allow_decomposed_attention",
        "optimization_level",
        "weight_streaming_bytes",
    }
)


@dataclass(frozen=True)
class Target:
    architecture: Architecture
    gpu_name: str = ""
    """Of the GPU at hand, where the compiler measures on one."""

    def __str__(self) -> str:
        return str(self.architecture)


@dataclass(frozen=True)
class Inspection:
    """What a loaded engine says of itself."""

    layers: str = ""
    json: str = ""


class Flavor(Protocol):
    kind: ClassVar[str]
    options: ClassVar[frozenset[str]]
    has_plugins: ClassVar[bool]
    captures_itself: ClassVar[bool]
    """The runtime makes CUDA graphs of its own."""

    def load(self) -> Any:
        """The bindings."""
        ...

    def target(self, trt: Any, gpu: str | None) -> Target: ...

    def network_flags(self, trt: Any, *, plugin: bool) -> int: ...

    def configure(self, trt: Any, config: Any, target: Target, options: BuildOptions) -> None: ...

    def inspect(self, trt: Any, logger: Any, plan: Any) -> Inspection: ...

    def create_context(self, trt: Any, engine: Any, cuda_graphs: bool) -> Any:
        """An execution context whose scratch memory is the caller's."""
        ...


class TensorRtRtx:
    """Compiles ahead of time, on any machine, for the consumer GPUs that it names."""

    kind: ClassVar[str] = TENSORRT_RTX
    options: ClassVar[frozenset[str]] = _EVERYWHERE
    has_plugins: ClassVar[bool] = False
    captures_itself: ClassVar[bool] = True

    def load(self) -> Any:
        return load_bindings("tensorrt_rtx", "tensorrt_rtx_bindings")

    def target(self, trt: Any, gpu: str | None) -> Target:
        known = rtx_targets(trt)
        if gpu in known:
            return known[gpu]
        asked = f"--gpu {gpu} is not one of them" if gpu else "--gpu is missing"
        raise UsageError(
            f"TensorRT-RTX {trt.__version__} compiles for {', '.join(known)}: "
            f"{asked}; for Hopper, build there with --engine tensorrt"
        )

    def network_flags(self, trt: Any, *, plugin: bool) -> int:
        return 0

    def configure(self, trt: Any, config: Any, target: Target, options: BuildOptions) -> None:
        config.num_compute_capabilities = 1
        capability = getattr(trt.ComputeCapability, str(target).upper())
        config.set_compute_capability(capability, 0)

    def inspect(self, trt: Any, logger: Any, plan: Any) -> Inspection:
        # Loading an engine needs a GPU; the builder's log has the list of layers.
        return Inspection()

    def create_context(self, trt: Any, engine: Any, cuda_graphs: bool) -> Any:
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        strategies = trt.CudaGraphStrategy
        config.cuda_graph_strategy = (
            strategies.WHOLE_GRAPH_CAPTURE if cuda_graphs else strategies.DISABLED
        )
        # Profiles that are not static get kernels for the shapes at hand, before they are needed.
        config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        return engine.create_execution_context(config)


class TensorRt:
    """Compiles for the GPU in this machine, by measuring on it."""

    kind: ClassVar[str] = TENSORRT
    options: ClassVar[frozenset[str]] = _EVERYWHERE | {
        "workspace_bytes",
        "hardware_compatibility",
        "version_compatible",
        "refittable",
        "strip",
        "timing_cache",
    }
    has_plugins: ClassVar[bool] = True
    captures_itself: ClassVar[bool] = False

    def load(self) -> Any:
        return load_bindings("tensorrt")

    def target(self, trt: Any, gpu: str | None) -> Target:
        # The driver is asked only where one is needed.
        from longlive_trt.plugins.cuda.driver import device_facts

        facts = device_facts()
        here = Target(facts.architecture, facts.name)
        if gpu not in (None, str(here)):
            raise UsageError(
                f"--gpu {gpu}: TensorRT measures on the GPU in this machine, which is {here} "
                f"({facts.name}); leave --gpu out, or build on the other machine"
            )
        return here

    def network_flags(self, trt: Any, *, plugin: bool) -> int:
        if not plugin:
            return 0
        return 1 << int(trt.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS)

    def configure(self, trt: Any, config: Any, target: Target, options: BuildOptions) -> None:
        if options.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        if options.hardware_compatibility is not None:
            level = options.hardware_compatibility.replace("-", "_").upper()
            levels = {"SAME_CAPABILITY": "SAME_COMPUTE_CAPABILITY"}
            config.hardware_compatibility_level = getattr(
                trt.HardwareCompatibilityLevel, levels.get(level, level)
            )
        for flag in _flags(options):
            config.set_flag(getattr(trt.BuilderFlag, flag))

    def inspect(self, trt: Any, logger: Any, plan: Any) -> Inspection:
        engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
        if engine is None:
            return Inspection()
        inspector, formats = engine.create_engine_inspector(), trt.LayerInformationFormat
        return Inspection(
            layers=inspector.get_engine_information(formats.ONELINE),
            json=inspector.get_engine_information(formats.JSON),
        )

    def create_context(self, trt: Any, engine: Any, cuda_graphs: bool) -> Any:
        return engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)


def _flags(options: BuildOptions) -> list[str]:
    flags = {
        "VERSION_COMPATIBLE": options.version_compatible,
        "REFIT": options.refittable,
        # Refitting with the very same weights costs no speed.
        "STRIP_PLAN": options.strip,
        "REFIT_IDENTICAL": options.strip and not options.refittable,
        "EDITABLE_TIMING_CACHE": True,
    }
    return [flag for flag, is_set in flags.items() if is_set]


FLAVORS: Mapping[str, Flavor] = {flavor.kind: flavor for flavor in (TensorRt(), TensorRtRtx())}


def rtx_targets(trt: Any) -> dict[str, Target]:
    """What the compiler itself lists, but Turing, which lacks bf16 and fp32 matrix products."""
    listed = map(Architecture.named, dir(trt.ComputeCapability))
    supported = sorted(item for item in listed if item is not None and item >= AMPERE)
    return {str(architecture): Target(architecture) for architecture in supported}


def load_bindings(*modules: str) -> Any:
    """The first of the modules that is installed; the package's own name varies."""
    for module in modules[:-1]:
        try:
            return _import(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    return _import(modules[-1])


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise
    except (ImportError, OSError) as error:
        raise EngineError(
            f"{module} is installed, but its library cannot be loaded ({error}); install the "
            f"package that holds the library in the same version"
        ) from error
