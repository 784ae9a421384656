"""The ideas that need no new kernel, tried on the demo model: docs/optimization-log.md of it.

    python -m benchmarks.quality.ideas                   # all 40 prompts and 10 timelines: hours
    python -m benchmarks.quality.ideas --prompts 6 --timelines 3
    python -m benchmarks.quality.ideas --table           # write the page's tables of what is there

Every line is kept below --work, so a run that was interrupted goes on where it was.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import longlive_trt as ll
from benchmarks.harness import RESULTS, ROOT, command, cpu_name, parser, replace_table, write_report
from benchmarks.quality.trials import (
    REFERENCE,
    Lab,
    Trial,
    figure,
    flicker_at_cut,
    shown_after,
)
from longlive_trt.quality.cases import Lengths

PAGE = ROOT / "docs" / "optimization-log.md"
RESULT = RESULTS / "optimization_log.json"
WORK = ROOT / "out" / "ideas"


def _steps(name: str, title: str, *steps: int, more: tuple[str, ...] = ()) -> Trial:
    return Trial(name, title, overrides=(f"rollout.steps={list(steps)}", *more))


def _rollout(name: str, title: str, **changes: Any) -> Trial:
    return Trial(name, title, overrides=tuple(f"rollout.{k}={v}" for k, v in changes.items()))


FOUR = "rollout.first_steps=[1000, 750, 500, 250]"
STEPS = (
    _steps("steps-1", "1 step", 1000),
    _steps("steps-2", "2 steps", 1000, 500),
    _steps("steps-3", "3 steps", 1000, 750, 500),
    _steps("steps-2-late", "2 steps, the second later: 1000, 250", 1000, 250),
    _steps("steps-2-early", "2 steps, the second earlier: 1000, 750", 1000, 750),
    _steps("steps-3-uneven", "3 steps, uneven: 1000, 750, 250", 1000, 750, 250),
    _steps("steps-3-even", "3 steps, even: 1000, 667, 333", 1000, 667, 333),
    _steps("steps-5", "5 steps: 1000, 800, 600, 400, 200", 1000, 800, 600, 400, 200),
    _steps("steps-6", "6 steps: 1000, 833, ..., 167", 1000, 833, 667, 500, 333, 167),
)
OPENING = (
    _steps("first-4-then-2", "4 steps in the first block, then 2", 1000, 500, more=(FOUR,)),
    _steps("first-4-then-1", "4 steps in the first block, then 1", 1000, more=(FOUR,)),
)
WINDOWS = (
    _rollout("window-6", "window 6: the sink and the block alone", window_frames=6),
    _rollout("window-9", "window 9", window_frames=9),
    _rollout("window-15", "window 15", window_frames=15),
    _rollout("window-21", "window 21", window_frames=21),
    _rollout("sink-0", "sink 0, window 12", sink_frames=0),
    _rollout("sink-1", "sink 1, window 12", sink_frames=1),
    _rollout("moving-sink", "a switch replaces the sink", global_sink="false"),
)
SWITCHES = (
    Trial("switch-partial", "`partial`", switch="partial"),
    Trial("switch-none", "`none`", switch="none"),
    Trial("switch-blend-2", "`blend:2`", switch="blend:2"),
    Trial("switch-blend-4", "`blend:4`", switch="blend:4"),
)
COMBINED = (
    _steps("turbo-ish", "2 steps, window 9", 1000, 500, more=("rollout.window_frames=9",)),
    _steps(
        "first-4-then-2-window-9",
        "4 steps in the first block, then 2; window 9",
        *(1000, 500),
        more=(FOUR, "rollout.window_frames=9"),
    ),
)
GROUPS = {
    "steps": STEPS,
    "opening": OPENING,
    "windows": WINDOWS,
    "switches": SWITCHES,
    "combined": COMBINED,
}


def main() -> None:
    options = parser(__doc__, out=False)
    options.add_argument("--prompts", type=int)
    options.add_argument("--timelines", type=int)
    options.add_argument("--trials", help="names with commas between, in this order")
    options.add_argument("--work", type=Path, default=WORK)
    options.add_argument("--table", action="store_true", help="write what was measured")
    chosen = options.parse_args()
    lengths = Lengths(prompts=chosen.prompts, timelines=chosen.timelines, long=0)
    with ll.load("demo") as pipeline:
        lab = Lab(pipeline, chosen.work, lengths)
        if not chosen.table:
            lab.run(_chosen(chosen.trials))
        write_report(report(lab), RESULT)
        for name, trials in GROUPS.items():
            replace_table(PAGE, name, list(table(lab, name, trials)))


def _chosen(names: str | None) -> list[Trial]:
    every = {trial.name: trial for group in GROUPS.values() for trial in group}
    wanted = list(every) if names is None else names.split(",")
    if unknown := [name for name in wanted if name not in every]:
        raise SystemExit(
            f"--trials {','.join(unknown)}: no such trial; there are {', '.join(every)}"
        )
    return [every[name] for name in wanted]


def report(lab: Lab) -> dict[str, Any]:
    rows = {t.name: _row(lab, t) for t in (REFERENCE, *(t for g in GROUPS.values() for t in g))}
    key = lab.pipeline.bundle.manifest.key
    measured = {name: row for name, row in rows.items() if row["videos"]}
    return {"command": command(), "machine": cpu_name(), "bundle": key, "trials": measured}


def _row(lab: Lab, trial: Trial) -> dict[str, Any]:
    lines = lab.lines(trial)
    found = {n: m.own for n, m in lab.metrics(trial).items() if m.own is not None}
    return {
        "title": trial.title,
        "overrides": list(trial.overrides),
        "switch": trial.switch,
        "videos": len(lines),
        "figures": {name: [round(f.mean, 4), f.spread] for name, f in found.items()},
        "shown_after": [round(share, 4) for share in shown_after(lines)],
        "flicker_at_cut": round(flicker_at_cut(lines, lab.pipeline.config), 4),
    }


def table(lab: Lab, name: str, trials: tuple[Trial, ...]) -> Iterator[str]:
    if name == "switches":
        yield from _switch_table(lab, trials)
        return
    yield "| | shown, % | changed, % | kept, % | flicker | sharpness | PSNR, dB | videos |"
    yield "|---|---|---|---|---|---|---|---|"
    for trial in (REFERENCE, *trials):
        found = lab.metrics(trial)
        if not found:
            yield _unmeasured(trial, 7)
            continue
        cells = [figure(found, n) for n in ("adherence", "changed", "kept")]
        cells += [figure(found, n, 2) for n in ("flicker", "sharpness")]
        cells.append("-" if trial is REFERENCE else figure(found, "psnr"))
        yield f"| {trial.title} | {' | '.join(cells)} | {len(lab.lines(trial))} |"


def _unmeasured(trial: Trial, columns: int) -> str:
    return f"| {trial.title} | not measured yet |{' - |' * (columns - 1)}"


def _switch_table(lab: Lab, trials: tuple[Trial, ...]) -> Iterator[str]:
    exact = Trial(REFERENCE.name, "`exact`")
    yield "| | block 1 | block 2 | block 3 | block 4 | block 5 | kept, % | flicker at the cut |"
    yield "|---|---|---|---|---|---|---|---|"
    for trial in (exact, *trials):
        lines = lab.lines(trial)
        if not lines:
            yield _unmeasured(trial, 7)
            continue
        shares = " | ".join(f"{100 * share:.0f}" for share in shown_after(lines))
        cut = flicker_at_cut(lines, lab.pipeline.config)
        yield f"| {trial.title} | {shares} | {figure(lab.metrics(trial), 'kept')} | {cut:.2f} |"


if __name__ == "__main__":
    main()
