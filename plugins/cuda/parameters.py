"""The struct that a kernel takes by value: its fields by name, laid out as C lays them out.

A source says how large it expects its struct to be, and the compiler holds it to that; a test holds
the layouts here to the sources.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Field:
    """A number, or ``count`` of them side by side, by its code in the module ``struct``."""

    code: str
    size_bytes: int
    alignment_bytes: int
    count: int = 1

    def __mul__(self, count: int) -> "Field":
        return replace(self, count=count)


POINTER = Field("Q", 8, 8)
LONG = Field("q", 8, 8)
INT = Field("i", 4, 4)
FLOAT = Field("f", 4, 4)


def opaque(size_bytes: int, alignment_bytes: int) -> Field:
    """What comes as bytes."""
    return Field(f"{size_bytes}s", size_bytes, alignment_bytes)


class ParameterStruct:
    """A field of several numbers takes a sequence of as many, any other a number."""

    def __init__(self, **fields: Field) -> None:
        self._fields = fields
        self.offsets_bytes: dict[str, int] = {}
        layout, end = "<", 0
        for name, field in fields.items():
            start = _aligned(end, field.alignment_bytes)
            layout += f"{start - end}x" + field.code * field.count
            self.offsets_bytes[name] = start
            end = start + field.size_bytes * field.count
        self.alignment_bytes = max(field.alignment_bytes for field in fields.values())
        self.size_bytes = _aligned(end, self.alignment_bytes)
        self._layout = struct.Struct(f"{layout}{self.size_bytes - end}x")

    def pack(self, **values: Any) -> bytes:
        if values.keys() != self._fields.keys():
            odd = ", ".join(sorted(values.keys() ^ self._fields.keys()))
            raise TypeError(f"missing or unknown parameters: {odd}")
        numbers: list[Any] = []
        for name, field in self._fields.items():
            numbers += _checked(name, values[name], field.count)
        return self._layout.pack(*numbers)

    @property
    def as_field(self) -> Field:
        """Inside another struct, packed."""
        return opaque(self.size_bytes, self.alignment_bytes)


def _checked(name: str, value: Any, count: int) -> Iterable[Any]:
    if count == 1:
        return [value]
    values = list(value)
    if len(values) != count:
        raise TypeError(f"parameter {name} has {len(values)} values: it takes {count}")
    return values


def _aligned(position: int, alignment_bytes: int) -> int:
    return -(-position // alignment_bytes) * alignment_bytes
