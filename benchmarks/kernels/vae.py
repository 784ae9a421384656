"""The VAE's passes at the sizes of a block, 3 latent frames into 12 pictures of 480x832.

    python -m benchmarks.kernels.vae --out docs/results/vae_kernels_h200.json

Each is captured four times in a CUDA graph and replayed. Those of 240x416 and more move far more
than the cache holds; the small ones find some of their input there, as they do in the decoder.
``of_copy`` compares with a copy that reads and writes the same number of bytes together. The three
convolutions that follow a doubling are timed in torch (cuDNN): 3x3 over the doubled image, and
folded into 2x2 over the small one, as the decoder has them.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from benchmarks.harness import parser, write_report
from benchmarks.kernels.timing import Launch, capture, machine, median_ms
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.streams import Gpu, Stream
from longlive_trt.plugins.cuda.tensors import as_device_tensor
from longlive_trt.plugins.kernels.registry import KERNELS

TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
ALL = dict.fromkeys(("residual", "bias", "norm", "silu", "history", "total"), True)
BLOCK = dict.fromkeys(("bias", "norm", "silu", "history"), True)
HEAD = {**ALL, "total": False, "form": "extended"}
SPREAD = {**BLOCK, "total": True, "spread": True}
Size = tuple[int, int, int, int]
LAUNCHES = 4

Case = tuple[str, str, dict[str, Any], Size, int]
OUTPUT_TYPES = {
    "vae_pixels": torch.uint8,
    "vae_frames": torch.float32,
    "vae_colors": torch.uint8,
}

CASES: list[Case] = [
    # what, kernel, flags, the input's shape (of its pixels, if spread), times in a block
    ("384 ch, x", "vae_stack", BLOCK, (3, 60, 104, 384), 6),
    ("384 ch, x + y", "vae_stack", ALL, (3, 60, 104, 384), 4),
    ("192 ch, spread", "vae_stack", SPREAD, (6, 120, 208, 192), 1),
    ("384 ch, x", "vae_stack", BLOCK, (6, 120, 208, 384), 3),
    ("384 ch, x + y", "vae_stack", ALL, (6, 120, 208, 384), 2),
    ("192 ch, spread", "vae_stack", SPREAD, (12, 240, 416, 192), 1),
    ("192 ch, x", "vae_stack", BLOCK, (12, 240, 416, 192), 3),
    ("192 ch, x + y", "vae_stack", ALL, (12, 240, 416, 192), 2),
    ("96 ch, spread", "vae_stack", SPREAD, (12, 480, 832, 96), 1),
    ("96 ch, x", "vae_stack", BLOCK, (12, 480, 832, 96), 3),
    ("96 ch, x + y", "vae_stack", ALL, (12, 480, 832, 96), 2),
    ("96 ch, before the head", "vae_stack", HEAD, (12, 480, 832, 96), 1),
    (
        "384 ch, before attention",
        "vae_stack",
        {"form": "alone", **dict.fromkeys(("residual", "bias", "norm", "total"), True)},
        (3, 60, 104, 384),
        1,
    ),
    (
        "384 ch, before time",
        "vae_stack",
        {"residual": True, "bias": True, "history": True},
        (6, 120, 208, 384),
        1,
    ),
    ("pairs of 384 ch", "vae_sum", {"bias": True, "interleave": True}, (3, 60, 104, 768), 1),
    ("pairs of 384 ch", "vae_sum", {"bias": True, "interleave": True}, (6, 120, 208, 768), 1),
    ("192 ch, x + y", "vae_sum", {"residual": True, "bias": True}, (12, 240, 416, 192), 1),
    ("last convolution", "vae_head", {}, (14, 480, 832, 96), 1),
    ("pictures", "vae_pixels", {}, (12, 480, 832, 3), 1),
    ("frames", "vae_frames", {}, (12, 480, 832, 3), 1),
]
DOUBLING: list[tuple[Size, int]] = [
    # the small image, channels out
    ((6, 60, 104, 384), 192),
    ((12, 120, 208, 384), 192),
    ((12, 240, 416, 192), 96),
]


def make_inputs(kernel: str, flags: dict[str, Any], size: Size, dtype: torch.dtype) -> list[Any]:
    frames, height, width, channels = size
    together, taps = flags.get("frames_of_place", 1), flags.get("taps", 3)
    places = (frames // together, height // 2 + 1, width // 2 + 1, 4 * together * channels)
    is_spread = flags.get("spread") or kernel == "vae_colors"
    shapes: list[tuple[int, ...]] = [places if is_spread else size]
    if flags.get("residual"):
        shapes.append((*size[:3], taps * channels) if flags.get("beside") else size)
    if kernel == "vae_colors":
        shapes += [(27, channels), (3,)]
    if flags.get("bias") or kernel in ("vae_pixels", "vae_frames"):
        shapes.append((channels,))
    if kernel == "vae_head":
        shapes.append((3, 27, channels))
    if flags.get("norm"):
        shapes.append((channels,))
    if flags.get("history"):
        shapes.append((1, taps - 1, *size[1:]))
    return [torch.randn(*shape, device="cuda").to(dtype) for shape in shapes]


def make_job(
    name: str, flags: dict[str, Any], size: Size, dtype: torch.dtype
) -> tuple[Launch, int]:
    """What launches it, and how many bytes it reads and writes."""
    kernel, gpu = KERNELS[name](**flags), Gpu()
    inputs = make_inputs(name, flags, size, dtype)
    output_type = OUTPUT_TYPES.get(name, dtype)
    shapes = kernel.output_shapes([tuple(tensor.shape) for tensor in inputs])
    outputs = [torch.empty(shape, dtype=output_type, device="cuda") for shape in shapes]
    sources, targets = (
        [as_device_tensor(tensor, "tensor") for tensor in group] for group in (inputs, outputs)
    )
    moved = sum(tensor.numel() * tensor.element_size() for tensor in [*inputs, *outputs])
    if flags.get("beside"):  # only the last of the frames that lie there
        moved -= inputs[1].numel() * inputs[1].element_size() * (flags["taps"] - 1) // flags["taps"]
    memory = [inputs, outputs]

    def launch(stream: int) -> None:
        kernel.launch(sources, targets, Placement(Stream(gpu, stream)))
        assert memory  # the addresses above are its own

    return launch, moved


def launch_ms(launch: Launch, repeats: int) -> float:
    return median_ms(capture([launch] * LAUNCHES).replay, repeats) / LAUNCHES


def copy_ms(moved_bytes: int, repeats: int) -> float:
    source = torch.empty(math.ceil(moved_bytes / 2), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return launch_ms(lambda _stream: target.copy_(source), repeats)


def measure(cases: Iterable[Case], dtype: str, repeats: int) -> Iterator[dict[str, Any]]:
    for what, kernel, flags, size, count in cases:
        launch, moved = make_job(kernel, flags, size, TYPES[dtype])
        time, copied = launch_ms(launch, repeats), copy_ms(moved, repeats)
        del launch
        torch.cuda.empty_cache()
        print(
            f"{kernel:13s} {what:22s} {size!s:20s} {time * 1e3:8.1f} us, "
            f"{moved / time / 1e9:4.2f} TB/s, {copied / time:4.0%} of a copy, {count} a block"
        )
        yield {
            "kernel": kernel,
            "what": what,
            "dtype": dtype,
            "shape": list(size),
            "times_in_a_block": count,
            "median_us": time * 1e3,
            "bytes": moved,
            "tb_per_s": moved / time / 1e9,
            "of_copy": copied / time,
        }


def convolution(x: torch.Tensor, weight: torch.Tensor) -> Launch:
    return lambda _stream: torch.conv2d(x, weight, padding=1)


def measure_convolution(
    what: str, size: Size, channels_out: int, taps: int, dtype: str, repeats: int
) -> dict[str, Any]:
    """In torch (cuDNN), channels last, as ONNX Runtime has it."""
    torch.backends.cudnn.benchmark = True
    frames, height, width, channels = size
    x, weight = (
        torch.randn(*shape, device="cuda").to(TYPES[dtype], memory_format=torch.channels_last)
        for shape in ((frames, channels, height, width), (channels_out, channels, taps, taps))
    )
    time = launch_ms(convolution(x, weight), repeats)
    flops = 2 * channels_out * channels * taps**2 * frames * height * width
    print(
        f"{what:13s} {list(x.shape)!s:24s} {list(weight.shape)!s:20s} "
        f"{time * 1e3:8.1f} us, {flops / time / 1e9:4.0f} TFLOP/s"
    )
    return {
        "what": what,
        "input": list(x.shape),
        "weight": list(weight.shape),
        "median_us": time * 1e3,
        "tflops": flops / time / 1e9,
    }


def measure_doubling(dtype: str, repeats: int) -> Iterator[dict[str, Any]]:
    for small, channels_out in DOUBLING:
        frames, height, width, channels = small
        doubled = (frames, 2 * height, 2 * width, channels)
        yield measure_convolution("3x3, doubled", doubled, channels_out, 3, dtype, repeats)
        yield measure_convolution("2x2, folded", small, 4 * channels_out, 2, dtype, repeats)


def together_ms(measured: Iterable[dict[str, Any]]) -> float:
    """Of a block."""
    total: float = sum(each["median_us"] * each["times_in_a_block"] for each in measured) / 1e3
    return total


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--dtype", choices=TYPES, default="float16")
    options.add_argument("--repeats", type=int, default=30)
    chosen = options.parse_args()
    passes = list(measure(CASES, chosen.dtype, chosen.repeats))
    total_ms = together_ms(passes)
    print(f"together {total_ms:.2f} ms a block")
    doubling = list(measure_doubling(chosen.dtype, chosen.repeats))
    report = {**machine(), "together_ms": total_ms, "passes": passes, "doubling": doubling}
    write_report(report, chosen.out)


if __name__ == "__main__":
    main()
