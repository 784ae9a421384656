"""Kernel nodes inside ONNX Runtime: a small C library asks us for shapes and for launches.

Python is called once for each node of a run. On a GPU the runs of the steady state are replays of
a captured CUDA graph, so the calls are made at capture only.
"""

import atexit
import ctypes
import hashlib
import logging
import platform
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from longlive_trt.basics import Array, Closing
from longlive_trt.dtypes import BY_ONNX
from longlive_trt.errors import PluginError
from longlive_trt.plugins.cuda.compilation import SOURCE_DIR, default_cache_dir, publish
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.streams import Stream
from longlive_trt.plugins.cuda.tensors import DeviceTensor
from longlive_trt.plugins.kernels import registry
from longlive_trt.plugins.kernels.base import GraphKernel

logger = logging.getLogger(__name__)

SOURCE = "bridge/onnxruntime_bridge.c"
LIBRARY_NAME = "longlive_kernels.so"
_FLAGS = ("-O2", "-shared", "-fPIC", "-std=c11")
_COMPILERS = ("cc", "gcc", "clang")

# As in the source.
_VERSION = 2
_SESSION_ENTRY = "longlive.session"
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


class SessionNodes(Closing):
    """The kernel nodes of one session of ONNX Runtime, which are placed alike and go with it.

    They run on ``stream``, or without one with numpy. The session's options are registered here
    before it is made, and it is gone before its nodes are closed.
    """

    def __init__(
        self,
        stream: Stream | None = None,
        library: Path | None = None,
        provider: str = "",
    ) -> None:
        """``provider`` is ONNX Runtime's name of who runs them; empty, it is the CPU's."""
        self.kernels: dict[int, GraphKernel] = {}
        """By number; ONNX Runtime makes them and gives them back."""
        self._serves: dict[int, str] = {}
        self._wanted: Collection[str] | None = None
        self._numbers = count()
        self._place = None if stream is None else Placement(stream)
        self._path = (library or compiled_library()).resolve()
        bridge = _library(self._path)
        self._number = next(_session_numbers)
        _open_sessions[self._number] = self
        self._handle = bridge.longlive_session_open(self._number, provider.encode())
        self._give_back = weakref.finalize(self, bridge.longlive_session_close, self._handle)

    def register(self, options: Any) -> None:
        """Make the session that these options make ours."""
        options.add_session_config_entry(_SESSION_ENTRY, str(self._handle))
        options.register_custom_ops_library(str(self._path))

    def create(self, spec: str) -> int:
        number = next(self._numbers)
        self.kernels[number] = registry.kernel_of(spec)
        output = registry.served_by(spec)
        if output is not None:
            self._serves[number] = output
        return number

    def drop(self, node: int) -> None:
        self.kernels.pop(node, None)
        self._serves.pop(node, None)

    @contextmanager
    def wanting(self, outputs: Collection[str]) -> Iterator[None]:
        """Runs inside leave out the nodes that are there for another output only.

        What such a node would have written stays as it was, and only other nodes of that output
        read it. Runs of a session come one after another.
        """
        self._wanted = outputs
        try:
            yield
        finally:
            self._wanted = None

    def shapes(self, node: int, inputs: list[_Tensor], outputs: list[_Tensor]) -> None:
        shapes = self.kernels[node].output_shapes([tensor.shape for tensor in inputs])
        if len(shapes) != len(outputs):
            raise PluginError(f"the graph wants {len(outputs)} outputs, and it has {len(shapes)}")
        for tensor, shape in zip(outputs, shapes, strict=True):
            tensor.rank = len(shape)
            tensor.sizes[: len(shape)] = shape

    def run(self, node: int, inputs: list[_Tensor], outputs: list[_Tensor]) -> None:
        kernel, place = self.kernels[node], self._place
        if self._is_left_out(node):
            return
        if place is None:
            kernel.compute(*([_host_array(t) for t in group] for group in (inputs, outputs)))
        else:
            sources, targets = (
                [_device_tensor(t, place.device) for t in group] for group in (inputs, outputs)
            )
            kernel.launch(sources, targets, place)

    def _is_left_out(self, node: int) -> bool:
        output = self._serves.get(node)
        return output is not None and self._wanted is not None and output not in self._wanted

    def close(self) -> None:
        _open_sessions.pop(self._number, None)
        self._give_back()
        self.kernels.clear()
        self._serves.clear()
        if self._place is not None:
            self._place.close()


