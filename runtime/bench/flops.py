"""How much arithmetic a block is, counted from its configuration: one multiply-add is two.

Counted are matrix products, convolutions and attention. Norms, activations, softmax and rotary
embedding are not: they are small beside these, and no tensor core computes them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from longlive_trt.configs import DecoderConfig, ModelConfig, TaehvConfig, VaeConfig
from longlive_trt.runtime.ring import PassPlan, Ring, RingLayout

_TAPS_3D, _TAPS_2D, _TAPS_TIME = 27, 9, 3


@dataclass(frozen=True)
class Work:
    """Products and attention apart: a bundle may compute them in different numbers of bits."""

    products: int
    """Of matrices, and convolutions."""
    attention: int

    @property
    def total(self) -> int:
        return self.products + self.attention

    def times(self, count: int) -> "Work":
        return Work(count * self.products, count * self.attention)


@dataclass(frozen=True)
class BlockFlops:
    """One block in the steady state, and the re-cache of a prompt switch."""

    transformer: Work
    vae: Work | None
    recache: Work

    @classmethod
    def of(cls, config: ModelConfig, decoder: DecoderConfig | None = None) -> "BlockFlops":
        """``decoder``: another one than the configuration's first."""
        vae = decoder or config.vae
        layout = RingLayout.of(config, config.rollout.frames_per_block)
        # Any block after which the window has been full for long.
        ring = Ring(layout, next_frame=2 * layout.window * layout.block)
        passes = len(config.rollout.steps) + 1
        return cls(
            transformer=_planned_work(config, ring.block_plan()).times(passes),
            # Its attention, within single frames, is too small to be told apart.
            vae=Work(vae_flops(config, layout.block, vae), 0) if vae else None,
            recache=_planned_work(config, ring.recache_plan()),
        )


def pass_flops(config: ModelConfig, frames: int, attended_frames: int) -> int:
    return pass_work(config, frames, attended_frames).total


def pass_work(config: ModelConfig, frames: int, attended_frames: int) -> Work:
    """One transformer pass over some latent frames that attend to so many, their own included."""
    model, tokens = config.transformer, config.tokens_per_frame
    queries, keys, dim = frames * tokens, attended_frames * tokens, model.dim
    # Six square maps: q, k, v and o of self-attention, q and o of cross-attention.
    layer = 2 * queries * dim * (6 * dim + 2 * model.ffn_dim)
    attention = 4 * queries * dim * (keys + model.text_len)
    _, patch_height, patch_width = model.patch
    ends = 4 * queries * dim * model.channels * patch_height * patch_width
    return Work(model.layers * layer + ends, model.layers * attention)


def vae_flops(config: ModelConfig, latent_frames: int, decoder: DecoderConfig | None = None) -> int:
    """Decoding so many latent frames, none of them a video's first."""
    vae, pixels = decoder or config.vae, config.latent.height * config.latent.width
    assert vae is not None
    if isinstance(vae, TaehvConfig):
        return latent_frames * sum(_taehv(vae, pixels))
    return latent_frames * sum(_convolutions(vae, pixels))


def _planned_work(config: ModelConfig, plan: PassPlan) -> Work:
    frames = len(plan.frames)
    return pass_work(config, frames, frames + plan.sink_frames + plan.window_frames)


def _taehv(vae: TaehvConfig, pixels: int) -> Iterator[int]:
    """The work of one latent frame after the first, layer by layer in running order."""
    frames, widths = 1, vae.widths
    yield _convolution(vae.channels, widths[0], _TAPS_2D, pixels)
    for (width, narrower), temporal in zip(pairwise(widths), vae.temporal_upsample, strict=True):
        # Three memory blocks of three convolutions, the first of which sees two frames.
        yield 3 * 4 * _convolution(width, width, _TAPS_2D, frames * pixels)
        yield _convolution(width, (1 + temporal) * width, 1, frames * pixels)
        frames, pixels = frames * (1 + temporal), 4 * pixels
        yield _convolution(width, narrower, _TAPS_2D, frames * pixels)
    yield _convolution(widths[-1], 3, _TAPS_2D, frames * pixels)


def _convolutions(vae: VaeConfig, pixels: int) -> Iterator[int]:
    """The work of one latent frame after the first, layer by layer in running order."""
    frames = 1
    widths = [vae.dim * multiplier for multiplier in reversed(vae.multipliers)]
    yield _convolution(vae.channels, vae.channels, 1, pixels)
    yield _convolution(vae.channels, widths[0], _TAPS_3D, pixels)
    block_taps = _TAPS_2D * vae.temporal_taps
    yield from _middle(widths[0], pixels, block_taps)
    channels = widths[0]
    for level, width in enumerate(widths):
        for _ in range(vae.res_blocks + 1):
            yield _res_block(channels, width, frames * pixels, block_taps)
            channels = width
        if level < len(vae.temporal_upsample):
            if vae.temporal_upsample[level]:
                yield _convolution(width, 2 * width, _TAPS_TIME, frames * pixels)
                frames *= 2
            pixels *= 4
            channels = width // 2
            yield _convolution(width, channels, _TAPS_2D, frames * pixels)
    yield _convolution(channels, 3, block_taps, frames * pixels)


def _middle(width: int, pixels: int, taps: int) -> Iterator[int]:
    yield 2 * _res_block(width, width, pixels, taps)
    # Attention within the frame: queries, keys and values, scores and sums, projection.
    yield _convolution(width, 4 * width, 1, pixels) + 4 * pixels**2 * width


def _res_block(channels: int, width: int, positions: int, taps: int) -> int:
    shortcut = 0 if channels == width else _convolution(channels, width, 1, positions)
    return (
        _convolution(channels, width, taps, positions)
        + _convolution(width, width, taps, positions)
        + shortcut
    )


def _convolution(channels_in: int, channels_out: int, taps: int, positions: int) -> int:
    return 2 * channels_in * channels_out * taps * positions
