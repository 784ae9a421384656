"""The compilers by name. Each is imported only when it is asked for."""

from collections.abc import Mapping
from pathlib import Path

from ..errors import UsageError
from ..exports import ExportRecord
from ..precision import Precision
from . import onnxruntime
from .bundle import EngineKind
from .compiler import BuildOptions, Compiler, GraphSource, Report
from .tensorrt import TensorRtCompiler
from .tensorrt_flavors import FLAVORS

ENGINES = (onnxruntime.KIND, *FLAVORS)


def compiler_named(engine: str, options: BuildOptions) -> Compiler:
    if engine == onnxruntime.KIND:
        options.refuse_others(engine, ())
        return OnnxRuntimeCompiler()
    if engine in FLAVORS:
        return TensorRtCompiler(FLAVORS[engine], options)
    raise UsageError(f"engine {engine} is unknown; allowed: {', '.join(ENGINES)}")


class OnnxRuntimeCompiler:
    @property
    def kind(self) -> EngineKind:
        return EngineKind(onnxruntime.KIND, onnxruntime.version(), "cpu")

    @property
    def options(self) -> Mapping[str, object]:
        return {}

    @property
    def plugins(self) -> Mapping[str, str]:
        return {}

    def check(self, record: ExportRecord, precision: Precision) -> None:
        """Nothing can be known before ONNX Runtime has seen the graph."""

    def compile(self, source: GraphSource, folder: Path, report: Report) -> None:
        onnxruntime.build_graph(source.path, folder, source.precision)

    def finish(self, folder: Path) -> None:
        """All is in the models."""
