"""ONNX graphs written by hand: the forms in which a GPU runs the model with our own kernels."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from longlive_trt.contract import (
    KERNEL_DOMAIN,
    KERNEL_OPERATORS,
    KERNEL_SERVES,
    KERNEL_SPEC,
    weights_file,
)
from longlive_trt.dtypes import BY_NAME
from longlive_trt.exports import add_initializer
from longlive_trt.plugins.kernels.base import spec_of
from longlive_trt.precision import Precision

OPSET = 22

Size = int | str


class GraphBuilder:
    """Adds nodes in running order; values are those of onnx-ir."""

    def __init__(self, name: str, precision: Precision) -> None:
        self.precision = precision
        self.compute_name = precision.element.name
        opsets = {"": OPSET, KERNEL_DOMAIN: 1, "com.microsoft": 1}
        self._graph = ir.Graph([], [], nodes=[], name=name, opset_imports=opsets)
        self._count = 0
        self._kernels: dict[ir.Node, tuple[str, dict[str, Any]]] = {}

    def input(self, name: str, shape: Sequence[Size], dtype: ir.DataType | None = None) -> ir.Value:
        """None is the compute type."""
        value = _typed(name, shape, dtype or self.precision.onnx)
        self._graph.inputs.append(value)
        return value

    def output(
        self, name: str, value: ir.Value, shape: Sequence[Size], dtype: ir.DataType | None = None
    ) -> None:
        value.name = name
        value.shape = ir.Shape(shape)
        value.dtype = dtype or self.precision.onnx
        self._graph.outputs.append(value)

    def weight(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """A tensor under a name of its own; values are read when the graph is saved."""
        return add_initializer(self._graph, name, tensor)

    def constant(self, values: Any, dtype: Any) -> ir.Value:
        """A small array of plain numbers."""
        array = np.asarray(values, dtype)
        name = self._fresh("constant")
        return self.weight(name, ir.tensor(array, name=name))

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        domain: str = "",
        outputs: int = 1,
        **attributes: Any,
    ) -> Any:
        """A standard operator: its value, or a tuple of values if there are several."""
        node = ir.node(op_type, inputs, attributes=attributes, domain=domain, num_outputs=outputs)
        return self._add(node)

    def kernel(
        self,
        name: str,
        *inputs: ir.Value,
        outputs: int = 1,
        dtype: str | None = None,
        **parameters: Any,
    ) -> Any:
        """One of our kernels. ``dtype`` is the type of its outputs, by default the compute type.

        Types with commas between are those of as many outputs.
        """
        dtype = dtype or self.compute_name
        node = ir.node(
            KERNEL_OPERATORS[dtype],
            inputs,
            attributes={KERNEL_SPEC: spec_of(name, parameters)},
            domain=KERNEL_DOMAIN,
            num_outputs=outputs,
        )
        self._kernels[node] = name, parameters
        types = [ir.DataType(BY_NAME[name].onnx) for name in dtype.split(", ")]
        for index, value in enumerate(node.outputs):
            value.dtype = types[index % len(types)]
        return self._add(node)

    def mark_servants(self, output: str) -> None:
        """Let the kernels that only this output needs say so, once all outputs are declared."""
        others = [value for value in self._graph.outputs if value.name != output]
        needed = _ancestors(others)
        for node, (name, parameters) in self._kernels.items():
            if node not in needed:
                marked = spec_of(name, {**parameters, KERNEL_SERVES: output})
                node.attributes.add(ir.AttrString(KERNEL_SPEC, marked))

    def model(self) -> ir.Model:
        return ir.Model(self._graph, ir_version=10)

    def save(self, folder: Path) -> None:
        """``NAME.onnx`` with its weights beside it."""
        name = str(self._graph.name)
        ir.save(self.model(), folder / f"{name}.onnx", external_data=weights_file(name))

    def _add(self, node: ir.Node) -> Any:
        for value in node.outputs:
            value.name = self._fresh(node.op_type)
        self._graph.append(node)
        return node.outputs[0] if len(node.outputs) == 1 else tuple(node.outputs)

    def _fresh(self, what: str) -> str:
        self._count += 1
        return f"{what}_{self._count}"


class GraphWeights:
    """The initializers of an exported graph by checkpoint name, in the wanted type and layout."""

    def __init__(self, model: ir.Model, prefix: str, precision: Precision) -> None:
        self._initializers = model.graph.initializers
        self.prefix, self._precision = prefix, precision

    def has(self, name: str) -> bool:
        return self.prefix + name in self._initializers

    def names(self) -> list[str]:
        stored = self._initializers
        return [name.removeprefix(self.prefix) for name in stored if name.startswith(self.prefix)]

    def array(self, name: str) -> np.ndarray[Any, np.dtype[Any]]:
        """As stored."""
        value = self._initializers[self.prefix + name]
        assert value.const_value is not None
        return value.const_value.numpy()

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._initializers[self.prefix + name].shape
        assert shape is not None
        return shape.numpy()

    def dtype(self, name: str) -> ir.DataType:
        dtype = self._initializers[self.prefix + name].dtype
        assert dtype is not None
        return dtype

    def table(self, name: str) -> np.ndarray[Any, np.dtype[Any]] | None:
        """A constant table of the graph itself, if it has one of this name."""
        value = self._initializers.get(name)
        return None if value is None or value.const_value is None else value.const_value.numpy()

    def lazy(self, name: str, shape: Sequence[int], make: Any) -> ir.TensorProtocol:
        """A tensor in the compute type whose values ``make()`` gives when they are written."""
        precision = self._precision
        return ir.LazyTensor(
            lambda: ir.tensor(
                np.ascontiguousarray(make()).astype(precision.numpy).reshape(shape),
                dtype=precision.onnx,
                name=name,
            ),
            dtype=precision.onnx,
            shape=ir.Shape(shape),
            name=name,
        )


def _ancestors(values: Iterable[ir.Value]) -> set[ir.Node]:
    """Every node that these values are made by."""
    found: set[ir.Node] = set()
    waiting = list(values)
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            waiting.extend(value for value in node.inputs if value is not None)
    return found


def _typed(name: str, shape: Sequence[Size], dtype: ir.DataType) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
