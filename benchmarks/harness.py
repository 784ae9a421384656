"""What the benchmarks share: options, reports, tables, and the memory of other processes.

Each is run from the root of a checkout, such as ``python -m benchmarks.soak BUNDLE --out FILE``.
"""

import argparse
import json
import platform
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longlive_trt.configs import ModelConfig
from longlive_trt.runtime.bench.prompts import RANDOM_TOKENS
from longlive_trt.runtime.noise import SeededNoise

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
SAMPLE_EVERY_S = 0.02

Row = dict[str, Any]
"""Of a report that is a table."""


def parser(doc: str | None, *, out: bool = True) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog=f"python -m {_module()}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if out:
        options.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON")
    return options


def command() -> str:
    """The command line of this run, for its report."""
    return shlex.join(["python", "-m", _module(), *sys.argv[1:]])


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else Path(sys.argv[0]).name


def write_report(report: Mapping[str, Any], out: Path | None) -> None:
    # Imported late: a benchmark that measures its own memory should not carry the runtime.
    from longlive_trt.runtime.bench.record import to_json

    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(to_json(dict(report)), encoding="utf-8")


def kept_rows(
    path: Path,
    name: str,
    new: Mapping[str, Row],
    alike: Mapping[str, Any],
    size: Callable[[Row], float],
) -> dict[str, Row]:
    """With those of an earlier report that are larger; one that was measured otherwise has none."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return dict(new)
    is_alike = all(before.get(key) == value for key, value in alike.items())
    old = before.get(name, {}) if is_alike else {}
    larger = {key: row for key, row in new.items() if key not in old or size(row) >= size(old[key])}
    return {**old, **larger}


def replace_table(page: Path, name: str, rows: Sequence[str]) -> None:
    """Put rows between a page's comments ``<!-- table: NAME -->`` and ``<!-- end -->``."""
    start, end = f"<!-- table: {name} -->", "<!-- end -->"
    before, rest = page.read_text(encoding="utf-8").split(start)
    _, after = rest.split(end, 1)
    table = "\n".join(rows)
    page.write_text(f"{before}{start}\n{table}\n{end}{after}", encoding="utf-8")


def percentiles(
    values: Sequence[float], levels: Sequence[int] = (50, 90, 99), digits: int = 3
) -> dict[str, float]:
    return {f"p{level}": round(float(np.percentile(values, level)), digits) for level in levels}


def rounded(values: Sequence[float], digits: int = 3) -> list[float]:
    return [round(value, digits) for value in values]


def seeded_noise(config: ModelConfig, seed: int = 0) -> SeededNoise:
    shape = (1, config.rollout.frames_per_block, *config.latent_shape)
    return SeededNoise(seed, shape, config.rollout.noises)


def random_states(
    config: ModelConfig, random: np.random.Generator, tokens: int = RANDOM_TOKENS
) -> Any:
    """Text states of no prompt, but padded as those of a prompt with so many tokens."""
    text = config.transformer
    states = random.standard_normal((1, text.text_len, text.text_dim), np.float32)
    states[:, tokens:] = 0
    return states


def cpu_name() -> str:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{len(names)} x {names[0]}" if names else platform.machine()


def peak_memory(child: "subprocess.Popen[Any]") -> Counter[str]:
    """The peaks of a process by the kernel's names, in bytes, once it has ended."""
    peaks: Counter[str] = Counter()
    while child.poll() is None:
        peaks |= _resident_bytes(child.pid)
        time.sleep(SAMPLE_EVERY_S)
    return peaks


def _resident_bytes(pid: int) -> Counter[str]:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return Counter()
    sizes = re.findall(r"^(VmHWM|RssAnon|RssFile):\s+(\d+) kB", status, re.MULTILINE)
    return Counter({name: int(kibibytes) * 1024 for name, kibibytes in sizes})
