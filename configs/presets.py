"""Presets: how a video is rolled out, and what that needs of a bundle, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from longlive_trt.console.printing import plain
from longlive_trt.errors import ConfigError
from longlive_trt.reading.documents import YAML_BYTES, parse_yaml
from longlive_trt.reading.failures import InvalidFieldError, refusing
from longlive_trt.reading.files import read_text
from longlive_trt.reading.shapes import structured

_HERE = Path(__file__).with_name("presets")
_LONGEST = 200


@dataclass(frozen=True, kw_only=True)
class BuildNeeds:
    """What a bundle must be; None is whatever it is."""

    precision: Literal["fp32", "fp16", "bf16", "fp8", "int8"] | None = None
    cache: Literal["fp8", "int8"] | None = None
    attention: Literal["standard", "plugin", "fp8", "int8"] | None = None
    decoder: Literal["full", "light"] | None = None


@dataclass(frozen=True, kw_only=True)
class Preset:
    about: str = ""
    rollout: dict[str, Any] = field(default_factory=dict)
    fps: float | None = None
    build: BuildNeeds = field(default_factory=BuildNeeds)
    low_memory: bool = False
    """As ``generate --low-memory``."""

    def __post_init__(self) -> None:
        if len(self.about) > _LONGEST or not self.about.isprintable():
            raise InvalidFieldError("about", self.about, f"a line of at most {_LONGEST} characters")

    @property
    def settings(self) -> dict[str, Any]:
        """What it changes of a configuration."""
        fps = {} if self.fps is None else {"fps": self.fps}
        return {"rollout": self.rollout, **fps} if self.rollout else fps


def shipped_presets() -> list[str]:
    return sorted(path.stem for path in _HERE.glob("*.yaml"))


def load_preset(name: str) -> Preset:
    """A shipped preset, or a YAML file of the same form."""
    path = _find(name)
    with refusing(ConfigError, path):
        values = parse_yaml(read_text(path, YAML_BYTES))
        if values is None:
            return Preset()
        if not isinstance(values, Mapping):
            raise ConfigError(f"{path}: expected keys and values, found {type(values).__name__}")
        return structured(Preset, values)


def _find(name: str) -> Path:
    shipped = _HERE / f"{name}.yaml"
    if "/" not in name and shipped.is_file():
        return shipped
    path = Path(name)
    if path.is_file():
        return path
    raise ConfigError(
        f"{plain(name)}: no such preset file; give a YAML file or one of: "
        f"{', '.join(shipped_presets())}"
    )
