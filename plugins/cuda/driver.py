"""The only place that talks to the CUDA driver: devices, loaded kernels, tensor maps, launches."""

import ctypes
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from typing import Any, Self

from longlive_trt.architectures import WITH_KERNELS, Architecture
from longlive_trt.errors import EngineError, LongLiveError, LostGpuError, PluginError
from longlive_trt.plugins.cuda.compilation import BinaryKind, KernelSource, compile_kernel

_LOST = frozenset({214, 220, 226, 700, 702, 709, 710, *range(714, 720), 721, 999})
"""Faults after which every call to the driver fails until the process ends."""
_LOST_REMEDY = (
    "the GPU gave up what this process runs there; start again, and if that ends the same way, run "
    "it under compute-sanitizer, which names the kernel at fault"
)
_LITTLE_MEMORY_BYTES = 256 << 20
_SIGNS_OF_FULL_MEMORY = ("out of memory", "out_of_memory", "allocate memory", "alloc_failed")
_MEMORY_REMEDY = "close what else uses the GPU, or make fewer or smaller videos at once"


class _Thread(threading.local):
    def __init__(self) -> None:
        self.devices: set[int] = set()
        """Those whose contexts were made current."""


_thread = _Thread()
_devices: set[int] = set()
"""Those that this process uses."""


@dataclass(frozen=True)
class DeviceFacts:
    ordinal: int
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_bytes_per_block: int

    @property
    def architecture(self) -> Architecture:
        return Architecture.of(self.capability)


@cache
def device_facts(ordinal: int = 0) -> DeviceFacts:
    core = _import("cuda.core")
    try:
        device = core.Device(ordinal)
        device.set_current()
    except Exception as error:  # cuda.core raises private types
        raise PluginError(f"no CUDA device {ordinal} can be used: {error}") from error
    _note(ordinal)
    capability = device.compute_capability
    return DeviceFacts(
        ordinal=ordinal,
        name=device.name,
        capability=(capability.major, capability.minor),
        multiprocessors=device.properties.multiprocessor_count,
        shared_bytes_per_block=device.properties.max_shared_memory_per_block_optin,
    )


def make_current(ordinal: int) -> None:
    """A thread that talks to the driver does this first; again costs nothing.

    Of several devices the last one is current, and libraries choose as they like: then each call
    chooses anew.
    """
    if ordinal not in _thread.devices or len(_devices) > 1:
        facts = device_facts(ordinal)
        try:
            _import("cuda.core").Device(ordinal).set_current()
        except Exception as error:  # cuda.core raises private types
            raise LostGpuError(
                f"{facts.name} cannot be used any more ({error}): {_LOST_REMEDY}"
            ) from error
        _note(ordinal)


def _note(ordinal: int) -> None:
    """The device's context is this thread's now."""
    _thread.devices.add(ordinal)
    _devices.add(ordinal)


def give_back(ordinal: int, name: str, handle: int) -> None:
    """Call a driver's function that frees something, on whatever thread lets go of it.

    There is nothing to free, and nothing to tell, where the context is lost. Of several devices
    the one that was current is so again: Python may let go of something in the middle of what a
    library does on another.
    """
    driver = _import("cuda.bindings.driver")
    before = driver.cuCtxGetCurrent()[1] if len(_devices) > 1 else None
    try:
        make_current(ordinal)
    except LostGpuError:
        return
    getattr(driver, name)(handle)
    if before is not None:
        driver.cuCtxSetCurrent(before)


def architecture_of(capability: tuple[int, int]) -> str:
    """What to compile for."""
    architecture = Architecture.of(capability)
    if architecture in WITH_KERNELS:
        return architecture.compiled
    *others, last = (known.capability for known in WITH_KERNELS)
    raise PluginError(
        f"compute capability {architecture.capability} is not supported: allowed are "
        f"{', '.join(others)} and {last}"
    )


