"""Graphs traced by other processes, while this one does something else.

Tracing is Python throughout, so that threads would only wait for each other. Each process is this
module as a program: it reads a specification and writes a graph.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from tempfile import TemporaryFile
from threading import Event

import onnx
import onnx_ir as ir

from longlive_trt.export.tracing import (
    GraphSpec,
    TracedGraph,
    finished,
    flat_inputs,
    forget_origins,
    trace,
    traced,
)

_MOST, _CORES_EACH = 6, 2
"""Processes, each of which takes a gigabyte of memory, and so many cores for each."""
_GLANCE_S = 0.2


class Tracers:
    """Traces what it is asked for; ahead what it was told of, if there are cores for it."""

    def __init__(self, processes: int | None = None) -> None:
        if processes is None:
            processes = min(_MOST, len(os.sched_getaffinity(0)) // _CORES_EACH)
        self._pool = ThreadPoolExecutor(processes) if processes > 1 and sys.executable else None
        self._ended = Event()
        self._ahead: dict[str, tuple[GraphSpec, Future[bytes | None]]] = {}

    def __enter__(self) -> "Tracers":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def begin(self, specs: Iterable[GraphSpec]) -> None:
        """Those that take longest first."""
        for spec in specs:
            if self._pool is not None and not self._is_begun(spec):
                self._ahead[spec.name] = spec, self._pool.submit(self._run, spec)

    def trace(self, spec: GraphSpec) -> TracedGraph:
        if not self._is_begun(spec):
            return trace(spec)
        _, future = self._ahead.pop(spec.name)
        data = future.result()
        return trace(spec) if data is None else _read(spec, data)

    def _is_begun(self, spec: GraphSpec) -> bool:
        begun, _ = self._ahead.get(spec.name, (None, None))
        return begun is not None and (begun.adapt, begun.inputs) == (spec.adapt, spec.inputs)

    def _run(self, spec: GraphSpec) -> bytes | None:
        """A graph; None if that failed, which is then to be done here, where errors are seen."""
        with TemporaryFile() as source, TemporaryFile() as target:
            pickle.dump(spec, source)
            source.seek(0)
            with subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=source,
                stdout=target,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            ) as process:
                while process.poll() is None:
                    if self._ended.wait(_GLANCE_S):
                        process.kill()
                        process.wait()
            target.seek(0)
            return target.read() if process.returncode == 0 else None


def _read(spec: GraphSpec, data: bytes) -> TracedGraph:
    model = ir.from_proto(onnx.ModelProto.FromString(data))
    given = {item.name for item in flat_inputs(spec.inputs)}
    parameters = {str(v.name): v for v in model.graph.inputs if v.name not in given}
    return finished(spec, model, parameters)


def main() -> None:
    target = os.fdopen(os.dup(1), "wb")
    # What libraries print is not the graph.
    os.dup2(2, 1)
    spec: GraphSpec = pickle.load(sys.stdin.buffer)  # noqa: S301
    model, _ = traced(spec)
    forget_origins(model)
    with target:
        target.write(ir.to_proto(model).SerializeToString())


if __name__ == "__main__":
    main()
