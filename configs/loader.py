"""YAML and ``--set`` into :class:`ModelConfig`; every error names file, key and choice."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from longlive_trt.configs.schema import InvalidValueError, ModelConfig
from longlive_trt.errors import ConfigError

_HERE = Path(__file__).parent


def shipped_models() -> list[str]:
    return sorted(path.stem for path in (_HERE / "models").glob("*.yaml"))


def shipped_presets() -> list[str]:
    return sorted(path.stem for path in (_HERE / "presets").glob("*.yaml"))


def load_config(
    source: str | Path | None = None,
    *,
    preset: str | None = None,
    overrides: Iterable[str] = (),
) -> ModelConfig:
    """Read a configuration: a YAML file or a shipped model's name, then preset, then overrides."""
    path = _find(source, "models", "configuration") if source is not None else None
    return configure(
        _read_yaml(path) if path else {},
        origin=str(path) if path else "defaults",
        preset=preset,
        overrides=overrides,
    )


def configure(
    values: Mapping[str, Any],
    *,
    origin: str,
    preset: str | None = None,
    overrides: Iterable[str] = (),
) -> ModelConfig:
    """Build a configuration from plain values, as a file or a bundle's manifest holds them."""
    merged: dict[str, Any] = _merge({}, values)
    if preset is not None:
        preset_path = _find(preset, "presets", "preset")
        merged = _merge(merged, _read_yaml(preset_path))
        origin = f"{origin} with preset {preset}"
    overrides = list(overrides)
    if overrides:
        merged = _merge(merged, parse_overrides(overrides))
        origin = f"{origin} with --set {' '.join(overrides)}"
    try:
        config = _build(ModelConfig, merged, "")
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    return typing.cast(ModelConfig, config)


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """``["rollout.steps=[1000, 500]", "fps=24"]`` as nested values; the right side is YAML."""
    nested: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.strip().split(".")):
            raise ConfigError(f"--set {assignment}: expected key=value, such as fps=24")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {assignment}: the value is not YAML") from None
        *parents, leaf = key.strip().split(".")
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
            if not isinstance(level, dict):
                raise ConfigError(f"--set {assignment}: {parent} was set to a single value before")
        level[leaf] = value
    return nested


def _find(source: str | Path, folder: str, what: str) -> Path:
    shipped = _HERE / folder / f"{source}.yaml"
    if isinstance(source, str) and "/" not in source and shipped.is_file():
        return shipped
    path = Path(source)
    if path.is_file():
        return path
    names = ", ".join(sorted(p.stem for p in (_HERE / folder).glob("*.yaml")))
    raise ConfigError(f"{source}: no such {what} file; give a YAML file or one of: {names}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file (UTF-8 expected)") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise ConfigError(f"{path}{line}: {problem}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values


def _merge(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in extra.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _build(kind: type, values: Mapping[str, Any], section: str) -> object:
    hints = typing.get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(kind)}
    for key in values:
        if key not in known:
            raise _unknown_key(str(key), known, section)
    arguments = {
        key: _coerce(hints[key], value, f"{section}{key}") for key, value in values.items()
    }
    try:
        return kind(**arguments)
    except InvalidValueError as error:
        raise (error.within(section[:-1]) if section else error) from None


def _unknown_key(key: str, known: set[str], section: str) -> ConfigError:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f" (did you mean {section}{close[0]}?)" if close else ""
    return ConfigError(f"unknown key {section}{key}{hint}; known here: {', '.join(sorted(known))}")


def _coerce(hint: Any, value: Any, key: str) -> Any:
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in choices:
            return None
        (inner,) = [choice for choice in choices if choice is not type(None)]
        return _coerce(inner, value, key)
    if origin is Literal:
        if value not in choices:
            raise InvalidValueError(key, value, ", ".join(map(str, choices)))
        return value
    if origin is tuple:
        return _coerce_tuple(choices, value, key)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise InvalidValueError(key, value, "a section of keys and values")
        return _build(typing.cast(type, hint), value, f"{key}.")
    return _coerce_scalar(hint, value, key)


def _coerce_tuple(kinds: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise InvalidValueError(key, value, "a list")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        raise InvalidValueError(key, value, f"a list of {len(kinds)}")
    items = zip(kinds, value, strict=True)
    return tuple(_coerce(kind, item, f"{key}[{i}]") for i, (kind, item) in enumerate(items))


def _coerce_scalar(kind: type, value: Any, key: str) -> Any:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-6 (no dot) as a text.
        try:
            value = float(value)
        except ValueError:
            raise InvalidValueError(key, value, names[kind]) from None
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise InvalidValueError(key, value, names[kind])
    if kind is float:
        value = float(value)
        if value != value or value in (float("inf"), float("-inf")):
            raise InvalidValueError(key, value, "a finite number")
    return value
