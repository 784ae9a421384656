"""Model configuration: what a checkpoint is, and how it is rolled out."""

from longlive_trt.configs.loader import (
    load_config,
    parse_overrides,
    shipped_models,
    shipped_presets,
)
from longlive_trt.configs.schema import (
    LatentConfig,
    ModelConfig,
    PromptsConfig,
    RolloutConfig,
    TextEncoderConfig,
    TransformerConfig,
    VaeConfig,
)

__all__ = [
    "LatentConfig",
    "ModelConfig",
    "PromptsConfig",
    "RolloutConfig",
    "TextEncoderConfig",
    "TransformerConfig",
    "VaeConfig",
    "load_config",
    "parse_overrides",
    "shipped_models",
    "shipped_presets",
]
