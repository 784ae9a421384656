"""The figures that a table, a JSON file and a plot show: statistics, rates, shares and ratios."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longlive_trt.configs import DecoderConfig, ModelConfig
from longlive_trt.configs.schedule import Schedule
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.plugins.cuda.nvml import peak_tflops
from longlive_trt.runtime.bench.flops import BlockFlops, Work
from longlive_trt.runtime.bench.lane import BlockTimes, LaneTimes
from longlive_trt.runtime.bench.measurement import Measurements
from longlive_trt.runtime.decoding.choice import decoder_named, decoders_of

_ATTENTION = "attention"
"""The build's option that says if a bundle attends in eight bits."""
_HALF, _EIGHT_BITS = "bf16", ("fp8", "int8")


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
        """None where there are no values."""
        if not values:
            return None
        return cls(len(values), *map(float, np.percentile(values, (0, 10, 50, 90, 99, 100))))

    @property
    def spread(self) -> float:
        """From the tenth to the ninetieth percentile, as a share of the median."""
        return (self.p90 - self.p10) / self.p50


@dataclass(frozen=True)
class Ratio:
    first: Statistics
    second: Statistics

    @property
    def of_medians(self) -> float:
        return self.second.p50 / self.first.p50


@dataclass(frozen=True)
class Peaks:
    """TFLOP/s that the GPU's matrix units could do, in what a bundle computes each in."""

    products: float
    attention: float
    convolutions: float

    def floor_ms(self, part: str, work: Work) -> float:
        products = self.convolutions if part == "vae" else self.products
        return (work.products / products + work.attention / self.attention) / 1e9

    def of(self, part: str, work: Work) -> float:
        """The rate at which all of the work would take that time."""
        return work.total / self.floor_ms(part, work) / 1e9


@dataclass(frozen=True)
class Figures:
    """One bundle's results in milliseconds, each as its series of blocks, switches or runs."""

    bundle: Bundle
    decoded: bool
    times: LaneTimes
    flops: BlockFlops
    peaks: Peaks | None

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
        blocks = [block for block in self.times.blocks if block.passes_ms]
        if not blocks:
            return {}
        series = {name: [b.passes_ms[n] for b in blocks] for n, name in enumerate(names)}
        return series | {"between passes": [b.between_passes_ms for b in blocks]}

    @property
    def switches(self) -> dict[str, list[float]]:
        """To prompts that are new then."""
        return self._switches(self.times.switches)

    @property
    def announced_switches(self) -> dict[str, list[float]]:
        return self._switches([each.switch for each in self.times.announced])

    @property
    def announcing(self) -> dict[str, list[float]]:
        """Blocks before a switch: alone, and with the prompt's encoding beside; and that."""
        announced = self.times.announced
        return {
            "block alone": [each.alone.wall_ms for each in announced],
            "block beside": [each.beside.wall_ms for each in announced],
            "transformer alone": [each.alone.transformer_ms for each in announced],
            "transformer beside": [each.beside.transformer_ms for each in announced],
            "encoding": [each.encoding_ms for each in announced],
        }

    def _switches(self, switches: Sequence[BlockTimes]) -> dict[str, list[float]]:
        series = {
            "encode": _each(switches, "encode_ms"),
            "recache": _each(switches, "recache_ms"),
            "next block": [sum(switch.passes_ms) for switch in switches],
        }
        if self.decoded:
            series["decode"] = _each(switches, "vae_ms")
        return series | {"rest": _each(switches, "rest_ms"), "total": _each(switches, "wall_ms")}

    @property
    def compared(self) -> dict[str, list[float]]:
        switches = {f"switch: {name}": series for name, series in self.switches.items()}
        return {
            **self.blocks,
            "overlapped": self.times.intervals_ms,
            **switches,
            "announced switch: total": self.announced_switches["total"],
            "first frame": self.times.first_frame_ms[1:],
        }

    @property
    def rates(self) -> dict[str, float | None]:
        """Video frames per second."""
        rates = {name: self._rate(Statistics.of(ms)) for name, ms in self.blocks.items()}
        intervals = self.times.intervals_ms
        total_s = sum(intervals) / 1e3
        frames = self.video_frames_per_block * len(intervals)
        return rates | {"overlapped": frames / total_s if intervals else None}

    @property
    def work(self) -> dict[str, Work]:
        """Of one run of each."""
        work = {"transformer": self.flops.transformer, "recache": self.flops.recache}
        if self.decoded and self.flops.vae is not None:
            work["vae"] = self.flops.vae
        return work

    @property
    def tflops(self) -> dict[str, float]:
        """Achieved, over the median."""
        series = self.blocks | {"recache": self.switches["recache"]}
        medians = {name: Statistics.of(series[name]) for name in self.work}
        return {
            name: self.work[name].total / taken.p50 / 1e9
            for name, taken in medians.items()
            if taken and taken.p50
        }

    @property
    def floors_ms(self) -> dict[str, float]:
        """What each would take at the peak."""
        peaks = self.peaks
        return (
            {name: peaks.floor_ms(name, work) for name, work in self.work.items()} if peaks else {}
        )

    @property
    def peak_tflops(self) -> dict[str, float]:
        if self.peaks is None:
            return {}
        return {name: self.peaks.of(name, work) for name, work in self.work.items()}

    @property
    def peak_shares(self) -> dict[str, float]:
        peaks = self.peak_tflops
        return {name: rate / peaks[name] for name, rate in self.tflops.items() if name in peaks}

    def _rate(self, taken: Statistics | None) -> float | None:
        return self.video_frames_per_block / taken.p50 * 1e3 if taken else None


