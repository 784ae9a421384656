"""The VAE's convolutions in eight bits, and what makes their inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from longlive_trt.basics import Array
from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.variants import EIGHT_BIT, ELEMENTS
from longlive_trt.plugins.cuda.driver import device_facts, tensor_map
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.parameters import FLOAT, INT, POINTER, ParameterStruct, opaque
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.tensors import DeviceTensor, require_dtype
from longlive_trt.plugins.kernels.base import OneKernel, Shape
from longlive_trt.plugins.kernels.conv_tiles import (
    NORM_WIDTHS,
    OFFSET_ROWS,
    TAPS,
    WIDTH_MULTIPLE,
    ConvTiles,
    packed_weight,
    tiles_for,
    unpacked_weight,
)
from longlive_trt.plugins.kernels.rows import narrowed
from longlive_trt.plugins.kernels.vae import HISTORY_FRAMES, PIXEL_THREADS, pixels_per_block
from longlive_trt.plugins.kernels.vae_tensors import (
    HALVES,
    Floats,
    activation_shape,
    gathered,
    launch_pass,
    named_inputs,
    normalized,
    require_shapes,
    silu,
    spread_shape,
    summed,
    vector_address,
)

__all__ = ["VaeConv", "VaeQuantize", "packed_weight", "takes_widths"]

_MAP = opaque(128, alignment_bytes=64)
_NO_MAP = bytes(128)
_THREADS = 384
_LARGEST_INT8 = 127


def takes_widths(channels_in: int, channels_out: int) -> bool:
    """Whether the convolution has a kernel."""
    return channels_in % WIDTH_MULTIPLE == 0 and channels_out % WIDTH_MULTIPLE == 0


def makes_norm(channels_out: int) -> bool:
    """Whether it can go on to the norm over its output's channels."""
    return channels_out in NORM_WIDTHS


