"""The report of ``longlive-trt bench`` as JSON: every statistic, and every block's own numbers."""

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.plugins.cuda.nvml import GpuReading
from longlive_trt.runtime.bench.measurement import Measurements, Reading
from longlive_trt.runtime.bench.report import Figures, Ratio, Statistics, ratios

FORMAT = 2
_PACKAGES = ("longlive-trt", "numpy", "onnxruntime", "onnxruntime-gpu", "cuda-core")
_CPU_FACTS = Path("/proc/cpuinfo")
_COMPARED_BUNDLES = 2

Values = dict[str, Any]


def report_values(measurements: Measurements, shown: Sequence[Figures], command: str) -> Values:
    config = measurements.bundles[0].config
    vae, latent, settings = config.vae, config.latent, measurements.settings
    factor = vae.spatial_factor if vae else None
    return {
        "format": FORMAT,
        "outcome": "interrupted" if measurements.interrupted else "complete",
        "command": command,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(measurements),
        "versions": {name: _version(name) for name in _PACKAGES},
        "model": {
            "name": config.name,
            "video_height": latent.height * factor if factor else None,
            "video_width": latent.width * factor if factor else None,
            "video_frames_per_block": shown[0].video_frames_per_block,
            "rollout": asdict(config.rollout),
        },
        "settings": {**asdict(settings), "decode": measurements.decoded},
        "notices": list(measurements.notices),
        "bundles": [_bundle_values(each) for each in shown],
        "comparison": _comparison(shown),
        "resources": {
            phase: _resources(readings) for phase, readings in measurements.readings.items()
        },
    }


def to_json(values: Values) -> str:
    """Indented, but with each series on a line of its own."""
    text = json.dumps(values, indent=1, allow_nan=False)
    return (
        re.sub(r"\[\n([-+.,\d\se]+)\]", lambda match: f"[{' '.join(match[1].split())}]", text)
        + "\n"
    )


def _bundle_values(shown: Figures) -> Values:
    times, first_frames = shown.times, shown.times.first_frame_ms
    return {
        **_identity(shown.bundle),
        "load_s": round(times.load_s, 3),
        "loading": {graph: asdict(each) for graph, each in times.loading.items()},
        "open_session_ms": _summary(times.open_ms, with_series=True),
        "first_frame_ms": {
            "cold": round(first_frames[0], 3) if first_frames else None,
            "warm": _summary(first_frames[1:], with_series=True),
        },
        "steady_state_ms": _summaries(shown.blocks, with_series=True),
        "passes_ms": _summaries(shown.passes, with_series=True),
        "graph_runs_ms": _summaries(times.graph_runs_ms, with_series=False),
        "switches_ms": _summaries(shown.switches, with_series=True),
        "announced_switches_ms": _summaries(shown.announced_switches, with_series=True),
        "announcing_ms": _summaries(shown.announcing, with_series=True),
        "throughput": _throughput(shown),
        "video_frames_per_s": _rounded(shown.rates),
        "roofline": {
            "tflop": _rounded({name: work.total / 1e12 for name, work in shown.work.items()}),
            "tflop_of_attention": _rounded(
                {name: work.attention / 1e12 for name, work in shown.work.items()}
            ),
            "tflops": _rounded(shown.tflops),
            "peak_tflops": _rounded(shown.peak_tflops),
            "floor_ms": _rounded(shown.floors_ms),
            "share_of_peak": _rounded(shown.peak_shares, digits=4),
        },
    }


def _identity(bundle: Bundle) -> Values:
    manifest = bundle.manifest
    engine = manifest.engine
    return {
        "bundle": str(bundle.folder),
        "key": manifest.key,
        "precision": manifest.precision,
        "options": manifest.options,
        "engine": f"{engine.kind} {engine.version} for {engine.target}",
    }


def _throughput(shown: Figures) -> Values | None:
    intervals = shown.times.intervals_ms
    if not intervals:
        return None
    return {
        "seconds": round(sum(intervals) / 1e3, 3),
        "blocks": len(intervals),
        "video_frames": len(intervals) * shown.video_frames_per_block,
        "interval_ms": _summary(intervals, with_series=True),
    }


def _comparison(shown: Sequence[Figures]) -> Values | None:
    if len(shown) != _COMPARED_BUNDLES:
        return None
    return {name: _ratio_values(ratio) for name, ratio in ratios(*shown).items()}


def _ratio_values(ratio: Ratio) -> Values:
    return {
        "ratio_of_medians": round(ratio.of_medians, 4),
        "medians_ms": [round(side.p50, 3) for side in (ratio.first, ratio.second)],
        "spreads": [round(side.spread, 4) for side in (ratio.first, ratio.second)],
    }


def _summaries(series: Mapping[str, Sequence[float]], *, with_series: bool) -> Values:
    return {
        name: _summary(values, with_series=with_series)
        for name, values in series.items()
        if len(values)
    }


def _summary(values: Sequence[float], *, with_series: bool) -> Values | None:
    statistics = Statistics.of(values)
    if statistics is None:
        return None
    rows = [round(value, 3) for value in values]
    return {**_rounded(asdict(statistics)), **({"series": rows} if with_series else {})}


def _rounded(values: Mapping[str, float | None], digits: int = 3) -> Values:
    return {
        name: value if value is None or isinstance(value, int) else round(value, digits)
        for name, value in values.items()
    }


def _resources(readings: Sequence[Reading]) -> Values:
    gpus = [reading.gpu for reading in readings if reading.gpu is not None]
    courses = {
        field.name: _course([getattr(gpu, field.name) for gpu in gpus])
        for field in fields(GpuReading)
    }
    return {
        "process_bytes": _course([reading.process_bytes for reading in readings]),
        "gpu": courses if gpus else None,
    }


def _course(values: Sequence[float | None]) -> Values | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    first, last, middle = known[0], known[-1], float(np.median(known))
    return {"first": first, "min": min(known), "p50": middle, "max": max(known), "last": last}


def _machine(measurements: Measurements) -> Values:
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "gpu": asdict(measurements.gpu) if measurements.gpu else None,
    }


def cpu_name() -> str:
    try:
        lines = _CPU_FACTS.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
