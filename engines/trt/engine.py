"""Running a plan: one context for every binding, all with one stream and one working memory."""

import weakref
from collections.abc import Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from longlive_trt.contract import stem_of
from longlive_trt.dtypes import BY_TENSORRT
from longlive_trt.engines.base import TensorSpec, TensorTable, require_fit
from longlive_trt.engines.trt.flavors import Flavor
from longlive_trt.engines.trt.monitor import BuildLog, make_logger
from longlive_trt.errors import EngineError
from longlive_trt.exports import GraphInfo
from longlive_trt.plugins.cuda.driver import DeviceMemory, make_current
from longlive_trt.plugins.cuda.streams import Repeated, Stream, given_on_device
from longlive_trt.plugins.cuda.tensors import DeviceTensor, as_device_tensor

Shape = tuple[int, ...]


class TensorRtEngine(TensorTable):
    """Tensors are device memory of the caller: device tensors, or what speaks DLPack."""

    def __init__(
        self,
        path: Path,
        info: GraphInfo,
        flavor: Flavor,
        options: Mapping[str, Any],
        stream: Stream,
        *,
        cuda_graphs: bool = True,
    ) -> None:
        self.name, self._flavor = path.stem, flavor
        self.stream, self._cuda_graphs = stream, cuda_graphs
        # TensorRT works in the context that it finds.
        make_current(stream.gpu.ordinal)
        self._trt = flavor.load()
        self._log = BuildLog()
        logger = make_logger(self._trt, self._log)
        self._runtime = self._trt.Runtime(logger)
        self._runtime.engine_host_code_allowed = bool(options.get("version_compatible"))
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineError(f"{path}: {flavor.kind} cannot load it: {self._reasons()}")
        budget = options.get("weight_streaming_bytes")
        if budget is not None:
            self._engine.weight_streaming_budget_v2 = budget
        self._bindings: weakref.WeakSet[TensorRtBinding] = weakref.WeakSet()
        self._activations: DeviceMemory | None = None
        self._spares: dict[tuple[str, Shape], DeviceMemory] = {}
        self._inputs, self._outputs = _tensor_table(self._trt, self._engine, info)
        # The compiler leaves out inputs of the contract that this graph does not read.
        self._unread = {tensor.name for tensor in info.inputs} - self._inputs.keys()

    @property
    def scratch_bytes(self) -> int:
        """What the largest profile needs; it depends on the weight streaming budget."""
        return int(self._engine.device_memory_size_v2)

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> "TensorRtBinding":
        self._require_inputs(inputs)
        inputs = {name: value for name, value in inputs.items() if name not in self._unread}
        tensors = self._checked(inputs, self._inputs) | self._checked(outputs, self._outputs)
        shapes = {name: tensors[name].shape for name in self._inputs}
        context = self._flavor.create_context(self._trt, self._engine, self._cuda_graphs)
        self._prepare(context, self._profile_for(shapes), shapes)
        addresses = {name: tensor.pointer for name, tensor in tensors.items()}
        for name in self._outputs.keys() - outputs.keys():
            addresses[name] = self._spare(name, tuple(context.get_tensor_shape(name)))
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise EngineError(f"graph {self.name}: {name} cannot be bound: {self._reasons()}")
        captures = self._cuda_graphs and not self._flavor.captures_itself
        binding = TensorRtBinding(self, context, captures, (dict(inputs), dict(outputs)))
        self._bindings.add(binding)
        return binding

    def _checked(
        self, tensors: Mapping[str, Any], known: Mapping[str, TensorSpec]
    ) -> dict[str, DeviceTensor]:
        return {
            name: _fitting(self.name, known.get(name), as_device_tensor(value, name), name)
            for name, value in tensors.items()
        }

    def _spare(self, name: str, shape: Shape) -> int:
        """Memory for an output that nobody asked for: TensorRT writes it, and may read it again.

        One for each output, but the same for all bindings, which run one after another.
        """
        key = (name, shape)
        if key not in self._spares:
            size_bytes = prod(shape) * self._outputs[name].dtype.itemsize
            self._spares[key] = self._reserve(size_bytes, f"an unused {name}")
        return self._spares[key].pointer

    def _profile_for(self, shapes: Mapping[str, Shape]) -> int:
        """The first profile that takes these shapes; static ones come first."""
        for profile in range(self._engine.num_optimization_profiles):
            if all(self._takes(profile, name, shape) for name, shape in shapes.items()):
                return profile
        asked = {name: list(shape) for name, shape in shapes.items() if not stem_of(name)}
        raise EngineError(
            f"graph {self.name}: no profile takes {asked}; build the bundle for this batch and "
            f"configuration (`longlive-trt build --batch N`)"
        )

    def _takes(self, profile: int, name: str, shape: Shape) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, profile)
        return len(low) == len(shape) and all(
            a <= size <= b for a, size, b in zip(low, shape, high, strict=True)
        )

    def _prepare(self, context: Any, profile: int, shapes: Mapping[str, Shape]) -> None:
        if not context.set_optimization_profile_async(profile, self.stream.handle):
            raise EngineError(f"graph {self.name}: profile {profile}: {self._reasons()}")
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(f"graph {self.name}: {name}: {self._reasons()}")
        if self._activations is None:
            self._activations = self._reserve(self.scratch_bytes, "activations")
        context.set_device_memory(self._activations.pointer, self._activations.size_bytes)

    def _reserve(self, size_bytes: int, what: str) -> DeviceMemory:
        return self.stream.gpu.reserve(size_bytes, what, zeroed=True)

    def enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self.stream.handle):
            message = f"graph {self.name} failed in {self._flavor.kind}: {self._reasons()}"
            raise self.stream.gpu.failure(message)

    def _reasons(self) -> str:
        return "; ".join(self._log.errors) or "no reason was given"

    def close(self) -> None:
        """Bindings end with it: their contexts would keep the plan, and its memory."""
        for binding in list(self._bindings):
            binding.close()
        self._engine = self._runtime = None
        for memory in self._spares.values():
            memory.close()
        if self._activations is not None:
            self._activations.close()


class TensorRtBinding:
    """Runs are queued on the engine's stream; whoever reads the outputs waits for it."""

    def __init__(self, owner: TensorRtEngine, context: Any, captures: bool, tensors: Any) -> None:
        # The context knows addresses only; whoever holds it holds the memory.
        self._tensors = tensors
        self._repeated = Repeated(owner.stream, partial(owner.enqueue, context), captures=captures)

    def run(self) -> None:
        self._repeated.run()

    def close(self) -> None:
        self._repeated.close()
        self._tensors = None


def _tensor_table(
    trt: Any, engine: Any, info: GraphInfo
) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    """Types and fixed sizes from the engine; names of the open sizes from the manifest."""
    named = {tensor.name: tensor.shape for tensor in (*info.inputs, *info.outputs)}
    inputs: dict[str, TensorSpec] = {}
    outputs: dict[str, TensorSpec] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if name not in named:
            raise EngineError(f"the engine has a tensor {name} that the manifest does not list")
        sizes = zip(engine.get_tensor_shape(name), named[name], strict=True)
        shape = tuple(known if size < 0 else int(size) for size, known in sizes)
        element = BY_TENSORRT[engine.get_tensor_dtype(name).name]
        spec = TensorSpec(name, element.numpy, shape)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        (inputs if is_input else outputs)[name] = spec
    return inputs, outputs


def _fitting(graph: str, spec: TensorSpec | None, tensor: DeviceTensor, name: str) -> DeviceTensor:
    require_fit(graph, name, spec, given_on_device(tensor))
    return tensor
