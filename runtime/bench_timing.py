"""How long engine runs take, told from outside: the runtime knows nothing of it."""

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..engines.base import Binding, Closing, Engine, TensorSpec
from ..engines.bundle import Bundle
from ..errors import EngineError
from .assembly import Engines

Device = Literal["auto", "cuda", "cpu"]

TRANSFORMER = "transformer"
"""The label of all that a step of the session makes the transformer do, from its first pass to the
last key committed. The other labels are names of graphs."""


class Stopwatch(Protocol):
    """Times labelled work; what carries one label runs one after another.

    On a GPU, ``start`` and ``stop`` record events on the stream of the label's graph (of the step
    graph for ``TRANSFORMER``), and durations are read once all work is done.
    """

    def start(self, label: str) -> int: ...

    def stop(self, token: int) -> None: ...

    def durations_ms(self, label: str) -> list[float]:
        """In the order in which they were started; one that was never stopped is left out."""
        ...


@dataclass
class _Mark:
    label: str
    started_s: float
    stopped_s: float | None = None


class HostStopwatch:
    """For engines whose runs return when they are done."""

    def __init__(self) -> None:
        self._tokens = itertools.count()
        self._marks: dict[int, _Mark] = {}

    def start(self, label: str) -> int:
        token = next(self._tokens)
        self._marks[token] = _Mark(label, time.perf_counter())
        return token

    def stop(self, token: int) -> None:
        self._marks[token].stopped_s = time.perf_counter()

    def durations_ms(self, label: str) -> list[float]:
        return [
            (mark.stopped_s - mark.started_s) * 1e3
            for mark in self._marks.values()
            if mark.label == label and mark.stopped_s is not None
        ]


Position = Mapping[str, int]
"""How often each label has been started."""


class Recorder:
    """A stopwatch that also knows which of its times belong to which stretch of the run."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch
        self._counts: Counter[str] = Counter()

    @contextmanager
    def timing(self, label: str) -> Iterator[None]:
        self._counts[label] += 1
        token = self._stopwatch.start(label)
        try:
            yield
        finally:
            self._stopwatch.stop(token)

    def position(self) -> Position:
        """Only while nothing runs beside the caller."""
        return dict(self._counts)

    def durations_ms(self) -> "Durations":
        return Durations(
            {label: self._stopwatch.durations_ms(label) for label in list(self._counts)}
        )


@dataclass(frozen=True)
class Durations:
    by_label: Mapping[str, list[float]]

    def between(self, before: Position, after: Position, label: str) -> list[float]:
        return self.by_label.get(label, [])[before.get(label, 0) : after.get(label, 0)]


class TimedEngines(Engines):
    """A bundle's engines, each run of which is timed under its graph's name."""

    def __init__(self, bundle: Bundle, device: Device) -> None:
        self.recorder = Recorder(stopwatch_for(on_gpu=runs_on_gpu(bundle, device)))
        super().__init__(bundle)

    def get(self, graph: str, purpose: str) -> Engine:
        return _TimedEngine(super().get(graph, purpose), graph, self.recorder)


def runs_on_gpu(bundle: Bundle, device: Device) -> bool:
    return device == "cuda" or (device == "auto" and bundle.manifest.engine.target != "cpu")


def stopwatch_for(*, on_gpu: bool) -> Stopwatch:
    if on_gpu:
        raise EngineError(
            "bench: engines on a GPU cannot be measured by this version; give a bundle of "
            "`longlive-trt build --engine onnxruntime`, and --device cpu or none"
        )
    return HostStopwatch()


class _TimedEngine(Closing):
    def __init__(self, inner: Engine, graph: str, recorder: Recorder) -> None:
        self._inner, self._graph, self._recorder = inner, graph, recorder

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self._inner.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self._inner.outputs

    def bind(self, *arguments: Any, **options: Any) -> Binding:
        return _TimedBinding(self._inner.bind(*arguments, **options), self._graph, self._recorder)

    def close(self) -> None:
        """It belongs to the engines that loaded it."""

    def __getattr__(self, name: str) -> Any:
        # What an engine offers beyond the protocol (a stream, say) is not this wrapper's business.
        return getattr(self._inner, name)


class _TimedBinding:
    def __init__(self, inner: Binding, graph: str, recorder: Recorder) -> None:
        self._inner, self._graph, self._recorder = inner, graph, recorder

    def run(self) -> None:
        with self._recorder.timing(self._graph):
            self._inner.run()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
