"""Exported graphs in the operators that ONNX Runtime's kernels for CPUs are fast at.

What is computed stays the same, but for the last bit of a float. Squares do not overflow: exports
take norms in single precision, whatever the rest of a graph is in.
"""

from collections.abc import Iterator

import onnx_ir as ir

VERSION = 1
"""Part of a bundle's key: another one builds bundles again."""


def rewrite(model: ir.Model) -> bool:
    """Whether the graph had any of them."""
    lengths = [node for node in model.graph if node.op_type == "ReduceL2"]
    for node in lengths:
        # The kernel of ReduceL2 is slow across channels.
        division = list(_divisions_by(node.outputs[0]))
        _sum_squares(node)
        for user in division:
            _multiply(user)
    return bool(lengths)


def _divisions_by(length: ir.Value) -> Iterator[ir.Node]:
    """By the length itself, or by what bounds it."""
    for use in length.uses():
        if use.node.op_type in ("Clip", "Max"):
            yield from _divisions_by(use.node.outputs[0])
        elif use.node.op_type == "Div" and use.idx == 1:
            yield use.node


def _sum_squares(node: ir.Node) -> None:
    x, axes = node.inputs
    squares = ir.node("Mul", [x, x])
    total = ir.node("ReduceSum", [squares.outputs[0], axes], attributes=node.attributes)
    _put_in_place(node, squares, total, ir.node("Sqrt", total.outputs))


def _multiply(division: ir.Node) -> None:
    """A reciprocal is taken of each length, and a division of each number is one less."""
    x, length = division.inputs
    reciprocal = ir.node("Reciprocal", [length])
    _put_in_place(division, reciprocal, ir.node("Mul", [x, reciprocal.outputs[0]]))


def _put_in_place(old: ir.Node, *new: ir.Node) -> None:
    graph = old.graph
    assert graph is not None
    graph.insert_before(old, new)
    before, after = old.outputs[0], new[-1].outputs[0]
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    graph.remove(old, safe=True)
    after.name, after.type, after.shape = before.name, before.type, before.shape
