"""Time and memory of compiling the full-size transformer with TensorRT-RTX, without a GPU.

    python benchmarks/tensorrt_rtx_build.py [--gpu sm89] [--onnx DIR] [--scratch DIR] [--out FILE]

Exports LongLive's transformer with random weights (unless ``--onnx`` is such an export), compiles
its graphs in a process of its own, and samples what that process keeps resident. The bundle is
thrown away; what its report says of the step graph is kept. Needs 10 GB of disk.
"""

import argparse
import json
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_EVERY_S = 0.05
LIMIT_BYTES = 24 * 10**9
COMMAND = "python benchmarks/tensorrt_rtx_build.py --out docs/results/tensorrt_rtx_step_1_3b.json"


def export(folder: Path, config: Path) -> None:
    config.write_text("name: longlive-1.3b\ntransformer: {}\n")
    options = ["--random-weights", "1", "--precision", "fp16", "--no-check"]
    run_cli("export", "--config", str(config), "--out", str(folder), *options)


def run_cli(*arguments: str) -> None:
    subprocess.run([sys.executable, "cli.py", *arguments], cwd=ROOT, check=True)


def build(onnx: Path, bundle: Path, gpu: str) -> dict[str, Any]:
    options = ["--engine", "tensorrt-rtx", "--gpu", gpu, "--precision", "fp16"]
    command = [sys.executable, "cli.py", "build", "--onnx", str(onnx), "--out", str(bundle)]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    before, started = used.ru_utime + used.ru_stime, time.perf_counter()
    child = subprocess.Popen([*command, *options], cwd=ROOT)
    peaks: Counter[str] = Counter()
    while child.poll() is None:
        peaks |= Counter(resident_bytes(child.pid))
        time.sleep(SAMPLE_EVERY_S)
    if child.returncode:
        sys.exit(f"the build failed with exit code {child.returncode}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(time.perf_counter() - started, 1),
        # The difference to the time on the clock is what others had of the processor.
        "processor_seconds": round(used.ru_utime + used.ru_stime - before, 1),
        "peak_resident_bytes": peaks["VmHWM"],
        "peak_anonymous_bytes": peaks["RssAnon"],
        "limit_bytes": LIMIT_BYTES,
    }


def resident_bytes(pid: int) -> dict[str, int]:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    found = re.findall(r"^(VmHWM|RssAnon):\s+(\d+) kB", status, re.MULTILINE)
    return {name: int(kibibytes) * 1024 for name, kibibytes in found}


def summary(bundle: Path) -> dict[str, Any]:
    report = json.loads((bundle / "report.json").read_text())
    kept = (
        *("graph", "duration_s", "peak_host_bytes", "engine_bytes", "weights_bytes"),
        *("activation_bytes", "categories", "matrix_products"),
    )
    graphs = [
        {
            **{key: graph[key] for key in kept},
            "kernels": len(graph["layers"]),
            "profiles": graph["profiles"],
            "attention_expected": graph["attention"]["expected"],
            "attention_fused": graph["attention"]["fused"],
        }
        for graph in report["graphs"]
    ]
    return {"engine": report["engine"], "precision": report["precision"], "graphs": graphs}


def benchmark(scratch: Path, onnx: Path | None, gpu: str) -> dict[str, Any]:
    if onnx is None:
        onnx = scratch / "onnx"
        export(onnx, scratch / "transformer.yaml")
    bundle = scratch / "bundle"
    measured = build(onnx, bundle, gpu)
    machine = {"python": platform.python_version(), "processor": processor()}
    return {"command": COMMAND, **measured, **summary(bundle), **machine}


def processor() -> str:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{len(names)} x {names[0]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", default="sm89", help="architecture to compile for")
    parser.add_argument("--onnx", type=Path, help="an export of the transformer in fp16")
    parser.add_argument("--scratch", type=Path, help="where the large files go for a while")
    parser.add_argument("--out", type=Path, help="write the result as JSON too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        result = benchmark(Path(scratch), options.onnx, options.gpu)
    text = json.dumps(result, indent=2) + "\n"
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
