"""Self-attention in eight bits: the forms that TensorRT has a fused kernel for.

The graph spells it out, with every rounding in its place. In FP8 the compiler's own attention
takes quantized queries, keys and values, and is told the scale of its softmax's output. For int8 it
has no kernel: what was rounded is multiplied in half precision, and probabilities stay as they are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.parser import parse_function

from longlive_trt.contract import INTEGER_ATTENTION_OP, LOCAL_DOMAIN, QUANTIZED_ATTENTION_OP
from longlive_trt.dtypes import FLOAT8

_SOFTMAX_SCALE_INPUT = 9

# Scales are of whole tensors: with one for each head there is no fused kernel.
_FUSED = f"""
<domain: "{LOCAL_DOMAIN}", opset_import: ["": 24]>
{QUANTIZED_ATTENTION_OP} <scale> (
    q, k_new, v_new, k_cache, v_cache, cached_tokens, q_scale, k_scale, v_scale, softmax_scale
) => (attended)
{{
    k = Concat <axis = 1> (k_new, k_cache)
    v = Concat <axis = 1> (v_new, v_cache)
    q_heads = Transpose <perm = [0, 2, 1, 3]> (q)
    k_heads = Transpose <perm = [0, 2, 1, 3]> (k)
    v_heads = Transpose <perm = [0, 2, 1, 3]> (v)
    q_narrow = QuantizeLinear <output_dtype = {FLOAT8.onnx}> (q_heads, q_scale)
    k_narrow = QuantizeLinear <output_dtype = {FLOAT8.onnx}> (k_heads, k_scale)
    v_narrow = QuantizeLinear <output_dtype = {FLOAT8.onnx}> (v_heads, v_scale)
    q_rounded = DequantizeLinear (q_narrow, q_scale)
    k_rounded = DequantizeLinear (k_narrow, k_scale)
    v_rounded = DequantizeLinear (v_narrow, v_scale)
    new_tokens = Shape <start = 1, end = 2> (k_new)
    batch = Shape <start = 0, end = 1> (q)
    seen = Add (new_tokens, cached_tokens)
    seen_by_row = Expand (seen, batch)
    attended_heads = Attention <scale: float = @scale> (
        q_rounded, k_rounded, v_rounded, , , , seen_by_row
    )
    attended = Transpose <perm = [0, 2, 1, 3]> (attended_heads)
}}
"""


_HALF = f"""
<domain: "{LOCAL_DOMAIN}", opset_import: ["": 24]>
{INTEGER_ATTENTION_OP} <scale> (q, k_new, v_new, k_cache, v_cache, cached_tokens) => (attended)
{{
    k = Concat <axis = 1> (k_new, k_cache)
    v = Concat <axis = 1> (v_new, v_cache)
    q_heads = Transpose <perm = [0, 2, 1, 3]> (q)
    k_heads = Transpose <perm = [0, 2, 1, 3]> (k)
    v_heads = Transpose <perm = [0, 2, 1, 3]> (v)
    new_tokens = Shape <start = 1, end = 2> (k_new)
    batch = Shape <start = 0, end = 1> (q)
    seen = Add (new_tokens, cached_tokens)
    seen_by_row = Expand (seen, batch)
    attended_heads = Attention <scale: float = @scale> (
        q_heads, k_heads, v_heads, , , , seen_by_row
    )
    attended = Transpose <perm = [0, 2, 1, 3]> (attended_heads)
}}
"""


def use_fused_attention(model: ir.Model) -> np.ndarray | None:
    """Put the fused form where the graph spells it out; the softmax's scale, if there is one."""
    for text in (_FUSED, _HALF):
        fused = ir.serde.deserialize_function(parse_function(text))
        if fused.identifier() in model.functions:
            model.functions[fused.identifier()] = fused
    nodes = [node for node in model.graph if node.op_type == QUANTIZED_ATTENTION_OP]
    if not nodes:
        return None
    scale = nodes[0].inputs[_SOFTMAX_SCALE_INPUT]
    assert scale is not None and scale.const_value is not None
    return scale.const_value.numpy().astype(np.float32)


def takes_quantized(attention: ir.Node) -> bool:
    keys = attention.inputs[1]
    producer = keys.producer() if keys is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


def quantize_softmax(trt: Any, network: Any, attentions: Sequence[Any], scale: np.ndarray) -> None:
    """ONNX has no place for this; ``scale`` must live as long as the network."""
    for attention in attentions:
        constant = network.add_constant((), trt.Weights(scale))
        attention.normalization_quantize_scale = constant.get_output(0)
        attention.normalization_quantize_to_type = trt.DataType.FP8
