"""What the management library tells, with a pretended one; and that its absence harms nothing."""

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from longlive_trt.plugins.cuda.nvml import GpuReading, Sampler, open_gpu, peak_tflops


class NvmlError(Exception):
    pass


class Nvml(SimpleNamespace):
    """One GPU that does not tell its temperature."""

    NVMLError = NvmlError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self) -> None:
        super().__init__(opened=[], asked=[], is_shut=False)

    def nvmlInit(self) -> None:  # noqa: N802
        self.opened.append("library")

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.is_shut = True

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return self._open(index)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if not uuid:
            raise NvmlError("not found")
        return self._open(uuid)

    def _open(self, name: object) -> str:
        self.opened.append(name)
        return "handle"

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlDeviceGetName": "NVIDIA H200",
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetPowerUsage": 654_321,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=1 << 33),
        }
        if name == "nvmlSystemGetDriverVersion":
            return lambda: "580.65"
        if name == "nvmlDeviceGetClockInfo":
            return lambda _handle, kind: {1: 1980, 2: 3201}[kind]
        if name in answers:
            return lambda _handle: answers[name]
        return self._refused

    @staticmethod
    def _refused(*_: object) -> None:
        raise NvmlError("not supported")


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    pretended = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", pretended)  # type: ignore[arg-type]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return pretended


def test_what_a_gpu_tells_and_what_it_does_not(nvml: Nvml) -> None:
    gpu = open_gpu()
    assert gpu is not None
    with gpu:
        assert (gpu.name, gpu.driver, gpu.power_limit_w) == ("NVIDIA H200", "580.65", 700)
        assert gpu.read() == GpuReading(1980, 3201, 654.321, None, 1 << 33)
        assert not nvml.is_shut
    assert nvml.is_shut


@pytest.mark.parametrize(
    ("visible", "opened"), [(None, 0), ("2,0", 2), ("GPU-1f2e,GPU-3", "GPU-1f2e"), ("", None)]
)
def test_the_gpu_is_the_first_that_cuda_shows(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch, visible: str | None, opened: object
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert (open_gpu() is None) == (opened is None)
    assert nvml.opened[1:] == ([] if opened is None else [opened])


def test_no_library_and_no_driver(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Nvml, "nvmlInit", Nvml._refused)
    assert open_gpu() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_gpu() is None


@pytest.mark.parametrize(
    ("gpu", "precision", "peak"),
    [
        ("NVIDIA H200", "bf16", 989),
        ("NVIDIA H200", "fp8", 1978),
        ("NVIDIA H200 NVL", "fp16", 835),
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "int8", 1512),
        ("NVIDIA H200", "fp32", None),
        ("NVIDIA GeForce 256", "bf16", None),
    ],
)
def test_known_peaks(gpu: str, precision: str, peak: float | None) -> None:
    assert peak_tflops(gpu, precision) == peak


def test_a_sampler_reads_at_both_ends_and_between() -> None:
    count = iter(range(1_000_000))
    with Sampler(lambda: next(count), interval_s=0.005) as sampler:
        assert sampler.readings[0] == 0
        deadline = time.monotonic() + 10
        while len(sampler.readings) < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
    taken = list(sampler.readings)
    assert len(taken) >= 5 and taken == list(range(len(taken)))
    time.sleep(0.03)
    assert sampler.readings == taken


def test_a_short_stretch_is_read_twice() -> None:
    with Sampler(time.monotonic, interval_s=60) as sampler:
        pass
    assert len(sampler.readings) == 2
