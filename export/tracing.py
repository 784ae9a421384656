"""torch modules to ONNX graphs whose weights stay outside.

Modules are traced with fake tensors, so a graph of any size costs no memory for its weights; the
weights file is written afterwards, one tensor at a time.
"""

import json
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from longlive_trt.contract import TRANSPOSED_KEY
from longlive_trt.errors import ExportError
from longlive_trt.export.attention_functions import OPSET, add_attention_functions
from longlive_trt.export.repeating import TRACED_LAYERS, NotAlikeError, are_alike, repeat
from longlive_trt.export.simplifying import simplify
from longlive_trt.export.torch_types import QUANTIZED_TYPES
from longlive_trt.precision import PRECISIONS, mark_compute_type

TRACED = PRECISIONS["fp16"]
"""Half precision, so that every cast of the mixed-precision arithmetic is in the graph."""

_EXACT_BITS = 5

logger = logging.getLogger(__name__)

Size = int | str | tuple[int, str]
"""A fixed size, a named one, or a multiple of a named one."""


@dataclass(frozen=True)
class GraphInput:
    name: str
    shape: tuple[Size, ...]
    dtype: torch.dtype | None = None
    """None is the compute type."""


def unchanged(_model: nn.Module) -> None:
    pass


@dataclass(frozen=True)
class GraphSpec:
    """What to trace: inputs in the order of ``forward``, a sequence where it takes a sequence.

    Another process may do it: what is called here can be pickled.
    """

    name: str
    component: str
    module: Callable[[], nn.Module]
    inputs: Sequence[GraphInput | Sequence[GraphInput]]
    outputs: Sequence[str]
    examples: Mapping[str, int] = field(default_factory=dict)
    """Sizes to trace named dimensions with."""
    tables: Mapping[str, Tensor] = field(default_factory=dict)
    """Values of the module's buffers."""
    weight_prefix: str = ""
    """What stands before the checkpoint's names in the module."""
    adapt: Callable[[nn.Module], None] = unchanged
    """Changes the component's model, in the graph and in what the graph is checked against. Those
    that do the same are equal."""
    rounding_tolerance: float | None = None
    """The error that the check allows where the graph itself rounds coarsely."""
    layers: int = 0
    """How many blocks the component's model has, one after the other; 0 if it is not so made.

    Each sequence of inputs has one for each of them; outputs with a number are of that layer."""


@dataclass(frozen=True)
class TracedGraph:
    spec: GraphSpec
    model: ir.Model
    weights: Mapping[str, ir.Value]
    """Checkpoint name to initializer; the values are still to be filled in."""
    transposed: frozenset[str]
    """Weights that the graph takes as [in, out]."""


def trace(spec: GraphSpec) -> TracedGraph:
    return finished(spec, *traced(spec))


def finished(spec: GraphSpec, model: ir.Model, parameters: Mapping[str, ir.Value]) -> TracedGraph:
    weights = _attach_weights(model, spec, parameters)
    transposed = _fold_transposes(weights)
    forget_origins(model)
    add_attention_functions(model)
    mark_compute_type(model, TRACED.onnx)
    model.metadata_props[TRANSPOSED_KEY] = json.dumps(sorted(transposed))
    _require_exact_constants(model)
    return TracedGraph(spec, model, weights, transposed)


def traced(spec: GraphSpec) -> tuple[ir.Model, dict[str, ir.Value]]:
    """A simplified graph, and those of its inputs that are weights, by name."""
    if spec.layers <= TRACED_LAYERS or not _has_layers_alike(spec):
        return _traced_whole(spec)
    few = _with_layers(spec, TRACED_LAYERS)
    model, parameters = _traced_whole(few)
    _leave_unused_out(model, parameters)
    try:
        repeat(model.graph, spec.layers, _layers_of_inputs(few, parameters))
    except NotAlikeError as error:
        logger.debug("%s: all layers are traced: %s", spec.name, error)
        return _traced_whole(spec)
    return model, _sorted_ends(model.graph, spec)


def _traced_whole(spec: GraphSpec) -> tuple[ir.Model, dict[str, ir.Value]]:
    with _quiet_exporter(), torch.no_grad():
        program = _export_program(spec)
        onnx_program = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET,
            input_names=[item.name for item in flat_inputs(spec.inputs)],
            output_names=list(spec.outputs),
            optimize=False,
            verbose=False,
        )
    assert onnx_program is not None
    model = onnx_program.model
    model.graph.name = spec.name
    _name_sizes(model, spec)
    parameters = _detach_weights(model, spec, {**spec.tables, **_constants(program)})
    simplify(model)
    return model, parameters


