"""How well the demo model does what its prompts say, through the product's own runtime.

    python -m benchmarks.demo.adherence                        # everything, for hours on two cores
    python -m benchmarks.demo.adherence --rows base --prompts 12
    python -m benchmarks.demo.adherence --rows fp8 --bundle FOLDER --device cuda
    python -m benchmarks.demo.adherence --table           # docs/results and docs/demo.md of it

Each video is one line in a file below --work, so a run that was interrupted goes on where it was,
and --processes work side by side. The measurements are those of longlive_trt.demo.adherence.
"""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.demo.report import FEWER, FIRST, ablation, summaries, write_tables
from benchmarks.demo.watching import drift, reconstruction, switched
from benchmarks.harness import RESULTS, ROOT, command, cpu_name, kept_rows, parser, write_report
from benchmarks.quality.lab import weights
from longlive_trt import loading
from longlive_trt.engines.loader import DEVICES, load_engine
from longlive_trt.errors import UsageError
from longlive_trt.runtime import assembly
from longlive_trt.runtime.pipeline import Pipeline

RESULT = RESULTS / "demo_adherence.json"
PAGE = ROOT / "docs" / "demo.md"
WORK = ROOT / "out" / "adherence"
PROCESSES = 2
PROMPTS = {"base": 200, "drift": 16, "vae": 48}
"""Of a full run; other rows have fewer."""

Line = dict[str, Any]


@dataclass(frozen=True)
class Row:
    title: str
    make: Callable[..., Line]
    switch: str = "exact"
    overrides: tuple[str, ...] = ()
    precision: str = "fp32"


def _steps(*levels: int) -> tuple[str, ...]:
    return (f"rollout.steps={list(levels)}",)


ROWS = {
    "base": Row("fp32, 4 steps", switched),
    "no-recache": Row("without re-computing the cache at a switch", switched, switch="none"),
    "no-sink": Row("without sink", switched, overrides=("rollout.sink_frames=0",)),
    "3-steps": Row("3 steps", switched, overrides=_steps(1000, 750, 500)),
    "2-steps": Row("2 steps", switched, overrides=_steps(1000, 500)),
    "1-step": Row("1 step", switched, overrides=_steps(1000)),
    "fp16": Row("fp16", switched, precision="fp16"),
    "bf16": Row("bf16, on a GPU", switched, precision="bf16"),
    "fp8": Row("FP8", switched, precision="fp8"),
    "int8": Row("INT8", switched, precision="int8"),
    "drift": Row("120 s", drift),
    "vae": Row("autoencoder", reconstruction),
}
TITLES = {
    "base": ROWS["base"].title,
    FIRST: f"the first {FEWER} of them",
    **{name: row.title for name, row in ROWS.items()},
}
BY_DEFAULT = tuple(name for name in ROWS if name not in ("bf16", "fp8", "int8"))
"""The others need a bundle of their own: --bundle."""


def main() -> None:
    options = parser(__doc__, out=False)
    options.add_argument("--rows", default=",".join(BY_DEFAULT), help="names with commas between")
    options.add_argument("--prompts", type=int, help="of each row")
    options.add_argument("--bundle", default=loading.DEMO, help="for rows of its precision")
    options.add_argument("--device", choices=DEVICES, default="auto")
    options.add_argument("--work", type=Path, default=WORK)
    options.add_argument("--processes", type=int, default=PROCESSES)
    options.add_argument("--share", type=int, help="of the prompts: what one of the processes does")
    options.add_argument("--table", action="store_true", help="write what was measured")
    chosen = options.parse_args()
    names = chosen.rows.split(",")
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise SystemExit(f"--rows {','.join(unknown)}: no such row; there are {', '.join(ROWS)}")
    if chosen.share is not None:
        _work(names, chosen)
        return
    if chosen.table:
        write_report(report(chosen.work), RESULT)
        write_tables(report(chosen.work), PAGE)
        return
    loading.find_bundle(chosen.bundle)
    _side_by_side(chosen.processes)
    print("\n".join(ablation(report(chosen.work)["rows"])))


def _side_by_side(processes: int) -> None:
    """The same command line in so many processes, each with its share."""
    again = [sys.executable, "-m", "benchmarks.demo.adherence", *sys.argv[1:]]
    children = [
        subprocess.Popen([*again, "--share", str(share), "--processes", str(processes)], cwd=ROOT)
        for share in range(processes)
    ]
    try:
        codes = [child.wait() for child in children]
    except KeyboardInterrupt:
        for child in children:
            child.terminate()
        raise
    if any(codes):
        raise SystemExit(
            "a process failed; what was measured is kept, and the same command goes on"
        )


def _work(names: Sequence[str], chosen: Any) -> None:
    one_thread = chosen.processes > 1
    if one_thread:
        torch.set_num_threads(1)
    # Several threads for each of several videos would wait for each other.
    load = partial(load_engine, threads=1) if one_thread else load_engine
    with (
        patch.object(assembly, "load_engine", load),
        loading.load(chosen.bundle, device=chosen.device) as pipeline,
    ):
        precision = pipeline.bundle.manifest.precision
        for name in names:
            row = ROWS[name]
            if row.precision == precision or row.make is reconstruction:
                count = chosen.prompts or PROMPTS.get(name, FEWER)
                share = range(chosen.share, count, chosen.processes)
                measure(pipeline, name, share, chosen.work, chosen.share)
            elif precision != "fp32":
                raise UsageError(f"{chosen.bundle}: a bundle of {precision}, and {name} is another")
            else:
                print(f"{name}: left out; give --bundle with one of {row.precision}")


def measure(pipeline: Pipeline, name: str, numbers: Sequence[int], work: Path, share: int) -> None:
    """The videos of a row that are not there yet, each noted as it is made."""
    work.mkdir(parents=True, exist_ok=True)
    key = pipeline.bundle.manifest.key
    known = {line["number"] for line in lines(work, name) if line["bundle"] == key}
    row = ROWS[name]
    with (work / f"{name}.{share}.jsonl").open("a", encoding="utf-8") as file:
        for number in numbers:
            if number not in known:
                made = row.make(pipeline, number, switch=row.switch, overrides=row.overrides)
                line = {"number": number, "bundle": key, "at": round(time.time()), **made}
                file.write(json.dumps(line) + "\n")
                file.flush()
                print(f"{name} {number}: {json.dumps(made)}", flush=True)


def lines(work: Path, name: str) -> Iterator[Line]:
    """What was measured; the last line of a killed run may be half a one."""
    for path in sorted(work.glob(f"{name}.*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(text)
            except ValueError:
                continue


def report(work: Path) -> dict[str, Any]:
    measured = {name: list(lines(work, name)) for name in ROWS}
    found = summaries({name: found for name, found in measured.items() if found})
    alike = {"weights": weights(["full"])}
    rows = kept_rows(RESULT, "rows", found, alike, _videos)
    return {
        "command": command(),
        "machine": cpu_name(),
        "python": platform.python_version(),
        **alike,
        "rows": {name: {"title": TITLES[name], **rows[name]} for name in TITLES if name in rows},
    }


def _videos(row: Line) -> int:
    return int(row["prompts"] if "prompts" in row else row["clips"])


if __name__ == "__main__":
    main()
