"""The passes around attention against a copy of as many bytes.

    python benchmarks/plugin_companions.py --out docs/results/attention_companions_h200.json

Each is captured eight times over rotating buffers, so that nothing stays in the cache, and
replayed. ``of_equal`` compares with an elementwise kernel of torch (a negation) that moves the same
number of bytes in the same way; ``of_copy`` with the rate of a copy of gigabytes.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from longlive_trt.plugins.attention.reference import padded_tokens
from longlive_trt.plugins.kernels import companions
from longlive_trt.plugins.kernels.companions import RopeTables

HEADS, HEAD_DIM = 12, 128
DIM = HEADS * HEAD_DIM
BUFFERS = 8
TOKENS = (4680, 14040)

Job = tuple[Callable[[int], Any], int]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").bfloat16()


def make_jobs(tokens: int) -> dict[str, Job]:
    qkv = [normal(1, tokens, 3 * DIM) for _ in range(BUFFERS)]
    split = [x.split(DIM, -1) for x in qkv]
    angles = torch.rand(tokens, HEAD_DIM // 2, device="cuda") * 6.28
    tables = RopeTables(angles.cos(), angles.sin())
    weights = (normal(DIM), normal(DIM))
    slot = (1, tokens, HEADS, HEAD_DIM)
    halves = [[torch.empty(slot, device="cuda").bfloat16() for _ in "qkv"] for _ in qkv]
    bytes_ = [[torch.empty(slot, device="cuda").to(torch.int8) for _ in "qk"] for _ in qkv]
    key_scale = torch.full((HEADS,), 4 / 127, device="cuda")
    query_scale = torch.empty(1, HEADS, tokens, device="cuda")
    packed_size = (1, HEADS, HEAD_DIM, padded_tokens(tokens))
    packed = [torch.zeros(packed_size, device="cuda").to(torch.float8_e4m3fn) for _ in qkv]
    rows = [normal(tokens, DIM) for _ in range(BUFFERS)]
    results = [torch.empty_like(x) for x in rows]
    narrow = [torch.empty_like(x, dtype=torch.float8_e4m3fn) for x in rows]
    scale, shift, gate = (normal(3, DIM) for _ in range(3))
    one = torch.ones(1, device="cuda")
    row_bytes, table_bytes = tokens * DIM, tokens * HEAD_DIM * 4
    return {
        "norm, rope, store q k v": (
            lambda i: companions.qk_norm_rope(split[i], weights, tables, halves[i]),
            12 * row_bytes + table_bytes,
        ),
        "norm, rope, store q k": (
            lambda i: companions.qk_norm_rope(split[i][:2], weights, tables, halves[i][:2]),
            8 * row_bytes + table_bytes,
        ),
        "norm, rope, store q k int8": (
            lambda i: companions.qk_norm_rope(
                split[i][:2],
                weights,
                tables,
                bytes_[i],
                quantize="int8",
                key_scale=key_scale,
                query_scale=query_scale,
            ),
            6 * row_bytes + table_bytes,
        ),
        "quantize, transpose v": (
            lambda i: companions.quantize_values(
                split[i][2].unflatten(-1, (HEADS, HEAD_DIM)), key_scale, packed[i]
            ),
            3 * row_bytes,
        ),
        "layer norm, modulate": (
            lambda i: companions.norm_modulate(rows[i], scale, shift, results[i]),
            4 * row_bytes,
        ),
        "layer norm, modulate, e4m3": (
            lambda i: companions.norm_modulate(rows[i], scale, shift, narrow[i], output_scale=one),
            3 * row_bytes,
        ),
        "gated residual": (
            lambda i: companions.gated_residual(rows[i], results[i], gate, rows[i]),
            6 * row_bytes,
        ),
    }


def equal_job(size_bytes: int) -> Job:
    """As many bytes, half of them read and half written."""
    count = size_bytes // 4
    sources = [normal(count) for _ in range(BUFFERS)]
    targets = [torch.empty_like(x) for x in sources]
    return (lambda i: torch.neg(sources[i], out=targets[i])), 4 * count


def copy_rate() -> float:
    source = normal(1 << 29)
    target = torch.empty_like(source)
    times = []
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return 4 * source.numel() / sorted(times)[len(times) // 2] / 1e6


def capture(run: Callable[[int], Any]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for index in range(BUFFERS):
            run(index)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(BUFFERS):
            run(index)
    return graph


def median_ms(graph: torch.cuda.CUDAGraph, repeats: int) -> float:
    times = []
    for repeat in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if repeat >= 3:
            times.append(start.elapsed_time(end) / BUFFERS)
    return sorted(times)[len(times) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    peak = copy_rate()
    report: dict[str, Any] = {
        "command": f"python benchmarks/plugin_companions.py --repeats {options.repeats}",
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_gb_per_s": peak,
        "tokens": {},
    }
    for tokens in TOKENS:
        results = {}
        for name, (run, size) in make_jobs(tokens).items():
            time = median_ms(capture(run), options.repeats)
            equal_run, equal_size = equal_job(size)
            equal_time = median_ms(capture(equal_run), options.repeats) * size / equal_size
            results[name] = {
                "median_us": time * 1e3,
                "bytes": size,
                "gb_per_s": size / time / 1e6,
                "of_equal": equal_time / time,
                "of_copy": size / time / 1e6 / peak,
            }
            print(
                f"{tokens} {name:28s} {time * 1e3:6.2f} us, {size / time / 1e6:5.0f} GB/s, "
                f"{100 * equal_time / time:3.0f}% of an equal torch kernel, "
                f"{100 * size / time / 1e6 / peak:3.0f}% of {peak:.0f}"
            )
        report["tokens"][str(tokens)] = results
        torch.cuda.empty_cache()
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
