"""One video held to a time for each block."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from longlive_trt.errors import UsageError
from longlive_trt.reading.ranges import Range
from longlive_trt.runtime.adaptive.controller import LEFT_OUT, Controller
from longlive_trt.runtime.adaptive.ladder import Rung
from longlive_trt.runtime.plan import Plan
from longlive_trt.runtime.session import Session

TARGET_MS = Range(0, 10_000_000, above=True)
FIRST_BLOCKS = 4
"""Of a prompt: no change comes among them."""

Notify = Callable[[str], None]


@dataclass
class Pace:
    """Told of every block before it is made, and when its pictures are there."""

    rungs: Sequence[Rung]
    target_ms: float
    prompt_blocks: frozenset[int]
    """Blocks that begin a prompt."""
    notify: Notify
    clock: Callable[[], float] = time.perf_counter
    changes: list[tuple[int, str]] = field(default_factory=list)
    """(first block, name of what it and those after it are made with)."""
    _times: dict[int, list[float]] = field(default_factory=dict)
    _controller: Controller = field(init=False)
    _last: float | None = None
    _prompt_block: int = 0

    def __post_init__(self) -> None:
        TARGET_MS.require("--target-ms", self.target_ms)
        self._controller = Controller(self.target_ms, [rung.cost for rung in self.rungs])
        self.changes.append((0, self.rungs[0].name))

    def before(self, block: int, session: Session) -> None:
        """Change to another rung, if one is wanted and it is the time for it."""
        if block in self.prompt_blocks:
            self._prompt_block = block
        if block - self._prompt_block < FIRST_BLOCKS:
            return
        wanted, now = self._controller.choose(), self._controller.rung
        if wanted != now and session.use(self.rungs[wanted].level):
            self._tell(block, now, wanted)
            self.changes.append((block, self.rungs[wanted].name))
            self._controller.moved(wanted)

    def after(self, block: int) -> None:
        """A block's pictures are there."""
        now = self.clock()
        begins = range(self._prompt_block, self._prompt_block + LEFT_OUT)
        if self._last is not None:
            if block in begins:
                self._controller.interrupted()
            took_ms = (now - self._last) * 1e3
            self._controller.note(took_ms)
            if block not in begins:
                self._times.setdefault(self._controller.rung, []).append(took_ms)
        self._last = now

    def summary(self) -> str:
        """Whether the target was held, and with what."""
        every = [ms for times in self._times.values() for ms in times]
        if not every:
            return f"too short to say whether a block takes {self.target_ms:g} ms"
        rung = self._controller.rung
        p99 = float(np.percentile(every, 99))
        shares = ", ".join(
            f"{self.rungs[number].name} {len(times)}"
            for number, times in sorted(self._times.items())
        )
        last = self._times.get(rung, every)
        if rung + 1 == len(self.rungs) and float(np.median(last)) > self.target_ms:
            return (
                f"the target of {self.target_ms:g} ms was not reached: {self.rungs[rung].name}, "
                f"the fastest of these presets, took {np.median(last):.0f} ms a block (p99 "
                f"{np.percentile(last, 99):.0f})"
            )
        return f"a block took {p99:.0f} ms (p99; target {self.target_ms:g}); blocks: {shares}"

    def record(self) -> Mapping[str, object]:
        """For what is kept beside a video: a seed alone does not make it again."""
        changes = [{"block": block, "preset": name} for block, name in self.changes]
        return {"target_ms": self.target_ms, "presets": changes}

    def _tell(self, block: int, now: int, wanted: int) -> None:
        recent = self._times.get(now, [])[-8:]
        took = f"{max(recent):.0f} ms" if recent else "too long"
        why = f"took up to {took}" if wanted > now else f"took {took} at most, which leaves room"
        self.notify(
            f"block {block + 1}: {self.rungs[now].name} {why} (target {self.target_ms:g} ms); "
            f"going on with {self.rungs[wanted].name}"
        )


def require_adaptable(plan: Plan) -> None:
    """Refuse what needs one window, or the same steps, from its beginning to its end."""
    if plan.config.rollout.is_global:
        raise UsageError(
            "rollout.window_frames is -1: global attention has no window to change; leave out "
            "--target-ms, or set a window"
        )
    if plan.replay is not None or plan.resumed is not None:
        raise UsageError(
            "--target-ms and --realtime change steps and window on the way, which a replay and a "
            "saved state fix: leave out one or the other"
        )


def real_time_ms(plan: Plan) -> float:
    """How long a block of the steady state is shown."""
    config = plan.config
    return config.rollout.frames_per_block * config.temporal_factor / config.fps * 1e3
