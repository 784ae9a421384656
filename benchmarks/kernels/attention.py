"""Attention side by side: our kernels, cuDNN and FlashAttention, in one process, interleaved.

    python -m benchmarks.kernels.attention --out docs/results/attention_h200.json

Every implementation runs on the same fresh random inputs, several sets in rotation; each repeat
times every implementation once, so that clocks and temperature are shared. Errors are against
float64.
"""

import ctypes
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from benchmarks.harness import parser, write_report
from benchmarks.kernels.timing import (
    capture,
    copy_rate,
    in_turns_ms,
    machine,
    median,
    relative_error,
)
from longlive_trt.plugins.attention.arguments import KVPiece, Scales
from longlive_trt.plugins.attention.hopper import SinkWindowAttention
from longlive_trt.plugins.attention.portable import PortableAttention
from longlive_trt.plugins.attention.tensorrt_plugin import plugin_kernel, workspace_floats
from longlive_trt.plugins.attention.value_layout import padded_tokens
from longlive_trt.plugins.attention.variants import FLOAT8, INT8, Variant, choose_variant
from longlive_trt.plugins.cuda import driver
from longlive_trt.plugins.kernels.values import quantize_values

HEADS, HEAD_DIM = 12, 128
SCALE = HEAD_DIM**-0.5
INPUT_SETS = 3
KEY_CLIP = 4.0  # standard deviations of int8 keys


@dataclass(frozen=True)
class Shape:
    name: str
    queries: int
    pieces: tuple[int, ...]
    calls: int = 1  # in one timed graph

    @property
    def keys(self) -> int:
        return sum(self.pieces)

    @property
    def flop(self) -> float:
        return 4.0 * self.queries * self.keys * HEADS * HEAD_DIM


SHAPES = (
    Shape("steady state: sink, past window, own", 4680, (4680, 9360, 4680)),
    Shape("steady state: cache, own", 4680, (14040, 4680)),
    Shape("third block", 4680, (4680, 4680, 4680)),
    Shape("re-cache", 14040, (4680, 14040)),
    Shape("cross-attention", 4680, (512,), calls=12),
)


@dataclass
class Inputs:
    q: torch.Tensor
    pieces: list[KVPiece]
    k: torch.Tensor
    v: torch.Tensor
    out: torch.Tensor
    by_kind: dict[str, tuple[torch.Tensor, list[KVPiece], Scales]] = field(default_factory=dict)


@dataclass
class Timing:
    median_ms: float
    p99_ms: float
    min_ms: float
    tflops: float
    relative_error: float
    repeats: int


def make_inputs(shape: Shape, seed: int) -> Inputs:
    generator = torch.Generator(device="cuda").manual_seed(seed)

    def normal(tokens: int) -> torch.Tensor:
        size = (1, tokens, HEADS, HEAD_DIM)
        return torch.randn(*size, generator=generator, device="cuda").bfloat16()

    q = normal(shape.queries)
    pieces = [KVPiece(normal(n), normal(n), device_length(n)) for n in shape.pieces]
    k, v = (torch.cat([getattr(p, name) for p in pieces], 1) for name in "kv")
    inputs = Inputs(q, pieces, k, v, torch.full_like(q, float("nan")))
    for kind in ("int8", "float8_e4m3"):
        inputs.by_kind[kind] = quantize_inputs(inputs, kind)
    return inputs


def device_length(tokens: int) -> torch.Tensor:
    return torch.tensor([tokens], dtype=torch.int64, device="cuda")


def quantize_inputs(inputs: Inputs, kind: str) -> tuple[torch.Tensor, list[KVPiece], Scales]:
    ones = torch.ones(HEADS, device="cuda")
    if kind == "int8":
        row = inputs.q.float().abs().amax(-1) / 127
        q_scale, key_scale = row.transpose(1, 2).contiguous(), KEY_CLIP / 127
        q = quantize(inputs.q, kind, row[..., None])
    else:
        q_scale, key_scale = ones * 0.01, 0.01
        q = quantize(inputs.q, kind, 0.01)
    scales = Scales(q_scale, ones * key_scale, ones * 0.01)
    pieces = []
    for piece in inputs.pieces:
        size = (1, HEADS, HEAD_DIM, padded_tokens(piece.v.shape[1]))
        v = torch.zeros(size, dtype=torch.float8_e4m3fn, device="cuda")
        quantize_values(piece.v, scales.v, v)
        pieces.append(KVPiece(quantize(piece.k, kind, key_scale), v, piece.length))
    return q, pieces, scales


