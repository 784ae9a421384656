"""What was measured as plain values for a JSON file, and its figures for a table or a plot."""

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ..configs import ModelConfig
from ..configs.dump import config_values
from ..configs.schedule import Schedule
from ..engines.bundle import Bundle
from ..gpu_facts import GpuReading, peak_tflops
from .bench import Measurements, Reading
from .bench_flops import BlockFlops
from .bench_lane import BlockTimes, LaneTimes

FORMAT = 1
_PACKAGES = ("longlive-trt", "numpy", "onnxruntime", "onnxruntime-gpu", "cuda-core")
_CPU_FACTS = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Statistics:
    count: int
    min: float
    p10: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Statistics | None":
        """None without a single value."""
        if not values:
            return None
        return cls(len(values), *map(float, np.percentile(values, (0, 10, 50, 90, 99, 100))))

    @property
    def spread(self) -> float:
        """From the tenth to the ninetieth percentile, as a share of the median."""
        return (self.p90 - self.p10) / self.p50


@dataclass(frozen=True)
class Figures:
    """One bundle's results in milliseconds, each as its series of blocks, switches or runs."""

    bundle: Bundle
    decoded: bool
    times: LaneTimes
    flops: BlockFlops
    peak_tflops: float | None

    @property
    def video_frames_per_block(self) -> int:
        config = self.bundle.config
        return config.rollout.frames_per_block * config.temporal_factor

    @property
    def blocks(self) -> dict[str, list[float]]:
        series = {"transformer": _each(self.times.blocks, "transformer_ms")}
        if self.decoded:
            series["vae"] = _each(self.times.blocks, "vae_ms")
        return series | {"block": _each(self.times.blocks, "wall_ms")}

    @property
    def passes(self) -> dict[str, list[float]]:
        names = pass_names(self.bundle.config)
        told = [block for block in self.times.blocks if block.passes_ms]
        if not told:
            return {}
        series = {name: [b.passes_ms[n] for b in told] for n, name in enumerate(names)}
        return series | {"between passes": [b.between_passes_ms for b in told]}

    @property
    def switches(self) -> dict[str, list[float]]:
        made = self.times.switches
        series = {
            "encode": _each(made, "encode_ms"),
            "recache": _each(made, "recache_ms"),
            "next block": [sum(switch.passes_ms) for switch in made],
        }
        if self.decoded:
            series["decode"] = _each(made, "vae_ms")
        return series | {"rest": _each(made, "rest_ms"), "total": _each(made, "wall_ms")}

    @property
    def rates(self) -> dict[str, float | None]:
        """Video frames per second."""
        rates = {name: self._rate(Statistics.of(ms)) for name, ms in self.blocks.items()}
        intervals = self.times.intervals_ms
        total_s = sum(intervals) / 1e3
        frames = self.video_frames_per_block * len(intervals)
        return rates | {"overlapped": frames / total_s if intervals else None}

    @property
    def work(self) -> dict[str, float]:
        """TFLOP, by what takes the time in ``medians``."""
        work = {"transformer": self.flops.transformer / 1e12, "recache": self.flops.recache / 1e12}
        if self.decoded and self.flops.vae is not None:
            work["vae"] = self.flops.vae / 1e12
        return work

    @property
    def tflops(self) -> dict[str, float]:
        """Achieved, over the median."""
        series = self.blocks | {"recache": self.switches["recache"]}
        medians = {name: Statistics.of(series[name]) for name in self.work}
        return {
            name: self.work[name] / taken.p50 * 1e3
            for name, taken in medians.items()
            if taken and taken.p50
        }

    @property
    def peak_shares(self) -> dict[str, float]:
        peak = self.peak_tflops
        return {name: rate / peak for name, rate in self.tflops.items()} if peak else {}

    def _rate(self, taken: Statistics | None) -> float | None:
        return self.video_frames_per_block / taken.p50 * 1e3 if taken else None


def figures(made: Measurements, given_peak_tflops: float | None) -> list[Figures]:
    return [
        Figures(
            bundle,
            made.decoded,
            times,
            BlockFlops.of(bundle.config),
            given_peak_tflops or _known_peak(made, bundle),
        )
        for bundle, times in zip(made.bundles, made.lanes, strict=True)
    ]


def _known_peak(made: Measurements, bundle: Bundle) -> float | None:
    return peak_tflops(made.gpu.name, bundle.manifest.precision) if made.gpu else None


def pass_names(config: ModelConfig) -> list[str]:
    levels = Schedule.of(config.rollout).passes
    return [*(f"t={level.timestep:.4g}" for level in levels), "clean"]


def ratios(first: Figures, second: Figures) -> dict[str, dict[str, float]]:
    """The second bundle's medians over the first's, and how far each spreads."""
    found = {}
    switches = {name: (first.switches[name], second.switches[name]) for name in first.switches}
    blocks = {name: (first.blocks[name], second.blocks[name]) for name in first.blocks}
    frames = {"first frame": (first.times.first_frame_ms[1:], second.times.first_frame_ms[1:])}
    for name, pair in {**blocks, **{f"switch: {k}": v for k, v in switches.items()}, **frames}.items():
        a, b = map(Statistics.of, pair)
        if a and b and a.p50:
            found[name] = {
                "first_p50_ms": a.p50,
                "second_p50_ms": b.p50,
                "ratio": b.p50 / a.p50,
                "first_spread": a.spread,
                "second_spread": b.spread,
            }
    return found
