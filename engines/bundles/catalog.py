"""The catalog: what bundles a store holds, so that a machine can choose without fetching any.

``index.json`` is what readers need. Beside it, every push leaves an entry file of its own, which
no other push ever writes; the index is put together from all of these, and checked again after it
was written. So two pushes at once lose nothing on a store that lists what was just written. One
that is killed in between may leave an index without the other's entry: readers that can list look
at the entry files too, and the next push repairs the index.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from longlive_trt.configs import ModelConfig
from longlive_trt.engines.bundles.bundle import ARCHIVE_SUFFIX, KnownOptions, Manifest
from longlive_trt.engines.bundles.stores import Store
from longlive_trt.engines.memory import least_bytes
from longlive_trt.errors import BundleError, OutputError, UsageError
from longlive_trt.reading.documents import parse_json
from longlive_trt.reading.failures import ReadingError
from longlive_trt.reading.shapes import structured

logger = logging.getLogger(__name__)

INDEX_NAME = "index.json"
FORMAT = 1

_ENTRIES = "catalog"
_LIMIT_BYTES = 16 << 20
_ROUNDS = 5
_LONGEST_TEXT = 250


@dataclass(frozen=True)
class CatalogEntry:
    path: str
    """A folder, or an archive, below the catalog."""
    sha256: str
    """Of the folder's manifest, or of the archive."""
    key: str
    config: str
    kind: str
    version: str
    target: str
    precision: str
    width: int
    height: int
    graphs: tuple[str, ...]
    bytes: int
    memory_bytes: int
    """What is certain: the engines, and every graph's inputs and outputs."""
    options: Mapping[str, object] = field(default_factory=dict)
    """What the compiler was asked for."""

    @property
    def is_archive(self) -> bool:
        return self.path.endswith(ARCHIVE_SUFFIX)

    def __str__(self) -> str:
        return (
            f"{self.config} {self.width}x{self.height}, {self.precision}, {self.kind} "
            f"{self.version} for {self.target}"
        )


def entry_of(manifest: Manifest, sha256: str, *, is_archive: bool, size: int) -> CatalogEntry:
    engine, config = manifest.engine, manifest.config
    words = (config.name, engine.kind, engine.target, manifest.precision, sha256[:12])
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(words)).lstrip(".")
    height, width = (side * _pixels_per_latent(config) for side in config.latent_shape[1:])
    return CatalogEntry(
        path=name + (ARCHIVE_SUFFIX if is_archive else ""),
        sha256=sha256,
        key=manifest.key,
        config=config.name,
        kind=engine.kind,
        version=engine.version,
        target=engine.target,
        precision=manifest.precision,
        width=width,
        height=height,
        graphs=tuple(manifest.graphs),
        bytes=size,
        memory_bytes=least_bytes(manifest),
        options=manifest.options,
    )


def read_catalog(store: Store) -> list[CatalogEntry] | None:
    """All entries that can be read; None where there is no catalog."""
    listed = set(_entry_files(store))
    data = store.read(INDEX_NAME, _LIMIT_BYTES)
    if data is None and not listed:
        return None
    entries = _parse_index(store, data) if data is not None else []
    known = {_file_of(entry) for entry in entries}
    entries += _read_entries(store, listed - known)
    if not entries and (listed or _lists_any(data)):
        raise BundleError(
            f"{store.url}: no entry of its catalog can be read; push the bundles again"
        )
    return entries


def require_catalog(store: Store) -> None:
    """Refuse a place whose index is somebody else's: a push would replace it."""
    data = store.read(INDEX_NAME, _LIMIT_BYTES)
    if data is None or _read_entries(store, _entry_files(store)):
        return
    try:
        is_ours = bool(_parse_index(store, data)) or not _lists_any(data)
    except BundleError:
        is_ours = False
    if not is_ours:
        raise UsageError(
            f"{store.url}/{INDEX_NAME}: not a catalog of bundles of format {FORMAT}; push to "
            "another place, or move that file"
        )


def require_sound(entry: CatalogEntry) -> None:
    """Before anything is sent: what readers would not take is not listed."""
    if not _is_sound(entry):
        raise BundleError(
            f"{entry.path}: a name, version or size in its manifest cannot be listed in a catalog "
            f"({entry.config!r}, {entry.kind!r} {entry.version!r} for {entry.target!r}); names "
            "have printable characters only: export and build it under another name"
        )


