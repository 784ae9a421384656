"""Plain values as dataclasses: every field is there, is of its type, and is possible.

A dataclass says what a format holds; its own checks (``__post_init__``) say which values make
sense, with an :class:`InvalidFieldError`.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, TypeVar

from longlive_trt.console.printing import plain
from longlive_trt.reading.failures import InvalidFieldError, ReadingError

T = TypeVar("T")

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def structured(kind: type[T], values: object) -> T:
    """``values`` as an instance of the dataclass ``kind``."""
    if not isinstance(values, Mapping):
        raise ReadingError(f"expected keys and values, found {type(values).__name__}")
    return typing.cast(T, _record(kind, values, ""))


def field(hint: Any, value: object, key: str) -> Any:
    """A value of any annotated type: ``field(dict[str, int], value, "sizes")``."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin in (typing.Union, types.UnionType):
        return _one_of(choices, value, key)
    if origin is Literal:
        if value not in choices:
            raise InvalidFieldError(key, value, ", ".join(map(str, choices)))
        return value
    if origin is tuple:
        return _tuple(choices, value, key)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(choices, value, key)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise InvalidFieldError(key, value, "a section of keys and values")
        return _record(typing.cast(type, hint), value, f"{key}.")
    return _scalar(hint, value, key)


@lru_cache
def _hints(kind: type) -> Mapping[str, Any]:
    return typing.get_type_hints(kind)


def _record(kind: type, values: Mapping[Any, Any], section: str) -> object:
    fields = {item.name: item for item in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise _unknown_key(str(key), set(fields), section)
    for name, item in fields.items():
        if name not in values and not _has_default(item):
            raise ReadingError(f"{section}{name} is missing")
    hints = _hints(kind)
    arguments = {key: field(hints[key], value, f"{section}{key}") for key, value in values.items()}
    try:
        return kind(**arguments)
    except InvalidFieldError as error:
        raise (error.within(section[:-1]) if section else error) from None


def _has_default(item: "dataclasses.Field[Any]") -> bool:
    missing = dataclasses.MISSING
    return item.default is not missing or item.default_factory is not missing


def _unknown_key(key: str, known: set[str], section: str) -> ReadingError:
    close = difflib.get_close_matches(key, known, n=1) if len(key) < 100 else []
    hint = f" (did you mean {section}{close[0]}?)" if close else ""
    listed = ", ".join(sorted(known))
    return ReadingError(f"unknown key {plain(section + key)}{hint}; known here: {listed}")


def _one_of(choices: tuple[Any, ...], value: object, key: str) -> Any:
    if value is None and type(None) in choices:
        return None
    kinds = [choice for choice in choices if choice is not type(None)]
    if len(kinds) == 1:
        return field(kinds[0], value, key)
    if all(map(dataclasses.is_dataclass, kinds)):
        return field(_of_kind(kinds, value, key), value, key)
    for kind in kinds:
        if type(value) is kind:
            return field(kind, value, key)
    raise InvalidFieldError(key, value, " or ".join(_NAMES.get(kind, "") for kind in kinds))


def _of_kind(kinds: list[Any], value: object, key: str) -> Any:
    """Of dataclasses that differ in a field ``kind``: the one that is named, or else the first."""
    by_name = {typing.get_args(_hints(kind)["kind"])[0]: kind for kind in kinds}
    named = value.get("kind") if isinstance(value, Mapping) else None
    if named is None:
        return kinds[0]
    if not isinstance(named, str) or named not in by_name:
        raise InvalidFieldError(f"{key}.kind", named, ", ".join(by_name))
    return by_name[named]


def _tuple(kinds: tuple[Any, ...], value: object, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise InvalidFieldError(key, value, "a list")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        raise InvalidFieldError(key, value, f"a list of {len(kinds)}")
    items = zip(kinds, value, strict=True)
    return tuple(field(kind, item, f"{key}[{i}]") for i, (kind, item) in enumerate(items))


def _mapping(kinds: tuple[Any, ...], value: object, key: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise InvalidFieldError(key, value, "keys and values")
    return {
        field(kinds[0], name, f"a key of {key}"): field(kinds[1], item, f"{key}.{plain(name)}")
        for name, item in value.items()
    }


def _scalar(kind: type, value: object, key: str) -> Any:
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-6 (no dot) as a text.
        try:
            value = float(value)
        except ValueError:
            raise InvalidFieldError(key, value, _NAMES[kind]) from None
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise InvalidFieldError(key, value, _NAMES.get(kind, kind.__name__))
    if isinstance(value, str):
        _require_unicode(value, key)
    return _finite(value, key) if kind is float else value


def _finite(value: Any, key: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise InvalidFieldError(key, value, "a finite number")
    return number


def _require_unicode(text: str, key: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidFieldError(key, text, "a text of whole characters") from None
