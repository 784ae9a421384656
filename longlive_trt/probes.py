"""Questions to the machine that always come back: each has a time limit and never raises.

A broken driver can hang whoever asks, and a broken library can end its process. So whatever is not
plain Python is asked in a child process.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

TIME_LIMIT_S = 20.0
PCI_DEVICES = Path("/sys/bus/pci/devices")
NVIDIA_PCI_VENDOR = "0x10de"


class ProbeError(Exception):
    """The machine gave no usable answer; the message says why, in a few words."""


def installed_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def has_nvidia_gpu() -> bool:
    """Whether the hardware is there; its driver may not be."""
    vendors = PCI_DEVICES.glob("*/vendor")
    return any(vendor.read_text().strip() == NVIDIA_PCI_VENDOR for vendor in vendors)


def command_output(command: Sequence[str], time_limit_s: float = TIME_LIMIT_S) -> str:
    """What a program prints; its descendants are ended with it when it takes too long."""
    name = Path(command[0]).name
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise ProbeError(f"{name} cannot be run: {error.strerror}") from error
    try:
        output, complaint = process.communicate(timeout=time_limit_s)
    except subprocess.TimeoutExpired as error:
        _end_group(process)
        raise ProbeError(f"{name} did not answer within {time_limit_s:g} s") from error
    if process.returncode != 0:
        raise ProbeError(f"{name} failed: {_last_line(complaint or output, process.returncode)}")
    return output


def _end_group(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # A process stuck inside a driver outlives even SIGKILL: do not wait for it.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    for pipe in (process.stdout, process.stderr):
        if pipe:
            pipe.close()


def _last_line(text: str, code: int) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else f"exit code {code}"


def child_answer(source: str, time_limit_s: float = TIME_LIMIT_S) -> Any:
    """Run Python source in a child process; the last line it prints is JSON."""
    output = command_output([sys.executable, "-c", source], time_limit_s)
    try:
        return json.loads(output.strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise ProbeError("the child process gave no answer") from error


ONNXRUNTIME_PROVIDERS = """
import json, onnxruntime
print(json.dumps(onnxruntime.get_available_providers()))
"""

H264_ENCODERS = """
import av, json
def can_encode(name):
    try:
        return bool(av.codec.Codec(name, "w"))
    except ValueError:
        return False
print(json.dumps([name for name in ("libx264", "h264_nvenc") if can_encode(name)]))
"""

# The driver's own library, for machines (containers, mostly) without nvidia-smi.
CUDA_DRIVER = """
import ctypes, json
cuda = ctypes.CDLL("libcuda.so.1")
version, count = ctypes.c_int(), ctypes.c_int()
def check(code):
    if code:
        raise SystemExit(f"CUDA error {code}")
check(cuda.cuDriverGetVersion(ctypes.byref(version)))
gpus = []
if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0:
    for index in range(count.value):
        device, size, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(128)
        major, minor = ctypes.c_int(), ctypes.c_int()
        check(cuda.cuDeviceGet(ctypes.byref(device), index))
        check(cuda.cuDeviceGetName(name, 128, device))
        check(cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device))
        check(cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device))
        check(cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device))
        gpus.append([name.value.decode(), size.value, f"{major.value}.{minor.value}"])
print(json.dumps({"cuda": f"{version.value // 1000}.{version.value % 1000 // 10}", "gpus": gpus}))
"""
