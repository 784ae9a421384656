"""Peak memory of merging a LoRA adapter into a full-size checkpoint and writing the result.

    python -m benchmarks.full_size.lora_merge --out docs/results/lora_merge_memory.json

Makes a float32 base checkpoint (5.7 GB) and a rank-256 adapter file (2.8 GB, with the critic's
adapter that upstream's trainer leaves in it) from a seed, merges them in a process of its own,
and samples what that process keeps resident, file-mapped pages included. Needs 21 GB of disk.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.harness import ROOT, command, parser, peak_memory, write_report
from longlive_trt.configs import TransformerConfig
from longlive_trt.export.checkpoints.opening import (
    open_transformer,
    random_weights,
    write_safetensors,
)
from longlive_trt.export.models.transformer import Transformer

SEED = 0
RANK = 256
LIMIT_BYTES = 9_000_000_000


def expected_shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = Transformer(TransformerConfig()).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def adapter_shapes() -> dict[str, tuple[int, ...]]:
    adapted = {
        name.removesuffix(".weight"): shape
        for name, shape in expected_shapes().items()
        if name.startswith("blocks.") and len(shape) == 2
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for module, (out_features, in_features) in adapted.items():
        shapes[f"base_model.model.{module}.lora_A.weight"] = (RANK, in_features)
        shapes[f"base_model.model.{module}.lora_B.weight"] = (out_features, RANK)
    return shapes


def make_base(path: Path) -> None:
    streamed = path.with_suffix(".safetensors")
    write_safetensors(random_weights(expected_shapes(), SEED), streamed)
    state = {f"model.{name}": tensor for name, tensor in load_file(streamed).items()}
    torch.save({"generator": state}, path)
    streamed.unlink()


def make_adapter(path: Path) -> None:
    adapters = {}
    for number, entry in enumerate(("generator_lora", "critic_lora")):
        weights = random_weights(adapter_shapes(), SEED + 1 + number)
        adapters[entry] = {name: weights.load(name) for name in weights.names}
    torch.save({**adapters, "step": 0}, path)


def merge(base: Path, adapter: Path, merged: Path) -> None:
    weights = open_transformer(base, expected_shapes(), lora=adapter)
    write_safetensors(weights, merged)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report = {"adapted_modules": len(weights.adapted_modules), "peak_reported_bytes": peak_bytes}
    sys.stdout.write(json.dumps(report))


def measure(*arguments: str) -> dict[str, object]:
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.full_size.lora_merge", *arguments]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    peaks = peak_memory(child)
    seconds = time.perf_counter() - start
    if child.returncode or child.stdout is None:
        sys.exit(f"the merge failed with exit code {child.returncode}")
    return {
        "seconds": round(seconds, 1),
        "peak_resident_bytes": peaks["VmHWM"],
        "peak_anonymous_bytes": peaks["RssAnon"],
        "peak_file_mapped_bytes": peaks["RssFile"],
        **json.loads(child.stdout.read()),
    }


def make_files(base: Path, adapter: Path) -> None:
    for make, path in ((make_base, base), (make_adapter, adapter)):
        maker = get_context("spawn").Process(target=make, args=(path,))
        maker.start()
        maker.join()
        if maker.exitcode:
            sys.exit(f"{path} could not be made")


def benchmark(scratch: Path) -> dict[str, object]:
    names = ("longlive_base.pt", "lora.pt", "merged.safetensors")
    base, adapter, merged = (scratch / name for name in names)
    make_files(base, adapter)
    result = measure("--merge", *(str(path.resolve()) for path in (base, adapter, merged)))
    return {
        "command": command(),
        "parameters": sum(torch.Size(shape).numel() for shape in expected_shapes().values()),
        "tensors": len(expected_shapes()),
        "base_bytes": base.stat().st_size,
        "adapter_bytes": adapter.stat().st_size,
        "merged_bytes": merged.stat().st_size,
        "limit_bytes": LIMIT_BYTES,
        **result,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--scratch", type=Path, help="where the large files go for a while")
    options.add_argument("--merge", nargs=3, type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.merge:
        merge(*chosen.merge)
        return
    with tempfile.TemporaryDirectory(dir=chosen.scratch) as scratch:
        report = benchmark(Path(scratch))
    print(report)
    write_report(report, chosen.out)


if __name__ == "__main__":
    main()