@dataclass(frozen=True)
class VaeQuantize(OneKernel):
    """The input of a quantized convolution: x + y + bias, norm and SiLU, in units of ``scale``.
    ``zero`` stands for zero.

    Inputs: x, and in this order those that the flags name: y, bias; gamma; with ``history`` the two
    frames before. Outputs: with ``total`` the sum before the norm; the frames, and the next history
    [batch, 2, H, W, C], in eight bits both. ``spread`` is that of ``VaeStack``.
    """

    scale: float
    zero: int = 0
    batch: int = 1
    residual: bool = False
    bias: bool = False
    history: bool = False
    total: bool = False
    spread: bool = False
    kernel: ClassVar[CudaKernel] = CudaKernel(
        "vae/vae_quantize.cu",
        ParameterStruct(
            x=POINTER,
            y=POINTER,
            bias=POINTER,
            gamma=POINTER,
            history=POINTER,
            output=POINTER,
            history_next=POINTER,
            sum=POINTER,
            factor=FLOAT,
            frames=INT,
            pixels=INT,
            width=INT,
            zero=INT,
        ),
    )

    def output_shapes(self, inputs: Sequence[Shape]) -> list[Shape]:
        shapes = self._named(inputs)
        if self.spread:
            shapes["x"] = spread_shape(shapes["x"])
        x = activation_shape(shapes["x"], self.batch)
        remembered = history_shape(x, self.batch)
        vectors = dict.fromkeys(("bias", "gamma"), x[3:])
        require_shapes("vae_quantize", shapes, {"y": x, **vectors, "history": remembered})
        return [x] * self.total + [x, remembered]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        named, narrow = self._named(inputs), outputs[-2]
        x = named["x"]
        require_dtype(narrow, "output", EIGHT_BIT)
        frames, height, width, channels = narrow.shape
        parameters = {
            **{n: vector_address(named.get(n), n, x) for n in ("x", "y", "bias", "gamma")},
            "history": vector_address(named.get("history"), "history", narrow),
            "output": vector_address(narrow, "output", narrow),
            "history_next": vector_address(outputs[-1], "history_next", narrow),
            "sum": vector_address(outputs[0] if self.total else None, "total", x),
            "factor": 1.0 / self.scale,
            "frames": frames // self.batch,
            "pixels": height * width,
            "width": width,
            "zero": self.zero,
        }
        constants = {
            "LL_DIM": channels,
            "LL_NARROW": ELEMENTS[narrow.dtype],
            "LL_RESIDUAL": int(self.residual),
            "LL_BIAS": int(self.bias),
            "LL_NORM": 1,
            "LL_SILU": 1,
            "LL_SUM": int(self.total),
            "LL_HISTORY": 1,
            "LL_SPREAD": int(self.spread),
        }
        grid = (-(-height * width // pixels_per_block(channels)), self.batch)
        launch_pass(self.kernel, parameters, constants, x, place, grid, PIXEL_THREADS)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        named = self._named(inputs)
        if self.spread:
            named["x"] = gathered(named["x"])
        value = summed(named)
        if self.total:
            outputs[0][...] = value
        _activate(value, named, (self.scale, self.zero), named.get("history"), outputs[-2:])

    def _named(self, inputs: Sequence[Any]) -> dict[str, Any]:
        flags = {"y": self.residual, "bias": self.bias, "gamma": True, "history": self.history}
        return named_inputs("vae_quantize", flags, inputs)


@dataclass(frozen=True)
class VaeConv(OneKernel):
    """A causal 3x3x3 convolution of frames in eight bits, and what follows it.

    Inputs: x [batch * frames, H, W, in], the weight (``conv_tiles.packed_weight``), the scale of
    each output channel's sums in float32, the bias; and in this order those that the flags name:
    with an ``input_zero``, ``conv_tiles.zero_offsets``; y, which is added (``residual``); gamma, if
    there is an ``output_scale``; with ``history`` the two frames before x [batch, 2, H, W, in], and
    those before the output if it is in eight bits.

    Outputs: with ``total`` the sum in 16 bits; with ``output_scale`` the next convolution's input
    in units of that, after norm and SiLU, and its next history. ``output_zero`` stands for zero
    there, as ``input_zero`` does in x.
    """

    batch: int = 1
    residual: bool = False
    history: bool = False
    total: bool = False
    output_scale: float | None = None
    output_zero: int = 0
    input_zero: int = 0
    kernel: ClassVar[CudaKernel] = CudaKernel(
        "vae/vae_conv.cu",
        ParameterStruct(
            frames=_MAP,
            history=_MAP,
            weights=POINTER,
            scale=POINTER,
            offsets=POINTER,
            bias=POINTER,
            gamma=POINTER,
            residual=POINTER,
            kept=POINTER,
            sum=POINTER,
            output=POINTER,
            history_next=POINTER,
            factor=FLOAT,
            has_history=INT,
            batch=INT,
            frames_of_row=INT,
            height=INT,
            width=INT,
            blocks=INT,
            zero=INT,
        ),
    )

    def __post_init__(self) -> None:
        if not self.total and self.output_scale is None:
            raise PluginError("vae_conv has neither a total nor an output_scale: it makes nothing")

    def output_shapes(self, inputs: Sequence[Shape]) -> list[Shape]:
        shapes = self._named(inputs)
        x = activation_shape(shapes["x"], self.batch)
        channels_out = shapes["bias"][-1]
        self._require_widths(x[3], channels_out)
        made = (*x[:3], channels_out)
        vectors = dict.fromkeys(("scale", "bias", "gamma"), (channels_out,))
        expected = {
            "weight": ConvTiles(x[3], channels_out).weight_shape,
            **vectors,
            "offsets": (OFFSET_ROWS, channels_out),
            "y": made,
            "history": history_shape(x, self.batch),
            "kept": history_shape(made, self.batch),
        }
        require_shapes("vae_conv", shapes, expected)
        narrow = [made, history_shape(made, self.batch)]
        return [made] * self.total + (narrow if self._is_narrow else [])

    def _require_widths(self, channels_in: int, channels_out: int) -> None:
        if not takes_widths(channels_in, channels_out):
            raise PluginError(
                f"vae_conv has {channels_in} channels in and {channels_out} out: allowed are "
                f"multiples of {WIDTH_MULTIPLE}"
            )
        if self._is_narrow and not makes_norm(channels_out):
            raise PluginError(
                f"vae_conv takes the norm of {channels_out} channels: allowed are "
                f"{', '.join(map(str, NORM_WIDTHS))}"
            )

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        named = self._named(inputs)
        x, bias = named["x"], named["bias"]
        require_dtype(x, "x", EIGHT_BIT)
        require_dtype(bias, "bias", HALVES)
        require_dtype(named["scale"], "scale", ["float32"])
        if self.input_zero:
            require_dtype(x, "x", ["int8"])
            require_dtype(named["offsets"], "offsets", ["int32"])
        frames, *size, channels_in = x.shape
        channels, multiprocessors = (channels_in, bias.shape[0]), _multiprocessors(place)
        tiles = tiles_for(
            channels, frames, (size[0], size[1]), multiprocessors, norm=self._is_narrow
        )
        workers = min(multiprocessors, tiles.units(frames, size[0], size[1]))
        self.kernel.launch(
            self._parameters(named, outputs, tiles),
            grid=(workers // tiles.blocks * tiles.blocks,),
            threads=_THREADS,
            constants={**tiles.constants, **self._constants(x, bias)},
            device=place.device,
            stream=place.stream.handle,
            shared_bytes=tiles.shared_bytes,
        )

    def _constants(self, x: DeviceTensor, bias: DeviceTensor) -> dict[str, int]:
        return {
            "LL_ELEMENT": ELEMENTS[bias.dtype],
            "LL_NARROW": ELEMENTS[x.dtype],
            "LL_RESIDUAL": int(self.residual),
            "LL_SUM": int(self.total),
            "LL_OFFSETS": int(self.input_zero != 0),
        }

    def _parameters(
        self, named: dict[str, DeviceTensor], outputs: Sequence[DeviceTensor], tiles: ConvTiles
    ) -> dict[str, Any]:
        x, bias, history = named["x"], named["bias"], named.get("history")
        output, history_next = outputs[-2:] if self._is_narrow else (None, None)
        frames, height, width, _ = x.shape
        return {
            "frames": _frames_map(x, tiles),
            "history": _NO_MAP if history is None else _frames_map(history, tiles),
            "weights": vector_address(named["weight"], "weight", x),
            "scale": named["scale"].pointer,
            "offsets": named["offsets"].pointer if self.input_zero else 0,
            **{n: vector_address(named.get(n), n, bias) for n in ("bias", "gamma")},
            "residual": vector_address(named.get("y"), "y", bias),
            "kept": vector_address(named.get("kept"), "kept", x),
            "sum": vector_address(outputs[0] if self.total else None, "total", bias),
            "output": vector_address(output, "output", x),
            "history_next": vector_address(history_next, "history_next", x),
            "factor": 1.0 / (self.output_scale or 1.0),
            "has_history": int(self.history),
            "batch": self.batch,
            "frames_of_row": frames // self.batch,
            "height": height,
            "width": width,
            "blocks": tiles.blocks,
            "zero": self.output_zero,
        }

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        named = self._named(inputs)
        sums = _convolved(named, self.batch, self.input_zero)
        value = summed({**named, "x": sums * named["scale"]})
        if self.total:
            outputs[0][...] = value
        if self.output_scale is not None:
            steps = self.output_scale, self.output_zero
            _activate(value, named, steps, named.get("kept"), outputs[-2:])

    @property
    def _is_narrow(self) -> bool:
        return self.output_scale is not None

    def _named(self, inputs: Sequence[Any]) -> dict[str, Any]:
        flags = {
            **dict.fromkeys(("weight", "scale", "bias"), True),
            "offsets": self.input_zero != 0,
            "y": self.residual,
            "gamma": self._is_narrow,
            "history": self.history,
            "kept": self.history and self._is_narrow,
        }
        return named_inputs("vae_conv", flags, inputs)


def history_shape(x: Shape, batch: int) -> Shape:
    return (batch, HISTORY_FRAMES, *x[1:])


def _multiprocessors(place: Placement) -> int:
    return device_facts(place.device).multiprocessors


def _frames_map(frames: DeviceTensor, tiles: ConvTiles) -> bytes:
    """Pieces of 16 channels as an axis of their own, all frames in a row."""
    *count, height, width, channels = frames.shape
    piece = tiles.box[0]
    sizes = (piece, width, height, channels // piece, int(np.prod(count)))
    strides = (channels, width * channels, piece, height * width * channels)
    return tensor_map(1, frames.pointer, sizes, strides, tiles.box)


def _convolved(named: dict[str, Array], batch: int, zero: int) -> Floats:
    """In float32, without the scales."""
    x, packed = named["x"], named["weight"]
    rows = x.reshape(batch, -1, *x.shape[1:]).astype(np.float32) - zero
    before = np.zeros_like(rows[:, :1], shape=history_shape(x.shape, batch))
    if "history" in named:
        before[...] = named["history"].astype(np.float32) - zero
    extended = np.concatenate([before, rows], axis=1)
    padded = np.pad(extended, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    weight = unpacked_weight(packed).astype(np.float32)
    frames, height, width = rows.shape[1:4]
    sums = np.zeros((rows[..., 0].size, weight.shape[0]), np.float32)
    for time, row, column in np.ndindex(TAPS, TAPS, TAPS):
        seen = padded[:, time : time + frames, row : row + height, column : column + width]
        sums += seen.reshape(-1, x.shape[-1]) @ weight[:, :, time, row, column].T
    pixels: Floats = sums.reshape(*x.shape[:3], -1)
    return pixels


def _activate(
    value: Floats,
    named: dict[str, Array],
    steps: tuple[float, int],
    history: Array | None,
    outputs: Sequence[Array],
) -> None:
    """Norm, SiLU and rounding; and the last two frames, of this pass or before it.

    ``steps``: their size, and how many of them stand for zero.
    """
    frames, history_next = outputs
    active = silu(normalized(value) * named["gamma"].astype(np.float32))
    frames[...] = _rounded(active, *steps, frames.dtype)
    rows = frames.reshape(history_next.shape[0], -1, *frames.shape[1:])
    before = np.full_like(history_next, steps[1]) if history is None else history
    history_next[...] = np.concatenate([before, rows], axis=1)[:, -HISTORY_FRAMES:]


def _rounded(value: Floats, scale: float, zero: int, dtype: np.dtype[Any]) -> Array:
    if dtype == np.int8:
        steps = np.rint(value / np.float32(scale)) + zero
        whole: Array = np.clip(steps, -_LARGEST_INT8, _LARGEST_INT8).astype(np.int8)
        return whole
    return narrowed(value, scale)
