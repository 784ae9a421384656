"""The rollouts of a calibration: short videos that meet every kind of pass.

Each takes two prompts. Half of the videos switch while the window still fills, the other half in
the steady state, so that both forms of the re-cache are met.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longlive_trt.configs import ModelConfig
from longlive_trt.export.models.rollout import Placement, ReferenceRollout
from longlive_trt.export.models.transformer import Transformer

_EARLY_BLOCK = 2
_BLOCKS_WITHOUT_WINDOW = 4

Observer = Callable[[int, Tensor, Tensor, Tensor], None]
"""(layer, queries, keys, values), [B, S, heads, head_dim], not rotated."""


@dataclass(frozen=True)
class Video:
    number: int
    prompts: tuple[int, ...]
    """One, or one and the one that it switches to."""
    switch_block: int
    blocks: int


def plan_videos(prompt_count: int, config: ModelConfig, blocks: int | None = None) -> list[Video]:
    """Two prompts to a video; ``blocks`` is by default two more than a late switch needs."""
    rollout = config.rollout
    filled = (
        _BLOCKS_WITHOUT_WINDOW
        if rollout.is_global
        else -(-rollout.window_frames // rollout.frames_per_block)
    )
    late = filled + 1
    length = blocks or late + 2
    videos = []
    for number, first in enumerate(range(0, prompt_count, 2)):
        pair = tuple(range(first, min(first + 2, prompt_count)))
        switch = min(late if number % 2 else _EARLY_BLOCK, length - 1)
        videos.append(Video(number, pair, switch, length))
    return videos


class ObservedRollout(ReferenceRollout):
    """Shows what self-attention is given."""

    observer: Observer | None = None

    def _attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, place: Placement, start: int
    ) -> Tensor:
        if self.observer is not None:
            self.observer(layer, q, k, v)
        return super()._attend(layer, q, k, v, place, start)


@torch.no_grad()
def run_video(
    model: Transformer,
    config: ModelConfig,
    video: Video,
    states: Sequence[Tensor],
    seed: int,
    observer: Observer | None = None,
    watch: Callable[[str, Tensor], None] | None = None,
) -> list[Tensor]:
    """The latents of every block; noise depends on the seed and the video's number only."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed * 1_000_003 + 1 + video.number)
    shape = (1, config.rollout.frames_per_block, *config.latent_shape)
    # The rollout makes its cache and tables on the default device.
    with torch.device(device):
        frames = video.blocks * config.rollout.frames_per_block
        rollout = ObservedRollout(model, config, 1, frames, watch)
        rollout.observer = observer
        for block in range(video.blocks):
            if block == 0 or (block == video.switch_block and len(video.prompts) > 1):
                prompt = video.prompts[0 if block == 0 else 1]
                rollout.switch_prompt(states[prompt].to(device))
            noises = torch.randn((config.rollout.noises, *shape), generator=generator, device="cpu")
            rollout.run_block(noises[0].to(device), list(noises[1:].to(device)))
    return rollout.frames
