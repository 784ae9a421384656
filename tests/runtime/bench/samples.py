"""Results of measurements that nobody made, and a stopwatch: round numbers to compute with."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from longlive_trt.configs import ModelConfig
from longlive_trt.engines.bundles.bundle import Bundle, EngineKind, Manifest
from longlive_trt.plugins.cuda.nvml import GpuReading
from longlive_trt.runtime.bench.lane import (
    Announced,
    BenchSettings,
    BlockTimes,
    LaneTimes,
    Loading,
)
from longlive_trt.runtime.bench.measurement import GpuIdentity, Measurements, Reading


def times_of(scale: float = 1.0, *, switches: int = 2) -> LaneTimes:
    def block(wall: float, *, switched: bool = False) -> BlockTimes:
        passes = (scale * 40,) * (4 if switched else 5)
        recache, encode = (scale * 100, scale * 5) if switched else (0.0, 0.0)
        transformer = sum(passes) + recache + scale * 10
        return BlockTimes(scale * wall, transformer, passes, recache, scale * 100, encode)

    def announced() -> Announced:
        switch = replace(block(425.0, switched=True), encode_ms=scale * 0.1)
        return Announced(switch, block(330.0), block(338.0), scale * 12)

    return LaneTimes(
        load_s=1.5,
        loading={"step": Loading(1.0, 3 << 30), "text": Loading(0.5, None)},
        open_ms=[3.0, 4.0],
        first_frame_ms=[scale * 900, scale * 500, scale * 600],
        blocks=[block(wall) for wall in (320.0, 330.0, 340.0)],
        switches=[block(430.0, switched=True)] * switches,
        announced=[announced()] * switches,
        intervals_ms=[scale * 240] * 10,
        graph_runs_ms={"step": [scale * 40] * 15, "text": [scale * 4] * 2},
    )


def bundle_of(
    config: ModelConfig,
    folder: Path,
    precision: str = "bf16",
    options: dict[str, str] | None = None,
) -> Bundle:
    kind = EngineKind("onnxruntime", "1.24.0", "sm90")
    manifest = Manifest("key", config, kind, precision, {}, {}, {}, {}, options=options or {})
    return Bundle(folder, manifest)


def measured(*bundles: Bundle, gpu: str | None = "NVIDIA H200", **changes: Any) -> Measurements:
    reading = GpuReading(1980.0, 3201.0, 650.0, None, 2.0**33)
    values: dict[str, Any] = {
        "bundles": bundles,
        "settings": BenchSettings(),
        "decoded": True,
        "gpu": GpuIdentity(gpu, "580.1", 700.0) if gpu else None,
        "notices": ["something is missing"],
        "lanes": [times_of(1 + number) for number, _ in enumerate(bundles)],
        "readings": {
            "steady state": [
                Reading(1 << 30, reading if gpu else None),
                Reading(3 << 30, replace(reading, power_w=690.0) if gpu else None),
            ]
        },
    }
    return Measurements(**{**values, **changes})


class NumberingStopwatch:
    """The n-th time of a label lasts n ms, so that every figure shows which runs it is made of."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def start(self, label: str) -> int:
        self.counts[label] += 1
        return 0

    def stop(self, token: int) -> None:
        pass

    def durations_ms(self, label: str) -> list[float]:
        return [float(number) for number in range(self.counts[label])]

    def close(self) -> None:
        pass
