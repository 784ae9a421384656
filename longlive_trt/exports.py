"""The folder that ``export`` leaves and ``build`` takes: ONNX graphs, weights, and their record."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from longlive_trt.ahead import ahead
from longlive_trt.basics import Report, Tally, unheard
from longlive_trt.configs import ModelConfig
from longlive_trt.configs.dump import config_values
from longlive_trt.console.printing import plain
from longlive_trt.contract import COMPONENT_OF, ONNX_SUFFIX, TRANSPOSED_KEY
from longlive_trt.dtypes import is_recorded
from longlive_trt.errors import ExportError, LongLiveError, UsageError
from longlive_trt.files import RECORD_NAME as RECORD_NAME
from longlive_trt.files import sha256_file
from longlive_trt.reading.documents import JSON_BYTES, parse_json
from longlive_trt.reading.failures import InvalidFieldError, ReadingError, refusing
from longlive_trt.reading.files import file_size, read_bytes
from longlive_trt.reading.names import require_inside
from longlive_trt.reading.ranges import Range
from longlive_trt.reading.shapes import field, structured

TOKENIZER_NAME = "tokenizer.json"
FORMAT = 1

_SIZE = re.compile(r"[A-Za-z0-9_]{1,40}(\s*\*\s*[A-Za-z0-9_]{1,40}){0,7}(\|[0-9]{1,4})?")
"""As ``evaluate_size`` of contract.py reads it."""
_DIMENSIONS = Range(0, 8)
_ELEMENTS = Range(0, 1 << 48)
"""Of one tensor, as far as its sizes are known."""
_AGAIN = "export again"
_QUANTIZED_TYPES = ("fp8", "int8")


@dataclass(frozen=True)
class TensorInfo:
    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphInfo:
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    def require_sound(self, graph: str) -> None:
        """Of a file that may say anything."""
        for tensor in (*self.inputs, *self.outputs):
            where = f"graphs.{plain(graph)}.{plain(tensor.name)}"
            if not tensor.name.isprintable() or not 0 < len(tensor.name) <= _LONGEST_NAME:
                raise InvalidFieldError(where, tensor.name, "a short name of printable characters")
            if not is_recorded(tensor.dtype):
                raise InvalidFieldError(where, tensor.dtype, "a type that this version knows")
            _require_sizes(where, tensor.shape)


_LONGEST_NAME = 500


def _require_sizes(where: str, shape: tuple[int | str, ...]) -> None:
    allowed = f"up to {_DIMENSIONS.high} sizes: numbers, names, or products of such"
    if len(shape) not in _DIMENSIONS:
        raise InvalidFieldError(where, shape, allowed)
    known = [1]
    for size in shape:
        if isinstance(size, str) and not _SIZE.fullmatch(size):
            raise InvalidFieldError(where, size, allowed)
        factors = str(size).split("*")
        known += [int(factor) for factor in map(str.strip, factors) if factor.isdecimal()]
        if isinstance(size, int) and size < 0:
            raise InvalidFieldError(where, size, allowed)
    if math.prod(known) not in _ELEMENTS:
        raise InvalidFieldError(where, shape, f"at most {_ELEMENTS.high} elements")


@dataclass(frozen=True)
class Quantization:
    """How the graphs' layers are quantized; the compute type is the record's precision."""

    precision: str
    """fp8 or int8"""
    recipe: str
    calibration_sha256: str
    cache: str | None = None
    """fp8 or int8 where keys and values are kept so; with attention in int8, keys alone,
    and None where keys are turned anew in every pass."""
    attention: str | None = None
    """fp8 or int8 where self-attention's products are in it: int8 has values in fp8."""
    vae: str | None = None
    """fp8 or int8 where the VAE's convolutions are in it."""

    @property
    def formats(self) -> set[str]:
        """All that an engine must know."""
        values = "fp8" if self.attention == "int8" else None
        kinds = (self.precision, self.cache, self.attention, values, self.vae)
        return {kind for kind in kinds if kind}


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

    def require_sound(self) -> None:
        """Of a file that may say anything."""
        for graph, info in self.graphs.items():
            if graph not in COMPONENT_OF:
                raise ReadingError(f"{plain(graph)} is no graph that this version knows")
            info.require_sound(graph)
        for name in self.files:
            require_inside(name)
        for kind in self.quantization.formats if self.quantization else ():
            if kind not in _QUANTIZED_TYPES:
                raise InvalidFieldError("quantization", kind, ", ".join(_QUANTIZED_TYPES))