def _export_program(spec: GraphSpec) -> torch.export.ExportedProgram:
    dims = {name: torch.export.Dim(name, min=1) for name in spec.examples}
    with FakeTensorMode():
        module = _module(spec)
        if spec.layers:
            _model_in(module, spec).blocks = _blocks(module, spec)[: spec.layers]
        for parameter in module.parameters():
            parameter.data = in_compute_type(parameter.data, torch.float16)
        arguments = tuple(_map(spec.inputs, lambda item: _example(item, spec.examples)))
        shapes = tuple(_map(spec.inputs, lambda item: _dynamic(item, dims)))
        return torch.export.export(module, arguments, dynamic_shapes=shapes, strict=False)


def _module(spec: GraphSpec) -> nn.Module:
    module = spec.module().eval()
    spec.adapt(_model_in(module, spec))
    return module


def _model_in(module: nn.Module, spec: GraphSpec) -> nn.Module:
    return module.get_submodule(spec.weight_prefix.removesuffix("."))


def _blocks(module: nn.Module, spec: GraphSpec) -> nn.ModuleList:
    blocks = _model_in(module, spec).get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def _has_layers_alike(spec: GraphSpec) -> bool:
    with FakeTensorMode():
        return are_alike(_blocks(_module(spec), spec))


def _with_layers(spec: GraphSpec, layers: int) -> GraphSpec:
    inputs = [i if isinstance(i, GraphInput) else i[:layers] for i in spec.inputs]
    outputs = [name for name in spec.outputs if _layer_of(name) < layers]
    return replace(spec, inputs=inputs, outputs=outputs, layers=layers)


def _layer_of(output: str) -> int:
    number = output.rpartition(".")[2]
    return int(number) if number.isdecimal() else 0


def _layers_of_inputs(spec: GraphSpec, parameters: Iterable[str]) -> dict[str, int]:
    owned: dict[str, int] = {}
    for item in spec.inputs:
        if not isinstance(item, GraphInput):
            owned |= {each.name: layer for layer, each in enumerate(item)}
    for name in parameters:
        stem, _, rest = name.removeprefix(spec.weight_prefix).partition(".")
        if stem == "blocks":
            owned[name] = int(rest.partition(".")[0])
    return owned


def _leave_unused_out(model: ir.Model, parameters: dict[str, ir.Value]) -> None:
    for name, value in list(parameters.items()):
        if not value.uses():
            model.graph.inputs.remove(value)
            del parameters[name]


def _sorted_ends(graph: ir.Graph, spec: GraphSpec) -> dict[str, ir.Value]:
    """Put inputs and outputs in the order of the specification; returns the weights."""
    inputs, outputs = ({str(v.name): v for v in ends} for ends in (graph.inputs, graph.outputs))
    graph.inputs[:] = [inputs.pop(item.name) for item in flat_inputs(spec.inputs)]
    graph.outputs[:] = [outputs[name] for name in spec.outputs]
    graph.inputs.extend(inputs.values())
    return inputs


