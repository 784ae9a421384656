"""A bundle as a model repository of NVIDIA's Triton Inference Server: one model to a graph."""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import onnx

from longlive_trt.dtypes import recorded_type
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.engines.registry import KINDS, Kind, TritonBackend
from longlive_trt.errors import UsageError
from longlive_trt.exports import GraphInfo, TensorInfo
from longlive_trt.files import publish_directory

_VERSION = "1"


def export_triton(bundle: Bundle, out: Path) -> dict[str, str]:
    """Write the repository; the name of each graph's model."""
    backend = _backend_of(bundle)
    _require_replaceable(out)
    prefix = re.sub(r"[^A-Za-z0-9_-]+", "_", bundle.config.name)
    models = {graph: f"{prefix}_{graph}" for graph in bundle.manifest.graphs}
    with publish_directory(out) as repository:
        for graph, model in models.items():
            _write_model(bundle, graph, backend, repository / model)
    return models


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
    return kind.triton


def _kind(bundle: Bundle) -> Kind:
    return KINDS[bundle.manifest.engine.kind]


def _require_replaceable(out: Path) -> None:
    if out.is_file():
        raise UsageError(f"{out}: a file is in the way; give --out another folder")
    models = list(out.iterdir()) if out.is_dir() else []
    if not all((model / "config.pbtxt").is_file() for model in models):
        raise UsageError(f"{out}: not empty and not a model repository; give --out another folder")


def _write_model(bundle: Bundle, graph: str, backend: TritonBackend, folder: Path) -> None:
    source = _engine_file(bundle, graph)
    version = folder / _VERSION
    version.mkdir(parents=True)
    shutil.copyfile(source, version / backend.model_file)
    profiles = _kind(bundle).profile_count(bundle, graph)
    if not profiles:
        for name in sorted(_weight_files(onnx.load(source, load_external_data=False))):
            shutil.copyfile(_listed(bundle, name), version / name)
    config = model_config(folder.name, backend, bundle.manifest.graphs[graph], profiles)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")


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


def _weight_files(model: onnx.ModelProto) -> set[str]:
    return {
        item.value
        for tensor in model.graph.initializer
        for item in tensor.external_data
        if item.key == "location"
    }


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
