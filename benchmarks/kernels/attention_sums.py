"""What 8-bit attention makes of values that have something in common, by how its sums are kept.

    python -m benchmarks.kernels.attention_sums --out docs/results/attention_sums_h200.json

4,680 queries of 12 heads against 14,040 cached and 4,680 own keys. Values are normal with a normal
mean in every channel. The error is against float32 on the same 8-bit inputs; what is left of the
output is its projection on the exact one.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.harness import parser, write_report
from benchmarks.kernels.timing import capture, machine, median_ms, relative_error
from longlive_trt.plugins.attention.arguments import KVPiece, Scales
from longlive_trt.plugins.attention.hopper import SinkWindowAttention
from longlive_trt.plugins.attention.value_layout import padded_tokens
from longlive_trt.plugins.attention.variants import Variant
from longlive_trt.plugins.kernels.values import quantize_values

HEADS, HEAD_DIM, TOKENS, CACHED = 12, 128, 4680, 14_040
SETS, REPEATS = 8, 20
UNIT, VALUE_UNIT = 6 / 448, 9 / 448
VARIANTS = {
    "in the tensor cores, 3 x 64 rows, 96 keys": Variant(3, 96, 4),
    "every block of 96 in float32": Variant(2, 96, 5, promoted_blocks=1),
    "every second block of 96": Variant(2, 96, 5, promoted_blocks=2),
    "every fourth block of 96": Variant(2, 96, 5, promoted_blocks=4),
    "every second block of 128": Variant(2, 128, 4, promoted_blocks=2),
    "every fourth block of 128, in turn": Variant(2, 128, 3, pipelined=False, promoted_blocks=4),
}


@dataclass
class Inputs:
    q: Any
    keys: tuple[Any, Any]
    """Cached, and own."""
    values: tuple[Any, Any]

    @classmethod
    def random(cls, mean: Any) -> "Inputs":
        def normal(tokens: int) -> Any:
            return torch.randn(1, tokens, HEADS, HEAD_DIM, device="cuda")

        def narrow(x: Any, unit: float) -> Any:
            return (x / unit).clamp(-448, 448).to(torch.float8_e4m3fn)

        return cls(
            narrow(normal(TOKENS), UNIT),
            (narrow(normal(CACHED), UNIT), narrow(normal(TOKENS), UNIT)),
            tuple(narrow(normal(n) + mean, VALUE_UNIT) for n in (CACHED, TOKENS)),
        )

    def pieces(self) -> list[KVPiece]:
        return [KVPiece(k, transposed(v)) for k, v in zip(self.keys, self.values, strict=True)]

    def exact(self) -> Any:
        q = self.q.float() * UNIT
        k = torch.cat([x.float() for x in self.keys], 1) * UNIT
        v = torch.cat([x.float() for x in self.values], 1) * VALUE_UNIT
        out = torch.empty(1, TOKENS, HEADS, HEAD_DIM, device="cuda")
        for head in range(HEADS):
            scores = q[0, :, head] @ k[0, :, head].T * HEAD_DIM**-0.5
            out[0, :, head] = scores.softmax(-1) @ v[0, :, head]
        return out


def transposed(values: Any) -> Any:
    shape = (1, HEADS, HEAD_DIM, padded_tokens(values.shape[1]))
    out = torch.zeros(shape, device="cuda").to(torch.float8_e4m3fn)
    quantize_values(values, None, out)
    return out


def measure(variant: Variant, sets: list[Inputs], exact: Any) -> dict[str, Any]:
    attention = SinkWindowAttention("float8_e4m3", HEAD_DIM, variant=variant)
    units = torch.full((HEADS,), UNIT, device="cuda")
    scales = Scales(units, units, torch.full((HEADS,), VALUE_UNIT, device="cuda"))
    calls = [(inputs.q, inputs.pieces(), torch.empty_like(exact).bfloat16()) for inputs in sets]

    def run(stream: int) -> None:
        for call in calls:
            attention(*call, scales=scales, stream=stream)

    time_ms = median_ms(capture([run]).replay, REPEATS) / len(calls)
    result = calls[0][2].float()
    return {
        **asdict(variant),
        "median_ms": round(time_ms, 4),
        "tflops": round(4e-9 * TOKENS * (TOKENS + CACHED) * HEADS * HEAD_DIM / time_ms),
        "error": relative_error(result, exact),
        "left": float((result * exact).sum() / exact.square().sum()),
    }


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.manual_seed(0)
    mean = torch.randn(1, 1, HEADS, HEAD_DIM, device="cuda")
    sets = [Inputs.random(mean) for _ in range(SETS)]
    exact = sets[0].exact()
    results = {name: measure(variant, sets, exact) for name, variant in VARIANTS.items()}
    for name, result in results.items():
        print(f"{name}: {result}")
    write_report({**machine(), "results": results}, options.out)


if __name__ == "__main__":
    main()
