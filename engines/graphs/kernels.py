"""Which kernels the written graphs of an export may have nodes of, known before any is written."""

from longlive_trt.configs import ModelConfig, TaehvConfig, VaeConfig
from longlive_trt.contract import COMPONENT_OF, DECODER_GRAPHS, PROMPT, STEP, VAE, VAE_NEXT
from longlive_trt.engines.graphs import vae
from longlive_trt.exports import ExportRecord, Quantization

_VAE = {"vae_stack", "vae_sum", "vae_head", "vae_pixels", "vae_frames"}
_TAEHV = {"vae_stack", "vae_colors"}
_ALWAYS = {
    STEP: {
        *("gemm", "layer_norm", "residual_norm", "rms_norm", "qkv_norm_rope"),
        "cross_attention",
    },
    PROMPT: {"gemm", "rms_norm"},
}


def kernels_of(record: ExportRecord) -> set[str]:
    kernels = {name for graph in record.graphs for name in _ALWAYS.get(graph, ())}
    kernels |= {name for graph in record.graphs for name in _of_decoder(record, graph)}
    is_written = why_as_exported(record.config, VAE) is None
    if is_written and VAE_NEXT in record.graphs and record.quantization and record.quantization.vae:
        kernels |= {"vae_conv", "vae_quantize"}
    if STEP in record.graphs:
        is_relative = record.config.rollout.rope == "relative"
        kernels |= _of_layers(record.quantization, is_relative)
        if is_relative:
            kernels.add("rotate")
    return kernels


def why_as_exported(config: ModelConfig, component: str) -> str | None:
    """Of a decoder that our kernels do not take, the reason."""
    decoder = config.decoder(component) if component in DECODER_GRAPHS else None
    return vae.obstacle(decoder) if isinstance(decoder, VaeConfig) else None


def _of_decoder(record: ExportRecord, graph: str) -> set[str]:
    component = COMPONENT_OF[graph]
    if component not in DECODER_GRAPHS or why_as_exported(record.config, component):
        return set()
    if isinstance(record.config.decoder(component), TaehvConfig):
        return _TAEHV
    first, _ = DECODER_GRAPHS[component]
    return {*_VAE, "vae_zeros"} if graph == first else _VAE


def _of_layers(quantization: Quantization | None, is_relative: bool) -> set[str]:
    if quantization is None:
        return {"attention"}
    kernels = {"quantize", "gelu_product"}
    if quantization.cache is not None:
        kernels |= {"narrow_heads", "widen_heads"}
    if quantization.attention is None:
        return {*kernels, "attention"}
    kernels |= {"narrow_attention", "narrow_heads"}
    if quantization.attention == "int8":
        # It is in the compute type where there is no kernel for it.
        return kernels | {"attention", "widen_heads"}
    is_rounded_anew = quantization.cache != "fp8" or is_relative
    return kernels | {"transposed_values"} if is_rounded_anew else kernels
