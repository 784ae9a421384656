"""Model configuration: what a checkpoint is, and how it is rolled out."""

from longlive_trt.configs.loader import (
    load_config,
    parse_overrides,
    shipped_models,
)
from longlive_trt.configs.presets import Preset, load_preset, shipped_presets
from longlive_trt.configs.schema import (
    DecoderConfig,
    LatentConfig,
    ModelConfig,
    PromptsConfig,
    RolloutConfig,
    TaehvConfig,
    TextEncoderConfig,
    TransformerConfig,
    VaeConfig,
)

__all__ = [
    "DecoderConfig",
    "LatentConfig",
    "ModelConfig",
    "Preset",
    "PromptsConfig",
    "RolloutConfig",
    "TaehvConfig",
    "TextEncoderConfig",
    "TransformerConfig",
    "VaeConfig",
    "load_config",
    "load_preset",
    "parse_overrides",
    "shipped_models",
    "shipped_presets",
]
