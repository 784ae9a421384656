"""What `generate --realtime` does when other programs take the processor, and what is without it.

    python -m benchmarks.quality.competition                   # 3 to 5 minutes, nothing else on
    python -m benchmarks.quality.competition --blocks 8 12 10 --out FILE --plot FILE   # a short try

The demo makes one video twice, as the command does: held to the time, and not. After some blocks as
many busy loops start as there are cores, at the same priority; after some more they end. Times are
those from one block's pictures to the next one's.
"""

import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import longlive_trt as ll
from benchmarks.harness import (
    RESULTS,
    ROOT,
    command,
    cpu_name,
    parser,
    percentiles,
    replace_table,
    write_report,
)
from benchmarks.quality.competition_plot import drawn
from longlive_trt.runtime.adaptive.ladder import ladder
from longlive_trt.runtime.adaptive.pace import Pace, real_time_ms
from longlive_trt.runtime.generation import Outputs, generate
from longlive_trt.runtime.pipeline import Pipeline
from longlive_trt.runtime.plan import Plan, VideoOptions, plan_video
from longlive_trt.runtime.progress import QuietProgress

RESULT = RESULTS / "competition_cpu.json"
PLOT = ROOT / "docs" / "presets" / "competition.svg"
PAGE = ROOT / "docs" / "presets.md"
PHASES = ("alone", "competition", "alone again")
BLOCKS = (30, 50, 110)
HELD, FREE = "held", "not held"
_PRESET, _PROMPT, _SEED = "balanced", "A red car drives through the desert at noon", 5
_BUSY = "while True: pass"
Clock = Callable[[], float]
_LEFT_OUT = 1
"""Blocks at the beginning, which nothing was before."""


class Competitors:
    """Busy loops in processes of their own."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        program = [sys.executable, "-c", _BUSY]
        self._running += [subprocess.Popen(program) for _ in range(self._count)]

    def stop(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()
        self._running.clear()


@dataclass
class Watched(Pace):
    """Starts and ends the competition when a block's pictures are there."""

    competitors: Competitors = field(kw_only=True)
    phases: Sequence[int] = field(kw_only=True)

    def after(self, block: int) -> None:
        super().after(block)
        if block + 1 == self.phases[0]:
            self.competitors.start()
        if block + 1 == self.phases[0] + self.phases[1]:
            self.competitors.stop()


