"""Safetensors files, read and written one tensor at a time."""

import json
import math
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

import torch

from longlive_trt.console.printing import plain
from longlive_trt.errors import CheckpointError, OutputError
from longlive_trt.export.checkpoints.files import StoredTensor, TensorFile
from longlive_trt.export.checkpoints.weights import Weights
from longlive_trt.files import publish_file
from longlive_trt.reading.failures import ReadingError
from longlive_trt.reading.tensors import Entry, read_header

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_LENGTH_BYTES = 8


class SafetensorsFile(TensorFile):
    """Tensors are read by offset: mapped pages would count as resident memory until unmapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            header = read_header(path)
        except ReadingError as error:
            raise _damaged(path, error.problem) from error
        self.metadata = header.metadata
        self._data_start, self._entries = header.data_start, header.entries
        self.tensors = {key: self._stored(key, entry) for key, entry in header.entries.items()}

    def read(self, key: str) -> torch.Tensor:
        begin, end = self._entries[key].begin, self._entries[key].end
        buffer = torch.empty(end - begin, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self._data_start + begin)
            _read_into(file, buffer.numpy().data, self.path)
        stored = self.tensors[key]
        return buffer.view(stored.dtype).reshape(stored.shape)

    def _stored(self, key: str, entry: Entry) -> StoredTensor:
        if entry.dtype not in _DTYPES:
            raise _damaged(self.path, f"{plain(key)} is of type {entry.dtype}, which torch lacks")
        return StoredTensor(self, key, entry.shape, _DTYPES[entry.dtype])


def write_safetensors(weights: Weights, path: Path) -> None:
    """Writes tensor by tensor; a failure leaves nothing behind and an older file as it was."""
    # Wide types first keep every tensor aligned to its own element size.
    names = sorted(weights.names, key=lambda name: -weights.dtype(name).itemsize)
    try:
        with publish_file(path) as partial, partial.open("wb") as file:
            file.write(_encoded_header(weights, names))
            for name in names:
                file.write(_raw_bytes(weights, name))
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def _encoded_header(weights: Weights, names: Sequence[str]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name in names:
        dtype, shape = weights.dtype(name), weights.shape(name)
        end = begin + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [begin, end]}
        begin = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _LENGTH_BYTES)
    return len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded


def _raw_bytes(weights: Weights, name: str) -> memoryview:
    tensor = weights.load(name)
    if tensor.dtype != weights.dtype(name) or tuple(tensor.shape) != weights.shape(name):
        raise AssertionError(f"{name} was announced with another type or shape")
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def _read_into(file: FileIO, buffer: memoryview, path: Path) -> None:
    while buffer:
        count = file.readinto(buffer)
        if not count:
            raise _damaged(path, "it ends inside its data")
        buffer = buffer[count:]


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is a damaged safetensors file ({why}): get it again")
