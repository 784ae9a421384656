"""All that a GPU has to check and to measure, in order of worth, within a time.

    python -m benchmarks.gpu.record --list
    python -m benchmarks.gpu.record --budget-s 560 --archive records.tar.gz
    python -m benchmarks.gpu.record --only bf16,fp8 --out out/gpu/made      # prepares, no more

Steps are those of ``benchmarks/gpu/steps.py``. Bundles that a step takes are made first, and kept
in --work. A step begins if its time, and that of what is still to be made for it, fits into what is
left; it has a limit, and its failure does not end the others. What is done is not done again: the
same command goes on. On several GPUs, steps that want more than one come first, and all others run
side by side, each on a GPU of its own. In --out lie records, a log of each step and
``summary.json``; --archive holds all of that after every step, as one file.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Lock, RLock
from typing import IO, Literal

from benchmarks.gpu.machine import Machine, this_machine
from benchmarks.gpu.steps import PREPARATIONS, STEPS, TABLE, TWO_GPUS, Step
from benchmarks.harness import ROOT, parser
from longlive_trt.files import publish_file

WORK, OUT = ROOT / "out" / "gpu" / "work", ROOT / "out" / "gpu" / "records"
SUMMARY = "summary.json"
_LIMIT, _MORE_S = 3.0, 60.0
"""Times the expected seconds, and so many more."""
_GRACE_S = 10.0
"""After which a step that was told to end is killed."""
_GLANCE_S = 0.5
"""After which a thread sees that all is to end."""
_SEVERAL = 2
_PROGRAMS = {"python": (), "longlive-trt": ("-m", "longlive_trt")}
_WIDTH = 120

Result = Literal["done", "kept", "failed", "too long", "skipped"]


@dataclass(frozen=True)
class Outcome:
    result: Result
    seconds: float = 0.0
    code: int | None = None
    says: str = ""
    """A reason, or the last line of the log."""

    @property
    def is_good(self) -> bool:
        return self.result in ("done", "kept")


class Runner:
    def __init__(
        self,
        machine: Machine,
        work: Path,
        out: Path,
        *,
        budget_s: float = float("inf"),
        table: Mapping[str, Step] = TABLE,
        again: Sequence[str] = (),
        archive: Path | None = None,
    ) -> None:
        """``again``: steps that are run though they are done."""
        self._machine, self._work, self._out = machine, work, out
        self._ends = time.monotonic() + budget_s
        self._table, self._again, self._archive = table, frozenset(again), archive
        self._names = {"work": str(work), "out": str(out), **machine.names}
        self.outcomes: dict[str, Outcome] = {}
        """Of this call."""
        self._attempts: defaultdict[str, RLock] = defaultdict(RLock)
        self._noting, self._ended = Lock(), Event()
        for folder in (work, out):
            folder.mkdir(parents=True, exist_ok=True)
        self._before = _read_outcomes(out / SUMMARY)

    def run(self, names: Sequence[str]) -> None:
        gpus = len(self._machine.gpus)
        if gpus < _SEVERAL:
            self._take(deque(names), None)
            return
        self._take(deque(name for name in names if self._table[name].gpus >= _SEVERAL), None)
        waiting = deque(name for name in names if self._table[name].gpus < _SEVERAL)
        with ThreadPoolExecutor(gpus) as pool:
            try:
                for done in [pool.submit(self._take, waiting, gpu) for gpu in range(gpus)]:
                    done.result()
            finally:
                self._ended.set()

    def _take(self, waiting: deque[str], gpu: int | None) -> None:
        """One after the other; others may take of the same."""
        while not self._ended.is_set():
            try:
                name = waiting.popleft()
            except IndexError:
                return
            self._attempt(name, gpu)

    def command(self, step: Step) -> list[str]:
        words = (word.format(**self._names) for word in shlex.split(step.command))
        program, *arguments = words
        if program in _PROGRAMS:
            return [sys.executable, *_PROGRAMS[program], *arguments]
        # A tool that starts Python.
        return [program, *(sys.executable if word == "python" else word for word in arguments)]

    def _attempt(self, name: str, gpu: int | None) -> Outcome:
        with self._attempts[name]:
            if name not in self.outcomes:
                outcome = self._outcome(self._table[name], gpu)
                with self._noting:
                    self._note(name, outcome)
            return self.outcomes[name]

    def _outcome(self, step: Step, gpu: int | None) -> Outcome:
        if self._is_there(step):
            return Outcome("kept")
        reason = self._obstacle(step)
        if reason is not None:
            return Outcome("skipped", says=reason)
        for need in step.needs:
            if not self._attempt(need, gpu).is_good:
                return Outcome("skipped", says=f"needs {need}, which is not there")
        return self._run(step, gpu)

    def _is_there(self, step: Step) -> bool:
        if step.name in self._again:
            return False
        if step.makes:
            return (self._work / step.makes).exists()
        before = self._before.get(step.name)
        is_recorded = not step.record or self._record(step).is_file()
        return before is not None and before.is_good and is_recorded

    def _obstacle(self, step: Step) -> str | None:
        missing = self._missing(step)
        for one in missing:
            reason = self._machine.lacks(one)
            if reason is not None:
                return reason if one is step else f"{one.name}: {reason}"
        seconds, left = sum(one.seconds for one in missing), self._left_s
        return f"takes {seconds} s, and {left:.0f} s are left" if seconds > left else None

    def _missing(self, step: Step) -> list[Step]:
        """What is to be run for it, itself at last."""
        found: dict[str, Step] = {}
        for need in step.needs:
            if not self._is_there(self._table[need]):
                found |= {one.name: one for one in self._missing(self._table[need])}
        return [*found.values(), step]

    @property
    def _left_s(self) -> float:
        return self._ends - time.monotonic()

    def _record(self, step: Step) -> Path:
        return self._out / step.record.format(**self._names)

    def _run(self, step: Step, gpu: int | None) -> Outcome:
        # Without what is made, others are nothing: that has all the time there is.
        limit_s = self._left_s
        if not step.makes:
            limit_s = min(limit_s, _LIMIT * step.seconds + _MORE_S)
        log = self._out / f"{step.name}.log"
        print(f"{step.name}: {step.what} ...", flush=True)
        started = time.monotonic()
        with log.open("wb") as errors:
            target = self._record(step).open("wb") if step.prints_record else errors
            with target:
                code = self._code_of(self.command(step), gpu, target, errors, limit_s)
        seconds = round(time.monotonic() - started, 1)
        if code is None:
            return Outcome("too long", seconds, says=f"was ended after {limit_s:.0f} s")
        says = _last_line(log)
        return Outcome("failed" if code or step.says not in says else "done", seconds, code, says)

    def _code_of(
        self,
        command: Sequence[str],
        gpu: int | None,
        output: IO[bytes],
        errors: IO[bytes],
        limit_s: float,
    ) -> int | None:
        """The exit code of a program; None if it was ended, with all that it had started."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self._machine.gpus[gpu]["index"]
            # Threads of both would only wait for each other.
            threads = max(1, (os.cpu_count() or 1) // len(self._machine.gpus))
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
        ends = time.monotonic() + limit_s
        try:
            while not self._ended.is_set() and time.monotonic() < ends:
                with suppress(subprocess.TimeoutExpired):
                    return child.wait(min(_GLANCE_S, max(0.0, ends - time.monotonic())))
            return None
        finally:
            _end(child)

    def _note(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        print(line(name, outcome), flush=True)
        if outcome.result in ("kept", "skipped") and name in self._before:
            return
        self._before[name] = outcome
        report = {
            "machine": self._machine.facts(),
            "steps": {one: asdict(each) for one, each in self._before.items()},
        }
        with publish_file(self._out / SUMMARY) as partial:
            partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if self._archive is not None:
            self._archive.parent.mkdir(parents=True, exist_ok=True)
            with publish_file(self._archive) as partial, tarfile.open(partial, "w:gz") as archive:
                archive.add(self._out, ".")


def _read_outcomes(summary: Path) -> dict[str, Outcome]:
    if not summary.is_file():
        return {}
    steps = json.loads(summary.read_text(encoding="utf-8"))["steps"]
    return {name: Outcome(**values) for name, values in steps.items()}


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Nothing that it started stays on the GPU."""
    _tell(child, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(_GRACE_S)
    _tell(child, signal.SIGKILL)
    child.wait()


def _tell(child: "subprocess.Popen[bytes]", what: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, what)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((text for text in map(str.strip, reversed(lines)) if text), "")


def line(name: str, outcome: Outcome) -> str:
    seconds = f"{outcome.seconds:.0f} s" if outcome.seconds else ""
    return f"{outcome.result:9s} {name:24s} {seconds:>6s}  {outcome.says}"[:_WIDTH].rstrip()


def chosen_names(machine: Machine, only: str | None) -> list[str]:
    if only is None:
        steps = (*TWO_GPUS, *STEPS) if len(machine.gpus) > 1 else STEPS
        return [step.name for step in steps]
    names = only.split(",")
    unknown = [name for name in names if name not in TABLE]
    if unknown:
        raise SystemExit(f"--only {','.join(unknown)}: no such step; --list shows all")
    return names


def show_table() -> None:
    for title, steps in (("first", PREPARATIONS), ("two GPUs", TWO_GPUS), ("one GPU", STEPS)):
        print(f"{title}, {sum(step.seconds for step in steps)} s:")
        for step in steps:
            print(f"  {step.name:24s} {step.seconds:4d} s  {step.what}\n{'':34s}{step.command}")


def main() -> None:
    options = parser(__doc__, out=False)
    options.add_argument("--list", action="store_true", help="show all steps, and run none")
    options.add_argument("--only", metavar="NAMES", help="these steps, with commas between")
    options.add_argument("--budget-s", type=float, default=float("inf"), metavar="N")
    options.add_argument("--work", type=Path, default=WORK, metavar="FOLDER")
    options.add_argument("--out", type=Path, default=OUT, metavar="FOLDER")
    options.add_argument("--again", action="store_true", help="steps that are done, too")
    options.add_argument("--archive", type=Path, metavar="FILE.tar.gz")
    given = options.parse_args()
    if given.list:
        show_table()
        return
    machine = this_machine()
    names = chosen_names(machine, given.only)
    runner = Runner(
        machine,
        given.work,
        given.out,
        budget_s=given.budget_s,
        again=names if given.again else (),
        archive=given.archive,
    )
    # Told to end, it ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    runner.run(names)
    print(f"\n{json.dumps(machine.facts())}")
    for name, outcome in runner.outcomes.items():
        print(line(name, outcome))
    sys.exit(any(outcome.result in ("failed", "too long") for outcome in runner.outcomes.values()))


if __name__ == "__main__":
    main()
