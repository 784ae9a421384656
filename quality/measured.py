"""What was measured of the presets on a shipped model: figures that ship with the package."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from longlive_trt.reading.documents import parse_json
from longlive_trt.reading.shapes import structured

_FOLDER = Path(__file__).with_name("data")


@dataclass(frozen=True)
class Measured:
    """Of one preset; means of videos, and None for what was not measured."""

    shown: float | None = None
    """Attributes of prompts that are shown, in percent: the demo model only."""
    changed: float | None = None
    kept: float | None = None
    psnr_db: float | None = None
    ssim: float | None = None
    flicker: float | None = None
    drift_sharpness: float | None = None
    """In percent."""
    videos: int = 0


@dataclass(frozen=True)
class _File:
    bundle: str
    """The key of the bundle that was measured."""
    presets: dict[str, Measured] = field(default_factory=dict)


def measured_presets(model: str) -> Mapping[str, Measured]:
    """By preset; nothing for a model that nothing is known of."""
    path = measured_file(model)
    if not model.isidentifier() or not path.is_file():
        return {}
    return structured(_File, parse_json(path.read_bytes())).presets


def measured_file(model: str) -> Path:
    return _FOLDER / f"presets-{model}.json"


def write_measured(model: str, bundle_key: str, presets: Mapping[str, Measured]) -> None:
    text = json.dumps(asdict(_File(bundle_key, dict(presets))), indent=1)
    measured_file(model).write_text(text + "\n", encoding="utf-8")
