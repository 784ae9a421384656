"""Videos block by block, many at once: the product's rollout on the training's own code.

It keeps what the product's cache holds (sink, window, clean pass, re-cache at a switch). It is
for training on the model's own history, and for pictures of what was learned.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from longlive_trt.configs.schedule import Schedule
from longlive_trt.demo.generator import Generator, KeyValue, attention, rotated, run_block
from longlive_trt.export.models.transformer import Block

Noise = Callable[[], Tensor]


@dataclass
class Kept:
    """One block's keys, not rotated, and values, by layer: [B, tokens, heads, head_dim]."""

    keys: list[Tensor]
    values: list[Tensor]


class BatchRollout:
    """``prompt`` takes the first or a new prompt, ``block`` makes a block; [B, frames, C, h, w]."""

    def __init__(self, model: Generator, batch: int) -> None:
        self.model, self.batch = model, batch
        self.schedule = Schedule.of(model.config.rollout)
        self.blocks: list[Tensor] = []
        self.kept: list[Kept] = []
        self._context: list[KeyValue] = []
        rollout = model.config.rollout
        self._places = rollout.window_frames // rollout.frames_per_block

    def prompt(self, ids: Tensor) -> None:
        self._context = self.model.context(ids)
        if not self.blocks:
            return
        # A sink that left the window stays as it is, under the old prompt.
        sink = self.kept[:1] if len(self.blocks) > self._places else []
        count = self._places - 1 if sink else len(self.blocks)
        _, made = self._pass(torch.cat(self.blocks[-count:], dim=1), 0.0, sink)
        tokens = made.keys[0].shape[1] // count
        parts = [
            Kept(
                [k[:, i * tokens : (i + 1) * tokens] for k in made.keys],
                [v[:, i * tokens : (i + 1) * tokens] for v in made.values],
            )
            for i in range(count)
        ]
        self.kept = sink + parts

    def block(self, noise: Noise) -> Tensor:
        """The next block in the few steps of the schedule, each from fresh noise."""
        x = noise()
        for level in self.schedule.passes:
            flow = self.flow(x, level.timestep)
            x = x - level.sigma * flow
            if level is not self.schedule.passes[-1]:
                x = (1 - level.sigma_next) * x + level.sigma_next * noise()
        return self.commit(x)

    def block_by_euler(self, noise: Noise, sigmas: Sequence[float]) -> Tensor:
        """The next block along the flow, in as many steps as ``sigmas`` has, less one."""
        x = noise()
        for sigma, after in pairwise(sigmas):
            x = x + (after - sigma) * self.flow(x, 1000 * sigma)
        return self.commit(x)

    def flow(self, x: Tensor, timestep: float) -> Tensor:
        return self._pass(x, timestep, self._seen())[0]

    def commit(self, x: Tensor) -> Tensor:
        """Keep a finished block: its clean pass makes what later blocks see of it."""
        _, made = self._pass(x, float(self.schedule.clean.timestep), self._seen())
        self.blocks.append(x)
        self.kept.append(made)
        return x

    def _seen(self) -> list[Kept]:
        before = self._places - 1
        return self.kept if len(self.kept) <= before else [self.kept[0], *self.kept[1 - before :]]

    def _pass(self, latents: Tensor, timestep: float, past: list[Kept]) -> tuple[Tensor, Kept]:
        model, made = self.model, Kept([], [])
        x = model.tokens(latents)
        times = torch.full((len(x),), timestep, device=x.device)
        time, share = model.modulations(times)
        for layer, block in enumerate(model.transformer.blocks):
            assert isinstance(block, Block)
            earlier = [(kept.keys[layer], kept.values[layer]) for kept in past]

            def attend(
                q: Tensor, k: Tensor, v: Tensor, earlier: list[KeyValue] = earlier
            ) -> Tensor:
                made.keys.append(k)
                made.values.append(v)
                return self._attend(q, k, v, earlier)

            x = run_block(block, x, share, self._context[layer], attend)
        return model.flow(x, time, latents), made

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, earlier: list[KeyValue]) -> Tensor:
        """What is made now has the cache's last places; distances are all that counts."""
        turns = self.model.all_turns
        cos, sin = turns.cos, turns.sin
        keys = torch.cat([*(pair[0] for pair in earlier), k], dim=1)
        values = torch.cat([*(pair[1] for pair in earlier), v], dim=1)
        q = rotated(q, cos[-q.shape[1] :], sin[-q.shape[1] :])
        keys = rotated(keys, cos[-keys.shape[1] :], sin[-keys.shape[1] :])
        return attention(q, keys, values)
