"""Device and pinned memory of imagined GPUs, all of it in this process."""

from bisect import bisect_right, insort
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Kind = Literal["device", "pinned"]

_ALIGNMENT_BYTES = 512
_GARBAGE = 0xFF
"""What memory holds that was not written, or was freed: not a number, in every float type."""


class Status(IntEnum):
    """As many of the driver's return codes as happen here."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_NOT_READY = 600
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class RefusedError(Exception):
    def __init__(self, status: Status) -> None:
        self.status = status


class IllegalAddressError(Exception):
    pass


@dataclass(order=True)
class _Allocation:
    start: int
    memory: Bytes = field(compare=False)
    kind: Kind = field(compare=False)
    device: int = field(compare=False)
    is_live: bool = field(default=True, compare=False)


class Memory:
    """What was freed stays mapped, filled with garbage, so that a stray access is no crash."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.taken_by_others_bytes = 0
        self._all: list[_Allocation] = []

    def allocate(self, size_bytes: int, kind: Kind, device: int = 0) -> int:
        if kind == "device" and size_bytes > self.free_on(device):
            raise RefusedError(Status.CUDA_ERROR_OUT_OF_MEMORY)
        raw = np.full(size_bytes + _ALIGNMENT_BYTES, _GARBAGE, np.uint8)
        offset = -raw.ctypes.data % _ALIGNMENT_BYTES
        start = raw.ctypes.data + offset
        memory = raw[offset : offset + size_bytes]
        insort(self._all, _Allocation(start, memory, kind, device))
        return start

    def free(self, start: int, kind: Kind) -> None:
        found = self._holder(start)
        if found is None or (found.start, found.kind, found.is_live) != (start, kind, True):
            raise RefusedError(Status.CUDA_ERROR_INVALID_VALUE)
        found.is_live = False
        found.memory[:] = _GARBAGE

    def at(
        self, pointer: int, size_bytes: int, kind: Kind = "device", device: int | None = None
    ) -> Bytes:
        """``device``: which one touches it; no other may touch device memory."""
        found = self._holder(pointer)
        if found is None or not found.is_live or found.kind != kind:
            raise IllegalAddressError(f"{pointer:#x} is not {kind} memory in use")
        if kind == "device" and device not in (None, found.device):
            raise IllegalAddressError(f"{pointer:#x} is memory of device {found.device}")
        begin = pointer - found.start
        if begin + size_bytes > len(found.memory):
            raise IllegalAddressError(f"{size_bytes} bytes from {pointer:#x} on leave their place")
        return found.memory[begin : begin + size_bytes]

    def is_pinned(self, pointer: int) -> bool:
        found = self._holder(pointer)
        return found is not None and found.kind == "pinned"

    def live(self, kind: Kind, device: int | None = None) -> list[int]:
        """The sizes of what is in use, by all devices or by one."""
        return [
            len(a.memory)
            for a in self._all
            if a.is_live and a.kind == kind and device in (None, a.device)
        ]

    def free_on(self, device: int) -> int:
        """Every device has the same capacity."""
        return self.capacity_bytes - self.taken_by_others_bytes - sum(self.live("device", device))

    def _holder(self, pointer: int) -> _Allocation | None:
        index = bisect_right(self._all, pointer, key=lambda allocation: allocation.start) - 1
        found = self._all[index] if index >= 0 else None
        return found if found and pointer < found.start + max(len(found.memory), 1) else None
