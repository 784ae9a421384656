"""Safetensors files: the whole header is checked before any tensor is read, or made room for."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from longlive_trt.basics import Array
from longlive_trt.console.printing import plain
from longlive_trt.reading.documents import parse_json
from longlive_trt.reading.failures import ReadingError
from longlive_trt.reading.files import open_file

NUMPY_TYPES: Mapping[str, np.dtype[Any]] = {
    code: np.dtype(kind)
    for code, kind in (
        ("F64", np.float64),
        ("F32", np.float32),
        ("F16", np.float16),
        ("BF16", ml_dtypes.bfloat16),
        ("F8_E4M3", ml_dtypes.float8_e4m3fn),
        ("F8_E5M2", ml_dtypes.float8_e5m2),
        ("I64", np.int64),
        ("I32", np.int32),
        ("I16", np.int16),
        ("I8", np.int8),
        ("U64", np.uint64),
        ("U32", np.uint32),
        ("U16", np.uint16),
        ("U8", np.uint8),
        ("BOOL", np.bool_),
    )
}
FLOATS = ("F64", "F32", "F16", "BF16")
MOST_DIMENSIONS = 8
MOST_NAME_CHARACTERS = 500

_LENGTH_BYTES = 8
# The format's own limit.
_LONGEST_HEADER_BYTES = 100_000_000
_MOST_SIZE = 1 << 48


@dataclass(frozen=True)
class Entry:
    """A tensor that is still in the file."""

    dtype: str
    """The format's own code."""
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class TensorHeader:
    path: Path
    metadata: Mapping[str, str]
    entries: Mapping[str, Entry]
    data_start: int

    def read(self, name: str) -> Array:
        """One tensor's values, as a copy of one's own."""
        entry = self.entries[name]
        values = np.empty(entry.end - entry.begin, np.uint8)
        with open_file(self.path) as file:
            file.seek(self.data_start + entry.begin)
            if file.readinto(values.data) != len(values):
                raise ReadingError("it ends inside its data")
        return values.view(NUMPY_TYPES[entry.dtype]).reshape(entry.shape)

    def read_all(self) -> dict[str, Array]:
        return {name: self.read(name) for name in self.entries}


def read_header(path: Path) -> TensorHeader:
    """What a file holds; refused unless its length is exactly what that needs."""
    with open_file(path) as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        found = os.fstat(file.fileno()).st_size
        if length > found - _LENGTH_BYTES:
            raise ReadingError("it ends inside its header")
        if length > _LONGEST_HEADER_BYTES:
            raise ReadingError(f"its header is larger than {_LONGEST_HEADER_BYTES} bytes")
        # Spaces may fill it up.
        values = _parsed(file.read(length).rstrip(b" "))
    metadata = _metadata(values.pop("__metadata__", {}))
    entries = {name: _entry(name, item) for name, item in values.items()}
    start = _LENGTH_BYTES + length
    promised = start + max((entry.end for entry in entries.values()), default=0)
    if promised != found:
        raise ReadingError(
            f"it is {found} bytes long, but its header promises {promised}: cut off or mixed up"
        )
    return TensorHeader(path, metadata, entries, start)


def _parsed(encoded: bytes) -> dict[str, Any]:
    try:
        values = parse_json(encoded)
    except ReadingError as error:
        raise ReadingError(f"its header is not JSON: {error.problem}") from None
    if not isinstance(values, dict):
        raise ReadingError("its header is not JSON of keys and values")
    return values


def _metadata(values: Any) -> dict[str, str]:
    is_sound = isinstance(values, dict) and all(isinstance(text, str) for text in values.values())
    if not is_sound:
        raise ReadingError("its metadata are no texts by name")
    return dict(values)


def _entry(name: str, values: Any) -> Entry:
    if len(name) > MOST_NAME_CHARACTERS:
        raise ReadingError(f"a tensor's name has {len(name)} characters ({plain(name)})")
    is_sound = isinstance(values, dict) and values.keys() == {"dtype", "shape", "data_offsets"}
    if not is_sound or not _is_code(values["dtype"]):
        raise ReadingError(f"the entry of {plain(name)} makes no sense")
    shape, offsets = _sizes(values["shape"]), _sizes(values["data_offsets"])
    if shape is None or len(shape) > MOST_DIMENSIONS or offsets is None or len(offsets) != 2:
        raise ReadingError(f"the entry of {plain(name)} makes no sense")
    begin, end = offsets
    if end - begin != math.prod(shape) * NUMPY_TYPES[values["dtype"]].itemsize:
        raise ReadingError(f"the size of {plain(name)} does not agree with its shape")
    return Entry(values["dtype"], shape, begin, end)


def _sizes(values: Any) -> tuple[int, ...] | None:
    is_sound = isinstance(values, list) and all(
        type(size) is int and 0 <= size <= _MOST_SIZE for size in values
    )
    return tuple(values) if is_sound else None


def _is_code(value: Any) -> bool:
    return isinstance(value, str) and value in NUMPY_TYPES
