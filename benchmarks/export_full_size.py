"""Time and memory of a full-size export: LongLive 1.3B, VAE and UMT5-XXL, random weights.

    python benchmarks/export_full_size.py --scratch DIR [--out docs/results/export_full_size.json]

Needs about 30 GB of disk; what it exports is deleted at the end.
"""

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

EXPORT = ["export", "--config", "longlive-1.3b", "--random-weights", "0", "--out"]


def measure(scratch: Path) -> dict[str, object]:
    target = scratch / "onnx"
    command = [sys.executable, "-m", "longlive_trt", *EXPORT, str(target)]
    started = time.monotonic()
    with (scratch / "export.log").open("w+") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
        peak = sample_peak_bytes(child)
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
        "peak_resident_bytes": peak,
        "checks": re.findall(r"^(\w+: (?:differs|not checked).*)$", text, re.MULTILINE),
        "file_bytes": sizes,
    }


def sample_peak_bytes(child: "subprocess.Popen[bytes]") -> int:
    """Pages of mapped files count too."""
    process, peak = psutil.Process(child.pid), 0
    while child.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.05)
    child.wait()
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    text = json.dumps(measure(arguments.scratch), indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
