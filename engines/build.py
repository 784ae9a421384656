"""The build: an export goes in, a bundle comes out, whole or not at all."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from longlive_trt.basics import Report, unheard
from longlive_trt.configs.dump import config_sha256
from longlive_trt.contract import COMPONENT_OF, PART_GRAPHS
from longlive_trt.engines.bundles.bundle import (
    FORMAT,
    MANIFEST_NAME,
    Bundle,
    FileEntry,
    Manifest,
    check_files,
    read_manifest,
)
from longlive_trt.engines.bundles.contents import require_complete
from longlive_trt.engines.bundles.fit import require_fit
from longlive_trt.engines.bundles.sharing import Donor, donors_beside, owners, take_component
from longlive_trt.engines.compiler import BuildOptions, EngineCompiler, GraphSource
from longlive_trt.engines.registry import DEFAULT, KINDS, compiler_named
from longlive_trt.errors import BundleError
from longlive_trt.exports import (
    TOKENIZER_NAME,
    ExportRecord,
    check_export,
    export_bytes,
    read_export,
)
from longlive_trt.files import (
    BUNDLE,
    discard_abandoned,
    publish_directory,
    real_path,
    require_replaceable,
    require_space,
    sha256_file,
)
from longlive_trt.precision import Precision, precision_named

logger = logging.getLogger(__name__)

_NO_OPTIONS = BuildOptions()


@dataclass(frozen=True)
class BuildResult:
    manifest: Manifest
    was_current: bool
    """Nothing had changed, so nothing was built."""
    shared_bytes: int = 0
    """Of files that another bundle has too, and that were not made again."""


def build(
    export_folder: Path,
    out: Path,
    precision_name: str,
    engine: str = DEFAULT.name,
    *,
    options: BuildOptions = _NO_OPTIONS,
    command: str = "",
    force: bool = False,
    share_with: Sequence[Path] = (),
    report: Report = unheard,
    checking: Report = unheard,
) -> BuildResult:
    """``share_with``: bundles whose engines may be used again, beside those of ``out``'s folder.
    ``report`` hears of graphs, and ``checking`` of the bytes of files that are checked.
    """
    precision = precision_named(precision_name)
    record = _without_tiles(read_export(export_folder), engine)
    compiler = compiler_named(engine, options, precision, record.config)
    compiler.check(record)
    check_export(export_folder, record, checking)
    require_fit(export_folder, record.config, record.graphs)
    key = _key(record, compiler, precision)
    current = None if force else _current(out, key, checking)
    if current is not None:
        # A run that was killed after it gave the bundle its name left the older one.
        discard_abandoned(real_path(out).parent)
        return BuildResult(current, was_current=True)
    require_replaceable(out, BUNDLE)
    keys = _component_keys(record, compiler, precision)
    shared = {} if force else _shared(keys, donors_beside(out, share_with))
    require_space(out, _least_bytes(export_folder, record, precision, options, shared))
    started = time.monotonic()
    with publish_directory(out, BUNDLE) as folder:
        sources = {
            name: GraphSource(name, export_folder / f"{name}.onnx", info, record.config)
            for name, info in record.graphs.items()
        }
        taken = _take_shared(record, shared, folder, compiler)
        for done, (name, source) in enumerate(sources.items()):
            if name not in taken.graphs:
                report(f"building {name}", done, len(sources))
                compiler.compile(source, folder, report)
        compiler.finish(folder)
        if TOKENIZER_NAME in record.files:
            shutil.copyfile(export_folder / TOKENIZER_NAME, folder / TOKENIZER_NAME)
        manifest = Manifest(
            key=key,
            config=record.config,
            engine=compiler.kind,
            precision=record.quantization.precision if record.quantization else precision.name,
            graphs={name: compiler.info(source, folder) for name, source in sources.items()},
            checkpoints=record.checkpoints,
            onnx=record.files,
            files=bundle_entries(folder),
            options=dict(compiler.options),
            plugins=dict(compiler.plugins),
            components=keys,
            command=command,
            duration_s=round(time.monotonic() - started, 3),
        )
        require_complete(Bundle(folder, manifest))
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return BuildResult(manifest, was_current=False, shared_bytes=taken.bytes)


def _without_tiles(record: ExportRecord, engine: str) -> ExportRecord:
    """Compilers of plans for a GPU decode whole frames only."""
    kind = KINDS.get(engine)
    if kind is None or not kind.needs_gpu:
        return record
    kept = {name: info for name, info in record.graphs.items() if name not in PART_GRAPHS}
    return replace(record, graphs=kept)


def _component_keys(
    record: ExportRecord, compiler: EngineCompiler, precision: Precision
) -> dict[str, str]:
    """Of all that decides what each component's engines are."""
    kind, quantization = asdict(compiler.kind), record.quantization
    quantized = asdict(quantization) if quantization is not None else None
    return {
        component: _digest(
            [
                FORMAT,
                kind,
                precision.name,
                quantized,
                _files_of(record, component),
                compiler.decisive(record.config, component),
            ]
        )
        for component in dict.fromkeys(COMPONENT_OF[graph] for graph in record.graphs)
    }


