"""Time and memory of compiling the full-size transformer with TensorRT-RTX, without a GPU.

    python -m benchmarks.full_size.tensorrt_rtx --out docs/results/tensorrt_rtx_step_1_3b.json

Exports LongLive's transformer with random weights (unless ``--onnx`` is such an export), compiles
its graphs in a process of its own, and samples what that process keeps resident. The bundle is
thrown away; what its report says of the step graph is kept. Needs 10 GB of disk.
"""

import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, command, cpu_name, parser, peak_memory, write_report

LIMIT_BYTES = 24 * 10**9


def export(folder: Path, config: Path) -> None:
    config.write_text("name: longlive-1.3b\ntransformer: {}\n")
    options = ["--random-weights", "1", "--precision", "fp16", "--no-check"]
    run_cli("export", "--config", str(config), "--out", str(folder), *options)


def run_cli(*arguments: str) -> None:
    subprocess.run([sys.executable, "cli.py", *arguments], cwd=ROOT, check=True)


def build(onnx: Path, bundle: Path, gpu: str) -> dict[str, Any]:
    options = ["--engine", "tensorrt-rtx", "--gpu", gpu, "--precision", "fp16"]
    program = [sys.executable, "cli.py", "build", "--onnx", str(onnx), "--out", str(bundle)]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    before, started = used.ru_utime + used.ru_stime, time.perf_counter()
    child = subprocess.Popen([*program, *options], cwd=ROOT)
    peaks = peak_memory(child)
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
    machine = {"python": platform.python_version(), "processor": cpu_name()}
    return {"command": command(), **measured, **summary(bundle), **machine}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--gpu", default="sm89", help="architecture to compile for")
    options.add_argument("--onnx", type=Path, help="an export of the transformer in fp16")
    options.add_argument("--scratch", type=Path, help="where the large files go for a while")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.scratch) as scratch:
        report = benchmark(Path(scratch), chosen.onnx, chosen.gpu)
    print(report)
    write_report(report, chosen.out)


if __name__ == "__main__":
    main()
