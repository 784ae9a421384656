"""Kernels' sources, compiled and run on a CPU, thread by thread (``gpu/emulated.h``)."""

import ctypes
import re
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longlive_trt.basics import Array
from longlive_trt.dtypes import name_of
from longlive_trt.plugins.cuda.compilation import SOURCE_DIR, texts_of
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.tensors import DeviceTensor
from longlive_trt.plugins.kernels.base import GraphKernel

COMPILER = shutil.which("g++")
_HEADERS = Path(__file__).parent / "gpu"
# What only a GPU understands, and what it comes to.
_INSTEAD = {
    r"extern __shared__ __align__\(1024\) uint8 memory\[\];": (
        "uint8* memory = emulated::here->base();"
    ),
    r"extern __shared__ __align__\(16\) uint8 shared\[\];": (
        "uint8* shared = emulated::here->base();"
    ),
    r"__shared__ uint32 tile\[kValueDim\]\[kTilePitch\];": (
        "auto& tile = *reinterpret_cast<uint32 (*)[kValueDim][kTilePitch]>(emulated::here->fixed);"
    ),
    r'asm volatile\("ld\.volatile\.shared\.v2[^;]*;"[^;]*;': (
        "std::memcpy(&pair, emulated::memory_at(address), 8);"
    ),
    r'asm\("tanh\.approx[^;]*;"[^;]*"f"\(([^;]*)\)\);': r"tangent = std::tanh(\1);",
    r'asm volatile\("ld\.global\.[^;]*;"\s*: "=r"\(words\[i\][^;]*"l"\(([^;]*)\)\s*: "memory"\);': (
        r"std::memcpy(&words[i], \1, 16);"
    ),
    r'asm volatile\("ld\.global\.[^;]*;"[^;]*;': "std::memcpy(&words, address, sizeof words);",
    r'asm\("ld\.global\.L1::evict_last[^;]*;"[^;]*"l"\(([^;]*)\)\);': (
        r"std::memcpy(&words, \1, 16);"
    ),
    r'asm volatile\(""[^;]*;': "",
}
_OWN = ("attention/", "common/")
"""Headers that are imagined here; others are the product's."""


_COMPILED: dict[Any, ctypes.CDLL] = {}
"""What a process has compiled, whichever test asked first."""


class EmulatedGpu:
    """So many multiprocessors; a launch is over when it returns."""

    def __init__(self, folder: Path, multiprocessors: int) -> None:
        self._folder, self.multiprocessors = folder, multiprocessors
        self.launches = 0

    def run(self, kernel: GraphKernel, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        views = [[device_tensor(array) for array in group] for group in (inputs, outputs)]
        kernel.launch(views[0], views[1], self)  # type: ignore[arg-type]

    device = 0

    @property
    def stream(self) -> Any:
        return type("Stream", (), {"handle": 0})

    def launch(
        self,
        kernel: CudaKernel,
        values: Mapping[str, Any],
        *,
        grid: Sequence[int],
        threads: int,
        constants: Mapping[str, int],
        shared_bytes: int = 0,
        **_place: Any,
    ) -> None:
        library = self._compiled(kernel, constants)
        packed = kernel.parameters.pack(**values)
        self.launches += 1
        wide, high = (*grid, 1)[:2]
        ended = library.run(packed, wide, high, threads, shared_bytes) == 0
        assert ended, "threads waited in vain"

    def _compiled(self, kernel: CudaKernel, constants: Mapping[str, int]) -> ctypes.CDLL:
        key = kernel.file, *sorted(constants.items())
        if key not in _COMPILED:
            name = "-".join(f"{constant}{value}" for constant, value in sorted(constants.items()))
            _COMPILED[key] = _compile(kernel, constants, self._folder / f"{kernel.name}-{name}")
        return _COMPILED[key]


def emulated(folder: Path, patch: pytest.MonkeyPatch, multiprocessors: int = 1) -> EmulatedGpu:
    """Every kernel is launched there from now on."""
    gpu = EmulatedGpu(folder, multiprocessors)
    patch.setattr(CudaKernel, "launch", lambda kernel, *a, **k: gpu.launch(kernel, *a, **k))
    return gpu


def _compile(kernel: CudaKernel, constants: Mapping[str, int], folder: Path) -> ctypes.CDLL:
    for text in texts_of(kernel.file):
        if not text.startswith(_OWN):
            path = folder / text
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_translated((SOURCE_DIR / text).read_text()))
    source, target = folder / "kernel.cpp", folder / "kernel.so"
    source.write_text(f'#include "{kernel.file}"\n#include "launch.h"\n')
    options = [f"-D{constant}={value}" for constant, value in constants.items()]
    options += ["-std=c++17", "-O2", "-w", "-Wno-psabi", f"-DLL_ENTRY={kernel.name}"]
    options += ["-shared", "-fPIC", "-pthread", f"-I{_HEADERS}", f"-I{folder}"]
    assert COMPILER is not None
    subprocess.run([COMPILER, *options, "-o", str(target), str(source)], check=True)
    return ctypes.CDLL(str(target))


def _translated(text: str) -> str:
    for pattern, instead in _INSTEAD.items():
        text = re.sub(pattern, instead, text)
    assert "asm" not in text
    return text


def tensor_map(
    item_bytes: int,
    pointer: int,
    sizes: Sequence[int],
    strides_bytes: Sequence[int],
    box: Sequence[int],
) -> bytes:
    """In place of a copy engine's descriptor, what ``load_box`` reads here."""
    assert item_bytes == 1 and pointer % 16 == 0
    assert all(stride % 16 == 0 for stride in strides_bytes)
    missing = 5 - len(sizes)
    ones, zeros = (1,) * missing, (0,) * missing
    return struct.pack("<Q5q4q5i28x", pointer, *sizes, *ones, *strides_bytes, *zeros, *box, *ones)


def aligned(array: Array) -> Array:
    """A copy that starts where the copy engine can read it."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def device_tensor(array: Array) -> DeviceTensor:
    return DeviceTensor.contiguous(array.ctypes.data, array.shape, name_of(array.dtype))
