"""The export: trace every graph, write the weights, check, and publish the folder whole."""

import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import shape_inference

from longlive_trt.ahead import ahead
from longlive_trt.basics import Report
from longlive_trt.configs import ModelConfig
from longlive_trt.contract import COMPONENT_OF, weights_file
from longlive_trt.errors import ExportError, UsageError
from longlive_trt.export.check import CheckResult, check_graph
from longlive_trt.export.components import Component, Sources, components
from longlive_trt.export.demo_tokenizer import require_demo_vocab, write_demo_tokenizer
from longlive_trt.export.tracers import Tracers
from longlive_trt.export.tracing import TracedGraph
from longlive_trt.export.weights_file import write_weights
from longlive_trt.exports import (
    RECORD_NAME,
    TOKENIZER_NAME,
    ExportRecord,
    GraphInfo,
    Quantization,
    graph_info,
    require_complete_record,
)
from longlive_trt.files import (
    EXPORT,
    publish_directory,
    require_replaceable,
    require_space,
    sha256_file,
)
from longlive_trt.precision import Precision, retype

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptGraphs:
    """What a new export takes over from an older one as it is."""

    folder: Path
    record: ExportRecord
    components: frozenset[str]

    @property
    def graphs(self) -> dict[str, GraphInfo]:
        return {n: g for n, g in self.record.graphs.items() if n in self._graph_names}

    @property
    def checkpoints(self) -> dict[str, str]:
        return {n: d for n, d in self.record.checkpoints.items() if n in self.components}

    def copy_into(self, folder: Path) -> dict[str, str]:
        """The sha256 of every copy, by name."""
        names = {f"{name}.onnx" for name in self._graph_names}
        names |= {weights_file(name) for name in self.components} | {TOKENIZER_NAME}
        return {name: self._copied(name, folder) for name in names & self.record.files.keys()}

    def _copied(self, name: str, folder: Path) -> str:
        shutil.copyfile(self.folder / name, folder / name)
        found = sha256_file(folder / name)
        if found != self.record.files[name]:
            raise ExportError(
                f"{self.folder / name}: altered while it was copied; nothing was written: do it "
                f"again, and let nothing else write there"
            )
        return found

    @property
    def _graph_names(self) -> set[str]:
        return {n for n in self.record.graphs if COMPONENT_OF[n] in self.components}


@dataclass(frozen=True)
class ExportResult:
    record: ExportRecord
    checks: tuple[CheckResult, ...]


def export(
    config: ModelConfig,
    sources: Sources,
    out: Path,
    precision: Precision,
    *,
    tokenizer: Path | None = None,
    check: bool = True,
    report: Report = lambda _what, _done, _total: None,
) -> ExportResult:
    """Write the graphs and weights of every component that there are weights for."""
    require_replaceable(out, EXPORT)
    tokenizer_file = _find_tokenizer(tokenizer)
    if tokenizer_file is None and sources.random_seed is not None and config.text_encoder:
        require_demo_vocab(config.text_encoder.vocab)

    def add_tokenizer(folder: Path) -> None:
        _write_tokenizer(folder, tokenizer_file, config, sources)

    return export_components(
        config,
        components(config, sources),
        out,
        precision,
        add_files=add_tokenizer,
        check=check,
        report=report,
    )


def export_components(
    config: ModelConfig,
    parts: Sequence[Component],
    out: Path,
    precision: Precision,
    *,
    quantization: Quantization | None = None,
    kept: KeptGraphs | None = None,
    add_files: Callable[[Path], None] = lambda _folder: None,
    check: bool = True,
    device: str = "cpu",
    report: Report = lambda _what, _done, _total: None,
    tracers: Tracers | None = None,
) -> ExportResult:
    """``device``: where graphs and torch are compared. ``tracers`` may have begun already."""
    require_replaceable(out, EXPORT)
    require_space(out, _weights_bytes(parts, precision, quantization))
    with (
        publish_directory(out, EXPORT) as folder,
        ThreadPoolExecutor(1) as pool,
        Tracers() if tracers is None else nullcontext(tracers) as tracing,
    ):
        # Files of gigabytes are copied while graphs are traced.
        copies = pool.submit(kept.copy_into, folder) if kept is not None else None
        tracing.begin(graph for part in parts for graph in part.graphs)
        traced = {
            part.name: _export_component(part, folder, precision, tracing, report) for part in parts
        }
        add_files(folder)
        graphs = [graph for group in traced.values() for graph in group]
        hashes = _hashes(folder, copies.result() if copies is not None else {})
        record = _record(config, precision, quantization, parts, graphs, kept, hashes)
        require_complete_record(folder, record)
        checks: Sequence[CheckResult] = ()
        if check:
            checks = _check_all(parts, graphs, folder, config, precision, device, report)
        (folder / RECORD_NAME).write_text(record.to_json(), encoding="utf-8")
    return ExportResult(record, tuple(checks))


