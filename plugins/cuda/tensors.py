"""One view of a device tensor, whoever owns it, and the checks that every launch wrapper shares."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from longlive_trt.dtypes import TYPES
from longlive_trt.errors import PluginError

ITEM_BYTES = {element.name: element.item_bytes for element in TYPES}
_DTYPE_NAMES = {element.numpy.name: element.name for element in TYPES}


@dataclass(frozen=True)
class DeviceTensor:
    """A pointer with a shape; strides count elements, ``device`` is the CUDA ordinal."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: int

    @classmethod
    def contiguous(
        cls, pointer: int, shape: Sequence[int], dtype: str, device: int = 0
    ) -> "DeviceTensor":
        return cls(pointer, tuple(shape), contiguous_strides(shape), dtype, device)

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[self.dtype]


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return tuple(strides)


def as_device_tensor(value: Any, name: str) -> DeviceTensor:
    """Accepts a ``DeviceTensor``, a torch tensor, or anything that speaks DLPack."""
    if isinstance(value, DeviceTensor):
        return value
    if hasattr(value, "data_ptr") and hasattr(value, "stride"):
        return _from_torch(value, name)
    if hasattr(value, "__dlpack__"):
        return _from_dlpack(value, name)
    raise PluginError(
        f"{name} is a {type(value).__name__}: pass a DeviceTensor, a torch tensor on a CUDA "
        "device, or an object with __dlpack__"
    )


def _from_torch(value: Any, name: str) -> DeviceTensor:
    if value.device.type != "cuda":
        raise PluginError(f"{name} is on {value.device}: it must be on a CUDA device")
    dtype = str(value.dtype).removeprefix("torch.")
    return DeviceTensor(
        pointer=value.data_ptr(),
        shape=tuple(value.shape),
        strides=tuple(value.stride()),
        dtype=_DTYPE_NAMES.get(dtype, dtype),
        device=value.device.index or 0,
    )


def _from_dlpack(value: Any, name: str) -> DeviceTensor:
    utils = import_module("cuda.core.utils")
    try:
        view = utils.StridedMemoryView.from_dlpack(value, stream_ptr=-1)
    except (BufferError, TypeError, RuntimeError) as error:
        raise PluginError(f"{name} cannot be read through DLPack: {error}") from error
    if not view.is_device_accessible:
        raise PluginError(f"{name} is in host memory: it must be on a CUDA device")
    shape = tuple(view.shape)
    strides = tuple(view.strides) if view.strides is not None else contiguous_strides(shape)
    dtype = _DTYPE_NAMES.get(str(view.dtype), str(view.dtype))
    return DeviceTensor(view.ptr, shape, strides, dtype, view.device_id)


def stream_handle(stream: Any, *tensors: Any) -> int:
    """The driver's handle of a stream; by default torch's current one if torch owns a tensor."""
    if stream is None:
        torch = sys.modules.get("torch")
        if torch is None:
            return 0
        owned = next((t for t in tensors if isinstance(t, torch.Tensor)), None)
        return 0 if owned is None else int(torch.cuda.current_stream(owned.device).cuda_stream)
    for attribute in ("cuda_stream", "handle"):
        if hasattr(stream, attribute):
            return int(getattr(stream, attribute))
    if isinstance(stream, int):
        return stream
    raise PluginError(
        f"stream is a {type(stream).__name__}: pass a handle, a torch stream or a cuda.core stream"
    )


def require_dtype(tensor: DeviceTensor, name: str, allowed: Sequence[str]) -> None:
    if tensor.dtype not in allowed:
        raise PluginError(f"{name} has dtype {tensor.dtype}: allowed is {' or '.join(allowed)}")


def require_rank(tensor: DeviceTensor, name: str, axes: str) -> None:
    wanted = len(axes.split(","))
    if len(tensor.shape) != wanted:
        raise PluginError(
            f"{name} has rank {len(tensor.shape)} (shape {list(tensor.shape)}): "
            f"it must have rank {wanted}, [{axes}]"
        )


def require_shape(tensor: DeviceTensor, name: str, wanted: Sequence[int | None], axes: str) -> None:
    require_rank(tensor, name, axes)
    for axis, size, expected in zip(axes.split(","), tensor.shape, wanted, strict=True):
        if expected is not None and size != expected:
            raise PluginError(
                f"{name} has shape {list(tensor.shape)}: its axis {axis.strip()} must be {expected}"
            )


def require_device(tensor: DeviceTensor, name: str, device: int) -> None:
    if tensor.device != device:
        raise PluginError(f"{name} is on cuda:{tensor.device}: it must be on cuda:{device}")


def require_alignment(tensor: DeviceTensor, name: str, alignment_bytes: int = 16) -> None:
    """The start and every stride but the last (which must be 1) are multiples of the alignment."""
    if tensor.pointer == 0:
        raise PluginError(f"{name} is a null pointer")
    if tensor.pointer % alignment_bytes:
        raise PluginError(
            f"{name} starts at address {tensor.pointer:#x}: it must be a multiple of "
            f"{alignment_bytes} bytes"
        )
    if tensor.shape[-1] > 1 and tensor.strides[-1] != 1:
        raise PluginError(
            f"{name} has stride {tensor.strides[-1]} on its last axis: it must be 1 (contiguous)"
        )
    for axis, (size, stride) in enumerate(zip(tensor.shape[:-1], tensor.strides, strict=False)):
        if size > 1 and (stride <= 0 or stride * tensor.item_bytes % alignment_bytes):
            raise PluginError(
                f"{name} has stride {stride} elements on axis {axis}: it must be positive and a "
                f"multiple of {alignment_bytes // tensor.item_bytes} ({alignment_bytes} bytes)"
            )


def require_contiguous(tensor: DeviceTensor, name: str) -> None:
    wanted = contiguous_strides(tensor.shape)
    pairs = zip(tensor.shape, tensor.strides, wanted, strict=True)
    if any(size > 1 and stride != expected for size, stride, expected in pairs):
        raise PluginError(
            f"{name} has strides {list(tensor.strides)}: it must be contiguous, {list(wanted)}"
        )
