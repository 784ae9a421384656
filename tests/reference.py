"""Replay files on the reference rollout: what every engine is compared with."""

from collections.abc import Callable

import torch
from torch import Tensor

from longlive_trt.configs import ModelConfig
from longlive_trt.configs.replay import Replay, prompts_by_block
from longlive_trt.export.models.rollout import ReferenceRollout
from longlive_trt.export.models.transformer import Transformer


@torch.no_grad()
def run_replay(
    model: Transformer,
    config: ModelConfig,
    replay: Replay,
    observe: Callable[[str, Tensor], None] | None = None,
) -> Tensor:
    """The latents of a replay file, computed in the model's dtype."""
    rollout = ReferenceRollout(model, config, replay.batch, replay.frames, observe)
    noise, renoise = torch.from_numpy(replay.noise), torch.from_numpy(replay.renoise)
    block_frames = config.rollout.frames_per_block
    boundaries = prompts_by_block(replay.schedule, block_frames)
    for block in range(replay.frames // block_frames):
        start, prompt = next(boundaries)
        if prompt is not None:
            states = torch.from_numpy(replay.prompts[prompt])
            rollout.switch_prompt(states.expand(replay.batch, -1, -1))
        rollout.run_block(noise[:, start : start + block_frames], list(renoise[block]))
    return torch.cat(rollout.frames, dim=1)