@dataclass(frozen=True)
class LoadedKernel:
    handle: int
    owner: Any  # keeps the module in memory

    def launch(
        self,
        grid: Sequence[int],
        block: int,
        shared_bytes: int,
        stream: int,
        parameters: bytes | Sequence[Any],
    ) -> None:
        """``parameters``: one struct by value as bytes, or a list of ctypes scalars."""
        values = _parameter_values(parameters)
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        driver = _import("cuda.bindings.driver")
        x, y, z = (*grid, 1, 1)[:3]
        check(
            driver.cuLaunchKernel(
                driver.CUfunction(self.handle),
                *(x, y, z, block, 1, 1, shared_bytes),
                driver.CUstream(stream),
                ctypes.addressof(addresses),
                0,
            ),
            "launch a kernel",
        )


@cache
def load_kernel(
    file: str, entry: str, constants: tuple[tuple[str, int], ...], shared_bytes: int, ordinal: int
) -> LoadedKernel:
    source = KernelSource(file, entry, dict(constants))
    binary = compile_kernel(source, architecture_of(device_facts(ordinal).capability))
    return load_image(binary, "cubin", entry, shared_bytes, ordinal)


def load_image(
    image: bytes, kind: BinaryKind, entry: str, shared_bytes: int, ordinal: int
) -> LoadedKernel:
    facts = device_facts(ordinal)
    if shared_bytes > facts.shared_bytes_per_block:
        raise PluginError(
            f"{entry} needs {shared_bytes} bytes of shared memory: {facts.name} offers "
            f"{facts.shared_bytes_per_block}"
        )
    core, driver = _import("cuda.core"), _import("cuda.bindings.driver")
    core.Device(ordinal).set_current()
    read = core.ObjectCode.from_cubin if kind == "cubin" else core.ObjectCode.from_ptx
    try:
        code = read(image)
        kernel = code.get_kernel(entry)
    except Exception as error:  # cuda.core raises private types
        raise PluginError(f"{entry} cannot be loaded on {facts.name}: {error}") from error
    limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    device = check(driver.cuDeviceGet(ordinal), "open a device")
    check(
        driver.cuKernelSetAttribute(
            limit, shared_bytes, driver.CUkernel(int(kernel.handle)), device
        ),
        f"reserve {shared_bytes} bytes of shared memory",
    )
    return LoadedKernel(int(kernel.handle), (code, kernel))


@lru_cache(maxsize=4096)
def tensor_map(
    item_bytes: int,
    pointer: int,
    sizes: tuple[int, ...],
    strides_bytes: tuple[int, ...],
    box: tuple[int, ...],
) -> bytes:
    """A copy-engine descriptor: fastest axis first, zeros beyond the tensor.

    The swizzle is as wide as the box's first axis; sixteen bytes need none.
    """
    driver = _import("cuda.bindings.driver")
    swizzles = driver.CUtensorMapSwizzle
    swizzle = {
        16: swizzles.CU_TENSOR_MAP_SWIZZLE_NONE,
        32: swizzles.CU_TENSOR_MAP_SWIZZLE_32B,
        64: swizzles.CU_TENSOR_MAP_SWIZZLE_64B,
        128: swizzles.CU_TENSOR_MAP_SWIZZLE_128B,
    }[box[0] * item_bytes]
    kinds = driver.CUtensorMapDataType
    kind = {
        1: kinds.CU_TENSOR_MAP_DATA_TYPE_UINT8,
        2: kinds.CU_TENSOR_MAP_DATA_TYPE_UINT16,
    }[item_bytes]
    encoded = check(
        driver.cuTensorMapEncodeTiled(
            kind,
            len(sizes),
            pointer,
            [driver.cuuint64_t(size) for size in sizes],
            [driver.cuuint64_t(stride) for stride in strides_bytes],
            [driver.cuuint32_t(extent) for extent in box],
            [driver.cuuint32_t(1)] * len(sizes),
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        ),
        f"describe a tensor of sizes {list(sizes)} and strides {list(strides_bytes)} bytes",
    )
    return ctypes.string_at(int(encoded.getPtr()), 128)