def _graphs_of(record: ExportRecord, component: str) -> list[str]:
    return [graph for graph in record.graphs if COMPONENT_OF[graph] == component]


def _files_of(record: ExportRecord, component: str) -> dict[str, str]:
    names = set(owners(component, _graphs_of(record, component)))
    return {n: sha256 for n, sha256 in record.files.items() if n.partition(".")[0] in names}


def _shared(keys: Mapping[str, str], donors: Sequence[Donor]) -> dict[str, Donor]:
    """By component, the first bundle that has its engines already."""
    found: dict[str, Donor] = {}
    for component, key in keys.items():
        for donor in donors:
            if donor.manifest.components.get(component) == key:
                found.setdefault(component, donor)
    return found


@dataclass
class _Taken:
    """What need not be made."""

    graphs: set[str] = field(default_factory=set)
    bytes: int = 0


def _take_shared(
    record: ExportRecord, shared: Mapping[str, Donor], folder: Path, compiler: EngineCompiler
) -> _Taken:
    taken = _Taken()
    for component, donor in shared.items():
        graphs = _graphs_of(record, component)
        size = take_component(donor, owners(component, graphs), folder)
        if size:
            compiler.reuse(graphs, donor.folder)
            taken.graphs |= set(graphs)
            taken.bytes += size
    return taken


def _least_bytes(
    folder: Path,
    record: ExportRecord,
    precision: Precision,
    options: BuildOptions,
    shared: Collection[str],
) -> int:
    """A bundle holds the export's weights, in a type of its own, but for those that it shares."""
    if options.strip:
        return 0
    size = export_bytes(folder, record)
    for component in shared:
        size -= sum((folder / name).stat().st_size for name in _files_of(record, component))
    if record.quantization is not None:
        return size // 4
    exported = precision_named(record.precision).element.item_bytes
    return size * precision.element.item_bytes // exported


def _key(record: ExportRecord, compiler: EngineCompiler, precision: Precision) -> str:
    choices = [asdict(compiler.kind), dict(compiler.options), dict(compiler.plugins)]
    return _digest([FORMAT, config_sha256(record.config), record.files, precision.name, *choices])


def _digest(decisive: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _current(out: Path, key: str, checking: Report) -> Manifest | None:
    """The bundle that is there already, if it is the one asked for and sound."""
    if not (out / MANIFEST_NAME).is_file():
        return None
    try:
        manifest = read_manifest(out)
        if manifest.key != key:
            logger.info("%s: built from something else; building again", out)
            return None
        check_files(out, manifest, checking)
    except BundleError as error:
        logger.warning("%s; building again", error)
        return None
    return manifest


def bundle_entries(folder: Path) -> dict[str, FileEntry]:
    return {
        path.name: FileEntry(sha256_file(path), path.stat().st_size)
        for path in sorted(folder.iterdir())
    }
