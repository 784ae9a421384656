"""The attention kernel of our own inside TensorRT engines, where it runs."""

from typing import Any

from longlive_trt.architectures import HOPPER
from longlive_trt.configs import ModelConfig
from longlive_trt.engines.compiler import BuildOptions
from longlive_trt.engines.trt.flavors import Flavor, Target
from longlive_trt.errors import UsageError
from longlive_trt.plugins.attention import tensorrt_integer, tensorrt_plugin
from longlive_trt.plugins.attention.variants import HEAD_DIMS
from longlive_trt.precision import Precision


def uses_plugin(
    options: BuildOptions,
    flavor: Flavor,
    target: Target,
    precision: Precision,
    config: ModelConfig,
) -> bool:
    """On by default where the kernel runs; asked for elsewhere, a reason why not."""
    if options.attention == "standard":
        return False
    obstacle = _obstacle(flavor, target, precision, config)
    if options.attention == "plugin" and obstacle:
        raise UsageError(f"--attention plugin: {obstacle}; use --attention standard")
    return obstacle is None


def _obstacle(
    flavor: Flavor, target: Target, precision: Precision, config: ModelConfig
) -> str | None:
    head_dim = config.transformer.head_dim
    if not flavor.has_plugins:
        return f"{flavor.kind} takes no plugins"
    if not target.architecture.has_hopper_attention:
        return f"the kernel is for {HOPPER}, and the engines are for {target}"
    if precision.numpy.name not in tensorrt_plugin.DTYPES:
        return f"the kernel has no {precision.name}"
    if head_dim not in HEAD_DIMS:
        return f"the kernel has no heads of {head_dim} channels"
    return None


def takes_attention(kind: str, config: ModelConfig) -> bool:
    """Whether our kernel as a plugin has self-attention in these eight bits."""
    return kind == "int8" and config.transformer.head_dim == tensorrt_integer.HEAD_DIM


def plugin_hashes(config: ModelConfig, precision: Precision, kind: str | None) -> dict[str, str]:
    """``kind``: the eight bits that self-attention is in, if any."""
    head_dim = config.transformer.head_dim
    scale = float(head_dim) ** -0.5
    if kind is not None:
        return tensorrt_integer.plugin_hashes(precision.numpy.name, scale)
    kernel = tensorrt_plugin.plugin_hash(precision.numpy.name, head_dim, scale)
    return {tensorrt_plugin.PLUGIN_ID: kernel}


def register_plugin() -> Any:
    """Make TensorRT know the kernels; the engines that hold them need nothing of this."""
    tensorrt_plugin.register()
    tensorrt_integer.register()
