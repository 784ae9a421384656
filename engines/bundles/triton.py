"""A bundle as a model repository of NVIDIA's Triton Inference Server: one model to a graph."""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from longlive_trt.dtypes import recorded_type
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.engines.registry import KINDS, Kind, TritonBackend
from longlive_trt.errors import UsageError
from longlive_trt.exports import GraphInfo, TensorInfo, weight_files
from longlive_trt.files import (
    Ours,
    blamed_on,
    real_path,
    replace_directory,
    require_place,
    require_replaceable,
    scratch_folder,
)
from longlive_trt.reading.documents import parse_json
from longlive_trt.reading.failures import ReadingError

_VERSION = "1"
_CONFIG = "config.pbtxt"
_MARK = "# written by longlive-trt export-triton;"
_LONGEST_LINE_BYTES = 1 << 20


def export_triton(bundle: Bundle, out: Path) -> dict[str, str]:
    """Write the repository; the name of each graph's model."""
    backend = _backend_of(bundle)
    prefix = re.sub(r"[^A-Za-z0-9_-]+", "_", bundle.config.name)
    models = {graph: f"{prefix}_{graph}" for graph in bundle.manifest.graphs}
    _require_repository(out, models.values())
    # What is mounted has no place beside it on the same disk.
    beside = out / "models" if out.is_mount() else out
    with scratch_folder(beside) as repository, blamed_on(out, repository):
        for graph, model in models.items():
            _write_model(bundle, graph, backend, repository / model)
        _publish(repository, out)
    return models


def _publish(repository: Path, out: Path) -> None:
    """All at once in a new place; in an older one, model by model beside those of others."""
    if not out.exists():
        repository.rename(real_path(out))
        return
    for model in sorted(repository.iterdir()):
        replace_directory(out / model.name, model, MODEL)


def _backend_of(bundle: Bundle) -> TritonBackend:
    kind = KINDS.get(bundle.manifest.engine.kind)
    if kind is None or kind.triton is None:
        served = [name for name, known in KINDS.items() if known.triton is not None]
        raise UsageError(
            f"{bundle.folder}: Triton has no backend for {bundle.manifest.engine.kind} engines; "
            f"build with --engine {' or '.join(served)}"
        )
    if bundle.manifest.options.get("strip"):
        raise UsageError(
            f"{bundle.folder}: its engines were built without their weights (--strip), and Triton "
            f"cannot add them; run `longlive-trt refit` first"
        )
    if bundle.manifest.options.get("lora_ready"):
        raise UsageError(
            f"{bundle.folder}: its engines take the transformer's matrices as inputs "
            "(--lora-ready), which Triton's clients would have to send; build without it"
        )
    return kind.triton


def _kind(bundle: Bundle) -> Kind:
    return KINDS[bundle.manifest.engine.kind]


def _require_repository(out: Path, models: Iterable[str]) -> None:
    if real_path(out).exists() and not out.is_dir():
        raise UsageError(f"{out}: a file is in the way; give --out another folder")
    require_place(out)
    there = sorted(out.iterdir()) if out.is_dir() else []
    other = next((path for path in there if not (path / _CONFIG).is_file()), None)
    if other is not None:
        raise UsageError(
            f"{out}: not empty and not a model repository ({other.name} is no model); give --out "
            "another folder"
        )
    for model in models:
        require_replaceable(out / model, MODEL)


def _listing(folder: Path) -> frozenset[str] | None:
    """The files of a model that was written here, by the comment that its configuration begins
    with.
    """
    path = folder / _CONFIG
    if path.is_symlink() or not path.is_file():
        return None
    with path.open("rb") as file:
        mark, _, listed = file.readline(_LONGEST_LINE_BYTES).partition(b" files: ")
    try:
        names = parse_json(listed) if mark == _MARK.encode() else None
    except ReadingError:
        return None
    return frozenset({_CONFIG, *map(str, names)}) if isinstance(names, list) else None


MODEL = Ours("a model that export-triton wrote", _listing)


def _write_model(bundle: Bundle, graph: str, backend: TritonBackend, folder: Path) -> None:
    source = _engine_file(bundle, graph)
    version = folder / _VERSION
    version.mkdir(parents=True)
    shutil.copyfile(source, version / backend.model_file)
    profiles = _kind(bundle).profile_count(bundle, graph)
    if not profiles:
        for name in sorted(weight_files(source)):
            shutil.copyfile(_listed(bundle, name), version / name)
    config = model_config(folder.name, backend, bundle.manifest.graphs[graph], profiles)
    files = sorted(path.relative_to(folder).as_posix() for path in version.iterdir())
    (folder / _CONFIG).write_text(f"{_MARK} files: {json.dumps(files)}\n{config}", encoding="utf-8")


def _engine_file(bundle: Bundle, graph: str) -> Path:
    name = f"{graph}{_kind(bundle).suffix}"
    if name not in bundle.manifest.files:
        raise UsageError(
            f"{bundle.folder}: no engine of graph {graph} among its files; build the bundle again"
        )
    return bundle.folder / name


def _listed(bundle: Bundle, name: str) -> Path:
    if name not in bundle.manifest.files:
        raise UsageError(
            f"{bundle.folder}: a graph wants its weights from {name!r}, which is no file of the "
            f"bundle; build it again"
        )
    return bundle.folder / name


def model_config(name: str, backend: TritonBackend, info: GraphInfo, profiles: int) -> str:
    """``config.pbtxt``. The batch is a dimension like others: a session's cache belongs to it."""
    group = "count: 1 kind: KIND_CPU"
    if profiles:
        # Triton would use the first one alone, and refuse the sizes of a re-cache.
        names = ", ".join(f'"{number}"' for number in range(profiles))
        group = f"count: 1 kind: KIND_GPU profile: [ {names} ]"
    lines = [
        f'name: "{name}"',
        f'backend: "{backend.name}"',
        f'platform: "{backend.platform}"',
        "max_batch_size: 0",
        f'default_model_filename: "{backend.model_file}"',
        *_tensors("input", info.inputs),
        *_tensors("output", info.outputs),
        f"instance_group [ {{ {group} }} ]",
    ]
    return "\n".join(lines) + "\n"


def _tensors(field: str, tensors: Iterable[TensorInfo]) -> list[str]:
    return [
        f'{field} {{ name: "{tensor.name}" data_type: {_type(tensor)} dims: {_dims(tensor)} }}'
        for tensor in tensors
    ]


def _type(tensor: TensorInfo) -> str:
    name = recorded_type(tensor.dtype).triton
    if name is None:
        raise UsageError(f"tensor {tensor.name}: Triton has no type for {tensor.dtype}")
    return name


def _dims(tensor: TensorInfo) -> str:
    sizes = (str(side) if isinstance(side, int) else "-1" for side in tensor.shape)
    return f"[ {', '.join(sizes)} ]"
