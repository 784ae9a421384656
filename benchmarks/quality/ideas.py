"""docs/optimization-log.md and docs/results/optimization_log.json, of what was measured.

python -m benchmarks.quality.trials        # measures: hours, and goes on where it was
python -m benchmarks.quality.ideas         # writes what is there
"""

from collections.abc import Iterator, Mapping, Sequence

import longlive_trt as ll
from benchmarks.harness import RESULTS, ROOT, Row, cpu_name, parser, replace_table, write_report
from benchmarks.quality.catalog import GROUPS
from benchmarks.quality.lab import AFTER, REFERENCE, Lab, Trial
from benchmarks.quality.records import Records
from benchmarks.quality.rows import (
    kept_rows,
    likeness_cell,
    measured_on,
    measured_rows,
    measured_with,
    share_cell,
    verdict,
)
from benchmarks.quality.trials import add_lengths, lengths
from benchmarks.quality.work import cache_cell, work_cell

PAGE = ROOT / "docs" / "optimization-log.md"
RESULT = RESULTS / "optimization_log.json"


def main() -> None:
    options = parser(__doc__, out=False)
    add_lengths(options)
    given = options.parse_args()
    trials = (REFERENCE, *(trial for group in GROUPS.values() for trial in group))
    with ll.load("demo") as pipeline:
        lab = Lab(pipeline, Records(given.work))
        found = measured_rows(lab, trials, lab.cases(lengths(given), given.seeds))
    rows = kept_rows(RESULT, "trials", found)
    facts = {"command": "python -m benchmarks.quality.trials", "machine": cpu_name()}
    write_report({**facts, **measured_with(), "trials": rows}, RESULT)
    replace_table(PAGE, "weights", [measured_on()])
    for name, group in GROUPS.items():
        tabled = switch_table if name == "switches" else table
        replace_table(PAGE, name, list(tabled(rows, group)))


def table(rows: Mapping[str, Row], trials: Sequence[Trial]) -> Iterator[str]:
    yield (
        "| | work, %: demo / 1.3B | cache, % | shown, % | changed, % | kept, % | together "
        "| PSNR, dB | flicker | sharpness | videos |"
    )
    yield "|---" * 11 + "|"
    for trial in (REFERENCE, *trials):
        row = rows.get(trial.name)
        cells = _cells(row, alone=trial is REFERENCE) if row else ["not measured", *["-"] * 7]
        counted = (work_cell(trial), cache_cell(trial))
        yield f"| {trial.title} | {' | '.join([*counted, *cells])} |"


def _cells(row: Row, *, alone: bool) -> Iterator[str]:
    yield from (share_cell(row, part, alone=alone) for part in ("adherence", "changed", "kept"))
    yield "-" if alone else verdict(row)
    yield "-" if alone else likeness_cell(row, "psnr", 1)
    yield from (likeness_cell(row, name, 2) for name in ("flicker", "sharpness"))
    yield str(row["videos"])


def switch_table(rows: Mapping[str, Row], trials: Sequence[Trial]) -> Iterator[str]:
    heads = " | ".join(f"block {n + 1}" for n in range(AFTER))
    yield f"| | {heads} | changed, % | kept, % | flicker at the cut | videos |"
    yield "|---" * (AFTER + 5) + "|"
    exact = Trial(REFERENCE.name, "`exact`")
    for trial in (exact, *trials):
        row = rows.get(trial.name)
        if row is None:
            yield f"| {trial.title} | not measured |{' - |' * (AFTER + 3)}"
            continue
        after = " | ".join(f"{100 * part:.0f}" for part in row["shown_after"])
        parts = " | ".join(share_cell(row, p, alone=trial is exact) for p in ("changed", "kept"))
        rest = f"{row['flicker_at_cut']:.2f} | {row['videos']}"
        yield f"| {trial.title} | {after} | {parts} | {rest} |"


if __name__ == "__main__":
    main()