def read_export(folder: Path) -> ExportRecord:
    path = folder / RECORD_NAME
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give one that `longlive-trt export` made")
    if not path.is_file():
        raise UsageError(
            f"{folder}: no {RECORD_NAME} inside; give a folder that `longlive-trt export` made"
        )
    with refusing(UsageError, f"{path}: not a readable export record", _AGAIN):
        return _record(path, parse_json(read_bytes(path, JSON_BYTES)))


def _record(path: Path, values: Any) -> ExportRecord:
    found = values.pop("format", None) if isinstance(values, dict) else None
    if found is not None and found != FORMAT:
        raise UsageError(f"{path}: of another version; export again with this version")
    record = structured(ExportRecord, values)
    record.require_sound()
    return record


def check_hashes(folder: Path, record: ExportRecord, report: Report = unheard) -> None:
    """Refuse files that are not those which the export wrote; ``report`` hears of bytes."""
    for name in record.files:
        if not (folder / name).is_file():
            raise UsageError(f"{folder / name}: missing; export again")
    tally = Tally(report, export_bytes(folder, record))
    tally.begin(f"checking {folder.name or folder}")
    hashes = ahead(lambda name: sha256_file(folder / name, tally.add), record.files)
    for (name, expected), actual in zip(record.files.items(), hashes, strict=True):
        path = folder / name
        if actual != expected:
            raise UsageError(
                f"{path}: altered since the export (sha256 {actual}, expected {expected}); "
                f"export again"
            )


def export_bytes(folder: Path, record: ExportRecord) -> int:
    """The size of all that the record names."""
    return sum((folder / name).stat().st_size for name in record.files)


def check_export(folder: Path, record: ExportRecord, report: Report = unheard) -> None:
    """Refuse an export that is not whole, or not as it was written."""
    check_hashes(folder, record, report)
    require_complete_record(folder, record)
    for name, info in record.graphs.items():
        path = folder / f"{name}{ONNX_SUFFIX}"
        with damage_refused(path):
            found = graph_info(load_graph(path))
        if found != info:
            # The record's word for a file is not enough: it may have been written anew with it.
            raise UsageError(f"{path}: not the graph that {RECORD_NAME} describes; {_AGAIN}")


def require_complete_record(folder: Path, record: ExportRecord) -> None:
    """Refuse a record that leaves out a file which its graphs need."""
    for graph in record.graphs:
        name = f"{graph}{ONNX_SUFFIX}"
        needed = {name} if name not in record.files else weight_files(folder / name)
        if missing := sorted(needed - record.files.keys()):
            raise UsageError(
                f"{folder}: its {RECORD_NAME} does not list {plain(missing[0])}, which graph "
                f"{graph} needs; export again"
            )


def weight_files(graph: Path) -> set[str]:
    """The files beside a graph that hold its weights."""
    with damage_refused(graph):
        values = load_graph(graph).graph.initializers.values()
        tensors = (value.const_value for value in values)
        return {str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}


def load_graph(path: Path) -> ir.Model:
    """An ONNX graph with its weights still in their files."""
    with refusing(UsageError, path, _AGAIN):
        file_size(path)
    with damage_refused(path):
        return ir.load(path)


@contextmanager
def damage_refused(path: Path) -> Iterator[None]:
    """Damaged protobuf raises whatever its first wrong byte leads to."""
    try:
        yield
    except (LongLiveError, OSError, MemoryError):
        raise
    except Exception as error:
        raise UsageError(f"{path}: not a readable ONNX graph ({plain(error)}); {_AGAIN}") from None


def transposed_weights(model: ir.Model, path: Path) -> set[str]:
    """Weights that the graph of this file stores [in, out], by their names in the checkpoint."""
    if TRANSPOSED_KEY not in model.metadata_props:
        raise UsageError(f"{path}: of an older version; export again with this version")
    with refusing(UsageError, path, _AGAIN):
        names = parse_json(model.metadata_props[TRANSPOSED_KEY])
        return set(field(tuple[str, ...], names, TRANSPOSED_KEY))


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A tensor under a name of its own: what is there under it already, if anything is."""
    existing = graph.initializers.get(name)
    if existing is not None:
        return existing
    shape, type_ = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    value = ir.Value(name=name, shape=shape, type=type_, const_value=tensor)
    graph.initializers[name] = value
    return value


def graph_info(model: ir.Model) -> GraphInfo:
    def infos(values: Sequence[ir.Value]) -> tuple[TensorInfo, ...]:
        return tuple(_tensor_info(value) for value in values)

    return GraphInfo(infos(model.graph.inputs), infos(model.graph.outputs))


def _tensor_info(value: ir.Value) -> TensorInfo:
    if value.name is None or value.dtype is None or value.shape is None:
        raise ExportError(f"the tracer left {value.name} without a type or shape")
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    return TensorInfo(value.name, value.dtype.name.lower(), shape)
