"""What the builder says while it works: its log, its progress, and how it is stopped."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psutil

_POLL_S = 0.05
LAYER_LIST = "Layers:\n"

Result = TypeVar("Result")


@dataclass
class BuildLog:
    """The messages that are read afterwards; the builder writes many megabytes of others."""

    layers: str = ""
    activation_bytes: list[int] = field(default_factory=list)
    """One for each profile."""
    weights_bytes: int = 0
    errors: list[str] = field(default_factory=list)

    def take(self, is_error: bool, message: str) -> None:
        if message.startswith(LAYER_LIST):
            self.layers = message
        elif message.startswith("Total Activation Memory:"):
            self.activation_bytes.append(_number(message))
        elif message.startswith("Total Weights Memory:"):
            self.weights_bytes = _number(message)
        elif is_error:
            self.errors.append(message.strip())


def _number(message: str) -> int:
    return int(message.partition(":")[2].split()[0])


def make_logger(trt: Any, log: BuildLog) -> Any:
    serious = (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)

    # The base class exists only once the bindings are loaded.
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            log.take(severity in serious, message)

    return Logger()


class Phases:
    """How much of the build is done: a phase's step may itself be a phase with steps."""

    def __init__(self) -> None:
        self._open: dict[str, list[int]] = {}
        self.is_cancelled = False

    def start(self, phase: str, steps: int) -> None:
        self._open[phase] = [0, max(1, steps)]

    def step(self, phase: str, step: int) -> None:
        if phase in self._open:
            self._open[phase][0] = step + 1

    def finish(self, phase: str) -> None:
        self._open.pop(phase, None)

    @property
    def done(self) -> float:
        fraction = 0.0
        for finished, steps in reversed(list(self._open.values())):
            fraction = min(1.0, (finished + fraction) / steps)
        return fraction


def make_monitor(trt: Any, phases: Phases) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            phases.start(phase, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            phases.step(phase, step)
            return not phases.is_cancelled

        def phase_finish(self, phase: str) -> None:
            phases.finish(phase)

    return Monitor()


def run_watched(
    work: Callable[[], Result], phases: Phases, show: Callable[[float], None]
) -> tuple[Result, int]:
    """The result of work in another thread, and the peak of this process's memory.

    The builder never returns to Python by itself; from this thread Ctrl-C can stop it.
    """
    results: list[Result] = []
    failures: list[BaseException] = []
    ended = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="builder")
    thread.start()
    try:
        peak_bytes = _wait(ended, phases, show)
    finally:
        thread.join()
    if failures:
        raise failures[0]
    return results[0], peak_bytes


def _wait(ended: threading.Event, phases: Phases, show: Callable[[float], None]) -> int:
    # An event, as Python 3.11 loses track of a thread whose join is interrupted.
    process, peak_bytes = psutil.Process(), 0
    try:
        while not ended.wait(_POLL_S):
            peak_bytes = max(peak_bytes, process.memory_info().rss)
            show(phases.done)
    except BaseException:
        phases.is_cancelled = True
        ended.wait()
        raise
    return max(peak_bytes, process.memory_info().rss)
