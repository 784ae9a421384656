"""The bundle: a folder of compiled engines with a manifest that answers for every byte."""

import json
import re
import shlex
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from longlive_trt.basics import Report, Tally, unheard
from longlive_trt.configs import ModelConfig
from longlive_trt.configs.dump import config_values
from longlive_trt.console.printing import quoted
from longlive_trt.contract import COMPONENT_OF, VAE_ENCODER
from longlive_trt.errors import BundleError, UsageError
from longlive_trt.exports import TOKENIZER_NAME, GraphInfo
from longlive_trt.files import MANIFEST_NAME as MANIFEST_NAME
from longlive_trt.files import RECORD_NAME, is_sealed, seal_of, sha256_file
from longlive_trt.reading.documents import JSON_BYTES, parse_json
from longlive_trt.reading.failures import InvalidFieldError, ReadingError, refusing
from longlive_trt.reading.files import read_bytes
from longlive_trt.reading.names import require_inside
from longlive_trt.reading.ranges import Range
from longlive_trt.reading.shapes import structured

FORMAT = 1
MANIFEST_LIMIT_BYTES = JSON_BYTES
ARCHIVE_SUFFIX = ".tar.zst"
BATCH = Range(1, 256)
"""Videos side by side."""

_FILE_BYTES = Range(0, 1 << 50)
_LONGEST_WORD = 100
_AGAIN = "build or fetch the bundle again"
_ADDED_BY = {
    "transformer": "--transformer",
    "vae": "--vae",
    VAE_ENCODER: "--vae (of a file that holds the encoder too)",
    "text_encoder": "--text-encoder",
}


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise InvalidFieldError("sha256", self.sha256, "64 hexadecimal digits")
        if self.bytes not in _FILE_BYTES:
            raise InvalidFieldError("bytes", self.bytes, f"a size, {_FILE_BYTES}")


@dataclass(frozen=True)
class EngineKind:
    """Which compiler made the engines, in which version, and for what."""

    kind: str
    version: str
    target: str

    def __post_init__(self) -> None:
        for key, word in asdict(self).items():
            if not word.isprintable() or len(word) > _LONGEST_WORD:
                raise InvalidFieldError(key, word, "a short text of printable characters")


@dataclass(frozen=True)
class KnownOptions:
    """Those of a compiler's options that anything but the compiler asks for."""

    batch: int | None = None
    strip: bool | None = None
    lora_ready: bool | None = None
    kernel_graphs: tuple[str, ...] = ()
    gpu_name: str | None = None
    version_compatible: bool | None = None
    hardware_compatibility: str | None = None

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch not in BATCH:
            raise InvalidFieldError("batch", self.batch, str(BATCH))

    @classmethod
    def require_sound(cls, options: Mapping[str, object]) -> None:
        known = {item.name for item in fields(cls)}
        structured(cls, {name: value for name, value in options.items() if name in known})

    @classmethod
    def are_sound(cls, options: Mapping[str, object]) -> bool:
        try:
            cls.require_sound(options)
        except ReadingError:
            return False
        return True


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
    components: dict[str, str] = field(default_factory=dict)
    """Hash of all that decides a component's engines; equal ones are the same files."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the compiler was asked for, in its own terms."""
    command: str = ""
    duration_s: float = 0.0

    def require_sound(self) -> None:
        """Of a file that may say anything."""
        for graph, info in self.graphs.items():
            if not graph.isidentifier() or len(graph) > _LONGEST_WORD:
                raise ReadingError(f"graph name {quoted(graph)} is not a plain name")
            info.require_sound(graph)
        for name in self.files:
            require_inside(name)
            if name == MANIFEST_NAME:
                raise ReadingError(f"file name {name} is not plain: the manifest lists itself")
        KnownOptions.require_sound(self.options)

    @property
    def total_bytes(self) -> int:
        return sum(entry.bytes for entry in self.files.values())

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
        raise UsageError(f"{folder}: {no_bundle(folder)}")
    with refusing(BundleError, path, _AGAIN):
        data = read_bytes(path, MANIFEST_LIMIT_BYTES)
    return parse_manifest(data, str(path))


def no_bundle(path: Path) -> str:
    """What is in the place of a bundle's folder, and what to do about it."""
    if path.is_file() and path.name.endswith(ARCHIVE_SUFFIX):
        folder = shlex.quote(path.name.removesuffix(ARCHIVE_SUFFIX))
        unpack = f"longlive-trt unpack {shlex.quote(str(path))} --out {folder}"
        return f"an archive; unpack it with `{unpack}`, and give the folder {folder}"
    if path.is_file():
        return "a file; give the folder of a bundle that `longlive-trt build` made"
    if (path / RECORD_NAME).is_file():
        command = f"longlive-trt build --onnx {shlex.quote(str(path))} --out bundle/"
        return f"an export; `{command}` makes a bundle of it"
    what = f"no {MANIFEST_NAME} inside" if path.is_dir() else "no such folder"
    return f"{what}; give a bundle that `longlive-trt build` made"


def parse_manifest(data: bytes, origin: str) -> Manifest:
    """The manifest from its file's bytes, which must be exactly those that were written."""
    with refusing(BundleError, f"{origin}: not a readable manifest", _AGAIN):
        values = parse_json(data)
        if not isinstance(values, dict) or "format" not in values:
            raise ReadingError("no keys and values, or no format among them")
    found = values.pop("format")
    if type(found) is not int or found != FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        remedy = "update longlive-trt" if newer else "build the bundle again"
        raise BundleError(
            f"{origin}: format {quoted(found)}, and this version reads {FORMAT}; {remedy}"
        )
    if not is_sealed(data):
        raise BundleError(
            f"{origin}: altered: its own sha256 does not match; build or fetch the bundle again"
        )
    with refusing(BundleError, f"{origin}: not a valid manifest", "build the bundle again"):
        manifest = structured(Manifest, {k: v for k, v in values.items() if k != "sha256"})
        manifest.require_sound()
    return manifest


def open_bundle(folder: Path, report: Report = unheard) -> Bundle:
    """Read a bundle and check every file of it before anything is loaded."""
    manifest = read_manifest(folder)
    check_files(folder, manifest, report)
    return Bundle(folder, manifest)


def check_files(folder: Path, manifest: Manifest, report: Report = unheard) -> None:
    """``report`` hears of bytes."""
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
    tally = Tally(report, manifest.total_bytes)
    tally.begin(f"checking {folder.name or folder}")
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(lambda name: sha256_file(folder / name, tally.add), manifest.files)
        for (name, entry), found in zip(manifest.files.items(), hashes, strict=True):
            if found != entry.sha256:
                raise BundleError(
                    f"{folder / name}: altered: sha256 {found}, expected {entry.sha256}; "
                    f"build or fetch the bundle again"
                )
