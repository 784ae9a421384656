"""What can be made of a layer: number formats, and the recipes that use them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from longlive_trt import dtypes
from longlive_trt.configs import RolloutConfig
from longlive_trt.dtypes import ElementType
from longlive_trt.errors import UsageError
from longlive_trt.export.torch_types import torch_type


@dataclass(frozen=True)
class Format:
    """What values are quantized to."""

    name: str
    element: ElementType
    largest: float
    modelopt_bits: int | tuple[int, int]

    @property
    def dtype(self) -> torch.dtype:
        return torch_type(self.element)


FP8 = Format("fp8", dtypes.FLOAT8, 448.0, (4, 3))
INT8 = Format("int8", dtypes.INT8, 127.0, 8)
WIDER_THAN = "wider-than-"
"""Before a number of channels: a pattern of convolutions that have more, in or out."""
# What is left are the convolutions of residual blocks that work on large pictures. Those on the way
# that all signal goes cost three times as much quality each (docs/quality.md), and those of small
# pictures, with more channels, are a fifth of the work.
VAE_EXCLUDED = (
    *("conv2", "decoder.conv1", "decoder.head.2"),
    *("*.resample.1", "*.time_conv", "*.shortcut", "*.to_qkv", "*.proj"),
    f"{WIDER_THAN}192",
)

FORMATS = {format_.name: format_ for format_ in (FP8, INT8)}


@dataclass(frozen=True)
class Recipe:
    """Weights have a scale for each output channel, activations one for the whole tensor."""

    name: str
    format: Format
    smoothing: float | None = None
    """SmoothQuant's alpha: how much of an activation's range moves into the weights."""

    @property
    def algorithm(self) -> str | dict[str, Any]:
        """In ModelOpt's terms."""
        if self.smoothing is None:
            return "max"
        return {"method": "smoothquant", "alpha": self.smoothing}


@dataclass(frozen=True)
class Extras:
    """What is quantized besides the layers; None is not."""

    cache: Format | None = None
    """Keys and values between passes."""
    attention: Format | None = None
    """Self-attention's products."""
    vae: Format | None = None
    """Convolutions of the VAE's decoder."""
    vae_exclude: tuple[str, ...] = VAE_EXCLUDED
    """Patterns of those that stay as they are."""
    turns_kept: bool = False
    """Whether kept keys have no positions, and are turned in every pass."""

    def of(self, rollout: RolloutConfig) -> "Extras":
        return replace(self, turns_kept=rollout.rope == "relative")

    @property
    def scaled(self) -> Mapping[str, Format]:
        """By part (``k``, ``v``), what has a scale for each head.

        Attention in int8 reads keys and values as they are kept, and has formats of its own.
        """
        if self.attention == INT8:
            return {"k": INT8, "v": FP8}
        return {} if self.cache is None else dict.fromkeys("kv", self.cache)

    @property
    def kept(self) -> Mapping[str, Format]:
        """By part, what is kept between passes in eight bits.

        Not keys that are turned before attention in int8 has them: they would be rounded twice.
        """
        plain = {"k"} if self.attention == INT8 and self.turns_kept else set()
        return {part: format_ for part, format_ in self.scaled.items() if part not in plain}

    def __post_init__(self) -> None:
        if self.attention == INT8 and self.cache not in (None, INT8):
            raise UsageError(
                f"--attention int8 reads keys in int8 and values in fp8 where they are kept; leave "
                f"--cache {self.cache.name} out"
            )


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("fp8", FP8),
        Recipe("int8", INT8),
        Recipe("int8-smoothquant", INT8, smoothing=0.5),
    )
}


def recipe_named(name: str) -> Recipe:
    if name not in RECIPES:
        raise UsageError(f"recipe {name} is unknown; allowed: {', '.join(RECIPES)}")
    return RECIPES[name]
