"""The tiny decoder's passes and convolutions at the sizes of a block, 12 pictures of 480x832.

    python -m benchmarks.kernels.taehv --out docs/results/taehv_kernels_h200.json

As ``benchmarks.kernels.vae`` times Wan's; convolutions in torch (cuDNN), channels last. What they
come to together is what a block should take, but for a few microseconds between launches and for
the pictures' way to the host.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from benchmarks.harness import parser, write_report
from benchmarks.kernels.timing import machine
from benchmarks.kernels.vae import (
    TYPES,
    Case,
    Size,
    measure,
    measure_convolution,
    together_ms,
)
from longlive_trt.configs import TaehvConfig

LATENT_SIZE, BLOCK_FRAMES = (60, 104), 3
ENTRANCE = dict.fromkeys(("bias", "relu", "history"), True)
INSIDE = {"form": "alone", "bias": True, "relu": True}
BETWEEN = dict.fromkeys(("residual", "beside", "bias", "relu", "history"), True)
LAST = {"form": "alone", **dict.fromkeys(("residual", "beside", "bias", "relu"), True)}
Convolution = tuple[str, Size, int, int, int]
"""What, its input, its channels out, its taps on a side, and how often a block has it."""


def levels(vae: TaehvConfig) -> Iterator[tuple[Size, int]]:
    """The activation of each stage and, at last, of pictures; and frames that a doubling made of
    one."""
    (height, width), frames, made = LATENT_SIZE, BLOCK_FRAMES, 1
    for index, channels in enumerate(vae.widths):
        yield (frames, height, width, channels), made
        if index < len(vae.temporal_upsample):
            made = 1 + vae.temporal_upsample[index]
            frames, height, width = frames * made, 2 * height, 2 * width


def passes(vae: TaehvConfig) -> Iterator[Case]:
    *stages, (pictures, made) = levels(vae)
    for index, (size, frames) in enumerate(stages):
        spread = {"spread": True, "frames_of_place": frames, "history": True}
        for what, flags, count in (
            ("first of a stage", spread if index else ENTRANCE, 1),
            ("inside a block", INSIDE, 6),
            ("between blocks", BETWEEN, 2),
            ("last of a stage", LAST, 1),
        ):
            yield f"{size[-1]} ch, {what}", "vae_stack", {"taps": 2, **flags}, size, count
    flags = {"frames_of_place": made, "pictures": True}
    yield "pictures", "vae_colors", flags, pictures, 1


def convolutions(vae: TaehvConfig) -> Iterator[Convolution]:
    (first, _), *_ = levels(vae)
    yield "entrance", (*first[:3], vae.channels), first[-1], 3, 1
    for (size, _), (following, made) in pairwise(levels(vae)):
        *place, channels = size
        frames, height, width = place
        yield "two frames", (frames, height, width, 2 * channels), channels, 3, 3
        yield "one frame", size, channels, 3, 6
        yield "doubling", size, 4 * made * following[-1], 2, 1


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--dtype", choices=TYPES, default="float16")
    options.add_argument("--repeats", type=int, default=30)
    chosen = options.parse_args()
    vae, timing = TaehvConfig(), (chosen.dtype, chosen.repeats)
    passed = list(measure(passes(vae), *timing))
    convolved: list[dict[str, Any]] = [
        {**measure_convolution(what, size, outputs, taps, *timing), "times_in_a_block": count}
        for what, size, outputs, taps, count in convolutions(vae)
    ]
    sums = {"passes_ms": together_ms(passed), "convolutions_ms": together_ms(convolved)}
    print(", ".join(f"{name}: {value:.2f}" for name, value in sums.items()))
    report = {**machine(), **sums, "passes": passed, "convolutions": convolved}
    write_report(report, chosen.out)


if __name__ == "__main__":
    main()