def _weights_bytes(
    parts: Sequence[Component], precision: Precision, quantization: Quantization | None
) -> int:
    """At least: what is quantized takes a byte each."""
    item_bytes = precision.element.item_bytes if quantization is None else 1
    weights = (part.weights for part in parts)
    return item_bytes * sum(math.prod(each.shape(name)) for each in weights for name in each.names)


def _export_component(
    part: Component, folder: Path, precision: Precision, tracing: Tracers, report: Report
) -> list[TracedGraph]:
    graphs = []
    for done, spec in enumerate(part.graphs):
        report(f"tracing {spec.name}", done, len(part.graphs))
        graph = tracing.trace(spec)
        retype(graph.model, precision)
        graphs.append(graph)
    write_weights(
        folder / weights_file(part.name),
        part.weights,
        graphs,
        precision,
        lambda done, total: report(f"writing {part.name}", done, total),
    )
    for graph in graphs:
        _write_graph(graph, folder)
    return graphs


def _write_graph(graph: TracedGraph, folder: Path) -> None:
    path = folder / f"{graph.spec.name}.onnx"
    ir.save(graph.model, path)
    try:
        inferred = folder / f".{path.name}.inferred"
        shape_inference.infer_shapes_path(path, inferred, check_type=True, strict_mode=True)
        inferred.replace(path)
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise ExportError(f"graph {graph.spec.name} is not valid ONNX: {error}") from None


def _check_all(
    parts: Sequence[Component],
    graphs: Sequence[TracedGraph],
    folder: Path,
    config: ModelConfig,
    precision: Precision,
    device: str,
    report: Report,
) -> list[CheckResult]:
    by_name = {part.name: part for part in parts}
    results = []
    for done, graph in enumerate(graphs):
        report(f"checking {graph.spec.name}", done, len(graphs))
        weights = by_name[graph.spec.component].weights
        results.append(check_graph(graph.spec, folder, weights, config, precision, device))
    return results


def _record(
    config: ModelConfig,
    precision: Precision,
    quantization: Quantization | None,
    parts: Sequence[Component],
    graphs: Sequence[TracedGraph],
    kept: KeptGraphs | None,
    hashes: dict[str, str],
) -> ExportRecord:
    checkpoints = {part.name: part.weights.digest() for part in parts}
    infos = {graph.spec.name: graph_info(graph.model) for graph in graphs}
    return ExportRecord(
        precision=precision.name,
        quantization=quantization,
        config=config,
        checkpoints=checkpoints | (kept.checkpoints if kept else {}),
        graphs=infos | (kept.graphs if kept else {}),
        files=hashes,
        versions={name: version(name) for name in ("torch", "onnx", "onnxscript")},
    )


def _hashes(folder: Path, known: Mapping[str, str]) -> dict[str, str]:
    """The sha256 of every file, by name."""
    names = sorted(path.name for path in folder.iterdir())
    found = ahead(lambda name: known.get(name) or sha256_file(folder / name), names)
    return dict(zip(names, found, strict=True))


def _find_tokenizer(given: Path | None) -> Path | None:
    if given is None:
        return None
    path = given / TOKENIZER_NAME if given.is_dir() else given
    if not path.is_file():
        raise UsageError(f"{path}: no such file; --tokenizer takes the folder that holds it")
    return path


def _write_tokenizer(
    folder: Path, given: Path | None, config: ModelConfig, sources: Sources
) -> None:
    if given is not None:
        shutil.copyfile(given, folder / TOKENIZER_NAME)
    elif sources.random_seed is not None and config.text_encoder is not None:
        write_demo_tokenizer(folder, config.text_encoder.vocab)
