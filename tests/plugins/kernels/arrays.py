"""Arrays for the VAE's kernels: random ones, what kernels make of them, and how far off that is."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import ml_dtypes
import numpy as np
import torch

from longlive_trt.basics import Array
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.streams import Gpu, Stream
from longlive_trt.plugins.cuda.tensors import as_device_tensor
from longlive_trt.plugins.kernels.base import GraphKernel

NUMPY_TYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
_BY_BYTES = {
    NUMPY_TYPES["bfloat16"]: (np.int16, torch.bfloat16),
    FLOAT8: (np.uint8, torch.float8_e4m3fn),
}
# NaN, and the one number that nothing is rounded to.
_POISON = {torch.float8_e4m3fn: 0x7F, torch.int8: 0x80}
# One rounding of a result, as a relative L2 error.
ROUNDING = {"float32": 1e-6, "float16": 4e-4, "bfloat16": 3e-3}


def random_array(shape: Sequence[int], dtype: str, seed: int, scale: float = 1.0) -> Array:
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return values.astype(NUMPY_TYPES[dtype])


def computed(
    kernel: GraphKernel, inputs: Sequence[Array], *output_types: np.dtype[Any]
) -> list[Array]:
    """Into arrays full of what must not be left there; one type is that of all outputs."""
    shapes = kernel.output_shapes([array.shape for array in inputs])
    types = cycle(output_types or [inputs[0].dtype])
    outputs = [np.full(shape, 77, dtype) for shape, dtype in zip(shapes, types, strict=False)]
    kernel.compute(inputs, outputs)
    return outputs


def planes(array: Array, batch: int = 1) -> Any:
    """[N, H, W, C] as torch's [B, C, frames, H, W] in float32."""
    tensor = torch.from_numpy(array.astype(np.float32))
    return tensor.unflatten(0, (batch, -1)).permute(0, 4, 1, 2, 3)


def pixels_last(tensor: Any) -> Any:
    return tensor.permute(0, 2, 3, 4, 1).flatten(0, 1).numpy()


def spread(pixels: Array, frames_of_place: int = 1) -> Array:
    """As a convolution leaves them that doubles height and width: four and more at a place.

    What is at a place and beyond the picture is NaN.
    """
    frames, height, width, channels = pixels.shape
    places = (frames // frames_of_place, height // 2 + 1, width // 2 + 1)
    scattered = np.full((*places, frames_of_place, 4, channels), np.nan, pixels.dtype)
    for frame, row, column in np.ndindex(frames, height, width):
        place = frame // frames_of_place, (row + 1) // 2, (column + 1) // 2
        which = 2 * (row % 2) + column % 2
        scattered[(*place, frame % frames_of_place, which)] = pixels[frame, row, column]
    return scattered.reshape(*places, -1)


def error(actual: Array, expected: Any) -> float:
    wanted = np.asarray(expected, np.float64).reshape(actual.shape)
    return float(np.linalg.norm(actual.astype(np.float64) - wanted) / np.linalg.norm(wanted))


def to_device(array: Array) -> Any:
    """torch knows some of the types by their bytes only."""
    for dtype, (plain, torch_type) in _BY_BYTES.items():
        if array.dtype == dtype:
            return torch.from_numpy(array.view(plain)).view(torch_type).cuda()
    return torch.from_numpy(array).cuda()


def launched(
    kernel: GraphKernel, inputs: Sequence[Array], *output_types: Any, fill: float = 77
) -> list[Array]:
    """Into memory full of what must not be left there; one type is that of all outputs."""
    given = [to_device(array) for array in inputs]
    shapes = kernel.output_shapes([array.shape for array in inputs])
    types = cycle(output_types or [given[0].dtype])
    outputs = [_filled(shape, dtype, fill) for shape, dtype in zip(shapes, types, strict=False)]
    views = [[as_device_tensor(t, "tensor") for t in group] for group in (given, outputs)]
    with Placement(Stream(Gpu(), torch.cuda.current_stream().cuda_stream)) as place:
        kernel.launch(views[0], views[1], place)
        torch.cuda.synchronize()
    return [t.float().cpu().numpy() for t in outputs]


def _filled(shape: Sequence[int], dtype: Any, fill: float) -> Any:
    if dtype in _POISON:
        return torch.full(shape, _POISON[dtype], dtype=torch.uint8, device="cuda").view(dtype)
    return torch.full(shape, fill, dtype=dtype, device="cuda")