def figures(measurements: Measurements, given_peak_tflops: float | None) -> list[Figures]:
    return [
        Figures(
            bundle,
            measurements.decoded,
            times,
            BlockFlops.of(bundle.config, _decoder(measurements, bundle)),
            _peaks(measurements, bundle, given_peak_tflops),
        )
        for bundle, times in zip(measurements.bundles, measurements.lanes, strict=True)
    ]


def _decoder(measurements: Measurements, bundle: Bundle) -> DecoderConfig | None:
    if not measurements.decoded or not decoders_of(bundle):
        return None
    return decoder_named(bundle, measurements.settings.decoder).config


def _peaks(measurements: Measurements, bundle: Bundle, given_tflops: float | None) -> Peaks | None:
    """What is given is a rate in sixteen bits (or thirty-two); in eight it is twice that."""
    manifest = bundle.manifest
    built_with = manifest.options.get(_ATTENTION)
    attention = built_with if built_with in _EIGHT_BITS else _HALF
    if given_tflops:
        rates = [_in_eight_bits(kind) * given_tflops for kind in (manifest.precision, attention)]
        return Peaks(rates[0], rates[1], given_tflops)
    if measurements.gpu is None or manifest.precision == "fp32":
        return None
    known = (
        peak_tflops(measurements.gpu.name, kind) for kind in (manifest.precision, attention, _HALF)
    )
    products, attending, convolutions = known
    if products is None or attending is None or convolutions is None:
        return None
    return Peaks(products, attending, convolutions)


def _in_eight_bits(kind: str) -> int:
    return 2 if kind in _EIGHT_BITS else 1


def pass_names(config: ModelConfig) -> list[str]:
    levels = Schedule.of(config.rollout).passes
    return [*(f"t={level.timestep:.4g}" for level in levels), "clean"]


def ratios(first: Figures, second: Figures) -> dict[str, Ratio]:
    """What the second bundle takes, as a multiple of what the first takes."""
    series = first.compared, second.compared
    pairs = {name: tuple(Statistics.of(side[name]) for side in series) for name in series[0]}
    return {name: Ratio(a, b) for name, (a, b) in pairs.items() if a and b and a.p50}


def _each(blocks: Sequence[BlockTimes], attribute: str) -> list[float]:
    return [getattr(block, attribute) for block in blocks]
