"""The end of a decoder without taps in time: what is spread, as pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longlive_trt.basics import Array
from longlive_trt.errors import PluginError
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.parameters import INT, POINTER, ParameterStruct
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.tensors import DeviceTensor, require_dtype
from longlive_trt.plugins.kernels.base import OneKernel, Shape
from longlive_trt.plugins.kernels.vae_tensors import (
    COLORS,
    Floats,
    activation_shape,
    gathered,
    launch_pass,
    relu,
    require_frames,
    require_shapes,
    spread_shape,
    vector_address,
)

_TAPS = 3
SUMS = _TAPS * _TAPS * COLORS
MAX_COLORS_CHANNELS = 480
"""What fits into the shared memory of every architecture."""
_COLUMNS, _ROWS = 30, 32
"""That a warp makes."""
_WARPS = 4


@dataclass(frozen=True)
class VaeColors(OneKernel):
    """ReLU of a spread x, 3x3 into three colors, plus bias, from 0 to 1.

    Inputs: x [frames, H / 2 + 1, W / 2 + 1, frames of a place * 4 C] (``vae_tensors.gathered``),
    the weight [27, C], by row, column and color, and the bias [3]. The output: float32 planes
    [batch, frames, 3, H, W] or, if it makes ``pictures``, 8 bits [batch, frames, H, W, 3]. The
    first ``skipped`` frames of each row of the batch are left out.
    """

    pictures: bool
    batch: int = 1
    frames_of_place: int = 1
    skipped: int = 0
    kernel: ClassVar[CudaKernel] = CudaKernel(
        "vae/vae_colors.cu",
        ParameterStruct(
            **dict.fromkeys(("x", "weight", "bias", "output"), POINTER),
            **dict.fromkeys(("frames", "skipped", "height", "width", "strips", "rows"), INT),
        ),
    )

    def output_shapes(self, inputs: Sequence[Shape]) -> list[Shape]:
        x, weight, bias = inputs
        require_frames(x[0], self.batch)
        shape = activation_shape(spread_shape(x, self.frames_of_place), self.batch)
        frames, height, width, channels = shape
        given = {"weight": weight, "bias": bias}
        require_shapes("vae_colors", given, {"weight": (SUMS, channels), "bias": (COLORS,)})
        made = frames // self.batch - self.skipped
        if channels > MAX_COLORS_CHANNELS or made < 1:
            raise PluginError(
                f"vae_colors has an input {list(x)}: it takes up to {MAX_COLORS_CHANNELS} "
                f"channels, and more than {self.skipped} frames for each row of the batch"
            )
        frame = (height, width, COLORS) if self.pictures else (COLORS, height, width)
        return [(self.batch, made, *frame)]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        (x, weight, bias), (output,) = inputs, outputs
        require_dtype(output, "output", ["uint8" if self.pictures else "float32"])
        frames, height, width, channels = spread_shape(x.shape, self.frames_of_place)
        made = frames - self.batch * self.skipped
        strips = -(-width // _COLUMNS)
        parameters = {
            "x": vector_address(x, "x", x),
            "weight": vector_address(weight, "weight", x),
            "bias": bias.pointer,
            "output": output.pointer,
            "frames": x.shape[0] // self.batch,
            "skipped": self.skipped,
            "height": height,
            "width": width,
            "strips": strips,
            "rows": _ROWS,
        }
        constants = {
            "LL_DIM": channels,
            "LL_FRAMES_OF_PLACE": self.frames_of_place,
            "LL_PICTURES": int(self.pictures),
        }
        blocks = -(-strips * -(-height // _ROWS) // _WARPS)
        grid = (blocks, made)
        launch_pass(
            *(self.kernel, parameters, constants, x, place, grid, 32 * _WARPS),
            shared_bytes=colors_shared_bytes(channels),
        )

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        x, weight, bias = inputs
        pixels = relu(gathered(x, self.frames_of_place).astype(np.float32))
        shown = pixels.reshape(self.batch, -1, *pixels.shape[1:])[:, self.skipped :]
        kernel = weight.astype(np.float32).reshape(_TAPS, _TAPS, COLORS, -1)
        unit = np.clip(_convolved(shown, kernel) + bias.astype(np.float32), 0, 1)
        if self.pictures:
            outputs[0][...] = (unit * np.float32(255)).astype(np.uint8)
        else:
            outputs[0][...] = np.moveaxis(unit, -1, 2)


def colors_shared_bytes(channels: int) -> int:
    """The weights in the order of each of three rows, and sums that lanes exchange."""
    quads = -(-channels // 32)
    return _TAPS * 4 * quads * 32 * 16 + _WARPS * 32 * _TAPS * COLORS * 4


def _convolved(frames: Floats, kernel: Floats) -> Floats:
    height, width = frames.shape[2:4]
    padded = np.pad(frames, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    total = np.zeros((*frames.shape[:4], COLORS), np.float32)
    for row, column in np.ndindex(_TAPS, _TAPS):
        moved = padded[:, :, row : row + height, column : column + width]
        total += moved @ kernel[row, column].T
    return total