class DeviceMemory:
    """A stretch of device memory, until it is closed or nobody holds it.

    ``zeroed`` waits for the GPU; otherwise the memory holds whatever it held before.
    """

    def __init__(
        self,
        size_bytes: int,
        ordinal: int,
        what: str = "a workspace",
        *,
        zeroed: bool = True,
        before_close: Callable[[], None] | None = None,
    ) -> None:
        self.pointer, self._ordinal = 0, ordinal
        self.size_bytes, self._before_close = max(size_bytes, 1), before_close
        make_current(ordinal)
        driver = _import("cuda.bindings.driver")
        result = driver.cuMemAlloc(self.size_bytes)
        if result[0] == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            free_bytes, _ = check(driver.cuMemGetInfo(), "read the free memory")
            raise EngineError(
                f"{what}: {readable(self.size_bytes)} of GPU memory are needed, and "
                f"{readable(free_bytes)} are free on {device_facts(ordinal).name}; {_MEMORY_REMEDY}"
            )
        self.pointer = int(check(result, f"allocate {what}"))
        if zeroed:
            check(driver.cuMemsetD8(self.pointer, 0, self.size_bytes), f"clear {what}")
            # Clearing is queued on the default stream, which other streams need not wait for.
            check(driver.cuStreamSynchronize(0), f"clear {what}")

    def close(self) -> None:
        if self.pointer:
            if self._before_close is not None:
                self._before_close()
            self._free()

    def _free(self) -> None:
        give_back(self._ordinal, "cuMemFree", self.pointer)
        self.pointer = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            if self.pointer:
                self._free()
        except (ImportError, PluginError, RuntimeError, TypeError):
            # The interpreter is shutting down.
            self.pointer = 0


def check(result: tuple[Any, ...], what: str) -> Any:
    """Unpacks a driver call's result; the only place where return codes are looked at."""
    status, *values = result
    code = int(status)
    if code:
        message = f"CUDA could not {what}: {status.name} ({code})"
        if code in _LOST:
            raise LostGpuError(f"{message}: {_LOST_REMEDY}")
        if status.name == "CUDA_ERROR_OUT_OF_MEMORY":
            raise PluginError(f"{message}: {_MEMORY_REMEDY}")
        raise PluginError(message)
    return values[0] if len(values) == 1 else tuple(values)


def failure(ordinal: int, message: str) -> LongLiveError:
    """An error of a library, right after it, with what the driver knows of its cause."""
    make_current(ordinal)
    status, free_bytes, _ = _import("cuda.bindings.driver").cuMemGetInfo()
    if int(status) in _LOST:
        return LostGpuError(f"{message} ({status.name}): {_LOST_REMEDY}")
    is_full = int(status) == 0 and free_bytes < _LITTLE_MEMORY_BYTES
    if is_full or any(sign in message.lower() for sign in _SIGNS_OF_FULL_MEMORY):
        free = f"{readable(free_bytes)} of GPU memory are free"
        return EngineError(f"{message}; {free}: {_MEMORY_REMEDY}")
    return EngineError(f"{message}; `longlive-trt -vv` tells more")


def readable(size_bytes: int) -> str:
    unit, name = (2**30, "GiB") if size_bytes >= 2**28 else (2**20, "MiB")
    return f"{size_bytes / unit:.2f} {name}"


def _import(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise PluginError(
            f"{module} cannot be imported ({error}): install the packages cuda-core and "
            "cuda-bindings"
        ) from error


def _parameter_values(parameters: bytes | Sequence[Any]) -> list[Any]:
    if isinstance(parameters, bytes):
        return [ctypes.create_string_buffer(parameters, len(parameters))]
    return list(parameters)
