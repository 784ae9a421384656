"""Precisions by name, and the compute type of an ONNX graph.

A graph is traced once, with every cast of its mixed-precision arithmetic in place, and remembers
which of its values have the compute type. Giving it another one is then a change of names: the
float32 islands (norm statistics, rotary tables, noise arithmetic) stay as they are.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from longlive_trt.contract import COMPUTE_TYPE_KEY, COMPUTE_VALUES_KEY
from longlive_trt.dtypes import BFLOAT16, FLOAT16, FLOAT32, ElementType
from longlive_trt.errors import ExportError, UsageError
from longlive_trt.reading.documents import parse_json
from longlive_trt.reading.failures import refusing
from longlive_trt.reading.shapes import field


@dataclass(frozen=True)
class Precision:
    name: str
    element: ElementType

    @property
    def numpy(self) -> np.dtype[np.generic]:
        return self.element.numpy

    @property
    def onnx(self) -> ir.DataType:
        return ir.DataType(self.element.onnx)


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", FLOAT32),
        Precision("fp16", FLOAT16),
        Precision("bf16", BFLOAT16),
    )
}


def precision_named(name: str) -> Precision:
    if name not in PRECISIONS:
        raise UsageError(f"precision {name} is unknown; allowed: {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def mark_compute_type(model: ir.Model, traced: ir.DataType) -> None:
    """Remember every value whose type was chosen, rather than derived, as the traced type."""
    names = [
        value.name
        for value in _values(model)
        if value.dtype == traced
        and (value.producer() is None or value.is_graph_output() or _type_setter(value))
    ]
    model.metadata_props[COMPUTE_TYPE_KEY] = traced.name
    model.metadata_props[COMPUTE_VALUES_KEY] = json.dumps(names)


def compute_precision(model: ir.Model) -> Precision:
    name = model.metadata_props.get(COMPUTE_TYPE_KEY)
    for precision in PRECISIONS.values():
        if precision.onnx.name == name:
            return precision
    raise ExportError(
        f"graph {model.graph.name} does not say its compute type; export it with longlive-trt"
    )


def retype(model: ir.Model, precision: Precision) -> None:
    """Give the graph another compute type; weights are converted when they are next read."""
    with refusing(UsageError, f"graph {model.graph.name}", "export again"):
        names = parse_json(model.metadata_props.get(COMPUTE_VALUES_KEY, ""))
        chosen = set(field(tuple[str, ...], names, COMPUTE_VALUES_KEY))
    current = compute_precision(model).onnx
    for value in _values(model):
        if value.name in chosen:
            _retype_value(value, precision)
        elif value.dtype == current and value.producer() and not value.is_graph_output():
            # Derived: shape inference finds it again.
            value.type = value.shape = None
    model.metadata_props[COMPUTE_TYPE_KEY] = precision.onnx.name


def _retype_value(value: ir.Value, precision: Precision) -> None:
    value.dtype = precision.onnx
    if value.const_value is not None:
        value.const_value = _converted(value.const_value, precision)
    setter = _type_setter(value)
    if setter is None:
        return
    if setter.op_type == "Cast":
        setter.attributes["to"] = ir.AttrInt64("to", precision.onnx)
    else:
        fill = setter.attributes["value"].as_tensor()
        setter.attributes["value"] = ir.AttrTensor("value", _converted(fill, precision))


def _converted(tensor: ir.TensorProtocol, precision: Precision) -> ir.TensorProtocol:
    if tensor.dtype == precision.onnx:
        return tensor
    return ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy().astype(precision.numpy), dtype=precision.onnx),
        dtype=precision.onnx,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
    )


def _type_setter(value: ir.Value) -> ir.Node | None:
    """The node that gives the value its type by an attribute, if there is one."""
    node = value.producer()
    return node if node is not None and node.op_type in ("Cast", "ConstantOfShape") else None


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph:
        yield from node.outputs
