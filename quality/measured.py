"""What was measured of the presets on a shipped model: figures that ship with the package."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
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
class Rate:
    """Of one preset on one device."""

    block_ms: float
    video_frames_per_s: float | None = None


@dataclass(frozen=True)
class Figures:
    weights: dict[str, str] = field(default_factory=dict)
    """The first digits of the sha256 of what was measured, by component."""
    presets: dict[str, Measured] = field(default_factory=dict)
    speeds: dict[str, dict[str, Rate]] = field(default_factory=dict)
    """By device, then by preset."""

    def are_of(self, checkpoints: Mapping[str, str]) -> bool:
        """Whether these weights were measured; a bundle may lack a component."""
        known = [name for name in self.weights if name in checkpoints]
        return bool(known) and all(checkpoints[n].startswith(self.weights[n]) for n in known)


def shipped_figures(model: str, checkpoints: Mapping[str, str]) -> Figures:
    """``checkpoints``: a bundle's sha256 by component. Of other weights no quality is known; speed
    does not depend on them."""
    path = measured_file(model)
    if not model.isidentifier() or not path.is_file():
        return Figures()
    figures = structured(Figures, parse_json(path.read_bytes()))
    return figures if figures.are_of(checkpoints) else replace(figures, presets={})


def measured_file(model: str) -> Path:
    return _FOLDER / f"presets-{model}.json"


def write_figures(model: str, figures: Figures) -> None:
    text = json.dumps(asdict(figures), indent=1)
    measured_file(model).write_text(text + "\n", encoding="utf-8")
