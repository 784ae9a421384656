"""Convolutions in eight bits: what they mean against plain torch, and on a GPU against that."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F

from longlive_trt.basics import Array
from longlive_trt.errors import PluginError
from longlive_trt.export.models.vae_layers import ChannelNorm
from longlive_trt.plugins.cuda.compilation import CompilerName
from longlive_trt.plugins.kernels.conv_tiles import (
    ConvTiles,
    packed_weight,
    tiles_for,
    unpacked_weight,
    zero_offsets,
)
from longlive_trt.plugins.kernels.registry import KERNELS
from tests.plugins.kernels.arrays import (
    FLOAT8,
    computed,
    error,
    launched,
    pixels_last,
    planes,
    random_array,
)
from tests.plugins.kernels.sources import require_compiled

INT8, FLOAT16 = np.dtype(np.int8), np.dtype(np.float16)
# In the last one another number than 0 stands for zero.
NARROW = {"fp8": FLOAT8, "int8": INT8, "shifted": INT8}
LARGEST = {"fp8": 448.0, "int8": 127.0, "shifted": 127.0}
ZEROS = {"input_zero": -93, "output_zero": -101}
TORCH = {FLOAT8: torch.float8_e4m3fn, INT8: torch.int8, FLOAT16: torch.float16}
# What a node makes of its sums.
ENDS: dict[str, dict[str, Any]] = {
    "active": {"output_scale": 0.01},
    "sum": {"total": True},
    "second sum": {"total": True, "residual": True},
    "both": {"total": True, "residual": True, "output_scale": 0.01},
}
# Results that are a little off round to the next number of the format; where there are many, they
# are rounded wrongly.
SHARE_OF_NEIGHBORS = {"fp8": 0.3, "int8": 0.1, "shifted": 0.1}


def flags_of(end: str, kind: str, **flags: Any) -> dict[str, Any]:
    """A node's attributes."""
    zeros = ZEROS if kind == "shifted" else {}
    if "output_scale" not in ENDS[end]:
        zeros = {name: zero for name, zero in zeros.items() if name == "input_zero"}
    return {**ENDS[end], **zeros, **flags}


def rounded(values: Array, kind: str, zero: int = 0) -> tuple[Array, float]:
    """In eight bits, and the scale; the largest value is the format's."""
    scale = float(np.abs(values).max()) / (LARGEST[kind] - zero)
    scaled = np.clip(values / scale + zero, -LARGEST[kind], LARGEST[kind])
    return (scaled if kind == "fp8" else np.rint(scaled)).astype(NARROW[kind]), scale


def activations(shape: Sequence[int], seed: int) -> Array:
    """As SiLU leaves them: channels with means of their own, and a few that are much larger."""
    random = np.random.default_rng(seed)
    channels = shape[-1]
    spread, mean = np.exp(0.4 * random.standard_normal(channels)), random.standard_normal(channels)
    spread[::17] *= 6
    value = random.standard_normal(shape) * spread + 0.6 * mean
    result: Array = (value / (1 + np.exp(-value))).astype(np.float32)
    return result


def conv_inputs(
    kind: str,
    frames: int,
    size: tuple[int, int],
    channels: tuple[int, int],
    flags: dict[str, Any],
) -> tuple[list[Array], Array]:
    """A node's inputs, and the weight as it was before it was packed."""
    batch, (inner, outer) = flags["batch"], channels
    zero = flags.get("input_zero", 0)
    x, x_scale = rounded(activations((batch * frames, *size, inner), 1), kind, zero)
    wide = np.random.default_rng(2).standard_normal((outer, inner, 3, 3, 3)) + 0.3
    weight, weight_scale = rounded(wide / np.sqrt(27 * inner), kind)
    scale = np.full(outer, x_scale * weight_scale, np.float32)
    scale *= np.exp(0.2 * np.random.default_rng(3).standard_normal(outer)).astype(np.float32)
    inputs = [x, packed_weight(weight), scale, random_array((outer,), "float16", 4)]
    if zero:
        inputs.append(zero_offsets(weight, zero))
    if flags.get("residual"):
        inputs.append(random_array((batch * frames, *size, outer), "float16", 5, 2.0))
    if flags.get("output_scale"):
        inputs.append(random_array((outer,), "float16", 6))
    if flags.get("history"):
        inputs.append(rounded(activations((batch, 2, *size, inner), 7), kind, zero)[0])
        if flags.get("output_scale"):
            inputs.append(rounded(activations((batch, 2, *size, outer), 8), kind)[0])
    return inputs, weight


def output_types(kind: str, flags: dict[str, Any]) -> list[np.dtype[Any]]:
    sums = [FLOAT16] * bool(flags.get("total"))
    return sums + [NARROW[kind]] * (2 if flags.get("output_scale") else 0)


