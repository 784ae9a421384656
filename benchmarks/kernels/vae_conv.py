"""The decoder's convolutions in eight bits, at the sizes of a block.

    python -m benchmarks.kernels.vae_conv --out docs/results/vae_conv_h200.json

Each is launched for half a second without a pause, as in a decoder, so that power limits the clock
as it does there. Inputs are rounded activations with means and outliers, of int8 with another
number than 0 for zero, as graphs have them; torch's convolution in fp16 over three stacked frames
(cuDNN), without what follows, is timed beside them.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.harness import parser, write_report
from benchmarks.kernels.timing import Launch, capture, machine, median
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.streams import Gpu, Stream
from longlive_trt.plugins.cuda.tensors import as_device_tensor
from longlive_trt.plugins.kernels.conv_tiles import OFFSET_ROWS, ConvTiles
from longlive_trt.plugins.kernels.vae_conv import VaeConv

TYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
LARGEST = {"fp8": 448.0, "int8": 127.0}
ZERO = -110
ENDS: dict[str, dict[str, Any]] = {
    "norm, SiLU, 8 bits": {"output_scale": 0.02},
    "residual, sum, norm, SiLU, 8 bits": {"residual": True, "total": True, "output_scale": 0.02},
    "residual, sum": {"residual": True, "total": True},
}
Size = tuple[int, int, int, int, int]
SIZES: list[Size] = [
    # channels in and out, frames, height, width
    (96, 96, 12, 480, 832),
    (192, 192, 12, 240, 416),
    (192, 384, 6, 120, 208),
    (384, 384, 6, 120, 208),
    (384, 384, 3, 60, 104),
]
SECONDS = 0.5
LAUNCHES = 8
"""In one graph: a short one takes less time than Python does to launch it."""

Tensor = torch.Tensor


def activations(*shape: int) -> Tensor:
    """As SiLU leaves them; every 17th channel is six times as large."""
    channels = shape[-1]
    spread = torch.exp(0.4 * torch.randn(channels, device="cuda"))
    spread[::17] *= 6
    mean = 0.6 * torch.randn(channels, device="cuda")
    wide = torch.randn(*shape, device="cuda", dtype=torch.float16) * spread.half() + mean.half()
    return torch.nn.functional.silu(wide)


def rounded(values: Tensor, kind: str, zero: int = 0) -> Tensor:
    scaled = values / (values.abs().max() / (LARGEST[kind] - zero)) + zero
    return (scaled.round() if kind == "int8" else scaled).to(TYPES[kind])


def make_inputs(kind: str, size: Size, flags: dict[str, Any]) -> list[Tensor]:
    inner, outer, frames, height, width = size
    picture, tiles = (height, width), ConvTiles(inner, outer)
    weight = rounded(torch.randn(*tiles.weight_shape, device="cuda"), kind)
    scale = torch.full((outer,), 1e-4, device="cuda")
    halves = [torch.randn(outer, device="cuda").half() for _ in range(2)]
    zero = flags.get("input_zero", 0)
    inputs = [rounded(activations(frames, *picture, inner), kind, zero), weight, scale, halves[0]]
    if zero:
        inputs.append(torch.zeros(OFFSET_ROWS, outer, device="cuda", dtype=torch.int32))
    if "residual" in flags:
        inputs.append(activations(frames, *picture, outer))
    if "output_scale" in flags:
        inputs.append(halves[1])
    inputs.append(rounded(activations(1, 2, *picture, inner), kind, zero))
    if "output_scale" in flags:
        inputs.append(rounded(activations(1, 2, *picture, outer), kind, zero))
    return inputs


def make_outputs(kind: str, size: Size, flags: dict[str, Any], inputs: list[Tensor]) -> Any:
    kernel = VaeConv(history=True, **flags)
    types = [torch.float16] * ("total" in flags) + [TYPES[kind]] * 2
    shapes = kernel.output_shapes([tuple(tensor.shape) for tensor in inputs])
    outputs = [
        torch.empty(shape, dtype=dtype, device="cuda")
        for shape, dtype in zip(shapes, types, strict=False)
    ]
    return kernel, outputs


def sustained_ms(launch: Launch) -> float:
    """The median of the second half of the replays, by launch."""
    graph = capture([launch] * LAUNCHES)
    events, started = [], time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        pair[0].record()
        graph.replay()
        pair[1].record()
        events.append(pair)
        if len(events) % 4 == 0:
            pair[1].synchronize()
    torch.cuda.synchronize()
    times = [start.elapsed_time(end) for start, end in events[len(events) // 2 :]]
    return median(times) / LAUNCHES


def measure(kind: str, size: Size, end: str) -> dict[str, Any]:
    zeros = {"input_zero": ZERO, "output_zero": ZERO} if kind == "int8" else {}
    flags = {**ENDS[end], **zeros}
    inputs = make_inputs(kind, size, flags)
    kernel, outputs = make_outputs(kind, size, flags, inputs)
    views = [
        [as_device_tensor(tensor, "tensor") for tensor in group] for group in (inputs, outputs)
    ]

    def launch(stream: int) -> None:
        kernel.launch(*views, Placement(Stream(Gpu(), stream)))

    return row(kind, size, end, sustained_ms(launch))


def measure_torch(size: Size) -> dict[str, Any]:
    inner, outer, frames, height, width = size
    x = activations(frames, height, width, 3 * inner).permute(0, 3, 1, 2)
    weight = torch.randn(outer, 3 * inner, 3, 3, device="cuda").half()
    weight = weight.to(memory_format=torch.channels_last)
    time_ms = sustained_ms(lambda _stream: torch.conv2d(x, weight, padding=1))
    return row("fp16, torch", size, "nothing", time_ms)


def row(kind: str, size: Size, end: str, time_ms: float) -> dict[str, Any]:
    tflops = 2 * 27 * math.prod(size) / time_ms / 1e9
    print(f"{kind:12s} {size!s:26s} {end:34s} {time_ms:7.3f} ms, {tflops:5.0f} TFLOP/s")
    return {"type": kind, "size": list(size), "then": end, "median_ms": time_ms, "tflops": tflops}


def measure_all() -> Iterator[dict[str, Any]]:
    torch.backends.cudnn.benchmark = True
    for size in SIZES:
        for kind in TYPES:
            for end in ENDS:
                yield measure(kind, size, end)
        yield measure_torch(size)


def main() -> None:
    chosen = parser(__doc__).parse_args()
    write_report({**machine(), "convolutions": list(measure_all())}, chosen.out)


if __name__ == "__main__":
    main()
