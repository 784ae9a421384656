"""Safetensors files, read and written one tensor at a time."""

import json
import math
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from longlive_trt.errors import CheckpointError, OutputError
from longlive_trt.export.checkpoints.files import StoredTensor, TensorFile
from longlive_trt.export.checkpoints.weights import Weights
from longlive_trt.files import publish_file

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
# The format's own limit.
_LONGEST_HEADER_BYTES = 100_000_000


class SafetensorsFile(TensorFile):
    """Tensors are read by offset: mapped pages would count as resident memory until unmapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header, self._data_start = _read_header(path)
        self.metadata = _text_metadata(header.pop("__metadata__", None))
        self._offsets: dict[str, tuple[int, int]] = {}
        self.tensors = {key: self._stored(key, entry) for key, entry in header.items()}
        self._require_whole_file()

    def read(self, key: str) -> torch.Tensor:
        begin, end = self._offsets[key]
        buffer = torch.empty(end - begin, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self._data_start + begin)
            _read_into(file, buffer.numpy().data, self.path)
        stored = self.tensors[key]
        return buffer.view(stored.dtype).reshape(stored.shape)

    def _stored(self, key: str, entry: Any) -> StoredTensor:
        try:
            dtype = _DTYPES[entry["dtype"]]
            shape = tuple(int(size) for size in entry["shape"])
            begin, end = (int(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(self.path, f"the entry of {key} makes no sense") from error
        if min(begin, *shape, 0) < 0 or end - begin != math.prod(shape) * dtype.itemsize:
            raise _damaged(self.path, f"the size of {key} does not agree with its shape")
        self._offsets[key] = (begin, end)
        return StoredTensor(self, key, shape, dtype)

    def _require_whole_file(self) -> None:
        data_bytes = max((end for _, end in self._offsets.values()), default=0)
        expected, found = self._data_start + data_bytes, self.path.stat().st_size
        if expected != found:
            raise CheckpointError(
                f"{self.path} is {found} bytes long, but its header promises {expected}: "
                "the download was cut off or mixed up, get the file again"
            )


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


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        encoded = file.read(min(length, _LONGEST_HEADER_BYTES))
    if len(encoded) < length:
        raise _damaged(path, "it ends inside its header")
    try:
        header = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header is not JSON") from error
    return header, _LENGTH_BYTES + length


def _text_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict):
        return {}
    return {str(key): str(value) for key, value in metadata.items()}


def _read_into(file: FileIO, buffer: memoryview, path: Path) -> None:
    while buffer:
        count = file.readinto(buffer)
        if not count:
            raise _damaged(path, "it ends inside its data")
        buffer = buffer[count:]


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is a damaged safetensors file ({why}): get it again")
