"""The shapes that each graph is compiled for, from the configuration."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from longlive_trt.configs import ModelConfig
from longlive_trt.configs.schema import GLOBAL_ATTENTION_TOKENS
from longlive_trt.engines.base import TensorSpec
from longlive_trt.errors import UsageError
from longlive_trt.exports import GraphInfo, TensorInfo

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """Of one named size; equal ends make it static."""

    low: int
    usual: int
    high: int

    @classmethod
    def fixed(cls, size: int) -> "Range":
        return cls(size, size, size)

    @property
    def is_fixed(self) -> bool:
        return self.low == self.high


@dataclass(frozen=True)
class Profile:
    name: str
    sizes: Mapping[str, Range]

    def shapes(self, tensor: TensorInfo) -> tuple[Shape, Shape, Shape]:
        """The smallest, the usual and the largest shape of a tensor."""
        spec = TensorSpec(tensor.name, np.dtype(np.void), tensor.shape)
        low, usual, high = (
            spec.sized(**{name: getattr(size, end) for name, size in self.sizes.items()})
            for end in ("low", "usual", "high")
        )
        return low, usual, high


def profiles(graph: str, info: GraphInfo, config: ModelConfig, batch: int) -> list[Profile]:
    _require_same_configuration(graph, info, config)
    if graph == "step":
        return _pass_profiles(config, batch)
    sizes = {"batch": Range.fixed(batch)}
    if graph == "vae_next":
        # The stream decodes one latent frame at a time, so that arrival does not matter.
        sizes["latent_frames"] = Range.fixed(1)
    return [Profile(graph, sizes)]


def _pass_profiles(config: ModelConfig, batch: int) -> list[Profile]:
    """Static where the time goes: the denoising pass, and the re-cache of a full window."""
    rollout = config.rollout
    block, window = rollout.frames_per_block, _window_frames(config)
    # A rollout without a window makes its cache as long as the video.
    shortest = rollout.sink_frames if rollout.is_global else window - block
    cache = Range(shortest, window - block, window - block)

    def profile(name: str, frames: Range) -> Profile:
        return Profile(name, {"batch": Range.fixed(batch), "frames": frames, "cache_frames": cache})

    keeps_sink = rollout.global_sink and not rollout.is_global
    full = window - rollout.sink_frames if keeps_sink else window
    made = [profile("denoise", Range.fixed(block))]
    if full != block:
        made.append(profile("recache", Range.fixed(full)))
    # A switch while the window still fills recomputes fewer frames, or the sink as well.
    early = {*range(block, window + 1, block), window} - {block, full}
    if early:
        made.append(profile("recache_early", Range(block, max(early), window)))
    return made


def _window_frames(config: ModelConfig) -> int:
    rollout = config.rollout
    if not rollout.is_global:
        return rollout.window_frames
    smallest = rollout.sink_frames + rollout.frames_per_block
    return max(smallest, GLOBAL_ATTENTION_TOKENS // config.tokens_per_frame)


def _require_same_configuration(graph: str, info: GraphInfo, config: ModelConfig) -> None:
    expected = {
        "latents": config.latent_shape,
        "k_cache.0": (config.transformer.heads, config.transformer.head_dim),
        "text_states": (config.transformer.text_len, config.transformer.text_dim),
    }
    for tensor in info.inputs:
        tail = expected.get(tensor.name)
        if tail is not None and tuple(tensor.shape[-len(tail) :]) != tail:
            raise UsageError(
                f"graph {graph}: {tensor.name} is {list(tensor.shape)}, and the configuration "
                f"{config.name} asks for [..., {', '.join(map(str, tail))}]: the graphs are of "
                f"another configuration; export again"
            )
