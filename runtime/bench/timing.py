"""How long engine runs take, told from outside: the runtime knows nothing of it."""

import itertools
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from longlive_trt.basics import Closing
from longlive_trt.engines.base import Binding, Engine, TensorSpec
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.engines.loader import DeviceChoice
from longlive_trt.plugins.cuda.streams import Event, Stream
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.streams import STREAM_OF

TRANSFORMER = "transformer"
"""The label of all that a step of the session makes the transformer do, from its first pass to the
last key committed, and the name of the stream where it does so. The other labels are graphs."""


class Stopwatch(Protocol):
    """Times labelled work; what carries one label runs one after another."""

    def start(self, label: str) -> int: ...

    def stop(self, token: int) -> None: ...

    def durations_ms(self, label: str) -> list[float]:
        """Once all work is done, in the order of the starts; without what was never stopped."""
        ...

    def close(self) -> None:
        """Forget all times."""
        ...


Moment = TypeVar("Moment")


@dataclass
class _Mark(Generic[Moment]):
    label: str
    started: Moment
    stopped: Moment | None = None


class _Marks(ABC, Generic[Moment]):
    def __init__(self) -> None:
        self._tokens = itertools.count()
        self._marks: dict[int, _Mark[Moment]] = {}

    def start(self, label: str) -> int:
        token = next(self._tokens)
        self._marks[token] = _Mark(label, self._now(label))
        return token

    def stop(self, token: int) -> None:
        mark = self._marks[token]
        mark.stopped = self._now(mark.label)

    def durations_ms(self, label: str) -> list[float]:
        return [
            self._between_ms(mark.started, mark.stopped)
            for mark in self._marks.values()
            if mark.label == label and mark.stopped is not None
        ]

    def close(self) -> None:
        self._marks.clear()

    @abstractmethod
    def _now(self, label: str) -> Moment: ...

    @abstractmethod
    def _between_ms(self, earlier: Moment, later: Moment) -> float: ...


class HostStopwatch(_Marks[float]):
    """For engines whose runs return when they are done."""

    def _now(self, label: str) -> float:
        return time.perf_counter()

    def _between_ms(self, earlier: float, later: float) -> float:
        return (later - earlier) * 1e3


class CudaStopwatch(_Marks[Event]):
    """Events on the stream that does a label's work: there, runs return before they are done."""

    def __init__(self, stream_of: Callable[[str], Stream]) -> None:
        super().__init__()
        self._stream_of = stream_of

    def close(self) -> None:
        for mark in self._marks.values():
            mark.started.close()
            if mark.stopped is not None:
                mark.stopped.close()
        super().close()

    def _now(self, label: str) -> Event:
        stream = self._stream_of(label)
        stream.gpu.make_current()
        return stream.record(stream.gpu.event(timed=True))

    def _between_ms(self, earlier: Event, later: Event) -> float:
        return later.milliseconds_since(earlier)


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

    def close(self) -> None:
        self._stopwatch.close()


@dataclass(frozen=True)
class Durations:
    by_label: Mapping[str, list[float]]

    def between(self, before: Position, after: Position, label: str) -> list[float]:
        return self.by_label.get(label, [])[before.get(label, 0) : after.get(label, 0)]


class TimedEngines(Closing):
    """A bundle's engines, each run of which is timed under its graph's name."""

    def __init__(
        self,
        bundle: Bundle,
        device: DeviceChoice,
        *,
        decode_device: str | None = None,
        low_memory: bool = False,
    ) -> None:
        placed = (bundle, device)
        self.engines = Engines(
            *placed, decode_device=decode_device, low_memory=low_memory, wrap=self._timed
        )
        self.recorder = Recorder(
            CudaStopwatch(self._stream_of) if self.engines.on_gpu else HostStopwatch()
        )

    def _timed(self, engine: Engine, graph: str) -> Engine:
        return _TimedEngine(engine, graph, self.recorder)

    def _stream_of(self, label: str) -> Stream:
        return self.engines.stream(STREAM_OF.get(label, TRANSFORMER))

    def close(self) -> None:
        self.recorder.close()
        self.engines.close()


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
        self._inner.close()

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
