"""The VAE's passes over activations [batch * frames, height, width, channels], each one read and
one write: convolution inputs with norm, SiLU and history; sums; pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from longlive_trt.basics import Array
from longlive_trt.errors import PluginError
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.parameters import INT, LONG, POINTER, ParameterStruct
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.tensors import DeviceTensor
from longlive_trt.plugins.kernels.base import OneKernel, Shape
from longlive_trt.plugins.kernels.vae_tensors import (
    COLORS,
    Floats,
    activation_shape,
    gathered,
    launch_pass,
    named_inputs,
    normalized,
    picture_addresses,
    picture_shape,
    relu,
    require_channels,
    require_frames,
    require_shapes,
    silu,
    spread_shape,
    summed,
    vector_address,
)

HISTORY_FRAMES = 2
TAPS = HISTORY_FRAMES + 1
_FORMS = {"alone": 0, "stacked": 1, "extended": 2}
PIXEL_THREADS = 128
_PARTS = 3
_THREADS = 256

_HEAD_SUMS = TAPS * TAPS * COLORS
_HEAD_ROWS, _HEAD_COLUMNS = 8, 30
MAX_HEAD_CHANNELS = 96
"""What fits into the shared memory of every architecture."""


@dataclass(frozen=True)
class VaeStack(OneKernel):
    """The input of a causal convolution: x + y + bias, norm, SiLU or ReLU, and the frames before.

    Inputs: x, and in this order those that the flags name: y, bias, gamma, history. Of ``taps``
    frames, a convolution sees all but one before the first; without a ``history`` they are zeros,
    as at the start of a video. Outputs:

    * by ``form``: ``alone``, the frames; ``stacked``, each with those before it, side by side in
      the channels, earliest first; ``extended``, behind those before them, row by row;
    * unless alone, the next history [batch, taps - 1, H, W, C], which may take the old one's
      memory;
    * with ``total`` the sum before the norm.

    With ``spread`` x is what a convolution left that doubles height and width at once, four pixels
    at a place, and as many of each further one of the ``frames_of_place``:
    [frames, H / 2 + 1, W / 2 + 1, 4 C], see ``vae_tensors.gathered``. With ``beside`` y is the last
    of ``taps`` frames side by side, as this kernel stacks them.
    """

    form: str = "stacked"
    batch: int = 1
    residual: bool = False
    bias: bool = False
    norm: bool = False
    silu: bool = False
    history: bool = False
    total: bool = False
    spread: bool = False
    taps: int = TAPS
    relu: bool = False
    frames_of_place: int = 1
    beside: bool = False
    kernel: ClassVar[CudaKernel] = CudaKernel(
        "vae/vae_stack.cu",
        ParameterStruct(
            x=POINTER,
            y=POINTER,
            bias=POINTER,
            gamma=POINTER,
            history=POINTER,
            output=POINTER,
            history_next=POINTER,
            sum=POINTER,
            frames=INT,
            pixels=INT,
            width=INT,
        ),
    )

    def __post_init__(self) -> None:
        if self.form not in _FORMS:
            raise PluginError(f"vae_stack has form {self.form!r}: choose {', '.join(_FORMS)}")
        if self.history and self.form == "alone":
            raise PluginError("vae_stack has a history, and frames alone need none")
        if self.taps < 2:
            raise PluginError(f"vae_stack has {self.taps} taps: it takes two at least")

    def output_shapes(self, inputs: Sequence[Shape]) -> list[Shape]:
        shapes = self._named(inputs)
        if self.spread:
            require_frames(shapes["x"][0], self.batch)
            shapes["x"] = spread_shape(shapes["x"], self.frames_of_place)
        x = activation_shape(shapes["x"], self.batch)
        frames, height, width, channels = x
        before = self.taps - 1
        remembered = (self.batch, before, height, width, channels)
        stacked = (frames, height, width, self.taps * channels)
        expected = {
            "y": stacked if self.beside else x,
            **dict.fromkeys(("bias", "gamma"), (channels,)),
            "history": remembered,
        }
        require_shapes("vae_stack", shapes, expected)
        formed: dict[str, Shape] = {
            "alone": x,
            "stacked": stacked,
            "extended": (frames + before * self.batch, height, width, channels),
        }
        first = [formed[self.form]]
        return first + [remembered] * (self.form != "alone") + [x] * self.total

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        named = self._named(inputs)
        x = named["x"]
        shape = spread_shape(x.shape, self.frames_of_place) if self.spread else x.shape
        frames, height, width, channels = shape
        names = ("x", "y", "bias", "gamma", "history")
        remembered = outputs[1] if self.form != "alone" else None
        total = outputs[-1] if self.total else None
        parameters = {
            **{name: vector_address(named.get(name), name, x) for name in names},
            "output": vector_address(outputs[0], "output", x),
            "history_next": vector_address(remembered, "history_next", x),
            "sum": vector_address(total, "total", x),
            "frames": frames // self.batch,
            "pixels": height * width,
            "width": width,
        }
        constants = {
            "LL_DIM": channels,
            "LL_FORM": _FORMS[self.form],
            "LL_RESIDUAL": int(self.residual),
            "LL_BIAS": int(self.bias),
            "LL_NORM": int(self.norm),
            "LL_SILU": int(self.silu),
            "LL_SUM": int(self.total),
            "LL_HISTORY": int(self.history),
            "LL_SPREAD": int(self.spread),
            "LL_TAPS": self.taps,
            "LL_RELU": int(self.relu),
            "LL_FRAMES_OF_PLACE": self.frames_of_place,
            "LL_BESIDE": int(self.beside),
        }
        grid = (-(-height * width // pixels_per_block(channels)), self.batch)
        launch_pass(self.kernel, parameters, constants, x, place, grid, PIXEL_THREADS)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        named = self._named(inputs)
        if self.spread:
            named["x"] = gathered(named["x"], self.frames_of_place)
        if self.beside:
            named["y"] = np.split(named["y"], self.taps, axis=-1)[-1]
        value = summed(named)
        if self.total:
            outputs[-1][...] = value
        if self.norm:
            value = normalized(value) * named["gamma"].astype(np.float32)
        if self.silu:
            value = silu(value)
        if self.relu:
            value = relu(value)
        rows = value.reshape(self.batch, -1, *value.shape[1:]).astype(outputs[0].dtype)
        if self.form == "alone":
            outputs[0][...] = rows.reshape(value.shape)
            return
        before = named["history"] if self.history else np.zeros_like(outputs[1])
        extended = np.concatenate([before, rows], axis=1)
        formed = extended
        if self.form == "stacked":
            taps = [extended[:, tap : tap + rows.shape[1]] for tap in range(self.taps)]
            formed = np.concatenate(taps, axis=-1)
        outputs[0][...] = formed.reshape(outputs[0].shape)
        outputs[1][...] = extended[:, 1 - self.taps :]

    def _named(self, inputs: Sequence[Any]) -> dict[str, Any]:
        flags = {"y": self.residual, "bias": self.bias, "gamma": self.norm, "history": self.history}
        return named_inputs("vae_stack", flags, inputs)


@dataclass(frozen=True)
class VaeSum(OneKernel):
    """x + y + bias.

    Inputs: x, and in this order those that the flags name: y, bias. With ``interleave`` the first
    half of the channels is a frame and the second half the frame after it.
    """

    residual: bool = False
    bias: bool = False
    interleave: bool = False
    kernel: ClassVar[CudaKernel] = CudaKernel(
        "vae/vae_sum.cu",
        ParameterStruct(
            x=POINTER, y=POINTER, bias=POINTER, output=POINTER, vectors=LONG, pixels=LONG
        ),
    )

    def output_shapes(self, inputs: Sequence[Shape]) -> list[Shape]:
        shapes = self._named(inputs)
        x = activation_shape(shapes["x"], 1)
        frames, height, width, channels = x
        require_shapes("vae_sum", shapes, {"y": x, "bias": (channels,)})
        if not self.interleave:
            return [x]
        require_channels(channels // 2)
        return [(2 * frames, height, width, channels // 2)]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        named = self._named(inputs)
        x = named["x"]
        _, height, width, channels = x.shape
        vectors = math.prod(x.shape) // 8
        parameters = {
            **{name: vector_address(named.get(name), name, x) for name in ("x", "y", "bias")},
            "output": vector_address(outputs[0], "output", x),
            "vectors": vectors,
            "pixels": height * width,
        }
        constants = {
            "LL_DIM": channels,
            "LL_RESIDUAL": int(self.residual),
            "LL_BIAS": int(self.bias),
            "LL_INTERLEAVE": int(self.interleave),
        }
        grid = (-(-vectors // _THREADS),)
        launch_pass(self.kernel, parameters, constants, x, place, grid, _THREADS)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        value = summed(self._named(inputs))
        if self.interleave:
            value = np.stack(np.split(value, 2, axis=-1), axis=1)
        outputs[0][...] = value.reshape(outputs[0].shape)

    def _named(self, inputs: Sequence[Any]) -> dict[str, Any]:
        return named_inputs("vae_sum", {"y": self.residual, "bias": self.bias}, inputs)


@dataclass(frozen=True)
class VaeHead(OneKernel):
    """The last convolution, 3x3x3 into three colors, over the frames that ``extended`` leaves.

    Inputs: x [batch * (2 + frames), H, W, C] and the weight [3, 27, C]: by row of taps, and then
    by frame, column and color.
    """

    batch: int = 1
    kernel: ClassVar[CudaKernel] = CudaKernel(
        "vae/vae_head.cu",
        ParameterStruct(
            x=POINTER, weight=POINTER, output=POINTER, frames=INT, height=INT, width=INT
        ),
    )

    def output_shapes(self, inputs: Sequence[Shape]) -> list[Shape]:
        x, weight = inputs
        frames, height, width, channels = activation_shape(x, self.batch)
        require_shapes("vae_head", {"weight": weight}, {"weight": (TAPS, _HEAD_SUMS, channels)})
        if channels > MAX_HEAD_CHANNELS or frames <= HISTORY_FRAMES * self.batch:
            raise PluginError(
                f"vae_head has an input {list(x)}: it takes up to {MAX_HEAD_CHANNELS} channels, "
                f"and more than {HISTORY_FRAMES} frames for each row of the batch"
            )
        return [(frames - HISTORY_FRAMES * self.batch, height, width, COLORS)]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        x, weight = inputs
        frames, height, width, _ = outputs[0].shape
        parameters = {
            "x": vector_address(x, "x", x),
            "weight": vector_address(weight, "weight", x),
            "output": vector_address(outputs[0], "output", x),
            "frames": frames // self.batch,
            "height": height,
            "width": width,
        }
        channels = x.shape[3]
        grid = (-(-width // _HEAD_COLUMNS), -(-height // _HEAD_ROWS), self.batch)
        launch_pass(
            *(self.kernel, parameters, {"LL_DIM": channels}, x, place, grid, _THREADS),
            shared_bytes=head_shared_bytes(channels),
        )

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        x, weight = (values.astype(np.float32) for values in inputs)
        rows = x.reshape(self.batch, -1, *x.shape[1:])
        kernel = weight.reshape(TAPS, TAPS, TAPS, COLORS, -1)  # row, frame, column, color
        padded = np.pad(rows, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
        frames, height, width = rows.shape[1] - HISTORY_FRAMES, *rows.shape[2:4]
        total = np.zeros((self.batch, frames, height, width, COLORS), np.float32)
        for row, frame, column in np.ndindex(TAPS, TAPS, TAPS):
            moved = padded[:, frame:, row : row + height, column : column + width]
            total += moved[:, :frames] @ kernel[row, frame, column].T
        outputs[0][...] = total.reshape(outputs[0].shape)


@dataclass(frozen=True)
class VaePixels(OneKernel):
    """x [N, H, W, 3] + bias, from -1 to 1, as 8-bit pictures [batch, frames, H, W, 3]."""

    batch: int = 1
    kernel: ClassVar[CudaKernel] = CudaKernel(
        "vae/vae_pixels.cu", ParameterStruct(x=POINTER, bias=POINTER, output=POINTER, values=LONG)
    )

    def output_shapes(self, inputs: Sequence[Shape]) -> list[Shape]:
        frames, height, width = picture_shape("vae_pixels", inputs, self.batch)
        return [(self.batch, frames // self.batch, height, width, COLORS)]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        x, bias = inputs
        values = math.prod(x.shape)
        parameters = {**picture_addresses(x, bias, outputs[0]), "values": values}
        grid = (-(-values // (8 * _THREADS)),)
        launch_pass(self.kernel, parameters, {}, x, place, grid, _THREADS)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        unit = _clamped(inputs) / np.float32(2) + np.float32(0.5)
        outputs[0][...] = (unit * np.float32(255)).astype(np.uint8).reshape(outputs[0].shape)


@dataclass(frozen=True)
class VaeFrames(OneKernel):
    """x [N, H, W, 3] + bias, from -1 to 1, as float32 planes [batch, frames, 3, H, W]."""

    batch: int = 1
    kernel: ClassVar[CudaKernel] = CudaKernel(
        "vae/vae_frames.cu",
        ParameterStruct(x=POINTER, bias=POINTER, output=POINTER, pixels=LONG, plane=INT),
    )

    def output_shapes(self, inputs: Sequence[Shape]) -> list[Shape]:
        frames, height, width = picture_shape("vae_frames", inputs, self.batch)
        return [(self.batch, frames // self.batch, COLORS, height, width)]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        x, bias = inputs
        frames, height, width, _ = x.shape
        pixels = frames * height * width
        addresses = picture_addresses(x, bias, outputs[0])
        parameters = {**addresses, "pixels": pixels, "plane": height * width}
        grid = (-(-pixels // _THREADS),)
        launch_pass(self.kernel, parameters, {}, x, place, grid, _THREADS)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        planes = np.moveaxis(_clamped(inputs), -1, 1)
        outputs[0][...] = planes.reshape(outputs[0].shape)


@dataclass(frozen=True)
class VaeZeros(OneKernel):
    """The history [batch, 2, H, W, C] of a convolution that has not seen its input x yet."""

    batch: int = 1
    kernel: ClassVar[CudaKernel] = CudaKernel(
        "vae/vae_zeros.cu", ParameterStruct(output=POINTER, vectors=LONG)
    )

    def output_shapes(self, inputs: Sequence[Shape]) -> list[Shape]:
        (x,) = inputs
        return [(self.batch, HISTORY_FRAMES, *activation_shape(x, self.batch)[1:])]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        (x,), (target,) = inputs, outputs
        vectors = math.prod(target.shape) // 8
        parameters = {"output": vector_address(target, "output", x), "vectors": vectors}
        grid = (-(-vectors // _THREADS),)
        launch_pass(self.kernel, parameters, {}, x, place, grid, _THREADS)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        outputs[0][...] = np.zeros_like(outputs[0])


def head_shared_bytes(channels: int) -> int:
    """A tile of pixels, the weights, and the sums that warps exchange, as csrc/vae/vae_head.cu."""
    pitch = -(-channels // 16) * 32 + 16
    pixels, weights = (_HEAD_ROWS + 2) * (_HEAD_COLUMNS + 2), TAPS * 32
    return (pixels + weights) * pitch + _HEAD_ROWS * 32 * TAPS * COLORS * 4


def pixels_per_block(channels: int) -> int:
    """As csrc/vae/pixel.cuh shares a block's threads out."""
    lanes = 1
    while lanes < 32 and -(-channels // 8 // lanes) > _PARTS:
        lanes *= 2
    return PIXEL_THREADS // lanes


def _clamped(inputs: Sequence[Array]) -> Floats:
    x, bias = (values.astype(np.float32) for values in inputs)
    result: Floats = np.clip(x + bias, np.float32(-1), np.float32(1))
    return result