def quantize(x: torch.Tensor, kind: str, scale: torch.Tensor | float) -> torch.Tensor:
    scaled = x.float().div(scale)
    if kind == "int8":
        return scaled.round().clamp(-127, 127).to(torch.int8)
    return scaled.clamp(-448, 448).to(torch.float8_e4m3fn)


def exact(inputs: Inputs) -> torch.Tensor:
    out = torch.empty_like(inputs.q, dtype=torch.float64)
    for head in range(HEADS):
        k, v = inputs.k[0, :, head].double(), inputs.v[0, :, head].double()
        for start in range(0, inputs.q.shape[1], 2048):
            rows = inputs.q[0, start : start + 2048, head].double()
            out[0, start : start + 2048, head] = torch.softmax(rows @ k.T * SCALE, -1) @ v
    return out


Run = Callable[[Inputs], None]


def library(backend: SDPBackend) -> Run:
    def run(inputs: Inputs) -> None:
        with sdpa_kernel(backend):
            q, k, v = (x.transpose(1, 2) for x in (inputs.q, inputs.k, inputs.v))
            inputs.out = sdpa(q, k, v).transpose(1, 2)

    return run


def ours() -> Run:
    attention = SinkWindowAttention()
    return lambda inputs: attention(inputs.q, inputs.pieces, inputs.out)


def ours_in_8_bits(kind: str, variant: Variant | None = None) -> Run:
    attention = SinkWindowAttention(kind, variant=variant)

    def run(inputs: Inputs) -> None:
        q, pieces, scales = inputs.by_kind[kind]
        attention(q, pieces, inputs.out, scales=scales)

    return run


def portable() -> Run:
    attention = PortableAttention()
    return lambda inputs: attention(inputs.q, inputs.pieces, inputs.out)


def plugin(tactic: int) -> Run:
    """The TensorRT plugin's kernel, launched as TensorRT would; it takes a cache and own keys."""
    kernel = plugin_kernel("bfloat16", HEAD_DIM, SCALE, tactic)
    loaded = driver.load_image(kernel.ptx, "ptx", kernel.name, kernel.shared_bytes, 0)
    blocks = driver.device_facts(0).multiprocessors
    workspace = torch.full((workspace_floats(HEAD_DIM, blocks),), float("nan"), device="cuda")

    def run(inputs: Inputs) -> None:
        cache, own = inputs.pieces
        tensors = (inputs.q, own.k, own.v, cache.k, cache.v, cache.length)
        numbers = (1, HEADS, inputs.q.shape[1], cache.k.shape[1])
        arguments: list[Any] = [ctypes.c_void_p(t.data_ptr()) for t in tensors]
        arguments += [ctypes.c_int(n) for n in numbers]
        arguments += [ctypes.c_void_p(t.data_ptr()) for t in (inputs.out, workspace)]
        stream = torch.cuda.current_stream().cuda_stream
        loaded.launch((blocks,), kernel.threads, kernel.shared_bytes, stream, arguments)

    return run


def implementations(shape: Shape) -> dict[str, Run]:
    runs = {
        "cuDNN bf16": library(SDPBackend.CUDNN_ATTENTION),
        "FlashAttention-2 bf16 (torch)": library(SDPBackend.FLASH_ATTENTION),
        "ours bf16": ours(),
        "ours int8 q k, e4m3 p v": ours_in_8_bits("int8"),
        "ours int8 q k, e4m3 p v, not in halves": ours_in_8_bits("int8", FLOAT8),
        "ours e4m3": ours_in_8_bits("float8_e4m3"),
        "ours e4m3, in halves": ours_in_8_bits("float8_e4m3", INT8),
        "ours bf16, portable": portable(),
    }
    if len(shape.pieces) == 2 and shape.pieces[1] == shape.queries:
        runs |= {f"ours bf16, TensorRT plugin, tactic {t}": plugin(t) for t in (1, 2)}
    return runs


