"""Attention to a prompt: to all its places, or to its tokens and one that stands for padding.

    python -m benchmarks.kernels.padding --out docs/results/padding_h200.json

4,680 queries of 12 heads, a prompt's 512 places, in bf16, with a result in bf16 and in E4M3. Behind
a prompt's own tokens all keys are alike, and so are all values. Every number of tokens and every
tile takes its turn; errors are against float64 over all places.
"""

from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

import torch

from benchmarks.harness import parser, write_report
from benchmarks.kernels.timing import capture, in_turns_ms, machine, median, relative_error
from longlive_trt.plugins.attention.arguments import KVPiece
from longlive_trt.plugins.attention.hopper import SinkWindowAttention
from longlive_trt.plugins.attention.variants import Variant

QUERIES, PLACES, HEADS, HEAD_DIM = 4680, 512, 12, 128
OWN_TOKENS = (12, 63, 120, 200, 300, 511)
TILES = {
    "as chosen": None,
    "192 rows, 80 keys": Variant(warpgroups=3, tile_keys=80, stages=3),
    "192 rows, 64 keys": Variant(warpgroups=3, tile_keys=64, stages=4),
    "128 rows, 128 keys": Variant(warpgroups=2, tile_keys=128, stages=2, pipelined=False),
}
ERROR = {"bfloat16": 4e-3, "float8_e4m3": 4e-2}
CALLS, INPUT_SETS = 12, 3


class Inputs:
    def __init__(self, seed: int, own: int, out_dtype: str) -> None:
        generator = torch.Generator(device="cuda").manual_seed(seed)
        q, k, v = (
            torch.randn(1, n, HEADS, HEAD_DIM, generator=generator, device="cuda").bfloat16()
            for n in (QUERIES, PLACES, PLACES)
        )
        v += 0.5
        alike = torch.arange(PLACES, device="cuda").clamp(max=own)
        self.q, self.k, self.v = q, k[:, alike].contiguous(), v[:, alike].contiguous()
        self.count = torch.tensor([own + 1], dtype=torch.int64, device="cuda")
        dtype = {"bfloat16": torch.bfloat16, "float8_e4m3": torch.float8_e4m3fn}[out_dtype]
        self.out = torch.empty(q.shape, dtype=dtype, device="cuda")

    def piece(self, *, padded: bool) -> KVPiece:
        if padded:
            return KVPiece(self.k, self.v, self.count, rest_alike=True)
        return KVPiece(self.k, self.v)

    def exact(self) -> torch.Tensor:
        q, k, v = (x.double().transpose(1, 2) for x in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-1, -2) * HEAD_DIM**-0.5, -1)
        return (weights @ v).transpose(1, 2)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=100)
    chosen = options.parse_args()
    report: dict[str, Any] = {**machine(), "queries": QUERIES, "places": PLACES, "heads": HEADS}
    report["results"] = {dtype: of_results(dtype, chosen.repeats) for dtype in ERROR}
    write_report(report, chosen.out)


def of_results(out_dtype: str, repeats: int) -> dict[str, Any]:
    errors: dict[str, float] = {}
    captured, kept = {}, []
    for own in OWN_TOKENS:
        sets = [Inputs(seed, own, out_dtype) for seed in range(INPUT_SETS)]
        expected = sets[0].exact()
        ways = {f"{own} tokens, {tile}": (True, variant) for tile, variant in TILES.items()}
        if own == OWN_TOKENS[-1]:
            ways["all places"] = False, None
        for name, (padded, variant) in ways.items():
            attention = SinkWindowAttention(out_dtype=out_dtype, variant=variant)
            # Graphs hold addresses alone.
            kept.append((attention, sets))
            launches = [launch(attention, each, padded) for each in sets]
            launches[0](torch.cuda.current_stream().cuda_stream)
            errors[name] = relative_error(sets[0].out, expected)
            assert errors[name] < ERROR[out_dtype], (name, errors[name])
            captured[name] = [capture(list(islice(cycle(launches), CALLS))).replay]
    times = in_turns_ms(captured, repeats)
    found_us = {name: 1e3 * median(each) / CALLS for name, each in times.items()}
    for name, us in found_us.items():
        print(f"{out_dtype:12s} {name:32s} {us:6.1f} us, error {errors[name]:.1e}", flush=True)
    return {name: {"us": us, "error": errors[name]} for name, us in found_us.items()}


def launch(attention: SinkWindowAttention, inputs: Inputs, padded: bool) -> Callable[[int], None]:
    piece = inputs.piece(padded=padded)
    return lambda stream: attention(inputs.q, [piece], inputs.out, stream=stream)


if __name__ == "__main__":
    main()
