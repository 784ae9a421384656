"""Measure settings of the demo model: all that docs/presets.md and docs/optimization-log.md say.

    python -m benchmarks.quality.trials                      # hours on two cores, behind all else
    python -m benchmarks.quality.trials --trials presets --prompts 10 --timelines 4
    python -m benchmarks.quality.trials --processes 16 --work FOLDER     # on another machine
    python -m benchmarks.quality.ideas                                   # write one page of it
    python -m benchmarks.quality.presets                         # and the other

Each video is one line in a file below --work, so a run that was interrupted goes on where it was;
videos of all settings come before the next prompt, so that it may be stopped at any time. Files of
another machine (``*.jsonl``, or ``*.jsonl.gz``) are put beside those that are there. Figures do not
depend on what else the machine does.
"""

import multiprocessing
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path

from benchmarks.harness import ROOT, parser
from benchmarks.quality.catalog import chosen, every
from benchmarks.quality.lab import Lab
from benchmarks.quality.records import Records
from benchmarks.quality.ways import InTorch, attention_mass
from benchmarks.sharing import make_way, single_threaded
from longlive_trt.loading import find_bundle, load
from longlive_trt.quality.cases import Lengths

WORK = ROOT / "out" / "quality"
PROMPTS, TIMELINES, LONG, SEEDS = 30, 10, 0, 1
_AT_ONCE = 8
"""Settings that one process measures of a video before others may take the rest."""
_NICE = 19

Task = tuple[int, tuple[str, ...]]
"""A case by its place, and settings by their names."""


def main() -> None:
    options = parser(__doc__, out=False)
    add_lengths(options)
    options.add_argument("--trials", help="names or groups with commas between, in this order")
    options.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    given = options.parse_args()
    trials = chosen(given.trials)
    if any(isinstance(trial.idea, InTorch) for trial in trials):
        # Some of them are made of it, and would end all others later.
        attention_mass()
    find_bundle("demo")
    _measure(_tasks(given, [trial.name for trial in trials]), given)


def add_lengths(options: ArgumentParser, long: int = LONG, seeds: int = SEEDS) -> None:
    options.add_argument("--prompts", type=int, default=PROMPTS)
    options.add_argument("--timelines", type=int, default=TIMELINES)
    options.add_argument("--long", type=int, default=long, help="videos of two minutes")
    options.add_argument("--seeds", type=int, default=seeds)
    options.add_argument("--work", type=Path, default=WORK)


def lengths(given: Namespace) -> Lengths:
    return Lengths(prompts=given.prompts, timelines=given.timelines, long=given.long)


def _tasks(given: Namespace, names: Sequence[str]) -> list[Task]:
    """What is missing, the same video with all settings before the next."""
    known = every()
    with load("demo") as pipeline:
        lab = Lab(pipeline, Records(given.work))
        tasks = []
        for place, case in enumerate(lab.cases(lengths(given), given.seeds)):
            missing = [n for n in names if lab.key(known[n], case) not in lab.records]
            parts = [tuple(missing[i : i + _AT_ONCE]) for i in range(0, len(missing), _AT_ONCE)]
            tasks += [(place, part) for part in parts]
    return tasks


def _measure(tasks: Sequence[Task], given: Namespace) -> None:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(given.processes, context, _open, (given,))
    try:
        for number, done in enumerate(as_completed([pool.submit(_run, t) for t in tasks]), 1):
            print(f"{number} of {len(tasks)}: {done.result()}", flush=True)
    except (BrokenProcessPool, KeyboardInterrupt):
        raise SystemExit(
            "it ended early; what was measured is kept, and the same command goes on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_worker: dict[str, Lab | Namespace] = {}
_open_for_good = ExitStack()
"""A worker's engines, and that they have one thread, last as long as it does."""


def _open(given: Namespace) -> None:
    make_way(_NICE)
    _open_for_good.enter_context(single_threaded())
    pipeline = _open_for_good.enter_context(load("demo"))
    _worker.update(lab=Lab(pipeline, Records(given.work)), given=given)


def _run(task: Task) -> str:
    lab, given = _worker["lab"], _worker["given"]
    assert isinstance(lab, Lab) and isinstance(given, Namespace)
    place, names = task
    case, known = lab.cases(lengths(given), given.seeds)[place], every()
    lab.measure(case, [known[name] for name in names])
    return f"{case.name}: {', '.join(names)}"


if __name__ == "__main__":
    main()
