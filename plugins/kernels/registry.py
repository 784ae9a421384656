"""Every kernel that a graph's node can name."""

import json
from collections.abc import Iterable, Mapping

from longlive_trt.architectures import Architecture
from longlive_trt.contract import KERNEL_KEY, KERNEL_SERVES
from longlive_trt.errors import PluginError
from longlive_trt.plugins.cuda.compilation import texts_of
from longlive_trt.plugins.kernels.attention import Attention, CrossAttention, NarrowAttention
from longlive_trt.plugins.kernels.base import GraphKernel
from longlive_trt.plugins.kernels.gelu_product import GeluProduct
from longlive_trt.plugins.kernels.gemm import Gemm
from longlive_trt.plugins.kernels.layer_norm import LayerNorm, ResidualNorm
from longlive_trt.plugins.kernels.quantize import NarrowHeads, Quantize, WidenHeads
from longlive_trt.plugins.kernels.rms_norm import RmsNorm
from longlive_trt.plugins.kernels.rows import QkvNormRope, Rotate
from longlive_trt.plugins.kernels.vae import (
    VaeFrames,
    VaeHead,
    VaePixels,
    VaeStack,
    VaeSum,
    VaeZeros,
)
from longlive_trt.plugins.kernels.vae_colors import VaeColors
from longlive_trt.plugins.kernels.vae_conv import VaeConv, VaeQuantize
from longlive_trt.plugins.kernels.values import TransposedValues

KERNELS: Mapping[str, type[GraphKernel]] = {
    "attention": Attention,
    "cross_attention": CrossAttention,
    "gelu_product": GeluProduct,
    "gemm": Gemm,
    "layer_norm": LayerNorm,
    "narrow_attention": NarrowAttention,
    "narrow_heads": NarrowHeads,
    "qkv_norm_rope": QkvNormRope,
    "quantize": Quantize,
    "residual_norm": ResidualNorm,
    "rms_norm": RmsNorm,
    "rotate": Rotate,
    "transposed_values": TransposedValues,
    "vae_colors": VaeColors,
    "vae_conv": VaeConv,
    "vae_frames": VaeFrames,
    "vae_head": VaeHead,
    "vae_pixels": VaePixels,
    "vae_quantize": VaeQuantize,
    "vae_stack": VaeStack,
    "vae_sum": VaeSum,
    "vae_zeros": VaeZeros,
    "widen_heads": WidenHeads,
}


def kernel_of(spec: str) -> GraphKernel:
    parameters = json.loads(spec)
    name = parameters.pop(KERNEL_KEY)
    parameters.pop(KERNEL_SERVES, None)
    if name not in KERNELS:
        raise PluginError(
            f"the graph has a kernel {name!r}, which this version does not know; known are "
            f"{', '.join(sorted(KERNELS))}"
        )
    return KERNELS[name](**parameters)


def served_by(spec: str) -> str | None:
    """The one output of its graph that a node is there for, if there is such a one."""
    output: str | None = json.loads(spec).get(KERNEL_SERVES)
    return output


def sources_of(names: Iterable[str], architecture: Architecture) -> list[str]:
    """The texts below ``csrc/`` that decide what these kernels do on such a GPU."""
    files = {kernel.file for name in names for kernel in KERNELS[name].cuda_kernels(architecture)}
    return sorted({text for file in files for text in texts_of(file)})