def in_compute_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Quantized values have a type of their own, which no compute type changes."""
    return tensor if tensor.dtype in QUANTIZED_TYPES else tensor.to(dtype)


def _map(
    inputs: Sequence[GraphInput | Sequence[GraphInput]], make: Callable[[GraphInput], object]
) -> list[object]:
    return [
        make(item) if isinstance(item, GraphInput) else [make(inner) for inner in item]
        for item in inputs
    ]


def flat_inputs(inputs: Sequence[GraphInput | Sequence[GraphInput]]) -> list[GraphInput]:
    return [leaf for item in inputs for leaf in ([item] if isinstance(item, GraphInput) else item)]


def _example(item: GraphInput, sizes: Mapping[str, int]) -> Tensor:
    return torch.zeros(concrete_shape(item, sizes), dtype=item.dtype or torch.float16)


def concrete_shape(item: GraphInput, sizes: Mapping[str, int]) -> list[int]:
    def concrete(size: Size) -> int:
        if isinstance(size, int):
            return size
        return sizes[size] if isinstance(size, str) else size[0] * sizes[size[1]]

    return [concrete(size) for size in item.shape]


def _dynamic(item: GraphInput, dims: Mapping[str, torch.export.Dim]) -> dict[int, object]:
    dynamic: dict[int, object] = {}
    for axis, size in enumerate(item.shape):
        if isinstance(size, str):
            dynamic[axis] = dims[size]
        elif isinstance(size, tuple):
            dynamic[axis] = size[0] * dims[size[1]]
    return dynamic


def _constants(program: torch.export.ExportedProgram) -> dict[str, Tensor]:
    """Tensors that ``forward`` makes from plain numbers; only those are real."""
    return {
        name: value
        for name, value in program.constants.items()
        if isinstance(value, Tensor) and not isinstance(value, FakeTensor)
    }


def _name_sizes(model: ir.Model, spec: GraphSpec) -> None:
    """Give the tracer's symbols the names of the specification."""
    names = {}
    for value, item in zip(model.graph.inputs, flat_inputs(spec.inputs), strict=True):
        for traced, size in zip(value.shape or (), item.shape, strict=True):
            if isinstance(size, str) and isinstance(traced, ir.SymbolicDim):
                names[str(traced.value)] = size
    symbols = re.compile(r"\b(" + "|".join(names) + r")\b") if names else re.compile(r"(?!)")
    for node in model.graph:
        for value in node.outputs:
            _rename_sizes(value, symbols, names)
    for value in model.graph.inputs:
        _rename_sizes(value, symbols, names)


def _rename_sizes(value: ir.Value, symbols: re.Pattern[str], names: Mapping[str, str]) -> None:
    if value.shape is not None:
        value.shape = ir.Shape(
            symbols.sub(lambda match: names[match[1]], str(size.value))
            if isinstance(size, ir.SymbolicDim) and size.value is not None
            else size
            for size in value.shape
        )


def _detach_weights(
    model: ir.Model, spec: GraphSpec, constants: Mapping[str, Tensor]
) -> dict[str, ir.Value]:
    """Make parameters inputs for a while, lest the optimizer folds values that are not real."""
    parameters = {}
    for name, value in list(model.graph.initializers.items()):
        if name in constants:
            value.const_value = ir.tensor(constants[name].numpy(), name=name)
        else:
            if not name.startswith(spec.weight_prefix):
                raise ExportError(f"graph {spec.name} has a constant without a value: {name}")
            del model.graph.initializers[name]
            value.const_value = None
            model.graph.inputs.append(value)
            parameters[name] = value
    return parameters


def _attach_weights(
    model: ir.Model, spec: GraphSpec, parameters: Mapping[str, ir.Value]
) -> dict[str, ir.Value]:
    weights = {}
    for name, value in parameters.items():
        model.graph.inputs.remove(value)
        if value.uses():
            model.graph.initializers[name] = value
            weights[name.removeprefix(spec.weight_prefix)] = value
    return weights


def _fold_transposes(weights: Mapping[str, ir.Value]) -> frozenset[str]:
    """Let matrices that are only ever used transposed be stored so."""
    folded = set()
    for name, value in weights.items():
        users = [use.node for use in value.uses()]
        shape = value.shape
        if shape is None or len(shape) != 2 or any(user.op_type != "Transpose" for user in users):
            continue
        for user in users:
            user.outputs[0].replace_all_uses_with(value)
            assert user.graph is not None
            user.graph.remove(user, safe=True)
        value.shape = ir.Shape(tuple(reversed(shape.numpy())))
        folded.add(name)
    return frozenset(folded)


def forget_origins(model: ir.Model) -> None:
    """Where in which file of this machine each node comes from takes half of a graph's file."""
    for node in model.graph:
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()


def _require_exact_constants(model: ir.Model) -> None:
    """A constant of the compute type must mean the same in every precision.

    What was rounded cannot be told from the value, but it has more bits than numbers meant so.
    """
    for value in model.graph.initializers.values():
        if value.dtype == TRACED.onnx and value.const_value is not None:
            mantissa, _ = np.frexp(value.const_value.numpy().astype(np.float64))
            if (mantissa * 2**_EXACT_BITS % 1).any():
                raise ExportError(f"{model.graph.name}: constant {value.name} is rounded")


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns about packages that we do not use, and about torch's own internals."""
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter_log.setLevel(level)
