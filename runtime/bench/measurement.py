"""The measurements of ``longlive-trt bench``, one phase after the other.

Two bundles take turns within every phase, so that whatever the machine does meanwhile befalls both.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from longlive_trt.basics import Report
from longlive_trt.configs.dump import config_values
from longlive_trt.contract import PROMPT, STEP
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.engines.loader import decode_ordinal, require_runnable, runs_on_gpu
from longlive_trt.errors import UsageError
from longlive_trt.plugins.cuda.nvml import GpuMonitor, GpuReading, Sampler, open_gpu
from longlive_trt.runtime.bench.lane import (
    ROOM_BLOCKS,
    BenchSettings,
    Lane,
    LaneTimes,
    blocks_to_fill,
    has_text_encoder,
    has_vae,
    longest_session,
)
from longlive_trt.runtime.bench.prompts import RANDOM_TOKENS
from longlive_trt.runtime.interrupts import StopRequest, stop_on_signals
from longlive_trt.runtime.progress import resident_bytes
from longlive_trt.runtime.ring import RingLayout

_SAMPLE_INTERVAL_S = 0.25
_TURN_S = 5.0
_COMPARED_BUNDLES = 2


@dataclass(frozen=True)
class Reading:
    process_bytes: int
    gpu: GpuReading | None


@dataclass(frozen=True)
class GpuIdentity:
    name: str
    driver: str
    power_limit_w: float | None


@dataclass
class Measurements:
    bundles: Sequence[Bundle]
    settings: BenchSettings
    decoded: bool
    gpu: GpuIdentity | None
    notices: Sequence[str]
    lanes: list[LaneTimes] = field(default_factory=list)
    readings: dict[str, list[Reading]] = field(default_factory=dict)
    """By phase: what the process and the GPU were like meanwhile."""
    interrupted: bool = False


def measure(
    bundles: Sequence[Bundle],
    settings: BenchSettings,
    report: Report,
    notify: Callable[[str], None],
) -> Measurements:
    """One bundle, or two in turns. Ctrl-C ends it after a block and keeps what was measured."""
    check_measurable(bundles, settings)
    with ExitStack() as stack:
        monitor = _open_monitor(bundles, settings, stack)
        measurements = _begin(bundles, settings, monitor)
        for notice in measurements.notices:
            notify(notice)
        stop = stack.enter_context(stop_on_signals(notify))
        lanes: list[Lane] = []
        with _watched(monitor, measurements, "loading"):
            for bundle in bundles:
                report(f"loading {bundle.folder}", len(lanes), len(bundles))
                lane = Lane(bundle, settings, decode=measurements.decoded)
                lanes.append(stack.enter_context(lane))
        _run_phases(_Phases(lanes, settings, report, stop), monitor, measurements)
        measurements.interrupted = stop.is_asked
        measurements.lanes = [lane.times() for lane in lanes]
    return measurements


def check_measurable(bundles: Sequence[Bundle], settings: BenchSettings) -> None:
    """Refuse what would fail later, before any engine is loaded."""
    for bundle in bundles:
        require_runnable(bundle, settings.device)
        decode_ordinal(bundle, settings.device, settings.decode_device)
        bundle.require(STEP, "measuring")
        bundle.require(PROMPT, "measuring")
        _require_steady_state(bundle, settings)
    if len(bundles) == _COMPARED_BUNDLES:
        _require_same_model(*bundles)


def _require_steady_state(bundle: Bundle, settings: BenchSettings) -> None:
    config = bundle.config
    if config.rollout.is_global:
        raise UsageError(
            f"{bundle.folder}: rollout.window_frames is -1: with global attention every block "
            f"costs more than the one before, so there is no steady state to measure; give a "
            f"bundle with a window"
        )
    blocks = longest_session(config)
    frames = None if blocks is None else blocks * config.rollout.frames_per_block
    needed = max(settings.warmup, blocks_to_fill(RingLayout.of(config, frames))) + ROOM_BLOCKS
    if needed > (blocks or math.inf):
        raise UsageError(
            f"--warmup {settings.warmup}: a video of {bundle.folder} ends after {blocks} blocks "
            f"(absolute positions), which leaves none to measure; warm up less"
        )


def _require_same_model(first: Bundle, second: Bundle) -> None:
    expected, found = (_flat(config_values(bundle.config)) for bundle in (first, second))
    differing = sorted(
        key
        for key in expected.keys() | found.keys()
        if key not in ("name", "fps") and expected.get(key) != found.get(key)
    )
    if differing:
        key = differing[0]
        raise UsageError(
            f"--compare {second.folder}: another model than {first.folder}: {key} is "
            f"{found.get(key)!r}, and {expected.get(key)!r} there; compare builds of the same model"
        )


def _flat(values: Mapping[str, object]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat


def _open_monitor(
    bundles: Sequence[Bundle], settings: BenchSettings, stack: ExitStack
) -> GpuMonitor | None:
    monitor = open_gpu() if _uses_gpu(bundles, settings) else None
    return None if monitor is None else stack.enter_context(monitor)


def _uses_gpu(bundles: Sequence[Bundle], settings: BenchSettings) -> bool:
    return any(runs_on_gpu(bundle, settings.device) for bundle in bundles)


def _begin(
    bundles: Sequence[Bundle], settings: BenchSettings, monitor: GpuMonitor | None
) -> Measurements:
    notices = [*_what_is_missing(bundles, settings)]
    if monitor is None and _uses_gpu(bundles, settings):
        notices.append("clocks, power and GPU memory are not told: `pip install nvidia-ml-py`")
    decodes = settings.decode and all(map(has_vae, bundles))
    return Measurements(bundles, settings, decodes, _identity(monitor), notices)


def _identity(monitor: GpuMonitor | None) -> GpuIdentity | None:
    if monitor is None:
        return None
    return GpuIdentity(monitor.name, monitor.driver, monitor.power_limit_w)


def _what_is_missing(bundles: Sequence[Bundle], settings: BenchSettings) -> Iterator[str]:
    for bundle in bundles:
        if settings.decode and not has_vae(bundle):
            yield f"{bundle.folder}: no VAE inside; only the transformer is measured"
        if settings.switches and not has_text_encoder(bundle):
            yield (
                f"{bundle.folder}: no text encoder inside; prompts are random text states of "
                f"{RANDOM_TOKENS} tokens, and the time to encode one is that of its keys and "
                f"values alone"
            )


@contextmanager
def _watched(monitor: GpuMonitor | None, measurements: Measurements, phase: str) -> Iterator[None]:
    def read() -> Reading:
        return Reading(resident_bytes(), monitor.read() if monitor else None)

    sampler = Sampler(read, _SAMPLE_INTERVAL_S)
    measurements.readings[phase] = sampler.readings
    with sampler:
        yield


def _run_phases(phases: "_Phases", monitor: GpuMonitor | None, measurements: Measurements) -> None:
    # A second Ctrl-C ends the block at hand; what was measured before is kept all the same.
    with suppress(KeyboardInterrupt):
        for name, phase in phases.by_name(decode=measurements.decoded).items():
            if not phases.stop.is_asked:
                with _watched(monitor, measurements, name):
                    phase()


@dataclass(frozen=True)
class _Phases:
    lanes: Sequence[Lane]
    settings: BenchSettings
    report: Report
    stop: StopRequest

    def by_name(self, *, decode: bool) -> dict[str, Callable[[], None]]:
        wanted = {
            "first frame": (self.first_frames, decode and self.settings.sessions),
            "steady state": (self.steady_state, self.settings.blocks),
            "prompt switches": (self.prompt_switches, self.settings.switches),
            "announced switches": (self.announced_switches, self._announced_switches),
            "throughput": (self.throughput, self.settings.seconds),
        }
        return {name: phase for name, (phase, is_wanted) in wanted.items() if is_wanted}

    def first_frames(self) -> None:
        for lane in self._in_turns("first frame", self.settings.sessions):
            lane.first_frame()

    def steady_state(self) -> None:
        for lane in self._in_turns("steady state", self.settings.blocks):
            session = lane.warm_up(self.stop)
            if session is not None:
                lane.block(session)

    def prompt_switches(self) -> None:
        for lane in self._in_turns("prompt switches", self.settings.switches):
            session = lane.warm_up(self.stop)
            if session is not None:
                lane.switch(session)

    def announced_switches(self) -> None:
        for lane in self._in_turns("announced switches", self._announced_switches):
            session = lane.warm_up(self.stop)
            if session is not None:
                lane.announced_switch(session)

    @property
    def _announced_switches(self) -> int:
        return self.settings.switches if all(lane.encodes_beside for lane in self.lanes) else 0

    def throughput(self) -> None:
        seconds = self.settings.seconds
        turn_s = seconds if len(self.lanes) == 1 else min(seconds, _TURN_S)
        for lane in self._in_turns("throughput", math.ceil(seconds / turn_s)):
            left_s = turn_s
            while left_s > 0 and (session := lane.warm_up(self.stop)):
                left_s -= lane.overlapped(session, left_s, self.stop)

    def _in_turns(self, what: str, rounds: int) -> Iterator[Lane]:
        """Each lane once a round, in alternating order."""
        for number in range(rounds):
            self.report(what, number, rounds)
            for lane in self.lanes[:: -1 if number % 2 else 1]:
                if self.stop.is_asked:
                    return
                yield lane
