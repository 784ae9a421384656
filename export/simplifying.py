"""Traced graphs made smaller: constants folded, and what does nothing left out.

It is what onnxscript's optimizer does, but with the rules alone that our graphs have a use for. One
of its others, which looks for two slices that are one split, goes through all nodes for every node.
"""

import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes import common
from onnxscript.rewriter import RewritePass, RewriteRuleSet
from onnxscript.rewriter.rules.common import (
    add_0_rule,
    cast_cast_rule,
    cast_constant_of_shape_rule,
    cast_constant_of_shape_without_value_rule,
    collapse_slice2_rule,
    collapse_slice_rule,
    div_by_1_rule,
    fuse_pad_into_conv_rule,
    materialize_reshape_shape_rule,
    max_max_rule,
    max_min_rule,
    min_max_rule,
    min_min_rule,
    mul_by_1_rule,
    no_op_cast_rule,
    no_op_expand_rule,
    no_op_transpose_rule,
    normalize_pad_format_conv_rule,
    reshape_reshape_rule,
    squeeze_reshape_1d_rule,
    sub_0_rule,
    transpose_transpose_rule,
    unsqueeze_unsqueeze_rule,
)

_ROUNDS = 2
_RULES = RewriteRuleSet(
    [
        *(*mul_by_1_rule.commute(), *add_0_rule.commute(), sub_0_rule, div_by_1_rule),
        *(cast_constant_of_shape_rule, cast_constant_of_shape_without_value_rule),
        *(collapse_slice_rule, collapse_slice2_rule, materialize_reshape_shape_rule),
        *(min_min_rule, max_max_rule, min_max_rule, max_min_rule),
        *(cast_cast_rule, no_op_cast_rule, no_op_expand_rule, reshape_reshape_rule),
        *(no_op_transpose_rule, transpose_transpose_rule),
        *(unsqueeze_unsqueeze_rule, squeeze_reshape_1d_rule),
        *(normalize_pad_format_conv_rule, fuse_pad_into_conv_rule),
    ]
)


def simplify(model: ir.Model) -> None:
    common.InlinePass()(model)
    for _ in range(_ROUNDS):
        folded = onnxscript.optimizer.fold_constants_ir(model, onnx_shape_inference=True)
        cleaned = _cleaning()(model)
        if not (folded.modified or cleaned.modified):
            break
    _finishing()(model)


def _cleaning() -> ir.passes.Sequential:
    return ir.passes.Sequential(
        RewritePass(_RULES),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
    )


def _finishing() -> ir.passes.Sequential:
    return ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )
