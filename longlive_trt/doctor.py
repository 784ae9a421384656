"""What this machine can do, piece by piece, and the command that adds what is missing."""

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from longlive_trt import __version__
from longlive_trt.architectures import Architecture
from longlive_trt.console.wording import counted
from longlive_trt.extras import engine_command, engine_extra, install_command
from longlive_trt.probes import (
    CUDA_DRIVER,
    H264_ENCODERS,
    ONNXRUNTIME_PROVIDERS,
    ProbeError,
    child_answer,
    command_output,
    has_nvidia_gpu,
    installed_version,
)

GIB = 1024**3
GPU_QUERY_LIMIT_S = 10.0
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
INSTALL_DRIVER = "sudo ubuntu-drivers install  # or your distribution's NVIDIA driver package"

Status = Literal["ok", "missing", "problem"]


@dataclass(frozen=True)
class Finding:
    piece: str
    status: Status
    detail: str
    remedy: str | None = None


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_bytes: int
    capability: str
    driver: str | None = None

    def __str__(self) -> str:
        return (
            f"{self.name}, {self.memory_bytes / GIB:.0f} GiB, compute capability {self.capability}"
        )


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver's answer: its GPUs, and the newest CUDA it can run."""

    gpus: tuple[Gpu, ...]
    cuda: str | None
    complaint: str


def examine() -> list[Finding]:
    """Every finding, in the order in which they are shown."""
    with ThreadPoolExecutor(max_workers=len(_PROBES)) as pool:
        return [finding for findings in pool.map(_ask, _PROBES) for finding in findings]


def _ask(probe: "Probe") -> list[Finding]:
    # A report about a broken machine must not itself break on it: the failure is a finding.
    try:
        return list(probe.ask())
    except Exception as error:
        return [Finding(probe.piece, "problem", f"could not be examined: {error}")]


