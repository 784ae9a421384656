"""The only place that talks to the CUDA driver: devices, loaded kernels, tensor maps, launches."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

from ..errors import PluginError
from .compilation import BinaryKind, KernelSource, compile_kernel


@dataclass(frozen=True)
class DeviceFacts:
    ordinal: int
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_bytes_per_block: int


@cache
def device_facts(ordinal: int = 0) -> DeviceFacts:
    core = _import("cuda.core")
    try:
        device = core.Device(ordinal)
        device.set_current()
    except Exception as error:  # cuda.core raises private types
        raise PluginError(f"no CUDA device {ordinal} can be used: {error}") from error
    capability = device.compute_capability
    return DeviceFacts(
        ordinal=ordinal,
        name=device.name,
        capability=(capability.major, capability.minor),
        multiprocessors=device.properties.multiprocessor_count,
        shared_bytes_per_block=device.properties.max_shared_memory_per_block_optin,
    )


def architecture_of(capability: tuple[int, int]) -> str:
    """What to compile for: Hopper's own instructions on 9.0, plain machine code elsewhere."""
    if capability == (9, 0):
        return "sm_90a"
    if capability in ((8, 0), (8, 6), (8, 9), (10, 0)):
        return f"sm_{capability[0]}{capability[1]}"
    raise PluginError(
        f"compute capability {capability[0]}.{capability[1]} is not supported: "
        "allowed are 8.0, 8.6, 8.9, 9.0 and 10.0"
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

    The swizzle is as wide as the box's first axis.
    """
    driver = _import("cuda.bindings.driver")
    swizzles = driver.CUtensorMapSwizzle
    swizzle = {
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
    """Zeroed device memory that lives as long as this object."""

    def __init__(self, size_bytes: int, ordinal: int) -> None:
        driver = _import("cuda.bindings.driver")
        device_facts(ordinal)
        _import("cuda.core").Device(ordinal).set_current()
        self.size_bytes = size_bytes
        self.pointer = int(check(driver.cuMemAlloc(size_bytes), f"allocate {size_bytes} bytes"))
        check(driver.cuMemsetD8(self.pointer, 0, size_bytes), "clear a workspace")
        # Clearing is queued on the default stream, which other streams need not wait for.
        check(driver.cuStreamSynchronize(0), "clear a workspace")

    def close(self) -> None:
        if self.pointer:
            _import("cuda.bindings.driver").cuMemFree(self.pointer)
            self.pointer = 0

    def __del__(self) -> None:
        try:
            self.close()
        except (ImportError, PluginError, TypeError):  # the interpreter is shutting down
            self.pointer = 0


def check(result: tuple[Any, ...], what: str) -> Any:
    """Unpacks a driver call's result; the only place where return codes are looked at."""
    status, *values = result
    if int(status) != 0:
        raise PluginError(f"CUDA could not {what}: {status.name} ({int(status)})")
    return values[0] if len(values) == 1 else tuple(values)


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