_session_numbers = count(1)
_open_sessions: weakref.WeakValueDictionary[int, SessionNodes] = weakref.WeakValueDictionary()
"""C knows a session by its number. Whoever opened it owns it."""


def _session(number: int) -> SessionNodes:
    session = _open_sessions.get(number)
    if session is None:
        raise PluginError("the nodes of this session are closed")
    return session


def _answering(work: Callable[..., None]) -> Callable[..., int]:
    """The last argument is where C reads what went wrong: nothing may unwind through it."""

    def answer(*arguments: Any) -> int:
        *rest, message = arguments
        try:
            work(*rest)
        except Exception as error:
            logger.debug("%s", work.__name__, exc_info=True)
            text = f"{type(error).__name__}: {error}".encode()[: _MESSAGE_BYTES - 1]
            ctypes.memmove(message, text + b"\0", len(text) + 1)
            return 1
        return 0

    return answer


@_answering
def _create(session: int, spec: bytes, node: Any) -> None:
    node[0] = _session(session).create(spec.decode())


@_answering
def _shapes(session: int, node: int, inputs: int, x: Any, outputs: int, y: Any) -> None:
    _session(session).shapes(node, _listed(x, inputs), _listed(y, outputs))


@_answering
def _run(session: int, node: int, inputs: int, x: Any, outputs: int, y: Any) -> None:
    _session(session).run(node, _listed(x, inputs), _listed(y, outputs))


def _drop(session: int, node: int) -> None:
    nodes = _open_sessions.get(session)
    if nodes is not None:
        nodes.drop(node)


def _listed(tensors: Any, size: int) -> list[_Tensor]:
    return [tensors[index] for index in range(size)]


_Tensors = ctypes.POINTER(_Tensor)
_Message = ctypes.POINTER(ctypes.c_char)
_Create = ctypes.CFUNCTYPE(
    *(ctypes.c_int, ctypes.c_int64, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int64), _Message)
)
_Call = ctypes.CFUNCTYPE(
    *(ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, _Tensors),
    *(ctypes.c_int64, _Tensors, _Message),
)
_Drop = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)

# ctypes keeps no reference to what it hands to C.
_FUNCTIONS = (_Create(_create), _Call(_shapes), _Call(_run), _Drop(_drop))


@cache
def _library(path: Path) -> ctypes.CDLL:
    """Loaded and connected to this program, whichever sessions will use it."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise PluginError(
            f"{path} cannot be loaded here ({error}): build the bundle on a machine of this "
            f"kind ({platform.system()} {platform.machine()})"
        ) from None
    version = getattr(library, "longlive_bridge_version", lambda: 1)()
    if version != _VERSION:
        raise PluginError(
            f"{path} is of another version of longlive-trt (its interface is {version}, and "
            f"{_VERSION} is needed): build the bundle again"
        )
    library.longlive_session_open.argtypes = (ctypes.c_int64, ctypes.c_char_p)
    library.longlive_session_open.restype = ctypes.c_void_p
    library.longlive_session_close.argtypes = (ctypes.c_void_p,)
    library.longlive_session_close.restype = None
    library.longlive_bridge_connect(*_FUNCTIONS)
    # Sessions that outlive the interpreter must not call it.
    atexit.register(library.longlive_bridge_connect, None, None, None, None)
    return library


@cache
def compiled_library() -> Path:
    """The library for this machine, compiled once and kept beside the compiled kernels."""
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    source = SOURCE_DIR / SOURCE
    facts = f"{platform.system()} {platform.machine()} {' '.join(_FLAGS)}".encode()
    target = default_cache_dir() / f"{hashlib.sha256(source.read_bytes() + facts).hexdigest()}.so"
    if target.is_file():
        return target
    if compiler is None:
        raise PluginError(
            "no C compiler was found, which ONNX Runtime's bridge to our kernels needs: install "
            "gcc or clang"
        )
    with tempfile.TemporaryDirectory(prefix="longlive-bridge-") as folder:
        library = Path(folder) / LIBRARY_NAME
        command = [compiler, *_FLAGS, "-o", str(library), str(source)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode or not library.is_file():
            raise PluginError(f"{compiler} could not compile {source.name}:\n{result.stderr}")
        publish(target, library.read_bytes())
    return target


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