def _python() -> Iterable[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        yield Finding("Python", "ok", f"{version} ({sys.executable})")
    else:
        detail = f"{version}; 3.11 to 3.13 is needed"
        yield Finding(
            "Python", "problem", detail, "sudo apt-get install python3.12 python3.12-venv"
        )
    yield Finding("longlive-trt", "ok", f"{__version__} ({Path(__file__).parent})")


def _machine() -> Iterable[Finding]:
    memory = psutil.virtual_memory()
    yield Finding("CPU", "ok", counted(len(os.sched_getaffinity(0)), "core"))
    yield Finding(
        "memory",
        "ok",
        f"{memory_limit(memory.total) / GIB:.1f} GiB, {memory.available / GIB:.1f} GiB free",
    )
    free = shutil.disk_usage(Path.cwd()).free
    yield Finding("disk", "ok", f"{free / GIB:.1f} GiB free in {Path.cwd()}")


def memory_limit(total_bytes: int) -> int:
    """A container may be allowed less than the machine has."""
    try:
        return min(total_bytes, int(MEMORY_LIMIT.read_text()))
    except (OSError, ValueError):
        return total_bytes


def _export() -> Iterable[Finding]:
    yield _package("torch", "torch", install_command("export"))
    yield _package("onnxscript", "onnxscript", install_command("export"))


def _package(piece: str, distribution: str, remedy: str, *also: str) -> Finding:
    """One piece that counts as present only when all its distributions are."""
    versions = {name: installed_version(name) for name in (distribution, *also)}
    absent = [name for name, version in versions.items() if version is None]
    if not absent:
        return Finding(piece, "ok", str(versions[distribution]))
    detail = "not installed" if len(absent) == len(versions) else f"no {', '.join(absent)}"
    return Finding(piece, "missing" if distribution in absent else "problem", detail, remedy)


def _onnx() -> Iterable[Finding]:
    yield _package("onnx", "onnx", "pip install onnx")


def _onnxruntime() -> Iterable[Finding]:
    cpu, gpu = installed_version("onnxruntime"), installed_version("onnxruntime-gpu")
    if not (cpu or gpu):
        yield Finding("onnxruntime", "missing", "not installed", install_command(engine_extra()))
        return
    try:
        providers = child_answer(ONNXRUNTIME_PROVIDERS)
    except ProbeError as error:
        remedy = engine_command("gpu" if gpu else "cpu")
        yield Finding("onnxruntime", "problem", f"{gpu or cpu}: {error}", remedy)
        return
    names = ", ".join(name.removesuffix("ExecutionProvider") for name in providers)
    detail = f"{gpu or cpu}, providers: {names}"
    if gpu and "CUDAExecutionProvider" not in providers:
        yield Finding("onnxruntime", "problem", f"{detail}; no CUDA", engine_command("gpu"))
    else:
        yield Finding("onnxruntime", "ok", detail)


def _gpu() -> Iterable[Finding]:
    driver = ask_driver()
    if driver.gpus:
        yield from _describe_gpus(driver)
    elif has_nvidia_gpu():
        yield Finding("GPU", "problem", "an NVIDIA GPU is there, but gives no answer", None)
        yield Finding("NVIDIA driver", "missing", driver.complaint, INSTALL_DRIVER)
    else:
        yield Finding("GPU", "missing", "no NVIDIA GPU; engines run on the CPU")
        yield Finding("NVIDIA driver", "missing", driver.complaint)


def _describe_gpus(driver: Driver) -> Iterable[Finding]:
    for gpu in driver.gpus:
        yield Finding("GPU", "ok", str(gpu))
    version = driver.gpus[0].driver or "version unknown"
    runs = f", runs CUDA up to {driver.cuda}" if driver.cuda else ""
    yield Finding("NVIDIA driver", "ok", version + runs)


def ask_driver() -> Driver:
    """Through nvidia-smi where there is one, else through the driver's library."""
    cuda, gpus, complaint = None, [], "not installed"
    try:
        answer = child_answer(CUDA_DRIVER, GPU_QUERY_LIMIT_S)
        cuda, gpus = answer["cuda"], [Gpu(*fields) for fields in answer["gpus"]]
        complaint = "installed, but shows no GPU"
    except ProbeError as error:
        if "libcuda.so.1" not in str(error):
            complaint = f"libcuda: {error}"
    smi = shutil.which("nvidia-smi")
    if smi:
        try:
            gpus = _gpus_of_smi(smi)
        except ProbeError as error:
            complaint = str(error)
    return Driver(tuple(gpus), cuda, complaint)


def _gpus_of_smi(smi: str) -> list[Gpu]:
    fields = "name,memory.total,compute_cap,driver_version"
    query = [smi, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    lines = command_output(query, GPU_QUERY_LIMIT_S).splitlines()
    return [_parse_smi(line) for line in lines if line]


def _parse_smi(line: str) -> Gpu:
    try:
        name, memory_mib, text, driver = (field.strip() for field in line.rsplit(",", 3))
        capability = Architecture.of_capability(text).capability
        return Gpu(name, int(memory_mib) * 1024**2, capability, driver)
    except ValueError as error:
        raise ProbeError(f"nvidia-smi said {line!r}, which is not a GPU") from error


def _gpu_packages() -> Iterable[Finding]:
    has_cpu_engine = installed_version("onnxruntime") is not None
    add_gpu = engine_command("gpu") if has_cpu_engine else install_command("gpu")
    yield _package("cuda-python", "cuda-bindings", add_gpu, "cuda-core")
    yield _tensorrt()
    rtx = ("tensorrt-rtx-cu13-libs", install_command("tensorrt-rtx"), "tensorrt-rtx-cu13-bindings")
    yield _package("TensorRT-RTX", *rtx)
    modelopt = ("nvidia-modelopt", install_command("quantize"), "requests", "huggingface-hub")
    yield _package("ModelOpt", *modelopt)


def _tensorrt() -> Finding:
    from_system = installed_version("tensorrt")
    if from_system and installed_version("tensorrt-cu13-libs") is None:
        return Finding("TensorRT", "ok", f"{from_system}, from the system's packages")
    parts = ("tensorrt-cu13-bindings", "tensorrt-cu13")
    return _package("TensorRT", "tensorrt-cu13-libs", install_command("tensorrt"), *parts)


def _nvcc() -> Iterable[Finding]:
    remedy = "sudo apt-get install nvidia-cuda-toolkit  # or NVIDIA's CUDA Toolkit"
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        yield Finding("nvcc", "missing", "not found", remedy)
        return
    try:
        version = command_output([nvcc, "--version"]).partition("release ")[2].partition(",")[0]
        yield Finding("nvcc", "ok", f"{version or 'version unknown'} ({nvcc})")
    except ProbeError as error:
        yield Finding("nvcc", "problem", str(error), remedy)


def _video() -> Iterable[Finding]:
    version = installed_version("av")
    remedy = "pip install --force-reinstall --only-binary :all: av"
    if version is None:
        yield Finding("video (PyAV)", "missing", "not installed", "pip install av")
        return
    try:
        encoders = child_answer(H264_ENCODERS)
    except ProbeError as error:
        yield Finding("video (PyAV)", "problem", f"{version}: {error}", remedy)
        return
    if "libx264" in encoders:
        yield Finding("video (PyAV)", "ok", f"{version}, encoders: {', '.join(encoders)}")
    else:
        yield Finding("video (PyAV)", "problem", f"{version}, without libx264", remedy)


@dataclass(frozen=True)
class Probe:
    piece: str
    ask: Callable[[], Iterable[Finding]]


_PROBES = (
    Probe("Python", _python),
    Probe("machine", _machine),
    Probe("onnx", _onnx),
    Probe("onnxruntime", _onnxruntime),
    Probe("video (PyAV)", _video),
    Probe("torch", _export),
    Probe("GPU", _gpu),
    Probe("GPU packages", _gpu_packages),
    Probe("nvcc", _nvcc),
)
