"""The compilers by name. Each is imported only when it is asked for."""

from collections.abc import Mapping
from pathlib import Path

from longlive_trt.basics import Report
from longlive_trt.configs import ModelConfig
from longlive_trt.engines.bundles.bundle import EngineKind
from longlive_trt.engines.compiler import BuildOptions, Compiler, GraphSource, retyped_info
from longlive_trt.engines.ort import cpu as onnxruntime
from longlive_trt.engines.ort.gpu_compiler import OnnxRuntimeGpuCompiler
from longlive_trt.engines.trt.compiler import TensorRtCompiler
from longlive_trt.engines.trt.flavors import FLAVORS
from longlive_trt.errors import UsageError
from longlive_trt.exports import ExportRecord, GraphInfo
from longlive_trt.precision import Precision

ENGINES = (onnxruntime.KIND, *FLAVORS)


def compiler_named(
    engine: str, options: BuildOptions, precision: Precision, config: ModelConfig
) -> Compiler:
    if engine == onnxruntime.KIND:
        if options.gpu is not None:
            return OnnxRuntimeGpuCompiler(options, precision)
        options.refuse_others(engine, ())
        return OnnxRuntimeCompiler(precision)
    if engine in FLAVORS:
        return TensorRtCompiler(FLAVORS[engine], options, precision, config)
    raise UsageError(f"engine {engine} is unknown; allowed: {', '.join(ENGINES)}")


class OnnxRuntimeCompiler:
    def __init__(self, precision: Precision) -> None:
        self._precision = precision

    @property
    def kind(self) -> EngineKind:
        return EngineKind(onnxruntime.KIND, onnxruntime.version(), "cpu")

    @property
    def options(self) -> Mapping[str, object]:
        return {}

    @property
    def plugins(self) -> Mapping[str, str]:
        return {}

    def check(self, record: ExportRecord) -> None:
        onnxruntime.require_arithmetic(self._precision)

    def compile(self, source: GraphSource, folder: Path, report: Report) -> None:
        onnxruntime.build_graph(source.path, folder, self._precision)

    def info(self, source: GraphSource, folder: Path) -> GraphInfo:
        return retyped_info(source, self._precision)

    def finish(self, folder: Path) -> None:
        """All is in the models."""
