"""How long it takes to exchange a LoRA adapter in a running bundle, and to take it away again.

    longlive-trt build --onnx onnx/ --gpu sm90 --precision bf16 --lora-ready --out bundle-lora/
    python -m benchmarks.lora_swap bundle-lora/ --out docs/results/lora_swap.json

The adapter is made up: of every module that adapters change, of the rank that LongLive's has.
Reading it, merging on the host, and bringing matrices to their places are all in the time; blocks
and prompts are not.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks.harness import command, cpu_name, parser, write_report
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.matrices import GRAPHS
from longlive_trt.runtime.pipeline import Pipeline


def write_adapter(pipeline: Pipeline, path: Path, rank: int) -> None:
    random, tensors = np.random.default_rng(0), {}
    for name, (outputs, inputs) in pipeline.engines.matrix_shapes().items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{stem}.lora_A.weight"] = random.standard_normal((rank, inputs), np.float32)
        tensors[f"{stem}.lora_B.weight"] = random.standard_normal((outputs, rank), np.float32) / 1e3
    save_file(tensors, path)


def timed(pipeline: Pipeline, *adapters: Path) -> float:
    started = time.perf_counter()
    pipeline.use_lora(*adapters)
    return round(time.perf_counter() - started, 4)


def measure(pipeline: Pipeline, folder: Path, rank: int, times: int) -> dict[str, Any]:
    for graph in GRAPHS:
        pipeline.engines.get(graph, "measuring")
    adapter = folder / "lora.safetensors"
    write_adapter(pipeline, adapter, rank)
    pairs = [(timed(pipeline, adapter), timed(pipeline)) for _ in range(times)]
    used, taken = zip(*pairs, strict=True)
    return {
        "rank": rank,
        "modules": len(pipeline.engines.matrix_shapes()),
        "adapter_bytes": adapter.stat().st_size,
        "use_s": used,
        "take_away_s": taken,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("bundle", type=Path, help="built with --lora-ready")
    options.add_argument("--rank", type=int, default=256)
    options.add_argument("--times", type=int, default=5)
    chosen = options.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Pipeline(open_bundle(chosen.bundle)) as pipeline,
    ):
        report = {
            "command": command(),
            "model": pipeline.config.name,
            "target": pipeline.bundle.manifest.engine.target,
            "precision": pipeline.bundle.manifest.precision,
            "processor": cpu_name(),
            **measure(pipeline, Path(folder), chosen.rank, chosen.times),
        }
    print(report)
    write_report(report, chosen.out)


if __name__ == "__main__":
    main()
