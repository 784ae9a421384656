"""Engines of an imagined GPU: graphs computed on the CPU, at the moments when a GPU would."""

from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from longlive_trt.basics import Closing
from longlive_trt.engines.base import Engine, TensorSpec
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.engines.loader import load_engine
from longlive_trt.engines.ort import gpu as onnxruntime_cuda
from longlive_trt.engines.ort.cpu import OnnxRuntimeEngine
from longlive_trt.engines.ort.gpu import OnnxRuntimeCudaBinding
from longlive_trt.plugins.cuda.driver import check
from longlive_trt.plugins.cuda.streams import DeviceTensor, Stream
from longlive_trt.plugins.kernels.values import moved
from longlive_trt.runtime import assembly
from longlive_trt.runtime.memory import cuda as cuda_memory
from longlive_trt.runtime.memory.cuda import bytes_of, dtype_of
from tests.fakes.cuda import FakeCuda


@cache
def _on_cpu(path: Path) -> OnnxRuntimeEngine:
    """Files of a run's bundles stay as they are, and to open one takes longer than to run it."""
    return OnnxRuntimeEngine(path, threads=1)


class FakeCudaEngine(Closing):
    """Takes device tensors, and is captured at its second run as the real one is."""

    def __init__(
        self,
        cuda: FakeCuda,
        path: Path,
        stream: Stream,
        before_run: Callable[[], None] = lambda: None,
        inner: Any = None,
    ) -> None:
        """``before_run``: before work is queued, which is not done for what was captured.
        ``inner``: an engine of the host that computes, in place of that of the file."""
        self._cuda, self._inner = cuda, inner or _on_cpu(path)
        self.name, self.stream, self.captures = path.stem, stream, True
        self.before_run = before_run

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self._inner.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self._inner.outputs

    def bind(
        self, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]
    ) -> OnnxRuntimeCudaBinding:
        tensors = [*inputs.values(), *outputs.values()]
        binding = self._inner.bind(self._arrays(inputs), self._arrays(outputs))
        touched = [(tensor.pointer, bytes_of(tensor)) for tensor in tensors]
        # The real engine is the type's other maker; only these members of it are asked for.
        engine: Any = self
        return OnnxRuntimeCudaBinding(engine, (binding, touched), (dict(inputs), dict(outputs)))

    def enqueue(self, bound: tuple[Any, list[tuple[int, int]]], wanted: Collection[str]) -> None:
        del wanted
        self.before_run()
        binding, touched = bound
        check(self._cuda.launch(self.stream.handle, binding.run, touched), f"run {self.name}")

    def close(self) -> None:
        """Its graph serves the next one too."""

    def _arrays(self, tensors: Mapping[str, DeviceTensor]) -> dict[str, Any]:
        return {
            name: self._cuda.array(tensor.pointer, tensor.shape, dtype_of(tensor))
            for name, tensor in tensors.items()
        }


def put_in_place(
    cuda: FakeCuda,
    patch: pytest.MonkeyPatch,
    on_run: Mapping[str, Callable[[], None]] = MappingProxyType({}),
) -> dict[str, FakeCudaEngine]:
    """What a bundle's graphs are loaded as from now on; by name, those that were loaded last.

    ``on_run`` may change later: it is looked up before work of a graph is queued.
    """
    made: dict[str, FakeCudaEngine] = {}

    def load(bundle: Bundle, graph: str, *, stream: Stream | None = None, **_: Any) -> Engine:
        if stream is None:
            return load_engine(bundle, graph, threads=1)
        path = bundle.folder / f"{graph}.onnx"
        made[graph] = FakeCudaEngine(cuda, path, stream, lambda: on_run.get(graph, _nothing)())
        return made[graph]

    def move(source: DeviceTensor, target: DeviceTensor, *, stream: int, **where: int) -> None:
        arrays = [cuda.array(each.pointer, each.shape, dtype_of(each)) for each in (source, target)]
        touched = [(each.pointer, bytes_of(each)) for each in (source, target)]
        check(cuda.launch(stream, lambda: moved(*arrays, **where), touched), "move values")

    patch.setattr(onnxruntime_cuda, "load_libraries", lambda: None)
    patch.setattr(cuda_memory, "move_values", move)
    patch.setattr(assembly, "load_engine", load)
    return made


def _nothing() -> None:
    pass
