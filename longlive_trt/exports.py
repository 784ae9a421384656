"""The folder that ``export`` leaves and ``build`` takes: ONNX graphs, weights, and their record."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from longlive_trt.configs import ModelConfig
from longlive_trt.configs.dump import config_values
from longlive_trt.configs.loader import configure
from longlive_trt.contract import TRANSPOSED_KEY
from longlive_trt.errors import ExportError, UsageError
from longlive_trt.files import RECORD_NAME as RECORD_NAME
from longlive_trt.files import sha256_file

TOKENIZER_NAME = "tokenizer.json"
FORMAT = 1


@dataclass(frozen=True)
class TensorInfo:
    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphInfo:
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class Quantization:
    """How the graphs' layers are quantized; the compute type is the record's precision."""

    precision: str
    """fp8 or int8"""
    recipe: str
    calibration_sha256: str
    cache: str | None = None
    """fp8 or int8 where keys and values are kept so."""
    attention: str | None = None
    """fp8 where self-attention's products are in it."""
    vae: str | None = None
    """fp8 or int8 where the VAE's convolutions are in it."""

    @property
    def formats(self) -> set[str]:
        """All that an engine must know."""
        return {kind for kind in (self.precision, self.cache, self.attention, self.vae) if kind}


@dataclass(frozen=True)
class ExportRecord:
    precision: str
    config: ModelConfig
    checkpoints: dict[str, str]
    """Digest of every component's weights."""
    graphs: dict[str, GraphInfo]
    files: dict[str, str]
    """sha256 of every file beside the record."""
    versions: dict[str, str]
    quantization: Quantization | None = None

    def to_json(self) -> str:
        values: dict[str, Any] = {"format": FORMAT, **asdict(self)}
        values["config"] = config_values(self.config)
        return json.dumps(values, indent=1) + "\n"


def read_export(folder: Path) -> ExportRecord:
    path = folder / RECORD_NAME
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give one that `longlive-trt export` made")
    if not path.is_file():
        raise UsageError(
            f"{folder}: no {RECORD_NAME} inside; give a folder that `longlive-trt export` made"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise UsageError(f"{path}: of another version; export again with this version")
        graphs = {name: graph_info_from_values(info) for name, info in values.pop("graphs").items()}
        config = configure(values.pop("config"), origin=str(path))
        values["files"] = dict(values["files"])
        quantization = values.pop("quantization", None)
        return ExportRecord(
            config=config,
            graphs=graphs,
            quantization=Quantization(**quantization) if quantization else None,
            **values,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{path}: not a readable export record; export again") from None


def check_export(folder: Path, record: ExportRecord) -> None:
    """Refuse files that are not those which the export wrote."""
    for name, expected in record.files.items():
        path = folder / name
        if not path.is_file():
            raise UsageError(f"{path}: missing; export again")
        actual = sha256_file(path)
        if actual != expected:
            raise UsageError(
                f"{path}: altered since the export (sha256 {actual}, expected {expected}); "
                f"export again"
            )

    require_complete_record(folder, record)


def require_complete_record(folder: Path, record: ExportRecord) -> None:
    """Refuse a record that leaves out a file which its graphs need."""
    for graph in record.graphs:
        name = f"{graph}.onnx"
        needed = {name} if name not in record.files else weight_files(folder / name)
        if missing := sorted(needed - record.files.keys()):
            raise UsageError(
                f"{folder}: its {RECORD_NAME} does not list {missing[0]}, which graph {graph} "
                "needs; export again"
            )


def weight_files(graph: Path) -> set[str]:
    """The files beside a graph that hold its weights."""
    try:
        model = ir.load(graph)
    except Exception as error:  # the library's errors have no common base
        raise UsageError(
            f"{graph}: not a readable ONNX graph ({' '.join(str(error).split())}); make it again"
        ) from None
    values = (value.const_value for value in model.graph.initializers.values())
    return {str(value.location) for value in values if isinstance(value, ir.ExternalTensor)}


def transposed_weights(model: ir.Model, path: Path) -> set[str]:
    """Weights that the graph of this file stores [in, out], by their names in the checkpoint."""
    if TRANSPOSED_KEY not in model.metadata_props:
        raise UsageError(f"{path}: of an older version; export again with this version")
    return set(json.loads(model.metadata_props[TRANSPOSED_KEY]))


def graph_info(model: ir.Model) -> GraphInfo:
    def infos(values: Sequence[ir.Value]) -> tuple[TensorInfo, ...]:
        return tuple(_tensor_info(value) for value in values)

    return GraphInfo(infos(model.graph.inputs), infos(model.graph.outputs))


def _tensor_info(value: ir.Value) -> TensorInfo:
    if value.name is None or value.dtype is None or value.shape is None:
        raise ExportError(f"the tracer left {value.name} without a type or shape")
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    return TensorInfo(value.name, value.dtype.name.lower(), shape)


def graph_info_from_values(values: dict[str, Any]) -> GraphInfo:
    def infos(key: str) -> tuple[TensorInfo, ...]:
        return tuple(
            TensorInfo(item["name"], item["dtype"], tuple(item["shape"])) for item in values[key]
        )

    return GraphInfo(infos("inputs"), infos("outputs"))