def add_entry(store: Store, entry: CatalogEntry) -> None:
    store.write(f"{_ENTRIES}/{_file_of(entry)}", json.dumps(asdict(entry), indent=1).encode())
    for _ in range(_ROUNDS):
        others = _read_entries(store, set(_entry_files(store)) - {_file_of(entry)})
        _write_index(store, [entry, *others])
        # Another push may have written an index without ours, or added an entry to be in it.
        data = store.read(INDEX_NAME, _LIMIT_BYTES)
        written = _parse_index(store, data) if data is not None else []
        listed = {_file_of(item) for item in written}
        missing = set(_entry_files(store)) - listed
        if _file_of(entry) in listed and not _read_entries(store, missing):
            return
    raise OutputError(
        f"{store.url}/{INDEX_NAME}: others keep changing it; the bundle is stored, push it again "
        f"to list it"
    )


def _write_index(store: Store, entries: Iterable[CatalogEntry]) -> None:
    bundles = [asdict(entry) for entry in sorted(entries, key=lambda entry: entry.path)]
    text = json.dumps({"format": FORMAT, "bundles": bundles}, indent=1) + "\n"
    store.write(INDEX_NAME, text.encode())


def _parse_index(store: Store, data: bytes) -> list[CatalogEntry]:
    where = f"{store.url}/{INDEX_NAME}"
    values = _parse_json(data)
    if values is None or not isinstance(values.get("bundles"), list):
        raise BundleError(f"{where}: not JSON of a catalog; push the bundles again")
    if values.get("format") != FORMAT:
        raise BundleError(
            f"{where}: not a catalog of format {FORMAT}; update longlive-trt, or push again"
        )
    return _sound_entries((where, item) for item in values["bundles"])


def _read_entries(store: Store, names: Iterable[str]) -> list[CatalogEntry]:
    files = ((name, store.read(f"{_ENTRIES}/{name}", _LIMIT_BYTES)) for name in sorted(names))
    return _sound_entries(
        (f"{store.url}/{_ENTRIES}/{name}", _parse_json(data))
        for name, data in files
        if data is not None
    )


def _parse_json(data: bytes) -> Mapping[str, Any] | None:
    try:
        values = parse_json(data)
    except ReadingError:
        return None
    return values if isinstance(values, dict) else None


def _lists_any(data: bytes | None) -> bool:
    values = _parse_json(data) if data is not None else None
    return values is not None and bool(values.get("bundles"))


def _sound_entries(items: Iterable[tuple[str, Any]]) -> list[CatalogEntry]:
    """One that cannot be read is told and left out: the others are no worse for it."""
    entries = []
    for where, values in items:
        entry = _parse_entry(values)
        if entry is None:
            logger.warning("%s: an entry that is not of this catalog's form is left out", where)
        else:
            entries.append(entry)
    return entries


def _parse_entry(values: Any) -> CatalogEntry | None:
    try:
        entry = structured(CatalogEntry, values)
    except ReadingError:
        return None
    return entry if _is_sound(entry) else None


def _is_sound(entry: CatalogEntry) -> bool:
    texts = (entry.key, entry.config, entry.kind, entry.version, entry.target, entry.precision)
    sizes = (entry.width, entry.height, entry.bytes, entry.memory_bytes)
    return (
        re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", entry.path) is not None
        and re.fullmatch(r"[0-9a-f]{64}", entry.sha256) is not None
        and all(graph.isidentifier() for graph in entry.graphs)
        and all(text.isprintable() and len(text) <= _LONGEST_TEXT for text in texts)
        and len(entry.path) <= _LONGEST_TEXT
        and all(size >= 0 for size in sizes)
        and KnownOptions.are_sound(entry.options)
    )


def _entry_files(store: Store) -> list[str]:
    names = store.names(_ENTRIES)
    return [name for name in names if name.endswith(".json") and not name.startswith(".")]


def _file_of(entry: CatalogEntry) -> str:
    return f"{entry.path}.json"


def _pixels_per_latent(config: ModelConfig) -> int:
    return config.vae.spatial_factor if config.vae is not None else 8
