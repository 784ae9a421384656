"""ONNX graphs written by hand: the forms in which a GPU runs the model with our own kernels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from longlive_trt.plugins.kernels.base import DOMAIN, OPERATORS, SPEC, spec_of
from longlive_trt.precision import Precision

OPSET = 22
_KERNEL_TYPES = {
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "float32": ir.DataType.FLOAT,
    "uint8": ir.DataType.UINT8,
    "float8_e4m3": ir.DataType.FLOAT8E4M3FN,
    "int8": ir.DataType.INT8,
}
_COMPUTE_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

Size = int | str


class GraphBuilder:
    """Adds nodes in running order; values are those of onnx-ir."""

    def __init__(self, name: str, precision: Precision) -> None:
        self.precision = precision
        self.compute_name = _COMPUTE_NAMES[precision.name]
        self._graph = ir.Graph(
            [], [], nodes=[], name=name, opset_imports={"": OPSET, DOMAIN: 1, "com.microsoft": 1}
        )
        self._count = 0

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
        existing = self._graph.initializers.get(name)
        if existing is not None:
            return existing
        value = _typed(name, tensor.shape.numpy(), tensor.dtype)
        value.const_value = tensor
        self._graph.initializers[name] = value
        return value

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

        Two types with a comma between are those of two outputs.
        """
        dtype = dtype or self.compute_name
        node = ir.node(
            OPERATORS[dtype],
            inputs,
            attributes={SPEC: spec_of(name, parameters)},
            domain=DOMAIN,
            num_outputs=outputs,
        )
        types = [_KERNEL_TYPES[name] for name in dtype.split(", ")]
        for index, value in enumerate(node.outputs):
            value.dtype = types[index % len(types)]
        return self._add(node)

    def model(self) -> ir.Model:
        return ir.Model(self._graph, ir_version=10)

    def save(self, folder: Path) -> None:
        """``NAME.onnx`` with its weights beside it."""
        name = str(self._graph.name)
        ir.save(self.model(), folder / f"{name}.onnx", external_data=f"{name}.weights")

    def _add(self, node: ir.Node) -> Any:
        for value in node.outputs:
            value.name = self._fresh(node.op_type)
        self._graph.append(node)
        return node.outputs[0] if len(node.outputs) == 1 else tuple(node.outputs)

    def _fresh(self, what: str) -> str:
        self._count += 1
        return f"{what}_{self._count}"


class Weights:
    """The initializers of an exported graph by checkpoint name, in the wanted type and layout."""

    def __init__(self, model: ir.Model, prefix: str, precision: Precision) -> None:
        self._initializers = model.graph.initializers
        self.prefix, self._precision = prefix, precision

    def has(self, name: str) -> bool:
        return self.prefix + name in self._initializers

    def array(self, name: str) -> np.ndarray[Any, np.dtype[Any]]:
        """As stored: matrices of linear maps are [in, out]."""
        value = self._initializers[self.prefix + name]
        assert value.const_value is not None
        return value.const_value.numpy()

    def table(self, name: str) -> np.ndarray[Any, np.dtype[Any]]:
        """A constant table of the graph itself."""
        value = self._initializers[name]
        assert value.const_value is not None
        return value.const_value.numpy()

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


def _typed(name: str, shape: Sequence[Size], dtype: ir.DataType) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
