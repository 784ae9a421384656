"""Changes to structures and bytes: systematic ones for tables, and random ones by seed."""

import copy
import random
from collections.abc import Iterator
from typing import Any

from tests.robustness.support.hostile import VALUES

Path = tuple[str | int, ...]
Structure = Any


def places(value: Structure, path: Path = ()) -> Iterator[Path]:
    """Where a structure has a value of its own, itself first."""
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from places(item, (*path, key))


def replaced(value: Structure, path: Path, new: Structure) -> Structure:
    if not path:
        return new
    changed = copy.deepcopy(value)
    _holder(changed, path)[path[-1]] = new
    return changed


def removed(value: Structure, path: Path) -> Structure:
    changed = copy.deepcopy(value)
    del _holder(changed, path)[path[-1]]
    return changed


def changed_structure(value: Structure, chance: random.Random) -> Structure:
    """One to three random changes; half of them leave something that is nearly right."""
    for _ in range(chance.choice([1, 1, 2, 3])):
        path = _any_place(value, chance)
        kind = chance.randrange(8)
        if kind == 0 and path:
            value = removed(value, path)
        elif kind == 1:
            value = replaced(value, path, copy.deepcopy(_at(value, _any_place(value, chance))))
        elif kind == 2 and isinstance(_at(value, path), dict):
            key = chance.choice(["x", "", "__class__", "\ud800", "k" * 300, "format"])
            value = replaced(value, (*path, key), chance.choice(list(VALUES.values())))
        elif kind == 3:
            value = replaced(value, path, copy.deepcopy(chance.choice(list(VALUES.values()))))
        else:
            value = replaced(value, path, _nearly(_at(value, path), chance))
    return value


def _nearly(value: Structure, chance: random.Random) -> Structure:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return chance.choice([value + 1, value - 1, 2 * value, -value, _number(chance)])
    if isinstance(value, float):
        return chance.choice([value * 2, -value, value + 1e-3, _number(chance)])
    if isinstance(value, str):
        others = [value[:-1], value + "x", value * 3, value.swapcase(), value[::-1], f"{value} ü"]
        return chance.choice([*others, *_KNOWN_TEXTS])
    if isinstance(value, list) and value:
        return chance.choice([value[:-1], value[::-1], [*value, value[0]], value[:1] * 2])
    if isinstance(value, dict) and value:
        names, items = list(value), list(value.values())
        return dict(zip(names, items[1:] + items[:1], strict=True))
    return chance.choice([0, 1, "x", None])


_KNOWN_TEXTS = (
    *("F32", "F16", "I32", "U8", "F8_E4M3", "BF16", "float", "float16", "int64", "fp16", "int8"),
    *("relative", "absolute", "exact", "none", "blend:3", "../x", "/etc/passwd", "step.onnx", "2"),
)


def changed_bytes(data: bytes, chance: random.Random) -> bytes:
    """A few bytes flipped, cut, doubled or put in."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(changed) + 1)
        length = chance.choice([1, 1, 2, 8, 64, 1024])
        kind = chance.randrange(5)
        if kind == 0:
            del changed[start : start + length]
        elif kind == 1:
            changed[start:start] = changed[start : start + length]
        elif kind == 2:
            changed[start:start] = chance.randbytes(length)
        elif kind == 3:
            changed[start : start + 1] = bytes([chance.choice(b"\x00\xff[]{}\"'&*!:,-9e.\n\\")])
        else:
            changed[start : start + length] = chance.randbytes(min(length, len(changed) - start))
    return bytes(
        changed[: chance.randrange(len(changed) + 1)] if chance.random() < 0.1 else changed
    )


def _number(chance: random.Random) -> float:
    return chance.choice([0, -1, 1, 2, 3, 255, 2**31, 2**63, 2**64, 10**18, -(10**18), 1e300, 0.1])


def _any_place(value: Structure, chance: random.Random) -> Path:
    """Level by level, so that a short section is met as often as a long one."""
    path: Path = ()
    while isinstance(value, dict | list) and value and (not path or chance.random() < 0.85):
        key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
        path, value = (*path, key), value[key]
    return path


def _at(value: Structure, path: Path) -> Structure:
    for key in path:
        value = value[key]
    return value


def _holder(value: Structure, path: Path) -> Structure:
    return _at(value, path[:-1])