def plain_sums(inputs: list[Array], weight: Array, flags: dict[str, Any]) -> Any:
    """[batch, channels, frames, H, W] in float64."""
    batch, zero = flags["batch"], flags.get("input_zero", 0)
    frames = planes(inputs[0], batch).double() - zero
    before = torch.zeros_like(frames[:, :, :1]).expand(-1, -1, 2, -1, -1)
    if flags.get("history"):
        history = inputs[-2 if flags.get("output_scale") else -1]
        before = planes(history.reshape(-1, *history.shape[2:]), batch).double() - zero
    extended = F.pad(torch.cat([before, frames], dim=2), (1, 1, 1, 1))
    sums = F.conv3d(extended, torch.from_numpy(weight.astype(np.float64)))
    scale, bias = (torch.from_numpy(v.astype(np.float64)) for v in inputs[2:4])
    value = sums * scale.reshape(-1, 1, 1, 1) + bias.reshape(-1, 1, 1, 1)
    if flags.get("residual"):
        value += planes(inputs[after_bias(flags)], batch).double()
    return value


def plain_active(value: Any, gamma: Array) -> Any:
    norm = ChannelNorm(value.shape[1])
    with torch.no_grad():
        norm.gamma.copy_(torch.from_numpy(gamma.astype(np.float32)).reshape(-1, 1, 1, 1))
        return F.silu(norm(value.float()))


def after_bias(flags: dict[str, Any]) -> int:
    return 5 if flags.get("input_zero") else 4


def gamma_of(inputs: list[Array], flags: dict[str, Any]) -> Array:
    return inputs[after_bias(flags) + bool(flags.get("residual"))]


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize(("frames", "history"), [(1, False), (1, True), (3, True)])
@pytest.mark.parametrize("end", ENDS)
def test_a_node_is_the_convolution_and_what_follows(
    end: str, frames: int, history: bool, kind: str
) -> None:
    flags = flags_of(end, kind, history=history, batch=2)
    inputs, weight = conv_inputs(kind, frames, (3, 5), (96, 192), flags)
    outputs = computed(KERNELS["vae_conv"](**flags), inputs, *output_types(kind, flags))
    sums = plain_sums(inputs, weight, flags)
    if flags.get("total"):
        assert error(outputs[0], pixels_last(sums)) <= 4e-4
    if not flags.get("output_scale"):
        assert len(outputs) == 1
        return
    active = pixels_last(plain_active(sums, gamma_of(inputs, flags))) / flags["output_scale"]
    narrow, renewed = outputs[-2:]
    zero = flags.get("output_zero", 0)
    steps = np.clip(active + zero, -LARGEST[kind], LARGEST[kind])
    if kind != "fp8":
        assert np.abs(narrow - np.rint(steps)).max() <= 1
    assert error(narrow, steps) <= 4e-2
    rows = narrow.reshape(2, frames, *narrow.shape[1:])
    before = inputs[-1] if history else np.full_like(renewed, zero)
    wanted = np.concatenate([before, rows], axis=1)[:, -2:]
    np.testing.assert_array_equal(renewed, wanted)


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("spread", [False, True])
def test_inputs_are_rounded_stacks(spread: bool, kind: str) -> None:
    """What ``vae_stack`` makes in 16 bits, in eight, and with a history apart."""
    flags = {"batch": 2, "bias": True, "total": True, "spread": spread}
    shape = (6, 3, 4, 64) if spread else (6, 4, 6, 16)
    x = [random_array(shape, "float32", 1), random_array((16,), "float32", 2)]
    x.append(random_array((16,), "float32", 3))
    history = np.ones((2, 2, 4, 6, 16), NARROW[kind])
    wide = KERNELS["vae_stack"](**flags, form="alone", norm=True, silu=True)
    active, total = computed(wide, x)
    zero = ZEROS["output_zero"] if kind == "shifted" else 0
    narrow = KERNELS["vae_quantize"](**flags, scale=0.05, zero=zero, history=True)
    types = (np.dtype(np.float32), NARROW[kind], NARROW[kind])
    outputs = computed(narrow, [*x, history], *types)
    np.testing.assert_array_equal(outputs[0], total)
    steps = np.clip(active / 0.05 + zero, -LARGEST[kind], LARGEST[kind])
    assert error(outputs[1], steps) <= (4e-2 if kind == "fp8" else 2.5e-2)
    rows = outputs[1].reshape(2, 3, *outputs[1].shape[1:])
    np.testing.assert_array_equal(outputs[2], rows[:, -2:])


