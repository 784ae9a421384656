"""The tiny decoder's graphs for a GPU: as exported, in half precision, for latents of one size.

Every layer is one 2-D convolution of all frames, which the library has fast kernels for; between
them are only sums, activations and copies.
"""

from pathlib import Path

import onnx_ir as ir

from longlive_trt.configs import ModelConfig
from longlive_trt.contract import (
    BATCH,
    DECODER_GRAPHS,
    LATENT_FRAMES,
    LATENTS,
    latent_sizes,
    weights_file,
)
from longlive_trt.engines.graphs.shapes import fix_shapes
from longlive_trt.engines.graphs.vae import save_sharing
from longlive_trt.precision import Precision, retype

_OPSET = 18
"""ONNX Runtime lists kernels on GPUs for all of its operators, and not of the exported opset's."""


def build_taehv_graphs(
    config: ModelConfig,
    component: str,
    export_folder: Path,
    precision: Precision,
    out: Path,
    *,
    batch: int,
    latents: Precision,
) -> None:
    """Write both graphs of the decoder, and the weights that they share.

    The latents come in a precision of their own: the transformer's.
    """
    first, following = DECODER_GRAPHS[component]
    graphs = {name: ir.load(export_folder / f"{name}.onnx") for name in (following, first)}
    sizes = {BATCH: batch, **latent_sizes(config.latent.height, config.latent.width)}
    for model in graphs.values():
        fix_shapes(model, sizes, LATENT_FRAMES)
        model.opset_imports[""] = _OPSET
        retype(model, precision)
        if latents != precision:
            _cast_latents(model.graph, latents, precision)
    save_sharing(graphs, out, weights_file(component))


def _cast_latents(graph: ir.Graph, given: Precision, computed: Precision) -> None:
    latents = next(value for value in graph.inputs if value.name == LATENTS)
    cast = ir.node("Cast", [latents], attributes={"to": computed.onnx})
    half = cast.outputs[0]
    half.name, half.shape, half.type = f"{LATENTS}.cast", latents.shape, latents.type
    for use in tuple(latents.uses()):
        if use.node is not cast:
            use.node.replace_input_with(use.idx, half)
    latents.type = ir.TensorType(given.onnx)
    graph.insert_before(graph[0], cast)
