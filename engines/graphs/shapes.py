"""Sizes that a graph works out of its inputs' sizes, made constants.

Working them out is the host's part of a run. On a GPU that would wait for the host, and could not
be captured.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import RemoveUnusedNodesPass

from longlive_trt.contract import evaluate_size
from longlive_trt.exports import add_initializer

_EXAMPLES = 2, 3
"""Of the size that stays open; one size of a reshape may differ between them."""
_SHAPED = "Reshape", "Expand"
_FOUND = -1
"""In a reshape's shape: what is left."""

Sizes = npt.NDArray[np.int64]


def fix_shapes(model: ir.Model, sizes: Mapping[str, int], open_size: str) -> None:
    """Let tensors be reshaped and expanded to constant shapes; ``open_size`` alone stays free."""
    nodes = [node for node in model.graph if node.op_type in _SHAPED and not _is_constant(node)]
    names = [str(_shape_of(node).name) for node in nodes]
    first, second = (
        _Evaluation(model, {**sizes, open_size: size}).values(names) for size in _EXAMPLES
    )
    for node, name in zip(nodes, names, strict=True):
        shape = np.where(first[name] == second[name], first[name], _FOUND)
        fixed = f"{name}.fixed"
        constant = add_initializer(model.graph, fixed, ir.tensor(shape, name=fixed))
        node.replace_input_with(1, constant)
    RemoveUnusedNodesPass()(model)


class _Evaluation:
    """The whole numbers of a graph, as far as sizes of its inputs decide them."""

    def __init__(self, model: ir.Model, sizes: Mapping[str, int]) -> None:
        graph = model.graph
        self._opset = graph.opset_imports[""]
        self._nodes = [ir.to_proto(node) for node in graph]
        self._inputs = [_with_sizes(value, sizes) for value in graph.inputs]
        self._values: dict[str, Sizes] = {}
        for name, value in graph.initializers.items():
            if value.dtype == ir.DataType.INT64 and value.const_value is not None:
                self._values[name] = value.const_value.numpy()
            else:
                self._inputs.append(ir.to_proto(value))

    def values(self, names: Sequence[str]) -> Mapping[str, Sizes]:
        """Shapes that are known make values known, and values of shapes more shapes."""
        while not self._values.keys() >= set(names):
            found = dict(self._found(self._shapes()))
            assert found, "a shape depends on what is computed"
            self._values |= found
        return self._values

    def _found(self, shapes: Mapping[str, list[int]]) -> Iterator[tuple[str, Sizes]]:
        for node in self._nodes:
            output = node.output[0]
            if output in self._values:
                continue
            if node.op_type == "Shape" and node.input[0] in shapes:
                shape = np.broadcast_to(np.float32(0), shapes[node.input[0]])
                yield output, _run(node, {node.input[0]: shape})
            elif all(name in self._values for name in node.input):
                yield output, _run(node, {name: self._values[name] for name in node.input})

    def _shapes(self) -> Mapping[str, list[int]]:
        """Of everything whose shape follows from what is known so far."""
        model = onnx.helper.make_model(
            onnx.helper.make_graph(
                [node for node in self._nodes if node.output[0] not in self._values],
                "sizes",
                self._inputs,
                [],
                [onnx.numpy_helper.from_array(value, name) for name, value in self._values.items()],
            ),
            opset_imports=[onnx.helper.make_opsetid("", self._opset)],
        )
        graph = onnx.shape_inference.infer_shapes(model).graph
        shapes = {value.name: value.type.tensor_type.shape for value in graph.value_info}
        shapes |= {value.name: value.type.tensor_type.shape for value in graph.input}
        return {
            name: [size.dim_value for size in shape.dim]
            for name, shape in shapes.items()
            if all(size.HasField("dim_value") for size in shape.dim)
        }


def _run(node: onnx.NodeProto, inputs: Mapping[str, npt.NDArray[np.generic]]) -> Sizes:
    found = ReferenceEvaluator(node).run(None, dict(inputs))
    assert isinstance(found, list)
    return np.asarray(found[0], np.int64)


def _with_sizes(value: ir.Value, sizes: Mapping[str, int]) -> onnx.ValueInfoProto:
    assert value.shape is not None and value.dtype is not None
    plain = [size if isinstance(size, int) else str(size.value) for size in value.shape]
    shape = [evaluate_size(size, sizes) for size in plain]
    return onnx.helper.make_tensor_value_info(str(value.name), value.dtype, shape)


def _is_constant(node: ir.Node) -> bool:
    return _shape_of(node).const_value is not None


def _shape_of(node: ir.Node) -> ir.Value:
    shape = node.inputs[1]
    assert shape is not None
    return shape
