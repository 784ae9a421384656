"""Pictures of what is spread: what the kernel means against torch, and on a GPU against float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F

from longlive_trt.basics import Array
from longlive_trt.errors import PluginError
from longlive_trt.export.models.vae import in_eight_bits
from longlive_trt.plugins.cuda.compilation import CompilerName
from longlive_trt.plugins.kernels.base import GraphKernel
from longlive_trt.plugins.kernels.registry import KERNELS
from longlive_trt.plugins.kernels.vae_colors import MAX_COLORS_CHANNELS, colors_shared_bytes
from tests.plugins.kernels.arrays import computed, launched, random_array, spread
from tests.plugins.kernels.sources import require_compiled

HALVES = ("float16", "bfloat16")
TYPES = (np.dtype(np.float32), np.dtype(np.uint8))
TOLERANCE = 5e-5
"""Products are of the rounded inputs, and sums are kept in float32."""


def colors_inputs(
    frames: int, size: tuple[int, int], channels: int, dtype: str, flags: dict[str, Any]
) -> tuple[list[Array], Array]:
    """What the kernel reads, and the pixels that it finds there: with a mean, and outliers."""
    count = flags.get("batch", 1) * frames
    pixels = random_array((count, *size, channels), dtype, 1) + random_array((channels,), dtype, 2)
    pixels[..., ::17] *= 6
    pixels = pixels.astype(dtype)
    weight = random_array((27, channels), dtype, 3, 0.1 / channels**0.5)
    bias = random_array((3,), dtype, 4, 0.2) + np.asarray(0.5, dtype)
    x = spread(pixels, flags.get("frames_of_place", 1))
    return [x, weight, bias.astype(dtype)], pixels


def both(
    run: Callable[..., list[Array]], flags: dict[str, Any], inputs: list[Array]
) -> list[Array]:
    """Planes, and pictures."""
    kernels = [KERNELS["vae_colors"](**flags, pictures=pictures) for pictures in (False, True)]
    return [run(kernel, inputs, dtype)[0] for kernel, dtype in zip(kernels, TYPES, strict=True)]


def exact(inputs: list[Array], pixels: Array, flags: dict[str, Any]) -> tuple[Array, Array]:
    """In float64, by torch."""
    _, weight, bias = (torch.from_numpy(array.astype(np.float64)) for array in inputs)
    kernel = weight.reshape(3, 3, 3, -1).permute(2, 3, 0, 1)
    active = torch.from_numpy(pixels.astype(np.float64)).permute(0, 3, 1, 2).relu()
    frames = F.conv2d(active, kernel, bias, padding=1).clamp(0, 1)
    shown = frames.unflatten(0, (flags.get("batch", 1), -1))[:, flags.get("skipped", 0) :]
    return shown.numpy(), in_eight_bits(shown).numpy()


def check(found: list[Array], inputs: list[Array], pixels: Array, flags: dict[str, Any]) -> None:
    planes, pictures = exact(inputs, pixels, flags)
    assert found[0].shape == planes.shape and found[1].shape == pictures.shape
    assert ((planes > 0) & (planes < 1)).mean() > 0.3
    assert np.abs(found[0] - planes).max() <= TOLERANCE
    # A step's edge lies where it lies.
    steps = np.abs(found[1].astype(int) - pictures.astype(int))
    assert steps.max() <= 1 and (steps > 0).mean() <= 0.01


FLAGS: list[dict[str, Any]] = [
    {},
    {"batch": 2, "frames_of_place": 2},
    {"batch": 2, "frames_of_place": 2, "skipped": 3},
    {"skipped": 1},
]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("size", [(2, 2), (6, 10)])
def test_pictures_are_a_convolution(
    size: tuple[int, int], flags: dict[str, Any], dtype: str
) -> None:
    inputs, pixels = colors_inputs(4, size, 24, dtype, flags)
    check(both(computed, flags, inputs), inputs, pixels, flags)


def test_it_fits_into_the_shared_memory_of_every_architecture() -> None:
    smallest = 99 * 1024  # of a block, on 8.6 and 8.9
    assert colors_shared_bytes(MAX_COLORS_CHANNELS) <= smallest
    assert colors_shared_bytes(MAX_COLORS_CHANNELS + 8) > smallest


@pytest.mark.parametrize(
    ("flags", "shapes", "message"),
    [
        ({}, [(1, 3, 4, 32), (27, 16), (3,)], r"weight has shape \[27, 16\]"),
        ({}, [(1, 3, 4, 32), (27, 8), (4,)], r"bias has shape \[4\]"),
        ({"skipped": 1}, [(1, 3, 4, 32), (27, 8), (3,)], "more than 1 frames"),
        ({}, [(1, 3, 4, 4 * 488), (27, 488), (3,)], "up to 480 channels"),
        ({"batch": 2, "frames_of_place": 2}, [(1, 3, 4, 64), (27, 8), (3,)], "1 frames: they must"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    flags: dict[str, Any], shapes: list[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(PluginError, match=message):
        KERNELS["vae_colors"](**flags, pictures=True).output_shapes(shapes)


@pytest.mark.parametrize("compiler", ["nvcc", "nvrtc"])
@pytest.mark.parametrize("channels", [64, MAX_COLORS_CHANNELS])
def test_the_source_compiles(channels: int, compiler: CompilerName) -> None:
    constants = {"LL_ELEMENT": 1, "LL_DIM": channels, "LL_FRAMES_OF_PLACE": 2}
    require_compiled("vae_colors", constants, compiler)


def on_device(kernel: GraphKernel, inputs: list[Array], dtype: np.dtype[Any]) -> list[Array]:
    return launched(kernel, inputs, getattr(torch, dtype.name), fill=77)


@pytest.fixture
def gpu(need_gpu: Any) -> Any:
    return need_gpu((8, 0))


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("channels", [8, 24, 64, 72, 136, MAX_COLORS_CHANNELS])
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_pictures_on_the_gpu(flags: dict[str, Any], channels: int, dtype: str) -> None:
    """Sizes around those of a warp's strip and of the rows that it goes down."""
    for frames, size in ((4, (2, 2)), (4, (34, 62)), (6, (66, 30)), (4, (30, 94))):
        inputs, pixels = colors_inputs(frames, size, channels, dtype, flags)
        check(both(on_device, flags, inputs), inputs, pixels, flags)
