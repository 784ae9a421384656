"""What a compiler offers the build, and what it may be asked for."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, Protocol

from longlive_trt.basics import Report
from longlive_trt.configs import ModelConfig
from longlive_trt.engines.bundles.bundle import EngineKind
from longlive_trt.errors import UsageError
from longlive_trt.exports import ExportRecord, GraphInfo, damage_refused, graph_info, load_graph
from longlive_trt.precision import Precision, retype


@dataclass(frozen=True)
class BuildOptions:
    """What was asked for; a default leaves the choice to the compiler."""

    gpu: str | None = None
    batch: int = 1
    attention: Literal["standard", "plugin"] | None = None
    allow_decomposed_attention: bool = False
    optimization_level: int | None = None
    workspace_bytes: int | None = None
    weight_streaming_bytes: int | None = None
    hardware_compatibility: Literal["same-capability", "ampere-plus"] | None = None
    version_compatible: bool = False
    refittable: bool = False
    strip: bool = False
    lora_ready: bool = False
    """The transformer's matrices are kept apart, to be exchanged while engines run."""
    timing_cache: Path | None = None

    def refuse_others(self, engine: str, taken: Collection[str]) -> None:
        for option in fields(self):
            if getattr(self, option.name) != option.default and option.name not in taken:
                raise UsageError(
                    f"{option_flag(option.name)} does not apply to --engine {engine}; leave it out"
                )


def option_flag(name: str) -> str:
    flags = {"workspace_bytes": "--workspace-gib", "weight_streaming_bytes": "--weights-gib"}
    return flags.get(name, "--" + name.replace("_", "-"))


@dataclass(frozen=True)
class GraphSource:
    """One exported graph, and what is needed to compile it."""

    name: str
    path: Path
    info: GraphInfo
    config: ModelConfig


def retyped_info(source: GraphSource, precision: Precision) -> GraphInfo:
    """The exported graph's tensors, those of the compute type in another precision."""
    with damage_refused(source.path):
        model = load_graph(source.path)
        retype(model, precision)
        return graph_info(model)


def require_exchangeable(options: BuildOptions, record: ExportRecord) -> None:
    """Refuse to keep matrices apart whose scales were made for them as they are."""
    if options.lora_ready and record.quantization is not None:
        raise UsageError(
            f"--lora-ready: the graphs are quantized ({record.quantization.precision}), with "
            "scales that were measured with these very matrices; build in fp32, fp16 or bf16, or "
            "merge the adapter when exporting (export --lora) and calibrate that"
        )


class EngineCompiler(Protocol):
    @property
    def kind(self) -> EngineKind: ...

    @property
    def options(self) -> Mapping[str, object]:
        """Every choice that changes the engines; part of the bundle's key and manifest."""
        ...

    @property
    def plugins(self) -> Mapping[str, str]:
        """Hashes of the kernels that the engines hold, by name."""
        ...

    def decisive(self, config: ModelConfig, component: str) -> object:
        """What decides a component's engines, beside its graphs, the precision and the kind."""
        ...

    def reuse(self, graphs: Collection[str], donor: Path) -> None:
        """Engines of these graphs are taken from a folder where they were made before."""
        ...

    def check(self, record: ExportRecord) -> None:
        """Refuse, before any work, what can be known to fail."""
        ...

    def compile(self, source: GraphSource, folder: Path, report: Report) -> None:
        """Leave the graph's engine in ``folder``."""
        ...

    def info(self, source: GraphSource, folder: Path) -> GraphInfo:
        """The tensors of the engine that was made."""
        ...

    def finish(self, folder: Path) -> None:
        """Leave there what concerns all graphs, and save what later builds can use."""
        ...
