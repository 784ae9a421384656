"""Kernel nodes inside ONNX Runtime: a small C library asks us for shapes and for launches.

Python is called once for each node of a run. On a GPU the runs of the steady state are replays of
a captured CUDA graph, so the calls are made at capture only.
"""

import ctypes
import hashlib
import logging
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from longlive_trt.basics import Array
from longlive_trt.dtypes import BY_ONNX
from longlive_trt.errors import PluginError
from longlive_trt.plugins.cuda.compilation import SOURCE_DIR, default_cache_dir, publish
from longlive_trt.plugins.cuda.tensors import DeviceTensor
from longlive_trt.plugins.kernels import base as graph_kernels
from longlive_trt.plugins.kernels.base import GraphKernel

logger = logging.getLogger(__name__)

SOURCE = SOURCE_DIR / "onnxruntime_bridge.c"
LIBRARY_NAME = "longlive_kernels.so"
_FLAGS = ("-O2", "-shared", "-fPIC", "-std=c11")
_COMPILERS = ("cc", "gcc", "clang")
_MESSAGE_BYTES = 1024
_MAX_RANK = 8


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("sizes", ctypes.c_int64 * _MAX_RANK),
        ("element_type", ctypes.c_int64),
    )

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.sizes[: self.rank])


_Tensors = ctypes.POINTER(_Tensor)
_Message = ctypes.POINTER(ctypes.c_char)
_Create = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int64), _Message)
_Call = ctypes.CFUNCTYPE(
    ctypes.c_int,
    *(ctypes.c_int64, ctypes.c_int64, _Tensors, ctypes.c_int64, _Tensors, _Message),
)


@dataclass(frozen=True)
class Placement:
    """Where the kernels of a session run: on a stream of a device, or (None) with numpy."""

    stream: int = 0
    device: int = 0


@dataclass(frozen=True)
class _Node:
    kernel: GraphKernel
    placement: Placement | None


class _Bridge:
    """The library, and the nodes of every session that it made."""

    def __init__(self, library: Path) -> None:
        self.path = library
        self._library = ctypes.CDLL(str(library))
        self._nodes: list[_Node] = []
        self.placement: Placement | None = None
        # ctypes keeps no reference to what it hands to C.
        self._functions = (
            _Create(self._create),
            _Call(self._shapes),
            _Call(self._run),
        )
        self._library.longlive_bridge_set(*self._functions)

    def use_device(self, device: bool) -> None:
        self._library.longlive_bridge_use_device(int(device))

    def _create(self, spec: bytes, made: Any, message: Any) -> int:
        try:
            self._nodes.append(_Node(graph_kernels.kernel_of(spec.decode()), self.placement))
        except Exception as error:  # must not unwind through C
            return _tell(message, error)
        made[0] = len(self._nodes) - 1
        return 0

    def _shapes(
        self, number: int, inputs: int, given: Any, outputs: int, wanted: Any, message: Any
    ) -> int:
        try:
            shapes = self._nodes[number].kernel.output_shapes(
                [given[i].shape for i in range(inputs)]
            )
            if len(shapes) != outputs:
                raise PluginError(f"the graph wants {outputs} outputs, and it has {len(shapes)}")
            for index, shape in enumerate(shapes):
                wanted[index].rank = len(shape)
                wanted[index].sizes[: len(shape)] = shape
        except Exception as error:  # must not unwind through C
            return _tell(message, error)
        return 0

    def _run(
        self, number: int, inputs: int, given: Any, outputs: int, wanted: Any, message: Any
    ) -> int:
        node = self._nodes[number]
        tensors = [given[i] for i in range(inputs)], [wanted[i] for i in range(outputs)]
        try:
            if node.placement is None:
                node.kernel.compute(*([_host_array(t) for t in group] for group in tensors))
            else:
                device = node.placement.device
                given_there, wanted_there = (
                    [_device_tensor(t, device) for t in group] for group in tensors
                )
                node.kernel.launch(given_there, wanted_there, node.placement.stream)
        except Exception as error:  # must not unwind through C
            logger.debug("kernel %s", node.kernel, exc_info=True)
            return _tell(message, error)
        return 0


def register(
    options: Any,
    *,
    device: bool = True,
    library: Path | None = None,
) -> None:
    """Make ONNX Runtime know our nodes in the sessions that these options make.

    ``device`` is False for sessions on a CPU, which compute the kernels with numpy. Sessions on a
    device are made inside :func:`placed`.
    """
    bridge = _bridge(library or compiled_library())
    bridge.use_device(device)
    options.register_custom_ops_library(str(bridge.path))


@contextmanager
def placed(placement: Placement | None) -> Iterator[None]:
    """Kernels of the sessions that are made inside run there."""
    for bridge in _loaded.values():
        bridge.placement = placement
    try:
        yield
    finally:
        for bridge in _loaded.values():
            bridge.placement = None


_loaded: dict[Path, _Bridge] = {}


def _bridge(library: Path) -> _Bridge:
    resolved = library.resolve()
    if resolved not in _loaded:
        try:
            _loaded[resolved] = _Bridge(resolved)
        except OSError as error:
            raise PluginError(
                f"{library} cannot be loaded here ({error}): build the bundle on a machine of this "
                f"kind ({platform.system()} {platform.machine()})"
            ) from None
    return _loaded[resolved]


@cache
def compiled_library() -> Path:
    """The library for this machine, compiled once and kept beside the compiled kernels."""
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    text = SOURCE.read_bytes()
    facts = f"{platform.system()} {platform.machine()} {' '.join(_FLAGS)}".encode()
    target = default_cache_dir() / f"{hashlib.sha256(text + facts).hexdigest()}.so"
    if target.is_file():
        return target
    if compiler is None:
        raise PluginError(
            "no C compiler was found, which ONNX Runtime's bridge to our kernels needs: install "
            "gcc or clang"
        )
    with tempfile.TemporaryDirectory(prefix="longlive-bridge-") as folder:
        made = Path(folder) / LIBRARY_NAME
        command = [compiler, *_FLAGS, "-o", str(made), str(SOURCE)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode or not made.is_file():
            raise PluginError(f"{compiler} could not compile {SOURCE.name}:\n{result.stderr}")
        publish(target, made.read_bytes())
    return target


def _tell(message: Any, error: Exception) -> int:
    text = f"{type(error).__name__}: {error}".encode()[: _MESSAGE_BYTES - 1]
    ctypes.memmove(message, text + b"\0", len(text) + 1)
    return 1


def _host_array(tensor: _Tensor) -> Array:
    dtype = BY_ONNX[tensor.element_type].numpy
    size_bytes = int(np.prod(tensor.shape)) * dtype.itemsize
    if not size_bytes:
        return np.empty(tensor.shape, dtype)
    memory = memoryview((ctypes.c_char * size_bytes).from_address(tensor.data))
    array: Array = np.frombuffer(memory, dtype).reshape(tensor.shape)
    return array


def _device_tensor(tensor: _Tensor, device: int) -> DeviceTensor:
    name = BY_ONNX[tensor.element_type].name
    return DeviceTensor.contiguous(tensor.data or 0, tensor.shape, name, device)
