"""YAML and ``--set`` into :class:`ModelConfig`; every error names file, key and choice."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from longlive_trt.configs.presets import load_preset
from longlive_trt.configs.schema import WAN, ModelConfig
from longlive_trt.console.printing import plain
from longlive_trt.errors import ConfigError
from longlive_trt.reading.documents import YAML_BYTES, parse_yaml
from longlive_trt.reading.failures import ReadingError, refusing
from longlive_trt.reading.files import read_text
from longlive_trt.reading.shapes import structured

_MODELS = Path(__file__).with_name("models")
_MOST_SECTIONS = 8


def shipped_models() -> list[str]:
    return sorted(path.stem for path in _MODELS.glob("*.yaml"))


def load_config(
    source: str | Path | None = None,
    *,
    preset: str | None = None,
    overrides: Iterable[str] = (),
    found: Mapping[str, Mapping[str, Any]] | None = None,
) -> ModelConfig:
    """Read a configuration: a YAML file or a shipped model's name, then preset, then overrides.

    ``found`` is what checkpoints say of themselves, by section.
    """
    path = _find(source) if source is not None else None
    return configure(
        _read_yaml(path) if path else {},
        origin=str(path) if path else "defaults",
        preset=preset,
        overrides=overrides,
        found=found,
    )


def configure(
    values: Mapping[str, Any],
    *,
    origin: str,
    preset: str | None = None,
    overrides: Iterable[str] = (),
    found: Mapping[str, Mapping[str, Any]] | None = None,
) -> ModelConfig:
    """Build a configuration from plain values, as a file or a bundle's manifest holds them."""
    merged: dict[str, Any] = _merge({}, values)
    for section, facts in (found or {}).items():
        written = merged.get(section) or {}
        if isinstance(written, Mapping):
            # Of another kind, nothing that a file says applies.
            merged[section] = _merge(facts, written if _kind(written) == _kind(facts) else {})
    if preset is not None:
        merged = _merge(merged, load_preset(preset).settings)
        origin = f"{origin} with preset {preset}"
    overrides = list(overrides)
    if overrides:
        merged = _merge(merged, parse_overrides(overrides))
        origin = f"{origin} with --set {plain(' '.join(overrides))}"
    with refusing(ConfigError, origin):
        return structured(ModelConfig, merged)


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """``["rollout.steps=[1000, 500]", "fps=24"]`` as nested values; the right side is YAML."""
    nested: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        *parents, leaf = key.strip().split(".")
        if not equals or not all((*parents, leaf)) or len(parents) > _MOST_SECTIONS:
            raise ConfigError(f"--set {plain(assignment)}: expected key=value, such as fps=24")
        try:
            value = parse_yaml(text)
        except ReadingError as error:
            raise ConfigError(
                f"--set {plain(assignment)}: the value is not YAML to be used ({error.problem})"
            ) from None
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
            if not isinstance(level, dict):
                raise ConfigError(
                    f"--set {plain(assignment)}: {plain(parent)} was set to a single value before"
                )
        level[leaf] = value
    return nested


def _find(source: str | Path) -> Path:
    shipped = _MODELS / f"{source}.yaml"
    if isinstance(source, str) and "/" not in source and shipped.is_file():
        return shipped
    path = Path(source)
    if path.is_file():
        return path
    names = ", ".join(shipped_models())
    raise ConfigError(
        f"{plain(source)}: no such configuration file; give a YAML file or one of: {names}"
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    with refusing(ConfigError, path):
        values = parse_yaml(read_text(path, YAML_BYTES))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values


def _kind(section: Mapping[str, Any]) -> object:
    return section.get("kind", WAN)


def _merge(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in extra.items():
        before = merged.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            # What names another kind begins anew: its keys are others.
            is_other = value.get("kind", _kind(before)) != _kind(before)
            merged[key] = dict(value) if is_other else _merge(before, value)
        else:
            merged[key] = value
    return merged
