"""What Prometheus reads at /metrics."""

import time

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from longlive_trt import __version__

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)


class Metrics:
    """One server's own: two servers of a process count apart."""

    def __init__(self, model: str, bundle_key: str) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        ProcessCollector(registry=registry)
        self.running = Gauge(
            "longlive_sessions_running", "Sessions that hold a slot.", registry=registry
        )
        self.waiting = Gauge(
            "longlive_sessions_waiting", "Callers that wait for a slot.", registry=registry
        )
        self.slots = Gauge("longlive_session_slots", "Sessions at a time.", registry=registry)
        self.first_frame = self._histogram(
            "longlive_time_to_first_frame_seconds", "From a session's start to its first picture."
        )
        self.prompt_to_display = self._histogram(
            "longlive_prompt_to_display_seconds", "From a prompt to its first picture on screen."
        )
        self._block = Histogram(
            "longlive_block_seconds",
            "Time by stage of a block.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._dropped = self._counter(
            "longlive_frames_dropped", "Pictures that a viewer did not get.", "reason"
        )
        self._rollbacks = self._counter(
            "longlive_rollbacks", "Times that made blocks were taken back.", "reason"
        )
        self._speculations = self._counter(
            "longlive_speculations", "Hidden blocks, by what became of them.", "outcome"
        )
        build = Gauge(
            "longlive_build_info",
            "Always 1.",
            ["version", "model", "bundle_key"],
            registry=registry,
        )
        build.labels(__version__, model, bundle_key[:16]).set(1)
        for outcome in ("promoted", "discarded", "canceled", "early", "late"):
            self._speculations.labels(outcome)
        for reason in ("prompt", "timeline", "restart"):
            self._rollbacks.labels(reason)
        self._dropped.labels("slow_viewer")
        self.started_s = time.time()

    def block(self, stage: str, seconds: float) -> None:
        self._block.labels(stage).observe(seconds)

    def rollback(self, reason: str) -> None:
        self._rollbacks.labels(reason).inc()

    def speculation(self, outcome: str) -> None:
        self._speculations.labels(outcome).inc()

    def dropped(self, count: int) -> None:
        self._dropped.labels("slow_viewer").inc(count)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=_SECONDS, registry=self._registry)

    def _counter(self, name: str, text: str, label: str) -> Counter:
        return Counter(name, text, [label], registry=self._registry)