@pytest.mark.parametrize("channels", [(96, 96), (192, 96), (96, 192), (384, 384), (288, 96)])
def test_packed_weights_are_all_there(channels: tuple[int, int]) -> None:
    inner, outer = channels
    weight = np.arange(outer * inner * 27).reshape(outer, inner, 3, 3, 3)
    packed = packed_weight(weight)
    assert packed.shape == ConvTiles(inner, outer).weight_shape
    np.testing.assert_array_equal(unpacked_weight(packed), weight)
    # The second row of a product is the next channel, the ninth the third.
    block, chunk = ConvTiles(inner, outer).block, ConvTiles(inner, outer).chunk
    first = packed[0, 0, 2, 5, 0, 0]
    np.testing.assert_array_equal(first[1], weight[1, :16, 2, 1, 2])
    np.testing.assert_array_equal(first[8], weight[2, :16, 2, 1, 2])
    np.testing.assert_array_equal(
        packed[-1, -1, 0, 0, 0, 1, 0], weight[-block, -chunk:][16:32, 0, 0, 0]
    )


def test_offsets_are_what_zeros_of_other_numbers_add() -> None:
    """Of the first frame's corner of a video, and of pixels whose neighbors are all there."""
    weight = np.random.default_rng(1).integers(-127, 128, (96, 96, 3, 3, 3)).astype(np.int8)
    offsets = zero_offsets(weight, -90)
    assert offsets.shape == (48, 96) and offsets.dtype == np.int32
    wide = weight.astype(np.int64)
    np.testing.assert_array_equal(offsets[0], 90 * wide.sum((1, 2, 3, 4)))
    corner = 90 * wide[:, :, 2:, 1:, 1:].sum((1, 2, 3, 4))
    np.testing.assert_array_equal(offsets[0] + offsets[16 * 2 + 1 + 4], corner)
    lone = 90 * wide[:, :, :, 1, 1].sum((1, 2))
    np.testing.assert_array_equal(offsets[0] + offsets[15], lone)


def test_low_tiles_fill_a_gpu_with_small_pictures() -> None:
    def rows(channels: int, frames: int, height: int, width: int) -> int:
        return tiles_for((channels, channels), frames, (height, width), 132).patch_rows

    assert rows(384, 3, 60, 104) == rows(384, 6, 120, 208) == 1
    assert rows(192, 12, 240, 416) == rows(96, 12, 480, 832) == 2


