"""Which kernels the written graphs of an export may have nodes of, known before any is written."""

from longlive_trt.contract import PROMPT, STEP, VAE_FIRST, VAE_NEXT
from longlive_trt.exports import ExportRecord, Quantization

_VAE = {"vae_stack", "vae_sum", "vae_head", "vae_pixels", "vae_frames"}
_ALWAYS = {
    STEP: {
        *("gemm", "layer_norm", "residual_norm", "rms_norm", "qkv_norm_rope"),
        "cross_attention",
    },
    PROMPT: {"gemm", "rms_norm"},
    VAE_FIRST: {*_VAE, "vae_zeros"},
    VAE_NEXT: _VAE,
}


def kernels_of(record: ExportRecord) -> set[str]:
    kernels = {name for graph in record.graphs for name in _ALWAYS.get(graph, ())}
    if VAE_NEXT in record.graphs and record.quantization and record.quantization.vae:
        kernels |= {"vae_conv", "vae_quantize"}
    if STEP in record.graphs:
        kernels |= _self_attention(record.quantization)
        if record.config.rollout.rope == "relative":
            kernels.add("rotate")
    return kernels


def _self_attention(quantization: Quantization | None) -> set[str]:
    if quantization is None:
        return {"attention"}
    kernels = {"quantize"}
    if quantization.cache is not None:
        kernels |= {"narrow_heads", "widen_heads"}
    if quantization.attention is None:
        return {*kernels, "attention"}
    kernels |= {"narrow_attention", "narrow_heads", "transposed_values"}
    # Attention in int8 is in the compute type where there is no kernel for it.
    return {*kernels, "attention"} if quantization.attention == "int8" else kernels
