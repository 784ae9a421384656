"""What the VAE's kernels have in common: names and shapes of inputs, addresses, launches."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from longlive_trt.basics import Array
from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.variants import ELEMENTS
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.tensors import DeviceTensor, require_dtype
from longlive_trt.plugins.kernels.base import Shape

COLORS = 3
HALVES = ("bfloat16", "float16")
_SMALLEST_LENGTH = 1e-12

Floats = npt.NDArray[np.float32]


def summed(named: dict[str, Array]) -> Floats:
    value: Floats = named["x"].astype(np.float32)
    for name in ("y", "bias"):
        if name in named:
            value = value + named[name].astype(np.float32)
    return value


def normalized(value: Floats) -> Floats:
    """Every pixel's channels, brought to the length that ones would have."""
    length = np.sqrt(np.sum(value * value, axis=-1, keepdims=True))
    gain = np.float32(math.sqrt(value.shape[-1]))
    result: Floats = value / np.maximum(length, np.float32(_SMALLEST_LENGTH)) * gain
    return result


def silu(value: Floats) -> Floats:
    with np.errstate(over="ignore"):  # x / infinity is the zero that is meant
        result: Floats = value / (1 + np.exp(-value))
    return result


def relu(value: Floats) -> Floats:
    result: Floats = np.maximum(value, np.float32(0))
    return result


def spread_shape(shape: Shape, frames_of_place: int = 1) -> Shape:
    """What [N, H / 2 + 1, W / 2 + 1, frames of a place * 4 C] holds: [N * those, H, W, C]."""
    frames, places_high, places_wide, channels = shape
    pixels = 4 * frames_of_place
    if min(places_high, places_wide) < 2 or channels % pixels:
        raise PluginError(
            f"x has shape {list(shape)}: spread, it must have two rows and columns at least, and "
            f"channels for {pixels} pixels"
        )
    size = (2 * places_high - 2, 2 * places_wide - 2)
    return (frames * frames_of_place, *size, channels // pixels)


def gathered(spread: Array, frames_of_place: int = 1) -> Array:
    """The pixels of what is spread: place (r, s) holds (2r - a, 2s - b) for a and b of 0 and 1, of
    a frame, and behind it those of the next one, if there are several."""
    shape = spread_shape(spread.shape, frames_of_place)
    _, height, width, channels = shape
    four = spread.reshape(*spread.shape[:3], frames_of_place, 2, 2, channels)
    pixels = np.empty((len(spread), frames_of_place, *shape[1:]), spread.dtype)
    for frame, a, b in np.ndindex(frames_of_place, 2, 2):
        rows, columns = slice(a, a + height // 2), slice(b, b + width // 2)
        pixels[:, frame, a::2, b::2] = four[:, rows, columns, frame, a, b]
    return pixels.reshape(shape)


def named_inputs(kernel: str, flags: dict[str, bool], inputs: Sequence[Any]) -> dict[str, Any]:
    names = ["x", *(name for name, present in flags.items() if present)]
    if len(inputs) != len(names):
        raise PluginError(f"{kernel} has {len(inputs)} inputs: it takes {', '.join(names)}")
    return dict(zip(names, inputs, strict=True))


def activation_shape(shape: Shape, batch: int) -> tuple[int, int, int, int]:
    if len(shape) != 4:
        raise PluginError(
            f"x has shape {list(shape)}: it must be [frames, height, width, channels]"
        )
    frames, height, width, channels = shape
    require_channels(channels)
    require_frames(frames, batch)
    return frames, height, width, channels


def picture_shape(kernel: str, inputs: Sequence[Shape], batch: int) -> tuple[int, int, int]:
    x, bias = inputs
    if len(x) != 4 or x[3] != COLORS or tuple(bias) != (COLORS,):
        raise PluginError(
            f"{kernel} has inputs {list(x)} and {list(bias)}: it takes [frames, height, width, 3] "
            "and a bias of 3"
        )
    require_frames(x[0], batch)
    return x[0], x[1], x[2]


def require_frames(frames: int, batch: int) -> None:
    if frames < 1 or frames % batch:
        raise PluginError(f"x has {frames} frames: they must be a multiple of the batch ({batch})")


def require_channels(channels: int) -> None:
    if channels % 8 or channels < 8:
        raise PluginError(f"x has {channels} channels: allowed are multiples of 8")


def require_shapes(kernel: str, shapes: dict[str, Shape], expected: dict[str, Shape]) -> None:
    for name, shape in expected.items():
        if name in shapes and tuple(shapes[name]) != shape:
            raise PluginError(
                f"{kernel}: {name} has shape {list(shapes[name])}: it must be {list(shape)}"
            )


def vector_address(tensor: DeviceTensor | None, name: str, like: DeviceTensor) -> int:
    """The address of a tensor that is read or written sixteen bytes at a time."""
    if tensor is None:
        return 0
    require_dtype(tensor, name, [like.dtype])
    if tensor.pointer % 16:
        raise PluginError(f"{name} starts at {tensor.pointer:#x}: it must be aligned to 16 bytes")
    return tensor.pointer


def picture_addresses(x: DeviceTensor, bias: DeviceTensor, out: DeviceTensor) -> dict[str, int]:
    return {"x": vector_address(x, "x", x), "bias": bias.pointer, "output": out.pointer}


def launch_pass(
    kernel: CudaKernel,
    parameters: Mapping[str, Any],
    constants: Mapping[str, int],
    x: DeviceTensor,
    place: Placement,
    grid: Sequence[int],
    threads: int,
    *,
    shared_bytes: int = 0,
) -> None:
    require_dtype(x, "x", HALVES)
    kernel.launch(
        parameters,
        grid=grid,
        threads=threads,
        constants={"LL_ELEMENT": ELEMENTS[x.dtype], **constants},
        device=place.device,
        stream=place.stream.handle,
        shared_bytes=shared_bytes,
    )