@pytest.mark.parametrize(
    ("flags", "changes", "message"),
    [
        ({"total": True}, {0: (2, 3, 4, 64)}, "64 channels in and 96 out: allowed are multiples"),
        ({"total": True}, {1: (1, 1, 3, 9, 1, 6, 96, 8)}, r"weight has shape"),
        ({"total": True}, {2: (1,)}, r"scale has shape \[1\]: it must be \[96\]"),
        ({"total": True}, {0: (2, 3, 96)}, r"must be \[frames, height, width, channels\]"),
        ({"total": True, "residual": True}, {}, "4 inputs: it takes x, weight, scale, bias, y"),
        ({"total": True, "batch": 3}, {}, "2 frames: they must be a multiple of the batch"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    flags: dict[str, Any], changes: dict[int, tuple[int, ...]], message: str
) -> None:
    shapes = [(2, 3, 4, 96), ConvTiles(96, 96).weight_shape, (96,), (96,)]
    for index, shape in changes.items():
        shapes[index] = shape
    with pytest.raises(PluginError, match=message):
        KERNELS["vae_conv"](**flags).output_shapes(shapes)


def test_a_norm_over_three_blocks_is_refused() -> None:
    shapes = [(2, 3, 4, 96), ConvTiles(96, 288).weight_shape, (288,), (288,), (288,)]
    with pytest.raises(PluginError, match="norm of 288 channels: allowed are 96, 192, 384"):
        KERNELS["vae_conv"](output_scale=1.0).output_shapes(shapes)


def test_a_convolution_that_makes_nothing_is_refused() -> None:
    with pytest.raises(PluginError, match="neither a total nor an output_scale"):
        KERNELS["vae_conv"]()


@pytest.mark.parametrize(
    ("compiler", "tiles"),
    [
        pytest.param("nvcc", ConvTiles(96, 96), marks=pytest.mark.exhaustive),
        ("nvrtc", ConvTiles(96, 96, norm=True)),
        ("nvcc", ConvTiles(384, 384, 1, norm=True)),
        pytest.param("nvcc", ConvTiles(288, 192), marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_sources_compile(compiler: CompilerName, tiles: ConvTiles) -> None:
    """They hold the shared memory that is counted here to what they use."""
    constants = {"LL_ELEMENT": 1, "LL_NARROW": 3, "LL_RESIDUAL": 1, "LL_SUM": 1}
    constants["LL_OFFSETS"] = int(tiles.norm)
    require_compiled("vae_conv", {**constants, **tiles.constants}, compiler)
    assert tiles.shared_bytes <= 227 * 1024


@pytest.mark.parametrize("compiler", ["nvcc", "nvrtc"])
def test_the_source_of_inputs_compiles(compiler: CompilerName) -> None:
    require_compiled("vae_quantize", {"LL_ELEMENT": 1, "LL_DIM": 96, "LL_NARROW": 3}, compiler)


@pytest.fixture
def hopper(need_gpu: Any) -> Any:
    return need_gpu((9, 0), exactly=True)


# Odd sizes, and pictures smaller than a patch.
SIZES = [(1, (1, 1)), (1, (9, 17)), (2, (16, 16)), (3, (23, 35))]
# More than two tiles for each of a GPU's multiprocessors.
LARGE = (5, (72, 88))


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("channels", [(96, 96), (192, 192), (192, 96), (96, 192)])
@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("end", ENDS)
def test_convolutions_on_the_gpu(
    end: str, history: bool, channels: tuple[int, int], kind: str
) -> None:
    flags = flags_of(end, kind, history=history, batch=2)
    for frames, size in SIZES:
        check_on_the_gpu(kind, frames, size, channels, flags)


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("channels", [(384, 384), (192, 384), (384, 192), (288, 96)])
@pytest.mark.parametrize("end", ENDS)
def test_wide_convolutions_on_the_gpu(end: str, channels: tuple[int, int], kind: str) -> None:
    flags = flags_of(end, kind, history=True, batch=2)
    for frames, size in SIZES:
        check_on_the_gpu(kind, frames, size, channels, flags)


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(
    ("channels", "kind"),
    [((96, 96), "fp8"), ((96, 96), "shifted"), ((192, 192), "shifted"), ((192, 384), "fp8")],
)
def test_more_tiles_than_multiprocessors_on_the_gpu(channels: tuple[int, int], kind: str) -> None:
    flags = flags_of("both", kind, history=True, batch=2)
    check_on_the_gpu(kind, *LARGE, channels, flags)


def check_on_the_gpu(
    kind: str,
    frames: int,
    size: tuple[int, int],
    channels: tuple[int, int],
    flags: dict[str, Any],
) -> None:
    kernel = KERNELS["vae_conv"](**flags)
    inputs, _ = conv_inputs(kind, frames, size, channels, flags)
    types = output_types(kind, flags)
    wanted = computed(kernel, inputs, *types)
    actual = launched(kernel, inputs, *(TORCH[t] for t in types), fill=float("nan"))
    for got, expected in zip(actual, wanted, strict=True):
        if expected.dtype == FLOAT16:
            allowed = sum_error(kind, channels[0])
            assert error(got, expected.astype(np.float32)) <= allowed, (frames, size)
        else:
            check_neighbors(got, expected.astype(np.float32), kind)


def sum_error(kind: str, channels_in: int) -> float:
    """Of E4M3's sums the tensor cores keep 14 bits, cut off toward zero by every instruction: what
    has one sign, as here, loses half of that each time."""
    return 4e-3 + 27 * channels_in / 32 * 2.0**-15 if kind == "fp8" else 5e-4


def check_neighbors(got: Array, expected: Array, kind: str) -> None:
    """Nothing is further off than a step, and small values than the largest sums' error."""
    step = 2 + np.abs(expected) / 8 if kind == "fp8" else 1.0
    assert np.all(np.abs(got - expected) <= step), np.abs(got - expected).max()
    assert np.mean(got != expected) <= SHARE_OF_NEIGHBORS[kind]


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("channels", [8, 96, 136, 192, 384])
@pytest.mark.parametrize(("spread", "residual"), [(False, False), (False, True), (True, False)])
def test_rounding_on_the_gpu(spread: bool, residual: bool, channels: int, kind: str) -> None:
    for frames, history, total in product((1, 2, 5), (False, True), (False, True)):
        flags = {"residual": residual, "history": history, "total": total, "spread": spread}
        zero = ZEROS["output_zero"] if kind == "shifted" else 0
        kernel = KERNELS["vae_quantize"](scale=0.02, zero=zero, batch=2, bias=True, **flags)
        size = (6, 10)
        x = (2 * frames, 4, 6, 4 * channels) if spread else (2 * frames, *size, channels)
        inputs = [random_array(x, "float16", 1, 1.5)]
        if residual:
            inputs.append(random_array(x, "float16", 2))
        inputs += [random_array((channels,), "float16", seed) for seed in (3, 4)]
        if history:
            inputs.append(rounded(activations((2, 2, *size, channels), 5), kind)[0])
        types = [FLOAT16] * total + [NARROW[kind]] * 2
        wanted = computed(kernel, inputs, *types)
        actual = launched(kernel, inputs, *(TORCH[t] for t in types), fill=float("nan"))
        for got, expected in zip(actual, wanted, strict=True):
            allowed = 4e-4 if expected.dtype == FLOAT16 else 1e-2
            assert error(got, expected.astype(np.float32)) <= allowed, flags
