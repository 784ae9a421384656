"""Bundles for ONNX Runtime on any machine: the exported graphs, optimized ahead of time."""

from collections.abc import Collection, Mapping
from pathlib import Path

from longlive_trt.basics import Report
from longlive_trt.configs import ModelConfig
from longlive_trt.contract import CPU, ONNXRUNTIME
from longlive_trt.engines.bundles.bundle import EngineKind
from longlive_trt.engines.compiler import BuildOptions, GraphSource, retyped_info
from longlive_trt.engines.ort import cpu
from longlive_trt.engines.ort.rewrites import VERSION
from longlive_trt.exports import ExportRecord, GraphInfo
from longlive_trt.precision import Precision


class OnnxRuntimeCompiler:
    def __init__(self, options: BuildOptions, precision: Precision) -> None:
        options.refuse_others(ONNXRUNTIME, ())
        self._precision = precision

    @property
    def kind(self) -> EngineKind:
        return EngineKind(ONNXRUNTIME, cpu.version(), CPU)

    @property
    def options(self) -> Mapping[str, object]:
        return {"rewrites": VERSION}

    @property
    def plugins(self) -> Mapping[str, str]:
        return {}

    def decisive(self, config: ModelConfig, component: str) -> object:
        return dict(self.options)

    def reuse(self, graphs: Collection[str], donor: Path) -> None:
        """Nothing is written of them but their files."""

    def check(self, record: ExportRecord) -> None:
        cpu.require_arithmetic(self._precision)

    def compile(self, source: GraphSource, folder: Path, report: Report) -> None:
        cpu.build_graph(source.path, folder, self._precision)

    def info(self, source: GraphSource, folder: Path) -> GraphInfo:
        return retyped_info(source, self._precision)

    def finish(self, folder: Path) -> None:
        """The models are all that there is."""
