"""What a GPU does while something runs on it, as NVIDIA's management library tells it.

The library comes with the package ``nvidia-ml-py``. Without it, without a driver or without a GPU
there is simply nothing to tell.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, Self, TypeVar

from longlive_trt.basics import Closing

Reading = TypeVar("Reading")

# Dense bf16 and fp16 rates by NVIDIA's data sheets; the first name that is part of a GPU's counts.
_PEAK_TFLOPS = {
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
}
_RATE_OF_PRECISION = {"bf16": 1, "fp16": 1, "fp8": 2, "int8": 2}


def peak_tflops(gpu_name: str, precision: str) -> float | None:
    """The tensor cores' dense rate for what a bundle multiplies in; None if it is not known."""
    rates = (rate for name, rate in _PEAK_TFLOPS.items() if name in gpu_name)
    rate, factor = next(rates, None), _RATE_OF_PRECISION.get(precision)
    return rate * factor if rate and factor else None


@dataclass(frozen=True)
class GpuReading:
    """None stands for what this GPU does not tell."""

    sm_clock_mhz: float | None
    memory_clock_mhz: float | None
    power_w: float | None
    temperature_c: float | None
    used_bytes: float | None
    """Of the whole GPU, whoever uses it."""


class GpuMonitor(Closing):
    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self.name: str = nvml.nvmlDeviceGetName(handle)
        self.driver: str = nvml.nvmlSystemGetDriverVersion()
        self.power_limit_w = self._asked(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3)

    def read(self) -> GpuReading:
        nvml, handle = self._nvml, self._handle
        return GpuReading(
            self._asked(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            self._asked(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
            self._asked(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
            self._asked(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            self._asked(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used),
        )

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def _asked(self, question: Callable[[], float]) -> float | None:
        try:
            return float(question())
        except self._nvml.NVMLError:
            return None


def open_gpu() -> GpuMonitor | None:
    """The first GPU that CUDA shows this process."""
    try:
        nvml = import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        return GpuMonitor(nvml, _first_visible(nvml))
    except nvml.NVMLError:
        return None


def _first_visible(nvml: Any) -> Any:
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(first))
    return nvml.nvmlDeviceGetHandleByUUID(first)


class Sampler(Generic[Reading]):
    """Reads something at the beginning, now and then, and at the end of its ``with`` block."""

    def __init__(self, read: Callable[[], Reading], interval_s: float) -> None:
        self._read, self._interval_s = read, interval_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="sampler", daemon=True)
        self.readings: list[Reading] = []

    def __enter__(self) -> Self:
        self.readings.append(self._read())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.readings.append(self._read())

    def _sample(self) -> None:
        while not self._over.wait(self._interval_s):
            self.readings.append(self._read())
