"""Bundles for ONNX Runtime on any machine: the exported graphs, optimized ahead of time."""

from collections.abc import Collection, Mapping
from pathlib import Path

import onnx_ir as ir

from longlive_trt.basics import Report
from longlive_trt.configs import ModelConfig
from longlive_trt.contract import CPU, ONNXRUNTIME, STEP
from longlive_trt.engines.bundles.bundle import EngineKind
from longlive_trt.engines.compiler import (
    BuildOptions,
    GraphSource,
    require_exchangeable,
    retyped_info,
)
from longlive_trt.engines.matrices import GRAPHS, OPTION, SeparateMatrices
from longlive_trt.engines.ort import cpu
from longlive_trt.engines.ort.rewrites import VERSION
from longlive_trt.exports import ExportRecord, GraphInfo, load_graph
from longlive_trt.precision import Precision


class OnnxRuntimeCompiler:
    def __init__(self, options: BuildOptions, precision: Precision) -> None:
        options.refuse_others(ONNXRUNTIME, ("lora_ready",))
        self._asked, self._precision = options, precision
        self._matrices = SeparateMatrices() if options.lora_ready else None

    @property
    def kind(self) -> EngineKind:
        return EngineKind(ONNXRUNTIME, cpu.version(), CPU)

    @property
    def options(self) -> Mapping[str, object]:
        apart = {OPTION: True} if self._matrices is not None else {}
        return {"rewrites": VERSION, **apart}

    @property
    def plugins(self) -> Mapping[str, str]:
        return {}

    def decisive(self, config: ModelConfig, component: str) -> object:
        return dict(self.options)

    def reuse(self, graphs: Collection[str], donor: Path) -> None:
        """Nothing is written of them but their files."""
        if self._matrices is not None and STEP in graphs:
            self._matrices.reuse(donor)

    def check(self, record: ExportRecord) -> None:
        cpu.require_arithmetic(self._precision)
        require_exchangeable(self._asked, record)

    def compile(self, source: GraphSource, folder: Path, report: Report) -> None:
        matrices = self._matrices
        if matrices is None or source.name not in GRAPHS:
            cpu.build_graph(source.path, folder, self._precision)
            return
        # As exported: a graph of another precision has them converted.
        matrices.collect(load_graph(source.path), source.path)

        def open_inputs(model: ir.Model) -> bool:
            matrices.open_inputs(source.name, model)
            return True

        cpu.build_graph(source.path, folder, self._precision, open_inputs)

    def info(self, source: GraphSource, folder: Path) -> GraphInfo:
        return retyped_info(source, self._precision)

    def finish(self, folder: Path) -> None:
        if self._matrices is not None:
            self._matrices.write(folder)
