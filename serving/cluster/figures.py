"""What Prometheus reads at a gateway: its own figures, and what every host said last."""

from collections.abc import Iterator, Sized
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from longlive_trt import __version__
from longlive_trt.serving.cluster.calls import Hosts
from longlive_trt.serving.cluster.line import Line

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_HOST = {
    "saves": "States that the host saved.",
    "save_failures": "Times that the store failed it.",
    "save_seconds": "How long its last save took.",
    "state_bytes": "How large its last state was.",
    "viewers": "Viewers that it sends pictures to.",
}


class Watched(Protocol):
    """A gateway."""

    @property
    def hosts(self) -> Hosts: ...

    @property
    def line(self) -> Line: ...

    @property
    def sockets(self) -> Sized: ...


class GatewayFigures:
    def __init__(self, gateway: Watched) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        registry.register(_HostFigures(gateway))
        sockets = Gauge("longlive_gateway_sockets", "Open sockets.", registry=registry)
        sockets.set_function(lambda: len(gateway.sockets))
        waiting = Gauge(
            "longlive_gateway_waiting", "Callers and sessions without a slot.", registry=registry
        )
        waiting.set_function(lambda: gateway.line.waiting)
        moving = Gauge("longlive_gateway_moving", "Sessions without a host.", registry=registry)
        moving.set_function(lambda: gateway.line.moving)
        self._moves = Counter(
            "longlive_gateway_moves", "Sessions that changed hosts.", ["reason"], registry=registry
        )
        for reason in ("drained", "lost"):
            self._moves.labels(reason)
        self._pause = Histogram(
            "longlive_gateway_move_seconds",
            "From a host's end to the next one's first picture.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._command = Histogram(
            "longlive_gateway_command_seconds",
            "From a socket to the session's owner.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._pictures = Counter(
            "longlive_gateway_sent_bytes", "Bytes of pictures to viewers.", registry=registry
        )
        build = Gauge("longlive_build_info", "Always 1.", ["version"], registry=registry)
        build.labels(__version__).set(1)

    def moved(self, reason: str, seconds: float) -> None:
        self._moves.labels(reason).inc()
        self._pause.observe(seconds)

    def command(self, seconds: float) -> None:
        self._command.observe(seconds)

    def sent(self, count: int) -> None:
        self._pictures.inc(count)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _HostFigures(Collector):
    """From the hosts' views, so that reading them asks no host."""

    def __init__(self, gateway: Watched) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        slots = _family("slots", "Sessions at a time.")
        running = _family("sessions", "Sessions that hold a slot.")
        draining = _family("draining", "1 where nobody is let in.")
        others = {name: _family(name, text) for name, text in _HOST.items()}
        for view in self._gateway.hosts.views():
            slots.add_metric([view.name], view.slots)
            running.add_metric([view.name], view.running)
            draining.add_metric([view.name], float(view.is_draining))
            for name, value in view.figures:
                others[name].add_metric([view.name], value)
        yield from (slots, running, draining, *others.values())

    def describe(self) -> Iterator[Metric]:
        """Nothing is known before there are hosts."""
        return iter(())


def _family(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"longlive_host_{name}", text, labels=["host"])
