"""What a graph needs before TensorRT reads it, and its network after that."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from longlive_trt.contract import ATTENTION_OP, BATCH, LENGTHS_PREFIX, LOCAL_DOMAIN, weights_file
from longlive_trt.dtypes import FLOAT8
from longlive_trt.engines.trt.attention import takes_quantized, use_fused_attention
from longlive_trt.engines.trt.integer_attention import plugin_attributes, to_plugin_inputs
from longlive_trt.precision import Precision, compute_precision, retype

_LENGTHS_INPUT = 6
_FP8 = (ir.DataType(FLOAT8.onnx), ir.DataType.FLOAT8E5M2)


@dataclass(frozen=True)
class AttentionSite:
    """An attention of the graph, which should become one kernel."""

    name: str
    has_lengths: bool
    """Only a prefix of its keys is valid."""
    is_fp8: bool = False


@dataclass(frozen=True)
class PreparedGraph:
    model: bytes
    path: Path
    """Where the model's weights files are looked for."""
    sites: tuple[AttentionSite, ...]
    plugin_nodes: int
    has_fp8: bool
    weights_bytes: int
    softmax_scale: np.ndarray | None = None
    """Of attention in FP8."""


def prepare(
    source: Path, precision: Precision, scratch: Path, *, keep_plugin_nodes: bool = False
) -> PreparedGraph:
    """The graph in its compute type, with the names and forms that the parser needs."""
    model = ir.load(source)
    retyped = compute_precision(model) != precision
    if retyped:
        retype(model, precision)
    softmax_scale = use_fused_attention(model)
    plugin_nodes = _as_plugin_nodes(model) if keep_plugin_nodes else 0
    InlinePass()(model)
    sites = _name_attentions(model)
    _cast_to_bytes_last(model)
    path = source
    if retyped:
        path = scratch / source.name
        ir.save(model, path, external_data=weights_file(source.stem))
    weights = [value.const_value for value in model.graph.initializers.values()]
    return PreparedGraph(
        model=path.read_bytes() if retyped else ir.to_proto(model).SerializeToString(),
        path=path,
        sites=sites,
        plugin_nodes=plugin_nodes,
        has_fp8=softmax_scale is not None or any(v.dtype in _FP8 for v in _values(model)),
        weights_bytes=sum(tensor.nbytes for tensor in weights if tensor is not None),
        softmax_scale=softmax_scale,
    )


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.initializers.values()
    for node in model.graph:
        yield from node.outputs


def _as_plugin_nodes(model: ir.Model) -> int:
    """Take the standard bodies away, so that the parser asks for a plugin of that name.

    The plugin has a second output, its working memory.
    """
    for identifier in [key for key in model.functions if key[0] == LOCAL_DOMAIN]:
        del model.functions[identifier]
    nodes = [node for node in model.graph if node.op_type == ATTENTION_OP]
    nodes += to_plugin_inputs(model)
    for node in nodes:
        node.resize_outputs(2)
        node.outputs[1].name = f"{node.name}.workspace"
        node.attributes.update({each.name: each for each in plugin_attributes()})
    return len(nodes)


def _name_attentions(model: ir.Model) -> tuple[AttentionSite, ...]:
    """Names by which their kernels are found again, and lengths as outputs of the graph.

    The parser reads `nonpad_kv_seqlen` and forgets it: engines would attend to empty slots.
    So the lengths are made outputs here, and connected to the attention in the network.
    """
    sites: list[AttentionSite] = []
    for node in [node for node in model.graph if node.op_type == "Attention"]:
        lengths = node.inputs[_LENGTHS_INPUT] if len(node.inputs) > _LENGTHS_INPUT else None
        kind = "cross_attention" if lengths is None else "self_attention"
        node.name = f"{kind}.{sum(site.name.startswith(kind) for site in sites)}"
        if lengths is not None:
            node.resize_inputs(_LENGTHS_INPUT)
            model.graph.outputs.append(_copy_of(lengths, LENGTHS_PREFIX + node.name, node))
        sites.append(AttentionSite(node.name, lengths is not None, takes_quantized(node)))
    return tuple(sites)


def _copy_of(value: ir.Value, name: str, before: ir.Node) -> ir.Value:
    """TensorRT takes lengths as 32-bit integers."""
    copy = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape([BATCH]))
    to = ir.AttrInt64("to", ir.DataType.INT32)
    assert before.graph is not None
    before.graph.insert_before(before, ir.Node("", "Cast", [value], [to], outputs=[copy]))
    return copy


def _cast_to_bytes_last(model: ir.Model) -> None:
    """TensorRT has bytes only as outputs: what transposes pixels must come before the cast."""
    for index, output in enumerate(model.graph.outputs):
        transpose = output.producer()
        if output.dtype != ir.DataType.UINT8 or transpose is None:
            continue
        cast = transpose.inputs[0].producer() if transpose.inputs[0] else None
        if transpose.op_type == "Transpose" and cast is not None and cast.op_type == "Cast":
            model.graph.outputs[index] = _swapped(cast, transpose, output)
            model.graph.remove((transpose, cast), safe=True)


def _swapped(cast: ir.Node, transpose: ir.Node, output: ir.Value) -> ir.Value:
    wide = cast.inputs[0]
    assert wide is not None and transpose.graph is not None
    turned = ir.Node("", "Transpose", [wide], transpose.attributes.values(), num_outputs=1)
    pixels = ir.Value(name=output.name, type=output.type, shape=output.shape)
    last = ir.Node("", "Cast", turned.outputs, cast.attributes.values(), outputs=[pixels])
    transpose.graph.insert_before(transpose, (turned, last))
    output.name = None
    return pixels


def connect_lengths(trt: Any, network: Any, sites: tuple[AttentionSite, ...]) -> None:
    """Give every attention of a partly filled cache the number of its valid keys."""
    attentions = dict(attentions_of(trt, network))
    outputs = {tensor.name: tensor for tensor in _outputs(network)}
    for site in sites:
        if site.has_lengths:
            lengths = outputs[LENGTHS_PREFIX + site.name]
            attentions[site.name].key_value_lengths = lengths
            network.unmark_output(lengths)


def attentions_of(trt: Any, network: Any) -> Iterator[tuple[str, Any]]:
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_OUTPUT:
            # TensorRT's own way to a layer's subtype.
            layer.__class__ = trt.IAttentionOutputLayer
            yield layer.name.removesuffix("_AttentionOutput"), layer.attention


def _outputs(network: Any) -> list[Any]:
    return [network.get_output(index) for index in range(network.num_outputs)]
