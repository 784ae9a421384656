"""The VAE's passes: what they mean against plain torch, and on a GPU against what they mean."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F

from longlive_trt.basics import Array
from longlive_trt.errors import PluginError
from longlive_trt.export.models.vae import to_pixels
from longlive_trt.export.models.vae_layers import ChannelNorm, Histories, _interleave
from longlive_trt.plugins.cuda.compilation import CompilerName
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.streams import Gpu, Stream
from longlive_trt.plugins.cuda.tensors import as_device_tensor
from longlive_trt.plugins.kernels.registry import KERNELS
from longlive_trt.plugins.kernels.vae import (
    MAX_HEAD_CHANNELS,
    head_shared_bytes,
    pixels_per_block,
)
from tests.plugins.kernels.arrays import (
    NUMPY_TYPES,
    ROUNDING,
    computed,
    error,
    launched,
    pixels_last,
    planes,
    random_array,
    spread,
    to_device,
)
from tests.plugins.kernels.sources import require_compiled

HALVES = ("float16", "bfloat16")
CHANNELS = (8, 16, 24, 48, 96, 136, 192, 384)

STACKS: dict[str, dict[str, Any]] = {
    "first convolution": {"bias": True},
    "block": {"bias": True, "norm": True, "silu": True, "history": True},
    "second block": {
        **dict.fromkeys(("residual", "bias", "norm", "silu", "history", "total"), True)
    },
    "attention": {"form": "alone", "residual": True, "bias": True, "norm": True, "total": True},
    "temporal": {"residual": True, "bias": True, "history": True},
    "head": {
        "form": "extended",
        **dict.fromkeys(("residual", "bias", "norm", "silu", "history"), True),
    },
    "first head": {"form": "extended", "bias": True, "norm": True, "silu": True},
    # The tiny decoder's.
    "entrance": {"taps": 2, "bias": True, "relu": True, "history": True},
    "first entrance": {"taps": 2, "bias": True, "relu": True},
    "inside a block": {"taps": 2, "form": "alone", "bias": True, "relu": True},
    "between blocks": {
        "taps": 2,
        **dict.fromkeys(("residual", "beside", "bias", "relu", "history"), True),
    },
    "last block": {
        "taps": 2,
        "form": "alone",
        **dict.fromkeys(("residual", "beside", "bias", "relu"), True),
    },
}


def stack_inputs(
    frames: int, size: tuple[int, int], channels: int, dtype: str, flags: dict[str, Any]
) -> list[Array]:
    batch, taps = flags.get("batch", 1), flags.get("taps", 3)
    x = (batch * frames, *size, channels)
    shapes = {
        "residual": (*x[:3], taps * channels) if flags.get("beside") else x,
        "bias": (channels,),
        "norm": (channels,),
        "history": (batch, taps - 1, *size, channels),
    }
    present = [shape for flag, shape in shapes.items() if flags.get(flag)]
    return [random_array(s, dtype, seed, 1.5) for seed, s in enumerate([x, *present])]


def plain_stack(inputs: list[Array], flags: dict[str, Any]) -> tuple[Any, Any, Any]:
    """What is formed, the next history, and the sum, as the torch decoder computes them."""
    batch, rest = flags.get("batch", 1), list(inputs[1:])
    value = planes(inputs[0], batch)
    if flags.get("residual"):
        value = value + planes(rest.pop(0), batch)[:, -value.shape[1] :]
    if flags.get("bias"):
        value = value + torch.from_numpy(rest.pop(0).astype(np.float32)).reshape(-1, 1, 1, 1)
    active = value
    if flags.get("norm"):
        norm = ChannelNorm(value.shape[1])
        with torch.no_grad():
            norm.gamma.copy_(torch.from_numpy(rest.pop(0).astype(np.float32)).reshape(-1, 1, 1, 1))
            active = norm(value)
    if flags.get("silu"):
        active = F.silu(active)
    if flags.get("relu"):
        active = F.relu(active)
    form = flags.get("form", "stacked")
    if form == "alone":
        return pixels_last(active), None, pixels_last(value)
    previous = None
    if flags.get("history"):
        previous = [planes(rest[0].reshape(-1, *rest[0].shape[2:]), batch)]
    taps, frames = flags.get("taps", 3), active.shape[2]
    if taps == 3:
        histories = Histories(previous)
        extended = histories.prepend(active)
        renewed = histories.renewed[0]
    else:
        before = previous[0] if previous else torch.zeros_like(active[:, :, :1])
        extended, renewed = torch.cat([before, active], dim=2), active[:, :, -1:]
    formed = extended
    if form == "stacked":
        formed = torch.cat([extended[:, :, tap : tap + frames] for tap in range(taps)], dim=1)
    return pixels_last(formed), pixels_last(renewed), pixels_last(value)


@pytest.mark.parametrize("dtype", NUMPY_TYPES)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("case", STACKS)
def test_a_stack_is_what_the_convolution_sees(
    case: str, frames: int, batch: int, dtype: str
) -> None:
    flags = {**STACKS[case], "batch": batch}
    inputs = stack_inputs(frames, (3, 5), 16, dtype, flags)
    outputs = computed(KERNELS["vae_stack"](**flags), inputs)
    formed, history, total = plain_stack(inputs, flags)
    assert error(outputs[0], formed) <= ROUNDING[dtype]
    if history is not None:
        assert error(outputs[1], history) <= ROUNDING[dtype]
    if flags.get("total"):
        assert error(outputs[-1], total) <= ROUNDING[dtype]
    assert len(outputs) == 1 + (history is not None) + bool(flags.get("total"))


def test_a_stack_of_silent_pixels_is_silent() -> None:
    flags = {"form": "alone", "norm": True, "silu": True}
    inputs = [np.zeros((1, 2, 2, 8), np.float16), np.ones(8, np.float16)]
    assert not computed(KERNELS["vae_stack"](**flags), inputs)[0].any()


@pytest.mark.parametrize("dtype", NUMPY_TYPES)
@pytest.mark.parametrize("residual", [False, True])
def test_sums_are_those_of_a_stack(residual: bool, dtype: str) -> None:
    flags = {"residual": residual, "bias": True}
    inputs = stack_inputs(2, (3, 5), 8, dtype, flags)
    (output,) = computed(KERNELS["vae_sum"](**flags), inputs)
    summed = plain_stack(inputs, {**flags, "form": "alone"})[2]
    assert error(output, summed) <= ROUNDING[dtype]


def test_sums_unpack_pairs_of_frames() -> None:
    flags = {"bias": True, "interleave": True}
    inputs = stack_inputs(4, (2, 3), 16, "float32", {**flags, "batch": 2})[:1]
    inputs = [*inputs, random_array((16,), "float32", 9)]
    (output,) = computed(KERNELS["vae_sum"](**flags), inputs)
    wanted = _interleave(planes(inputs[0] + inputs[1], batch=2))
    assert output.shape == (16, 2, 3, 8)
    np.testing.assert_array_equal(output, pixels_last(wanted))


def spread_inputs(
    frames: int, size: tuple[int, int], channels: int, dtype: str, flags: dict[str, Any]
) -> tuple[list[Array], list[Array]]:
    """A spread x with other inputs; and the same with its pixels in their places."""
    dense = stack_inputs(frames, size, channels, dtype, flags)
    return [spread(dense[0], flags.get("frames_of_place", 1)), *dense[1:]], dense


SPREAD = {**STACKS["block"], "total": True}
SPREADS = {
    "of Wan's": SPREAD,
    "of the tiny one's": {"taps": 2, "history": True, "frames_of_place": 2},
    "a first one": {"taps": 2, "frames_of_place": 2},
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", [(2, 2), (4, 6), (6, 2)])
@pytest.mark.parametrize("case", SPREADS)
def test_a_stack_gathers_what_is_spread(case: str, size: tuple[int, int], batch: int) -> None:
    flags = {**SPREADS[case], "batch": batch}
    scattered, dense = spread_inputs(4, size, 8, "float16", flags)
    found = computed(KERNELS["vae_stack"](**{**flags, "spread": True}), scattered)
    for one, other in zip(found, computed(KERNELS["vae_stack"](**flags), dense), strict=True):
        np.testing.assert_array_equal(one, other)


def head_inputs(batch: int, frames: int, size: tuple[int, int], channels: int, dtype: str) -> Any:
    x = random_array((batch * (2 + frames), *size, channels), dtype, 1)
    return [x, random_array((3, 27, channels), dtype, 2, 0.2)]


@pytest.mark.parametrize("dtype", NUMPY_TYPES)
def test_the_head_is_a_convolution(dtype: str) -> None:
    inputs = head_inputs(2, 3, (4, 5), 8, dtype)
    (output,) = computed(KERNELS["vae_head"](batch=2), inputs)
    # [row, frame, column, color, channel] to torch's [color, channel, frame, row, column]
    weight = inputs[1].astype(np.float32).reshape(3, 3, 3, 3, 8).transpose(3, 4, 1, 0, 2)
    wanted = F.conv3d(planes(inputs[0], 2), torch.from_numpy(weight.copy()), padding=(0, 1, 1))
    assert output.shape == (6, 4, 5, 3)
    assert error(output, pixels_last(wanted)) <= ROUNDING[dtype]


def test_the_head_fits_into_the_shared_memory_of_every_architecture() -> None:
    smallest = 99 * 1024  # of a block, on 8.6 and 8.9
    assert head_shared_bytes(MAX_HEAD_CHANNELS) <= smallest < head_shared_bytes(112)


@pytest.mark.parametrize("dtype", HALVES)
def test_pictures_are_those_of_the_reference(dtype: str) -> None:
    x, bias = random_array((6, 5, 7, 3), dtype, 1), random_array((3,), dtype, 2, 0.2)
    frames = computed(KERNELS["vae_frames"](batch=2), [x, bias], np.dtype(np.float32))
    pixels = computed(KERNELS["vae_pixels"](batch=2), [x, bias], np.dtype(np.uint8))
    raw = torch.from_numpy(x.astype(np.float32) + bias.astype(np.float32))
    raw = raw.unflatten(0, (2, 3)).permute(0, 1, 4, 2, 3)
    np.testing.assert_array_equal(frames[0], raw.clamp(-1, 1).numpy())
    np.testing.assert_array_equal(pixels[0], to_pixels(raw).numpy())


def test_an_empty_history_is_zero() -> None:
    x = random_array((2, 3, 4, 16), "float16", 1)
    (history,) = computed(KERNELS["vae_zeros"](batch=2), [x])
    assert history.shape == (2, 2, 3, 4, 16)
    assert not history.any()


@pytest.mark.parametrize(
    ("name", "flags", "shapes", "message"),
    [
        ("vae_stack", {"bias": True}, [(2, 3, 4, 8)], "1 inputs: it takes x, bias"),
        ("vae_stack", {}, [(2, 3, 4, 12)], "12 channels: allowed are multiples of 8"),
        ("vae_stack", {"batch": 2}, [(3, 3, 4, 8)], "3 frames: they must be a multiple"),
        ("vae_stack", {"bias": True}, [(2, 3, 4, 8), (16,)], r"bias has shape \[16\]"),
        ("vae_stack", {}, [(2, 3, 8)], r"must be \[frames, height, width, channels\]"),
        ("vae_stack", {"spread": True}, [(2, 3, 4, 8)], "2 channels"),
        ("vae_stack", {"spread": True}, [(2, 1, 4, 32)], "two rows and columns at least"),
        ("vae_stack", {"spread": True, "frames_of_place": 2}, [(2, 3, 4, 36)], "for 8 pixels"),
        (
            *("vae_stack", {"spread": True, "frames_of_place": 2, "batch": 2}, [(1, 3, 4, 64)]),
            "1 frames: they must be a multiple",
        ),
        ("vae_stack", {"residual": True, "beside": True}, [(2, 3, 4, 8)] * 2, "y has shape"),
        ("vae_stack", {"spread": True, "residual": True}, [(2, 3, 4, 32)] * 2, "y has shape"),
        ("vae_sum", {"interleave": True}, [(2, 3, 4, 8)], "4 channels"),
        ("vae_sum", {"residual": True}, [(2, 3, 4, 8), (1, 3, 4, 8)], "y has shape"),
        ("vae_head", {}, [(3, 3, 4, 104), (3, 27, 104)], "up to 96 channels"),
        ("vae_head", {}, [(2, 3, 4, 8), (3, 27, 8)], "more than 2 frames for each row"),
        ("vae_head", {}, [(3, 3, 4, 8), (27, 8)], r"weight has shape \[27, 8\]"),
        ("vae_pixels", {}, [(2, 3, 4, 8), (3,)], "it takes .* a bias of 3"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    name: str, flags: dict[str, Any], shapes: list[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(PluginError, match=message):
        KERNELS[name](**flags).output_shapes(shapes)


@pytest.mark.parametrize(
    "flags", [{"form": "tall"}, {"form": "alone", "history": True}, {"taps": 1}]
)
def test_stacks_that_make_no_sense_are_refused(flags: dict[str, Any]) -> None:
    message = r"choose alone, stacked|frames alone need none|1 taps: it takes two at least"
    with pytest.raises(PluginError, match=message):
        KERNELS["vae_stack"](**flags)


@pytest.mark.parametrize(("channels", "pixels"), [(8, 128), (96, 32), (192, 16), (384, 8)])
def test_threads_are_shared_out_as_in_the_kernel(channels: int, pixels: int) -> None:
    assert pixels_per_block(channels) == pixels


SOURCES = {
    "vae_stack": {"LL_DIM": 96},
    "vae_sum": {"LL_DIM": 384},
    "vae_head": {"LL_DIM": 96},
    "vae_pixels": {},
    "vae_frames": {},
    "vae_zeros": {},
}


@pytest.mark.parametrize("compiler", ["nvcc", "nvrtc"])
@pytest.mark.parametrize("entry", SOURCES)
def test_sources_compile(entry: str, compiler: CompilerName) -> None:
    require_compiled(entry, {"LL_ELEMENT": 1, **SOURCES[entry]}, compiler)


@pytest.fixture
def gpu(need_gpu: Any) -> Any:
    return need_gpu((8, 0))


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("case", STACKS)
def test_stacks_on_the_gpu(case: str, channels: int, dtype: str) -> None:
    flags = {**STACKS[case], "batch": 2}
    kernel = KERNELS["vae_stack"](**flags)
    for frames, size in ((1, (3, 5)), (2, (1, 1)), (5, (7, 9))):
        inputs = stack_inputs(frames, size, channels, dtype, flags)
        wanted = computed(kernel, inputs)
        actual = launched(kernel, inputs, fill=float("nan"))
        for index, (got, expected) in enumerate(zip(actual, wanted, strict=True)):
            assert error(got, expected.astype(np.float32)) <= ROUNDING[dtype], (frames, index)


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("channels", [8, 48, 64, 96, 192, 384])
@pytest.mark.parametrize("case", SPREADS)
def test_spread_stacks_on_the_gpu(case: str, channels: int, dtype: str) -> None:
    flags = {**SPREADS[case], "batch": 2, "spread": True}
    kernel = KERNELS["vae_stack"](**flags)
    for frames, size in ((2, (2, 2)), (6, (6, 10))):
        inputs, _ = spread_inputs(frames, size, channels, dtype, flags)
        wanted = computed(kernel, inputs)
        actual = launched(kernel, inputs, fill=float("nan"))
        for index, (got, expected) in enumerate(zip(actual, wanted, strict=True)):
            assert error(got, expected.astype(np.float32)) <= ROUNDING[dtype], (frames, index)


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("case", ["block", "between blocks"])
def test_a_history_may_be_renewed_in_place(case: str) -> None:
    flags = STACKS[case]
    kernel = KERNELS["vae_stack"](**flags)
    for frames in (1, 2, 3):
        inputs = stack_inputs(frames, (6, 7), 96, "float16", flags)
        stacked, renewed = computed(kernel, inputs)
        given = [to_device(array) for array in inputs]
        output = torch.full(stacked.shape, float("nan"), dtype=torch.float16, device="cuda")
        views = [as_device_tensor(t, "tensor") for t in [*given, output]]
        with Placement(Stream(Gpu(), torch.cuda.current_stream().cuda_stream)) as place:
            kernel.launch(views[:-1], [views[-1], views[-2]], place)
            torch.cuda.synchronize()
        assert error(output.cpu().numpy(), stacked) <= ROUNDING["float16"]
        assert error(given[-1].cpu().numpy(), renewed) <= ROUNDING["float16"]


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("channels", [16, 48, 192, 384])
@pytest.mark.parametrize(
    "flags",
    [{}, {"bias": True}, {"residual": True, "bias": True}, {"bias": True, "interleave": True}],
)
def test_sums_on_the_gpu(flags: dict[str, bool], channels: int, dtype: str) -> None:
    kernel = KERNELS["vae_sum"](**flags)
    inputs = stack_inputs(3, (5, 13), channels, dtype, flags)
    (actual,) = launched(kernel, inputs, fill=float("nan"))
    np.testing.assert_array_equal(actual, computed(kernel, inputs)[0].astype(np.float32))


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("channels", [8, 16, 24, 64, 96])
@pytest.mark.parametrize("size", [(1, 1), (8, 30), (11, 67)])
def test_the_head_on_the_gpu(size: tuple[int, int], channels: int, dtype: str) -> None:
    kernel = KERNELS["vae_head"](batch=2)
    for frames in (1, 2, 4):
        inputs = head_inputs(2, frames, size, channels, dtype)
        (actual,) = launched(kernel, inputs, fill=float("nan"))
        wanted = computed(kernel, inputs)[0].astype(np.float32)
        assert error(actual, wanted) <= ROUNDING[dtype], frames


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 24)])
def test_pictures_on_the_gpu(size: tuple[int, int], dtype: str) -> None:
    inputs = [random_array((4, *size, 3), dtype, 1), random_array((3,), dtype, 2, 0.2)]
    for name, numpy_type, torch_type in (
        ("vae_pixels", np.uint8, torch.uint8),
        ("vae_frames", np.float32, torch.float32),
    ):
        kernel = KERNELS[name](batch=2)
        (actual,) = launched(kernel, inputs, torch_type)
        np.testing.assert_array_equal(actual, computed(kernel, inputs, np.dtype(numpy_type))[0])


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
def test_an_empty_history_on_the_gpu() -> None:
    kernel = KERNELS["vae_zeros"](batch=1)
    (actual,) = launched(kernel, [random_array((2, 5, 7, 24), "float16", 1)], fill=float("nan"))
    assert not actual.any()
