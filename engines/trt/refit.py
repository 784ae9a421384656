"""Putting the weights back into engines that were shipped without them."""

import hashlib
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from longlive_trt.basics import Report
from longlive_trt.contract import PLAN_SUFFIX
from longlive_trt.engines.build import BuildResult, bundle_entries
from longlive_trt.engines.bundles.bundle import (
    MANIFEST_NAME,
    Bundle,
    Manifest,
    open_bundle,
)
from longlive_trt.engines.bundles.contents import require_complete
from longlive_trt.engines.trt.flavors import FLAVORS
from longlive_trt.engines.trt.graph import PreparedGraph, prepare
from longlive_trt.engines.trt.monitor import BuildLog, make_logger
from longlive_trt.errors import EngineError, UsageError
from longlive_trt.exports import ExportRecord, check_export, read_export
from longlive_trt.files import BUNDLE, publish_directory, require_replaceable
from longlive_trt.plugins.cuda.driver import device_facts
from longlive_trt.precision import precision_named


def refit(stripped: Path, export_folder: Path, out: Path, report: Report) -> BuildResult:
    """A whole bundle from a stripped one and the very export that it was built from."""
    bundle, record = open_bundle(stripped), read_export(export_folder)
    _require_stripped(bundle)
    _require_same_weights(bundle, export_folder, record)
    check_export(export_folder, record)
    require_replaceable(out, BUNDLE)
    started = time.monotonic()
    with publish_directory(out, BUNDLE) as folder:
        for name in bundle.manifest.files:
            if not name.endswith(PLAN_SUFFIX):
                shutil.copyfile(bundle.folder / name, folder / name)
        graphs = bundle.manifest.graphs
        for done, graph in enumerate(graphs):
            report(f"refitting {graph}", done, len(graphs))
            _refit_graph(bundle, graph, export_folder / f"{graph}.onnx", folder)
        manifest = _manifest(bundle.manifest, folder, time.monotonic() - started)
        require_complete(Bundle(folder, manifest))
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return BuildResult(manifest, was_current=False)


def _require_stripped(bundle: Bundle) -> None:
    if not bundle.manifest.options.get("strip"):
        raise UsageError(f"{bundle.folder}: its engines have their weights; nothing to refit")


def _require_same_weights(bundle: Bundle, folder: Path, record: ExportRecord) -> None:
    expected = bundle.manifest.onnx
    other = sorted(name for name in expected if record.files.get(name) != expected[name])
    if other:
        raise UsageError(
            f"{folder}: not the export that {bundle.folder} was built from: {', '.join(other)} "
            f"differ (sha256 {record.files.get(other[0])}, expected {expected[other[0]]}); give "
            f"that export, or build from this one"
        )


def _refit_graph(bundle: Bundle, graph: str, source: Path, folder: Path) -> None:
    manifest = bundle.manifest
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
        prepared = prepare(
            source,
            precision_named(manifest.precision),
            Path(scratch),
            keep_plugin_nodes=manifest.options.get("attention") == "plugin",
        )
        trt = FLAVORS[manifest.engine.kind].load()
        whole = _refitted(trt, (bundle.folder / f"{graph}{PLAN_SUFFIX}").read_bytes(), prepared)
    (folder / f"{graph}{PLAN_SUFFIX}").write_bytes(whole)


def _refitted(trt: Any, plan: bytes, graph: PreparedGraph) -> Any:
    device_facts()
    log = BuildLog()
    logger = make_logger(trt, log)
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise _failure(graph, "the stripped engine cannot be loaded", log)
    refitter = trt.Refitter(engine, logger)
    if not trt.OnnxParserRefitter(refitter, logger).refit_from_bytes(graph.model, str(graph.path)):
        raise _failure(graph, "the weights cannot be read", log)
    if not refitter.refit_cuda_engine():
        missing = ", ".join(refitter.get_missing_weights()[:3])
        raise _failure(graph, f"weights are missing: {missing}", log)
    config = engine.create_serialization_config()
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    return engine.serialize_with_config(config)


def _failure(graph: PreparedGraph, what: str, log: BuildLog) -> EngineError:
    reasons = "; ".join(log.errors) or "no reason was given"
    return EngineError(f"graph {graph.path.stem}: {what} ({reasons}); build the bundle here")


def _manifest(stripped: Manifest, folder: Path, duration_s: float) -> Manifest:
    return replace(
        stripped,
        key=hashlib.sha256(f"refitted {stripped.key}".encode()).hexdigest(),
        options={**stripped.options, "strip": False},
        files=bundle_entries(folder),
        duration_s=round(duration_s, 3),
    )
