"""Self-attention in int8 as our plugins take it: what was rounded, with its scales beside it.

The graph says what is rounded by what, in standard operators. Here keys and values go to the plugin
before they are multiplied by their scales again, queries before they are rounded, and values in the
order in which the kernel reads them.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from longlive_trt.contract import INTEGER_ATTENTION_OP, LOCAL_DOMAIN, TRANSPOSED_VALUES_OP
from longlive_trt.errors import EngineError
from longlive_trt.exports import add_initializer

_UNIT = "longlive.unit"
_Q, _K_NEW, _V_NEW, _K_CACHE, _V_CACHE, _LENGTH = range(6)


def to_plugin_inputs(model: ir.Model) -> list[ir.Node]:
    """All such attentions, with the inputs of the plugin."""
    nodes = [node for node in model.graph if node.op_type == INTEGER_ATTENTION_OP]
    for node in nodes:
        _give_inputs(node, _unit(model.graph))
    if nodes:
        RemoveUnusedNodesPass()(model)
    return nodes


def _give_inputs(node: ir.Node, unit: ir.Value) -> None:
    seen = list(node.inputs)
    quotient, q_scale, plain_q = _rounding_of(node, seen[_Q])
    (k_new, k_scale), (k_cache, _) = (_narrow(node, seen[i]) for i in (_K_NEW, _K_CACHE))
    (v_new, v_scale), (v_cache, _) = (_narrow(node, seen[i]) for i in (_V_NEW, _V_CACHE))
    given = [
        _integers(node, quotient, unit),
        k_new,
        _transposed(node, v_new),
        k_cache,
        _transposed(node, v_cache),
        seen[_LENGTH],
        q_scale,
        _wide(node, k_scale),
        _wide(node, v_scale),
        plain_q,
    ]
    node.resize_inputs(len(given))
    for index, value in enumerate(given):
        node.replace_input_with(index, value)


def _narrow(node: ir.Node, value: ir.Value | None) -> tuple[ir.Value, ir.Value]:
    """Eight bits, and the scales of heads that they were to be multiplied by."""
    values, scales = _inputs(node, value, "DequantizeLinear")
    return values, scales


def _rounding_of(node: ir.Node, value: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Queries in units of their rows, these units, and queries before they were rounded."""
    (product,) = _inputs(node, value, "Cast")
    integers, scale = _inputs(node, product, "Mul")
    (quotient,) = _inputs(node, integers, "Round")
    wide, _ = _inputs(node, quotient, "Div")
    (plain,) = _inputs(node, wide, "Cast")
    return quotient, scale, plain


def _inputs(node: ir.Node, value: ir.Value | None, op_type: str) -> list[ir.Value]:
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != op_type:
        raise EngineError(
            f"{node.name}: its queries, keys and values are not rounded as this version rounds "
            f"them ({op_type} is missing); calibrate and export again"
        )
    return [each for each in producer.inputs if each is not None]


def _unit(graph: ir.Graph) -> ir.Value:
    return add_initializer(graph, _UNIT, ir.tensor(np.ones((), np.float32), name=_UNIT))


def _integers(node: ir.Node, quotient: ir.Value, unit: ir.Value) -> ir.Value:
    to = ir.AttrInt64("output_dtype", ir.DataType.INT8)
    rounding = ir.Node("", "QuantizeLinear", [quotient, unit], [to])
    return _before(node, rounding, ir.DataType.INT8, quotient.shape)


def _wide(node: ir.Node, scale: ir.Value) -> ir.Value:
    cast = ir.Node("", "Cast", [scale], [ir.AttrInt64("to", ir.DataType.FLOAT)])
    return _before(node, cast, ir.DataType.FLOAT, scale.shape)


def _transposed(node: ir.Node, values: ir.Value) -> ir.Value:
    plugin = ir.Node(LOCAL_DOMAIN, TRANSPOSED_VALUES_OP, [values], plugin_attributes())
    return _before(node, plugin, values.dtype, None)


def plugin_attributes() -> list[ir.Attr]:
    """How the parser finds a plugin of ours."""
    return [
        ir.AttrString("plugin_namespace", LOCAL_DOMAIN),
        ir.AttrString("plugin_version", "1"),
    ]


def _before(
    node: ir.Node, new: ir.Node, dtype: ir.DataType | None, shape: ir.Shape | None
) -> ir.Value:
    (output,) = new.outputs
    output.type = None if dtype is None else ir.TensorType(dtype)
    output.shape = shape
    assert node.graph is not None
    node.graph.insert_before(node, new)
    return output
