"""Device engines for callers with arrays on the host: everything is copied in and out at each run.

Slow, and meant so: it is how engines of different kinds are compared on the same values.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from longlive_trt.basics import Array, Closing
from longlive_trt.engines.base import Binding, Engine, TensorSpec
from longlive_trt.plugins.cuda.streams import DeviceMemory, PinnedArray, Stream, tensor_at
from longlive_trt.plugins.cuda.tensors import DeviceTensor


class HostStaged(Closing):
    def __init__(self, engine: Engine, stream: Stream) -> None:
        self._engine, self._stream = engine, stream
        self._blocks: list[DeviceMemory] = []

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self._engine.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self._engine.outputs

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> "_StagedBinding":
        placed_inputs = {name: self._placed(array, name) for name, array in inputs.items()}
        placed_outputs = {name: self._placed(array, name) for name, array in outputs.items()}
        binding = self._engine.bind(placed_inputs, placed_outputs)
        return _StagedBinding(
            binding,
            self._stream,
            [(inputs[name], tensor) for name, tensor in placed_inputs.items()],
            [(outputs[name], tensor) for name, tensor in placed_outputs.items()],
        )

    def _placed(self, array: Array, what: str) -> DeviceTensor:
        gpu = self._stream.gpu
        block = gpu.reserve(array.nbytes, what)
        self._blocks.append(block)
        return tensor_at(block.pointer, array.shape, array.dtype, gpu.ordinal)

    def close(self) -> None:
        """The engine belongs to whoever loaded it."""
        for block in self._blocks:
            block.close()


@dataclass(frozen=True)
class _StagedBinding:
    _binding: Binding
    _stream: Stream
    _inputs: list[tuple[Array, DeviceTensor]]
    _outputs: list[tuple[Array, DeviceTensor]]

    def run(self) -> None:
        for array, tensor in self._inputs:
            with self._pinned(array) as pinned:
                np.copyto(pinned.array, array)
                self._stream.upload(tensor.pointer, pinned, array.nbytes)
                self._stream.synchronize()
        self._binding.run()
        for array, tensor in self._outputs:
            with self._pinned(array) as pinned:
                self._stream.download(pinned, tensor.pointer, array.nbytes)
                self._stream.synchronize()
                np.copyto(array, pinned.array)

    def _pinned(self, array: Array) -> PinnedArray:
        return self._stream.gpu.pinned(array.shape, array.dtype)
