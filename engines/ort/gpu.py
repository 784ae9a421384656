"""ONNX Runtime on a GPU: tensors stay on the device, runs are queued on a stream of ours.

Graphs that were written for the GPU (``engines/graphs``) are captured at their second run and
replayed from then on.
"""

import logging
import weakref
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import onnxruntime as ort

from longlive_trt.console.signals import interrupts_deferred
from longlive_trt.dtypes import BY_NUMPY
from longlive_trt.engines.base import TensorSpec, TensorTable, require_fit
from longlive_trt.engines.ort.cpu import brief, require_utf8, spec_of
from longlive_trt.errors import EngineError
from longlive_trt.extras import engine_command, install_command
from longlive_trt.plugins.cuda.streams import Repeated, Stream, given_on_device
from longlive_trt.plugins.cuda.tensors import DeviceTensor
from longlive_trt.plugins.onnxruntime_bridge import SessionNodes

logger = logging.getLogger(__name__)

PROVIDER = "CUDAExecutionProvider"
_LIBRARIES = ("cudart", "nvrtc", "cublasLt", "cublas", "cufft", "curand", "cudnn")


class OnnxRuntimeCudaEngine(TensorTable):
    """One graph in one session, on one stream.

    ``library`` holds the bridge to our kernels if the graph has some; such graphs are captured.
    """

    def __init__(
        self,
        path: Path,
        stream: Stream,
        *,
        library: Path | None = None,
        captures: bool = True,
    ) -> None:
        require_utf8(path)
        load_libraries()
        self.name, self.stream = path.stem, stream
        self._captures = captures and library is not None
        self._bindings: weakref.WeakSet[OnnxRuntimeCudaBinding] = weakref.WeakSet()
        self._nodes = None if library is None else SessionNodes(stream, library, PROVIDER)
        try:
            self._session = _open_session(path, stream, self._nodes)
        except BaseException:
            self._close_nodes()
            raise
        self._inputs = {spec.name: spec for spec in map(spec_of, self._session.get_inputs())}
        self._outputs = {spec.name: spec for spec in map(spec_of, self._session.get_outputs())}
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def bind(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]
    ) -> "OnnxRuntimeCudaBinding":
        self._require_inputs(inputs)
        binding = self._session.io_binding()
        for name, tensor in inputs.items():
            # A graph may do without an input of the contract.
            if name in self._inputs:
                known = self._inputs[name]
                binding.bind_input(name, *_address(self.name, name, known, tensor))
        for name, tensor in outputs.items():
            spec = self._outputs.get(name)
            binding.bind_output(name, *_address(self.name, name, spec, tensor))
        bound = OnnxRuntimeCudaBinding(self, binding, (dict(inputs), dict(outputs)))
        self._bindings.add(bound)
        return bound

    @property
    def captures(self) -> bool:
        return self._captures

    def enqueue(self, binding: Any, wanted: Collection[str]) -> None:
        """One run; ``wanted`` are the outputs that are bound."""
        leaving_out = nullcontext() if self._nodes is None else self._nodes.wanting(wanted)
        try:
            with interrupts_deferred(), leaving_out:
                self._session.run_with_iobinding(binding, self._options)
        except Exception as error:  # onnxruntime's errors have no common base
            message = f"graph {self.name} failed on the GPU: {brief(error)}"
            raise self.stream.gpu.failure(message) from error

    def close(self) -> None:
        """Bindings end with it: what they hold would keep the session, and its memory."""
        for binding in list(self._bindings):
            binding.close()
        del self._session
        self._close_nodes()

    def _close_nodes(self) -> None:
        if self._nodes is not None:
            self._nodes.close()


class OnnxRuntimeCudaBinding:
    """Runs are queued; whoever reads the outputs waits for the stream."""

    def __init__(self, engine: OnnxRuntimeCudaEngine, binding: Any, tensors: Any) -> None:
        # The binding knows addresses only; whoever holds it holds the memory.
        self._tensors = tensors
        queue = partial(engine.enqueue, binding, frozenset(tensors[1]))
        self._repeated = Repeated(engine.stream, queue, captures=engine.captures)

    def run(self) -> None:
        self._repeated.run()

    def close(self) -> None:
        self._repeated.close()
        self._tensors = None


@cache
def load_libraries() -> None:
    """CUDA's libraries, from wherever they are installed, before ONNX Runtime looks for them."""
    if PROVIDER not in ort.get_available_providers():
        raise EngineError(
            f"the installed onnxruntime {ort.__version__} has no GPU support; run "
            f"`{engine_command('gpu')}`"
        )
    # Failures come as exceptions, and are told once.
    ort.set_default_logger_severity(4)
    pathfinder = import_module("cuda.pathfinder")
    for library in _LIBRARIES:
        try:
            pathfinder.load_nvidia_dynamic_lib(library)
        except Exception as error:  # the package's errors have no common base
            raise EngineError(
                f"CUDA's library {library} was not found ({brief(error)}); run "
                f"`{install_command('gpu')}`, or install the CUDA toolkit and cuDNN 9"
            ) from None


def _open_session(path: Path, stream: Stream, nodes: SessionNodes | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # A pattern would be allocated anew at the second run, which is the one that is captured.
    options.enable_mem_pattern = False
    gpu = stream.gpu
    if nodes is not None:
        nodes.register(options)
    provider = {
        "device_id": str(gpu.ordinal),
        "user_compute_stream": str(stream.handle),
        "do_copy_in_default_stream": "0",
        "prefer_nhwc": "0" if nodes is None else "1",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
        "arena_extend_strategy": "kSameAsRequested",
        # Without it, convolutions in half precision do without the matrix units too.
        "use_tf32": "0" if nodes is None else "1",
    }
    try:
        with interrupts_deferred():
            return ort.InferenceSession(
                path, options, providers=[(PROVIDER, provider), "CPUExecutionProvider"]
            )
    except Exception as error:  # onnxruntime's errors have no common base
        message = f"{path}: onnxruntime cannot load the graph on the GPU: {brief(error)}"
        raise gpu.failure(message) from None


def _address(
    graph: str, name: str, spec: TensorSpec | None, tensor: DeviceTensor
) -> tuple[str, int, object, tuple[int, ...], int]:
    require_fit(graph, name, spec, given_on_device(tensor))
    assert spec is not None
    element = BY_NUMPY[spec.dtype].onnx
    return "cuda", tensor.device, element, tensor.shape, tensor.pointer
