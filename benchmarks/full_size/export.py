"""Time and memory of a full-size export: LongLive 1.3B, VAE and UMT5-XXL, random weights.

    python -m benchmarks.full_size.export --scratch DIR --out docs/results/export_full_size.json

Needs about 30 GB of disk; what it exports is deleted at the end.
"""

import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from benchmarks.harness import parser, peak_memory, write_report

EXPORT = ["export", "--config", "longlive-1.3b", "--random-weights", "0", "--out"]


def measure(scratch: Path) -> dict[str, object]:
    target = scratch / "onnx"
    command = [sys.executable, "-m", "longlive_trt", *EXPORT, str(target)]
    started = time.monotonic()
    with (scratch / "export.log").open("w+") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
        peaks = peak_memory(child)
        elapsed_s = time.monotonic() - started
        log.seek(0)
        text = log.read()
    if child.returncode:
        raise SystemExit(f"the export failed:\n{text[-4000:]}")
    sizes = {path.name: path.stat().st_size for path in sorted(target.iterdir())}
    shutil.rmtree(target)
    return {
        "command": "longlive-trt " + " ".join([*EXPORT, "DIR"]),
        "machine": f"{platform.machine()} CPU, {psutil.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "seconds": round(elapsed_s, 1),
        "peak_resident_bytes": peaks["VmHWM"],
        "checks": re.findall(r"^(\w+: (?:differs|not checked).*)$", text, re.MULTILINE),
        "file_bytes": sizes,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--scratch", type=Path, required=True)
    chosen = options.parse_args()
    chosen.scratch.mkdir(parents=True, exist_ok=True)
    report = measure(chosen.scratch)
    print(report)
    write_report(report, chosen.out)


if __name__ == "__main__":
    main()
