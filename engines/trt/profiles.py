"""The shapes that each graph is compiled for, from the configuration."""

from collections.abc import Mapping
from dataclasses import dataclass

from longlive_trt import contract
from longlive_trt.configs import ModelConfig
from longlive_trt.contract import evaluate_size
from longlive_trt.engines.memory import attended_frames
from longlive_trt.errors import UsageError
from longlive_trt.exports import GraphInfo, TensorInfo

Shape = tuple[int, ...]

_FOLLOWING = {following for _, following in contract.DECODER_GRAPHS.values()}


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
        low, usual, high = (
            {name: getattr(size, end) for name, size in self.sizes.items()}
            for end in ("low", "usual", "high")
        )
        return _sized(tensor, low), _sized(tensor, usual), _sized(tensor, high)


def _sized(tensor: TensorInfo, sizes: Mapping[str, int]) -> Shape:
    return tuple(evaluate_size(size, sizes) for size in tensor.shape)


def profiles(graph: str, info: GraphInfo, config: ModelConfig, batch: int) -> list[Profile]:
    _require_same_configuration(graph, info, config)
    if graph == contract.STEP:
        return _pass_profiles(config, batch)
    # A clip is encoded once, for all videos side by side.
    rows = 1 if graph in contract.ENCODER_GRAPHS else batch
    sizes = {contract.BATCH: Range.fixed(rows)}
    if graph in _FOLLOWING:
        # The stream decodes one latent frame at a time, so that arrival does not matter.
        sizes[contract.LATENT_FRAMES] = Range.fixed(1)
    latent = contract.latent_sizes(*config.latent.size)
    named = {size for tensor in info.inputs for size in tensor.shape}
    sizes |= {name: Range.fixed(size) for name, size in latent.items() if name in named}
    return [Profile(graph, sizes)]


def _pass_profiles(config: ModelConfig, batch: int) -> list[Profile]:
    """Static where the time goes: the denoising pass, and the re-cache of a full window."""
    rollout = config.rollout
    block, window = rollout.frames_per_block, attended_frames(config)
    # A rollout without a window makes its cache as long as the video.
    shortest = rollout.sink_frames if rollout.is_global else window - block
    cache = Range(shortest, window - block, window - block)

    def profile(name: str, frames: Range) -> Profile:
        sizes = {contract.BATCH: Range.fixed(batch), contract.CACHE_FRAMES: cache}
        return Profile(name, {**sizes, contract.STEP_FRAMES: frames})

    keeps_sink = rollout.global_sink and not rollout.is_global
    full = window - rollout.sink_frames if keeps_sink else window
    passes = [profile("denoise", Range.fixed(block))]
    if full != block:
        passes.append(profile("recache", Range.fixed(full)))
    # A switch while the window still fills recomputes fewer frames, or the sink as well.
    early = {*range(block, window + 1, block), window} - {block, full}
    if early:
        passes.append(profile("recache_early", Range(block, max(early), window)))
    return passes


def _require_same_configuration(graph: str, info: GraphInfo, config: ModelConfig) -> None:
    transformer = config.transformer
    expected = {
        contract.LATENTS: config.latent_shape,
        contract.numbered(contract.K_CACHE, 0): (transformer.heads, transformer.head_dim),
        contract.TEXT_STATES: (transformer.text_len, transformer.text_dim),
    }
    # A tiny decoder's graphs take latents of any size.
    any_size: Mapping[str | int, int] = dict(contract.latent_sizes(*config.latent.size).items())
    for tensor in info.inputs:
        tail = expected.get(tensor.name)
        if tail is None:
            continue
        sizes = tuple(any_size.get(size, size) for size in tensor.shape[-len(tail) :])
        if sizes != tail:
            raise UsageError(
                f"graph {graph}: {tensor.name} is {list(tensor.shape)}, and the configuration "
                f"{config.name} asks for [..., {', '.join(map(str, tail))}]: the graphs are of "
                f"another configuration; export again"
            )