def check(run: Run, inputs: Inputs, expected: torch.Tensor) -> float:
    inputs.out = torch.full_like(inputs.q, float("nan"))
    run(inputs)
    assert inputs.out.isfinite().all(), "an output was not written"
    return relative_error(inputs.out, expected)


def replays(run: Run, inputs: list[Inputs], calls: int) -> list[Callable[[], object]]:
    """One for each input set that its calls start with."""
    rotations = [[*inputs[first:], *inputs[:first]] for first in range(len(inputs))]
    return [
        capture([launch(run, each) for each in islice(cycle(sets), calls)]).replay
        for sets in rotations
    ]


def launch(run: Run, inputs: Inputs) -> Callable[[int], None]:
    """``run`` queues on torch's current stream, which is the one that captures."""
    return lambda _stream: run(inputs)


def run_shape(shape: Shape, repeats: int) -> dict[str, Timing]:
    inputs = [make_inputs(shape, seed) for seed in range(INPUT_SETS)]
    expected = exact(inputs[0])
    runs = implementations(shape)
    errors = {name: check(run, inputs[0], expected) for name, run in runs.items()}
    captured = {name: replays(run, inputs, shape.calls) for name, run in runs.items()}
    return {
        name: timing_of(shape, [time / shape.calls for time in times], errors[name])
        for name, times in in_turns_ms(captured, repeats).items()
    }


def timing_of(shape: Shape, times: list[float], error: float) -> Timing:
    """Of one call, from sorted times."""
    return Timing(
        median_ms=median(times),
        p99_ms=times[min(len(times) - 1, int(len(times) * 0.99))],
        min_ms=times[0],
        tflops=shape.flop / median(times) / 1e9,
        relative_error=error,
        repeats=len(times),
    )


def count_differing_repeats(run: Run, repeats: int) -> int:
    inputs = make_inputs(SHAPES[0], 99)
    inputs.out = torch.full_like(inputs.q, float("nan"))
    run(inputs)
    first, differing = inputs.out.clone(), 0
    for _ in range(repeats):
        inputs.out.fill_(float("nan"))
        run(inputs)
        differing += not torch.equal(inputs.out, first)
    return differing


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=200)
    options.add_argument("--bit-equal-repeats", type=int, default=1000)
    chosen = options.parse_args()
    report: dict[str, Any] = {
        **machine(),
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "copy_tb_per_s": copy_rate() / 1e9,
        "heads": HEADS,
        "head_dim": HEAD_DIM,
        "variant": asdict(choose_variant("bfloat16", HEAD_DIM, 18720)),
        "shapes": {shape.name: measure_shape(shape, chosen.repeats) for shape in SHAPES},
        "bit_equal": bit_equality(chosen.bit_equal_repeats),
    }
    print("\nrepeats that differ:", report["bit_equal"])
    write_report(report, chosen.out)


def measure_shape(shape: Shape, repeats: int) -> dict[str, Any]:
    results = run_shape(shape, repeats)
    torch.cuda.empty_cache()
    print(f"\n{shape.name}: {shape.queries} queries, {shape.keys} keys")
    for name, timing in results.items():
        print(
            f"  {name:38s} median {timing.median_ms:.4f} ms, p99 {timing.p99_ms:.4f} ms, "
            f"{timing.tflops:5.0f} TFLOP/s, error {timing.relative_error:.2e}"
        )
    return {
        "queries": shape.queries,
        "pieces": shape.pieces,
        "results": {name: asdict(timing) for name, timing in results.items()},
    }


def bit_equality(repeats: int) -> dict[str, Any]:
    runs = {"ours bf16": ours(), "ours int8 q k, e4m3 p v": ours_in_8_bits("int8")}
    return {
        name: {"repeats": repeats, "differing": count_differing_repeats(run, repeats)}
        for name, run in runs.items()
    }


if __name__ == "__main__":
    main()
