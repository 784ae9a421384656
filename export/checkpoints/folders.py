"""From the path a user gives to the tensors under it: a file, a shard index, or a folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from longlive_trt.console.printing import plain
from longlive_trt.errors import CheckpointError, UsageError
from longlive_trt.export.checkpoints.files import (
    Entries,
    FileKind,
    StoredTensor,
    TensorFile,
    file_kind,
    quoted_names,
)
from longlive_trt.export.checkpoints.pickles import PickleFile
from longlive_trt.export.checkpoints.safetensors import SafetensorsFile
from longlive_trt.reading.documents import JSON_BYTES, parse_json
from longlive_trt.reading.failures import ReadingError, refusing
from longlive_trt.reading.files import read_bytes
from longlive_trt.reading.names import require_inside
from longlive_trt.reading.shapes import field

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True)
class TensorSet:
    """All tensors that one path stands for, none of them read yet."""

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    entry: str = ""


def require_path(path: Path) -> Path:
    if not path.exists():
        raise UsageError(f"{path} does not exist: check the path{_neighbors(path)}")
    return path


def open_tensors(path: Path, entries: Entries) -> TensorSet:
    if file_kind(path) is FileKind.JSON:
        return _open_shards(path, entries)
    file = _open_file(path, entries)
    entry = file.entry if isinstance(file, PickleFile) else ""
    return TensorSet(path, (path,), file.tensors, file.metadata, entry)


def weights_in(folder: Path, patterns: Sequence[str]) -> Path:
    """The file, or shard index, in `folder` that one of `patterns` names; else the only one."""
    for pattern in patterns:
        if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
            return _only(found, folder)
    found = sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)
    if not found:
        names = sorted(path.name for path in folder.iterdir())
        raise CheckpointError(
            f"{folder} holds no weights for this (expected {quoted_names(patterns)}); "
            f"it holds {quoted_names(names) or 'nothing'}"
        )
    return _only(found, folder)


def _only(found: Sequence[Path], folder: Path) -> Path:
    if len(found) > 1:
        raise CheckpointError(
            f"{folder} holds several weight files: {quoted_names([path.name for path in found])}. "
            "Name the one to use; shards need their index file (*.index.json) beside them"
        )
    return found[0]


def _open_file(path: Path, entries: Entries) -> TensorFile:
    kind = file_kind(path)
    if kind is FileKind.SAFETENSORS:
        if not entries.bare:
            raise CheckpointError(f"{path} is a plain state dict. {entries.advice}".rstrip())
        return SafetensorsFile(path)
    if kind is FileKind.JSON:
        raise CheckpointError(f"{path} is JSON text where a file of tensors is expected")
    return PickleFile(path, entries)


def _open_shards(index: Path, entries: Entries) -> TensorSet:
    file_of = _read_index(index)
    names = sorted(set(file_of.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index} names shards that are not beside it: {quoted_names(missing)}. Get them too"
        )
    shards = {name: _open_file(index.parent / name, entries) for name in names}
    lost = sorted(key for key, name in file_of.items() if key not in shards[name].tensors)
    if lost:
        raise CheckpointError(
            f"{index} promises tensors that its shards do not hold: {quoted_names(lost)}. "
            "Index and shards are of different checkpoints: get them all again"
        )
    tensors = {key: shards[name].tensors[key] for key, name in file_of.items()}
    return TensorSet(index, tuple(shard.path for shard in shards.values()), tensors, {})


def _read_index(index: Path) -> dict[str, str]:
    advice = "give the weights, or the *.safetensors.index.json beside them"
    with refusing(CheckpointError, f"{index} is JSON text, but no index of shards", advice):
        values = parse_json(read_bytes(index, JSON_BYTES))
        weight_map = values.get("weight_map") if isinstance(values, dict) else None
        file_of: dict[str, str] = field(dict[str, str], weight_map, "weight_map")
        # A shard is a plain name: an index must not lead out of its folder.
        for name in set(file_of.values()):
            require_inside(name)
            if "/" in name:
                raise ReadingError(f"shard {plain(name)} lies in another folder")
    return file_of


def _neighbors(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = sorted(other.name for other in path.parent.iterdir() if other.name[0] != ".")
    return f". {path.parent} holds {quoted_names(names)}" if names else ""