class Heard(QuietProgress):
    """What a person would be told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def notice(self, text: str) -> None:
        self.told.append(text)
        sys.stderr.write(f"{text}\n")


def main() -> None:
    given = _options()
    competitors = Competitors(given.competitors)
    with ExitStack() as stack:
        pipeline = stack.enter_context(ll.load("demo"))
        stack.callback(competitors.stop)
        plan = _plan(pipeline, sum(given.blocks))
        target_ms = given.target_ms or real_time_ms(plan)
        runs = {
            name: rolled(pipeline, plan, target_ms, competitors, given.blocks, held=name == HELD)
            for name in (FREE, HELD)
        }
    report = {
        "command": command(),
        "machine": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "competitors": given.competitors,
        "preset": _PRESET,
        "target_ms": target_ms,
        "blocks": dict(zip(PHASES, given.blocks, strict=True)),
        "runs": runs,
    }
    write_report(report, given.out)
    given.plot.write_text(drawn(report), encoding="utf-8")
    if given.out == RESULT:
        replace_table(PAGE, "competition", list(table(report)))


def _options() -> Namespace:
    options = parser(__doc__, out=False)
    cores = len(os.sched_getaffinity(0))
    options.add_argument("--blocks", type=int, nargs=3, default=BLOCKS, help="of each phase")
    options.add_argument("--target-ms", type=float, help="a block's time on screen, if not given")
    options.add_argument("--competitors", type=int, default=cores, help="busy loops")
    options.add_argument("--out", type=Path, default=RESULT)
    options.add_argument("--plot", type=Path, default=PLOT)
    return options.parse_args()


def _plan(pipeline: Pipeline, blocks: int) -> Plan:
    frames = blocks * pipeline.config.rollout.frames_per_block
    return plan_video(
        pipeline.bundle,
        VideoOptions(prompt=_PROMPT, frames=frames, seed=_SEED, preset=_PRESET),
    )


def rolled(
    pipeline: Pipeline, plan: Plan, target_ms: float, competitors: Competitors,
    phases: Sequence[int], *, held: bool, clock: Clock = time.perf_counter,
) -> dict[str, Any]:  # fmt: skip
    """One video; without being held it has no other preset to step to."""
    moments: list[float] = []

    def noted() -> float:
        """Read once for each block, when its pictures are there."""
        moments.append(clock())
        return moments[-1]

    rungs = ladder(pipeline.bundle, plan, _PRESET)[: None if held else 1]
    plan, heard = replace(plan, levels=tuple(rung.level for rung in rungs[1:])), Heard()
    pace = Watched(
        rungs, target_ms, frozenset({0}), heard.notice, noted, competitors=competitors,
        phases=phases,
    )  # fmt: skip
    generate(pipeline, plan, Outputs(), heard, command(), pace)
    took_ms = [round(1e3 * (b - a), 1) for a, b in pairwise(moments)]
    return {
        "block_ms": took_ms,
        "presets": [{"block": block, "preset": name} for block, name in pace.changes],
        "phases": dict(zip(PHASES, phase_figures(took_ms, phases, target_ms), strict=True)),
        "told": heard.told if held else [],
    }


def phase_figures(
    block_ms: Sequence[float], phases: Sequence[int], target_ms: float
) -> Iterator[dict[str, float]]:
    """``block_ms`` begins with the second block."""
    ends = list(accumulate(phases))
    for begin, end in zip([_LEFT_OUT, *ends], ends, strict=False):
        times = block_ms[begin - _LEFT_OUT : end - _LEFT_OUT]
        yield {
            "median_ms": round(median(times), 1),
            "p99_ms": percentiles(times, (99,), 1)["p99"],
            "late": sum(ms > target_ms for ms in times),
            "blocks": len(times),
        }


def table(report: Mapping[str, Any]) -> Iterator[str]:
    target = report["target_ms"]
    yield (
        f"A target of {target:g} ms, {report['competitors']} busy loops on {report['cores']} cores "
        f"({report['machine']}); in milliseconds, from one block's pictures to the next one's:"
    )
    yield ""
    yield "| | blocks | " + " | ".join(
        f"{name}: median | p99 | late" for name in (FREE, HELD)
    ) + " | presets |"  # fmt: skip
    yield "|---" * 9 + "|"
    for number, phase in enumerate(PHASES):
        cells = [_phase_cells(report["runs"][name]["phases"][phase]) for name in (FREE, HELD)]
        blocks = report["blocks"][phase]
        yield f"| {phase} | {blocks} | {' | '.join(cells)} | {_presets_of(report, number)} |"
    yield ""
    yield "![Times of blocks, with and without](presets/competition.svg)"


def _phase_cells(phase: Mapping[str, float]) -> str:
    return f"{phase['median_ms']:.0f} | {phase['p99_ms']:.0f} | {phase['late']}"


def _presets_of(report: Mapping[str, Any], number: int) -> str:
    """Those of a phase, in order, each with the block it begins at."""
    counts = list(report["blocks"].values())
    begin, end = sum(counts[:number]), sum(counts[: number + 1])
    changes = report["runs"][HELD]["presets"]
    before = [change for change in changes if change["block"] <= begin]
    within = [change for change in changes if begin < change["block"] < end]
    named = [before[-1]["preset"], *(f"{c['preset']} from block {c['block'] + 1}" for c in within)]
    return ", ".join(named)


if __name__ == "__main__":
    main()
