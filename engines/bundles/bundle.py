"""The bundle: a folder of compiled engines with a manifest that answers for every byte."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from longlive_trt.configs import ModelConfig
from longlive_trt.configs.dump import config_values
from longlive_trt.configs.loader import configure
from longlive_trt.contract import COMPONENT_OF
from longlive_trt.errors import BundleError, ConfigError, UsageError
from longlive_trt.exports import TOKENIZER_NAME, GraphInfo, graph_info_from_values
from longlive_trt.files import MANIFEST_NAME as MANIFEST_NAME
from longlive_trt.files import is_sealed, seal_of, sha256_file

FORMAT = 1
MANIFEST_LIMIT_BYTES = 16 << 20

_ADDED_BY = {"transformer": "--transformer", "vae": "--vae", "text_encoder": "--text-encoder"}


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"{self.sha256!r} is not a sha256")
        if type(self.bytes) is not int or self.bytes < 0:
            raise ValueError(f"{self.bytes!r} is not a size")


@dataclass(frozen=True)
class EngineKind:
    """Which compiler made the engines, in which version, and for what."""

    kind: str
    version: str
    target: str


@dataclass(frozen=True)
class Manifest:
    key: str
    """Hash of all that decides what the engines compute; equal keys mean equal bundles."""
    config: ModelConfig
    engine: EngineKind
    precision: str
    graphs: dict[str, GraphInfo]
    checkpoints: dict[str, str]
    onnx: dict[str, str]
    """sha256 of every file that the engines were built from."""
    files: dict[str, FileEntry]
    plugins: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    """What the compiler was asked for, in its own terms."""
    command: str = ""
    duration_s: float = 0.0

    def to_json(self) -> str:
        """The text of the file, sealed: its first sha256 is that of the text without it."""
        values: dict[str, Any] = {"format": FORMAT, "sha256": "", **asdict(self)}
        values["config"] = config_values(self.config)
        text = json.dumps(values, indent=1) + "\n"
        return text.replace('"sha256": ""', f'"sha256": "{seal_of(text)}"', 1)


@dataclass(frozen=True)
class Bundle:
    folder: Path
    manifest: Manifest

    @property
    def config(self) -> ModelConfig:
        return self.manifest.config

    @property
    def tokenizer(self) -> Path:
        path = self.folder / TOKENIZER_NAME
        if TOKENIZER_NAME not in self.manifest.files:
            raise UsageError(
                f"{self.folder}: the bundle has no tokenizer, so it cannot read prompts; "
                f"export with --tokenizer FOLDER (or --random-weights) and build again"
            )
        return path

    def has(self, graph: str) -> bool:
        return graph in self.manifest.graphs

    def require(self, graph: str, purpose: str) -> None:
        if self.has(graph):
            return
        component = COMPONENT_OF[graph]
        raise UsageError(
            f"{self.folder}: {purpose} needs the {component.replace('_', ' ')}, which was never "
            f"exported; run `longlive-trt export` with {_ADDED_BY[component]} and build again"
        )


def read_manifest(folder: Path) -> Manifest:
    """Parse the manifest without looking at the files it lists."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        what = f"no {MANIFEST_NAME} inside" if folder.is_dir() else "no such folder"
        raise UsageError(f"{folder}: {what}; give a bundle that `longlive-trt build` made")
    with path.open("rb") as file:
        return parse_manifest(file.read(MANIFEST_LIMIT_BYTES + 1), str(path))


def parse_manifest(data: bytes, origin: str) -> Manifest:
    """The manifest from its file's bytes, which must be exactly those that were written."""
    if len(data) > MANIFEST_LIMIT_BYTES:
        raise BundleError(
            f"{origin}: larger than {MANIFEST_LIMIT_BYTES >> 20} MiB, which no manifest is; "
            f"build or fetch the bundle again"
        )
    try:
        values = json.loads(data)
        found = values.pop("format")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise BundleError(
            f"{origin}: not a readable manifest; build or fetch the bundle again"
        ) from None
    if found != FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        remedy = "update longlive-trt" if newer else "build the bundle again"
        raise BundleError(f"{origin}: format {found}, and this version reads {FORMAT}; {remedy}")
    if not is_sealed(data):
        raise BundleError(
            f"{origin}: altered: its own sha256 does not match; build or fetch the bundle again"
        )
    try:
        return _manifest(values, origin)
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise BundleError(
            f"{origin}: not a valid manifest ({error}); build the bundle again"
        ) from None


def _manifest(values: dict[str, Any], origin: str) -> Manifest:
    del values["sha256"]
    graphs = {name: graph_info_from_values(info) for name, info in values.pop("graphs").items()}
    files = {name: FileEntry(**entry) for name, entry in values.pop("files").items()}
    for name in graphs:
        if not name.isidentifier():
            raise ValueError(f"graph name {name!r} is not a plain name")
    for name in files:
        _require_inside(name)
    return Manifest(
        config=configure(values.pop("config"), origin=origin),
        engine=EngineKind(**values.pop("engine")),
        graphs=graphs,
        files=files,
        **values,
    )


def _require_inside(name: str) -> None:
    path = PurePosixPath(name)
    is_plain = str(path) == name and name.isprintable() and "\\" not in name
    if not is_plain or path.is_absolute() or ".." in path.parts or name in (".", MANIFEST_NAME):
        raise ValueError(f"file name {name!r} leads outside the bundle or is not plain")


def open_bundle(folder: Path) -> Bundle:
    """Read a bundle and check every file of it before anything is loaded."""
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    return Bundle(folder, manifest)


def check_files(folder: Path, manifest: Manifest) -> None:
    # Sizes first: they cost nothing and find what is cut short.
    for name, entry in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{path}: missing; build or fetch the bundle again")
        if path.stat().st_size != entry.bytes:
            raise BundleError(
                f"{path}: {path.stat().st_size} bytes, expected {entry.bytes}; "
                f"build or fetch the bundle again"
            )
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(lambda name: sha256_file(folder / name), manifest.files)
        for (name, entry), found in zip(manifest.files.items(), hashes, strict=True):
            if found != entry.sha256:
                raise BundleError(
                    f"{folder / name}: altered: sha256 {found}, expected {entry.sha256}; "
                    f"build or fetch the bundle again"
                )
