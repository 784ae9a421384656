"""What `bench` measured on this machine, kept for ``longlive-trt presets``.

One file for each bundle, by its key, below ``longlive-trt/bench`` in the user's cache: figures of a
machine are not a bundle's own, which travels.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from longlive_trt.configs import RolloutConfig
from longlive_trt.errors import UsageError
from longlive_trt.files import cache_folder, publish_file
from longlive_trt.reading.documents import JSON_BYTES, parse_json
from longlive_trt.reading.failures import ReadingError
from longlive_trt.reading.files import read_bytes
from longlive_trt.reading.shapes import structured
from longlive_trt.runtime.bench.measurement import Measurements
from longlive_trt.runtime.bench.record import cpu_name
from longlive_trt.runtime.bench.report import Figures, Statistics

FORMAT = 2
AS_EXPORTED = ""
"""The name of a run without a preset."""


@dataclass(frozen=True)
class Speed:
    """Of one preset on one device."""

    rollout: dict[str, object]
    """What it was measured with; a preset that says something else now was not measured."""
    block_ms: float
    block_p99_ms: float
    video_frames_per_s: float | None
    memory_bytes: int
    measured_at: str


@dataclass(frozen=True)
class _Kept:
    format: int
    presets: dict[str, dict[str, Speed]] = field(default_factory=dict)
    """By preset, then by device: machines may share a user's cache."""


def speed_of(measurements: Measurements, shown: Figures) -> Speed | None:
    """None where no block was measured."""
    block = Statistics.of(shown.blocks["block"])
    if block is None:
        return None
    readings = [r.process_bytes for each in measurements.readings.values() for r in each]
    return Speed(
        rollout=rollout_values(shown.bundle.config.rollout),
        block_ms=round(block.p50, 2),
        block_p99_ms=round(block.p99, 2),
        video_frames_per_s=shown.rates["overlapped"] and round(shown.rates["overlapped"], 2),
        memory_bytes=max(readings, default=0),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def device_of(measurements: Measurements) -> str:
    gpu = measurements.gpu
    return gpu.name if gpu else f"{len(os.sched_getaffinity(0))} x {cpu_name()}"


def rollout_values(rollout: RolloutConfig) -> dict[str, object]:
    """As JSON has them."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(rollout).items()
    }


def kept_speeds(bundle_key: str) -> Mapping[str, Mapping[str, Speed]]:
    """By preset, then by device; nothing where nothing is kept, or it cannot be read."""
    try:
        values = parse_json(read_bytes(_path(bundle_key), JSON_BYTES))
        kept = structured(_Kept, values)
    except (ReadingError, UsageError):
        return {}
    return kept.presets if kept.format == FORMAT else {}


def keep_speed(bundle_key: str, preset: str, device: str, speed: Speed) -> Path:
    path = _path(bundle_key)
    presets = {name: dict(by_device) for name, by_device in kept_speeds(bundle_key).items()}
    presets.setdefault(preset, {})[device] = speed
    path.parent.mkdir(parents=True, exist_ok=True)
    with publish_file(path) as partial:
        text = json.dumps(asdict(_Kept(FORMAT, presets)), indent=1, sort_keys=True)
        partial.write_text(text + "\n", encoding="utf-8")
    return path


def _path(bundle_key: str) -> Path:
    return cache_folder("bench") / f"{bundle_key}.json"
