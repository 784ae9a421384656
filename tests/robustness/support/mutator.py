"""Random changes of one format, each run through the command that reads it, in this process.

``python -m tests.robustness.support.mutator SAMPLES FORMAT SEED COUNT`` prints what went wrong, a
line a fault, and then a line of figures; its exit code is 1 if anything did.
"""

import json
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.robustness.support.formats import FORMATS, Format
from tests.robustness.support.mutating import changed_bytes, changed_structure
from tests.robustness.support.running import complaint_faults, inventory, outcome
from tests.robustness.support.samples import Samples

MOST_BYTES = 1 << 30
STRUCTURES = 0.7
"""The share of changes that keep what belongs together together: seals, sizes, syntax."""


@dataclass
class Figures:
    codes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


def mutate(samples: Samples, name: str, seed: int, count: int) -> Figures:
    format_, figures = FORMATS[name], Figures()
    structure = format_.read(format_.sample(samples))
    data = format_.sample(samples).read_bytes()
    untouched = inventory(samples.bundle.parent)
    for number in range(seed, seed + count):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            _try(format_, samples, structure, data, number, figures)
            os.chdir("/")
    if inventory(samples.bundle.parent) != untouched:
        figures.faults.append("files that were only read have changed")
    return figures


def _try(
    format_: Format, samples: Samples, structure: Any, data: bytes, seed: int, figures: Figures
) -> None:
    chance, here = random.Random(seed), Path.cwd()
    target = format_.prepare(samples, here)
    if chance.random() < STRUCTURES:
        try:
            format_.write(format_.sample(samples), changed_structure(structure, chance), target)
        except (TypeError, ValueError, KeyError, IndexError, OverflowError):
            # What cannot be written in this format is no case of it.
            target.write_bytes(changed_bytes(data, chance))
    else:
        target.write_bytes(changed_bytes(data, chance))
    before, started = inventory(here), time.monotonic()
    code, _, err = outcome([str(part) for part in format_.command(samples, here)])
    figures.slowest_s = max(figures.slowest_s, time.monotonic() - started)
    figures.codes[str(code)[:40]] += 1
    found = [] if code in (0, 1, 2) else [str(code)]
    found += complaint_faults(err) if code in (1, 2) else []
    found += [f"touched {path}" for path in _touched(before, inventory(here))]
    figures.faults += [f"{seed}: {fault}" for fault in found]


def _touched(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    changed = [path for path in before if after.get(path) != before[path]]
    new = [path for path in after.keys() - before.keys() if not Path(path).name.startswith("out")]
    here = str(Path.cwd())
    return changed + [path for path in new if not path.startswith(f"{here}/out")]


def main() -> int:
    folder, name, seed, count = sys.argv[1:]
    samples = Samples.in_folder(Path(folder))
    # What the libraries take once is no case's.
    mutate(samples, name, 10**9, 3)
    resting = _resident_peak()
    figures = mutate(samples, name, int(seed), int(count))
    grown = _resident_peak() - resting
    if grown > MOST_BYTES:
        figures.faults.append(f"{grown} bytes of memory")
    for fault in figures.faults:
        sys.stdout.write(fault[-1500:].replace("\n", " | ") + "\n")
    facts = {"format": name, "count": int(count), "codes": figures.codes}
    facts |= {"faults": len(figures.faults), "slowest_s": round(figures.slowest_s, 2)}
    sys.stdout.write(json.dumps({**facts, "grown_mb": grown >> 20}) + "\n")
    return 1 if figures.faults else 0


def _resident_peak() -> int:
    """Of this program alone: what the system tells of children begins with their parent's."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
