"""Stopwatches, recorders, and engines whose runs are timed."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.ort.cpu import OnnxRuntimeEngine
from longlive_trt.errors import EngineError
from longlive_trt.runtime.bench import timing as bench_timing
from longlive_trt.runtime.bench.timing import CudaStopwatch, HostStopwatch, Recorder, TimedEngines
from longlive_trt.runtime.decoding.host import VaeStream
from tests.runtime.bench.samples import NumberingStopwatch


def test_durations_come_in_the_order_of_their_starts_by_label(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([0.0, 1.0, 1.5, 4.0, 10.0, 10.5])
    monkeypatch.setattr(bench_timing.time, "perf_counter", lambda: next(now))
    stopwatch = HostStopwatch()
    outer, inner = stopwatch.start("outer"), stopwatch.start("inner")
    stopwatch.stop(inner)
    stopwatch.stop(outer)
    stopwatch.stop(stopwatch.start("inner"))
    assert stopwatch.durations_ms("inner") == [500.0, 500.0]
    assert stopwatch.durations_ms("outer") == [4000.0]
    assert stopwatch.durations_ms("never") == []


def test_what_was_never_stopped_is_left_out() -> None:
    stopwatch = HostStopwatch()
    stopwatch.stop(stopwatch.start("a"))
    stopwatch.start("a")
    assert len(stopwatch.durations_ms("a")) == 1


class Driver:
    """A stream and its GPU in one, whose events know when they were recorded."""

    def __init__(self, now_ms: Iterator[float]) -> None:
        self.gpu, self._now_ms, self.entered, self.open_events = self, now_ms, 0, 0

    def make_current(self) -> None:
        self.entered += 1

    def event(self, *, timed: bool) -> Any:
        assert timed
        self.open_events += 1
        return SimpleNamespace(at_ms=None, close=self._close_event)

    def _close_event(self) -> None:
        self.open_events -= 1

    def record(self, event: Any) -> Any:
        event.at_ms = next(self._now_ms)
        event.milliseconds_since = lambda earlier: event.at_ms - earlier.at_ms
        return event


def test_events_go_to_the_stream_of_their_label() -> None:
    streams = {"step": Driver(iter([1.0, 5.0])), "vae_next": Driver(iter([100.0, 107.0, 120.0]))}
    stopwatch = CudaStopwatch(streams.__getitem__)  # type: ignore[arg-type]
    step, vae = stopwatch.start("step"), stopwatch.start("vae_next")
    stopwatch.stop(vae)
    stopwatch.stop(step)
    stopwatch.start("vae_next")
    assert stopwatch.durations_ms("step") == [4.0]
    assert stopwatch.durations_ms("vae_next") == [7.0]
    assert streams["step"].entered > 0
    assert (streams["step"].open_events, streams["vae_next"].open_events) == (2, 3)
    stopwatch.close()
    assert (streams["step"].open_events, streams["vae_next"].open_events) == (0, 0)
    assert stopwatch.durations_ms("step") == []


def test_threads_share_a_stopwatch() -> None:
    stopwatch, rounds = HostStopwatch(), 500

    def work(label: str) -> None:
        for _ in range(rounds):
            stopwatch.stop(stopwatch.start(label))

    threads = [threading.Thread(target=work, args=(label,)) for label in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(stopwatch.durations_ms(label)) for label in "abc"] == [rounds] * 3


def test_a_stretch_has_its_own_times_only() -> None:
    recorder = Recorder(NumberingStopwatch())
    with recorder.timing("step"):
        pass
    before = recorder.position()
    for _ in range(2):
        with recorder.timing("step"):
            pass
    after = recorder.position()
    with recorder.timing("step"), recorder.timing("text"):
        pass
    durations = recorder.durations_ms()
    assert durations.between(before, after, "step") == [1.0, 2.0]
    assert durations.between(before, after, "text") == []
    assert durations.between({}, recorder.position(), "text") == [0.0]


def test_a_run_that_fails_is_stopped_too() -> None:
    stopwatch = HostStopwatch()
    with pytest.raises(EngineError), Recorder(stopwatch).timing("step"):
        raise EngineError("out of memory")
    assert len(stopwatch.durations_ms("step")) == 1


def test_engines_compute_the_same_when_they_are_timed(video_bundle: Path) -> None:
    with TimedEngines(open_bundle(video_bundle), "cpu") as timed:
        engines = timed.engines
        engine = engines.get("vae_first", "testing")
        spec = engine.outputs["pixels"]
        assert spec.name == "pixels" and "latents" in engine.inputs
        # What only this kind of engine has is still there.
        assert engine.name == "vae_first"
        stream = VaeStream(engine, engines.get("vae_next", "testing"), 1)
        latents = engine.inputs["latents"]
        frames = stream.decode(np.ones(latents.sized(batch=1), latents.dtype))
        assert frames.shape[1] == 1 and frames.any()
        assert timed.recorder.position() == {"vae_first": 1}
        assert len(timed.recorder.durations_ms().by_label["vae_first"]) == 1


def test_engines_that_were_timed_are_closed(
    video_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(OnnxRuntimeEngine, "close", lambda engine: closed.append(engine.name))
    with TimedEngines(open_bundle(video_bundle), "cpu") as timed:
        for graph in ("step", "vae_first", "step"):
            timed.engines.get(graph, "testing")
        assert not closed
    assert closed == ["step", "vae_first"]
