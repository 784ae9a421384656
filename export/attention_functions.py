"""Self-attention over a cache, as functions of standard operators.

A graph calls them by name, so that a compiler with something better can put that in their place.
"""

import onnx.parser
import onnx_ir as ir

from longlive_trt.contract import (
    ATTENTION_OP,
    INTEGER_ATTENTION_OP,
    LOCAL_DOMAIN,
    QUANTIZED_ATTENTION_OP,
)
from longlive_trt.dtypes import FLOAT8, FLOAT32

OPSET = 24
_FP8 = FLOAT8.onnx
_WIDE = FLOAT32.onnx
PROBABILITY_EXPONENT = 4
"""Of the largest probability of a row in int8 attention, as powers of two."""


def add_attention_functions(model: ir.Model) -> None:
    """The functions that the graph calls."""
    called = {node.op_type for node in model.graph if node.domain == LOCAL_DOMAIN}
    for name in sorted(called):
        function = ir.serde.deserialize_function(onnx.parser.parse_function(_FUNCTIONS[name]))
        model.functions[function.identifier()] = function
        model.graph.opset_imports[LOCAL_DOMAIN] = 1


_FUNCTIONS = {
    ATTENTION_OP: f"""
<domain: "{LOCAL_DOMAIN}", opset_import: ["": {OPSET}]>
{ATTENTION_OP} <scale, heads> (q, k_new, v_new, k_cache, v_cache, cached_tokens) => (attended)
{{
    k = Concat <axis = 1> (k_new, k_cache)
    v = Concat <axis = 1> (v_new, v_cache)
    merged = Constant <value_ints = [0, 0, -1]> ()
    q_merged = Reshape (q, merged)
    k_merged = Reshape (k, merged)
    v_merged = Reshape (v, merged)
    new_tokens = Shape <start = 1, end = 2> (k_new)
    batch = Shape <start = 0, end = 1> (q)
    seen = Add (new_tokens, cached_tokens)
    seen_by_row = Expand (seen, batch)
    merged_attended = Attention <
        scale: float = @scale, q_num_heads: int = @heads, kv_num_heads: int = @heads
    > (q_merged, k_merged, v_merged, , , , seen_by_row)
    split = Shape (q)
    attended = Reshape (merged_attended, split)
}}
""",
    # The standard's Attention has no place for a quantized softmax, so this one is spelled out.
    QUANTIZED_ATTENTION_OP: f"""
<domain: "{LOCAL_DOMAIN}", opset_import: ["": {OPSET}]>
{QUANTIZED_ATTENTION_OP} <scale> (
    q, k_new, v_new, k_cache, v_cache, cached_tokens, q_scale, k_scale, v_scale, softmax_scale
) => (attended)
{{
    k = Concat <axis = 1> (k_new, k_cache)
    v = Concat <axis = 1> (v_new, v_cache)
    q_narrow = QuantizeLinear <output_dtype = {_FP8}> (q, q_scale)
    k_narrow = QuantizeLinear <output_dtype = {_FP8}> (k, k_scale)
    v_narrow = QuantizeLinear <output_dtype = {_FP8}> (v, v_scale)
    q_rounded = DequantizeLinear (q_narrow, q_scale)
    k_rounded = DequantizeLinear (k_narrow, k_scale)
    v_rounded = DequantizeLinear (v_narrow, v_scale)
    factor = Constant <value_float: float = @scale> ()
    q_wide = Cast <to = {_WIDE}> (q_rounded)
    q_scaled_wide = Mul (q_wide, factor)
    q_scaled = CastLike (q_scaled_wide, q)
    q_heads = Transpose <perm = [0, 2, 1, 3]> (q_scaled)
    k_heads = Transpose <perm = [0, 2, 3, 1]> (k_rounded)
    v_heads = Transpose <perm = [0, 2, 1, 3]> (v_rounded)
    logits_rounded = MatMul (q_heads, k_heads)
    logits = Cast <to = {_WIDE}> (logits_rounded)
    new_tokens = Shape <start = 1, end = 2> (k_new)
    seen = Add (new_tokens, cached_tokens)
    all_keys = Shape <start = 1, end = 2> (k)
    keys = Squeeze (all_keys)
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    index = Range (zero, keys, one)
    valid = Less (index, seen)
    nothing = Constant <value_float = -1.0e30> ()
    masked = Where (valid, logits, nothing)
    weights_wide = Softmax <axis = -1> (masked)
    weights = CastLike (weights_wide, q)
    weights_narrow = QuantizeLinear <output_dtype = {_FP8}> (weights, softmax_scale)
    weights_rounded = DequantizeLinear (weights_narrow, softmax_scale)
    attended_heads = MatMul (weights_rounded, v_heads)
    attended = Transpose <perm = [0, 2, 1, 3]> (attended_heads)
}}
""",
    # Queries, keys and values were rounded before. As our kernel does it, probabilities are rounded
    # before they are divided by their sum, with a row's largest one at 2^4.
    INTEGER_ATTENTION_OP: f"""
<domain: "{LOCAL_DOMAIN}", opset_import: ["": {OPSET}]>
{INTEGER_ATTENTION_OP} <scale> (q, k_new, v_new, k_cache, v_cache, cached_tokens) => (attended)
{{
    k = Concat <axis = 1> (k_new, k_cache)
    v = Concat <axis = 1> (v_new, v_cache)
    q_wide = Cast <to = {_WIDE}> (q)
    k_wide = Cast <to = {_WIDE}> (k)
    v_wide = Cast <to = {_WIDE}> (v)
    factor = Constant <value_float: float = @scale> ()
    q_scaled = Mul (q_wide, factor)
    q_heads = Transpose <perm = [0, 2, 1, 3]> (q_scaled)
    k_heads = Transpose <perm = [0, 2, 3, 1]> (k_wide)
    v_heads = Transpose <perm = [0, 2, 1, 3]> (v_wide)
    logits = MatMul (q_heads, k_heads)
    new_tokens = Shape <start = 1, end = 2> (k_new)
    seen = Add (new_tokens, cached_tokens)
    all_keys = Shape <start = 1, end = 2> (k)
    keys = Squeeze (all_keys)
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    index = Range (zero, keys, one)
    valid = Less (index, seen)
    nothing = Constant <value_float = -1.0e30> ()
    masked = Where (valid, logits, nothing)
    last = Constant <value_ints = [-1]> ()
    largest = ReduceMax (masked, last)
    shifted = Sub (masked, largest)
    powers = Exp (shifted)
    sums = ReduceSum (powers, last)
    raise = Constant <value_float = {2.0**PROBABILITY_EXPONENT}> ()
    raised = Mul (powers, raise)
    unit = Constant <value_float = 1.0> ()
    narrow = QuantizeLinear <output_dtype = {_FP8}> (raised, unit)
    rounded = DequantizeLinear (narrow, unit)
    products = MatMul (rounded, v_heads)
    raised_sums = Mul (sums, raise)
    attended_heads = Div (products, raised_sums)
    attended_wide = Transpose <perm = [0, 2, 1, 3]> (attended_heads)
    attended = CastLike (attended_wide, q)
}}
""",
}
