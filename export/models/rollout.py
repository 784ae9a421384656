"""The reference rollout: block loop, cache and prompt switches in torch, one rule after another.

It is the oracle of every engine, so it follows the specification's own bookkeeping (two counters
and a cache that moves its slots) and shares none of it with the runtime's ring.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longlive_trt.configs import ModelConfig
from longlive_trt.configs.schedule import Schedule
from longlive_trt.configs.schema import GLOBAL_ATTENTION_TOKENS, ROPE_TABLE_FRAMES
from longlive_trt.errors import UsageError
from longlive_trt.export.models.transformer import (
    KeyValue,
    Transformer,
    rope_table,
    rotate,
    sinusoid,
)


@dataclass
class Cache:
    """Keys and values of every layer by slot, and how many frames were ever and are now held."""

    keys: list[Tensor]
    values: list[Tensor]
    frames_ever: int = 0
    frames_held: int = 0

    @classmethod
    def empty(cls, config: ModelConfig, batch: int, frames: int, dtype: torch.dtype) -> "Cache":
        transformer = config.transformer
        tokens = frames * config.tokens_per_frame
        shape = (batch, tokens, transformer.heads, transformer.head_dim)

        def zeros() -> list[Tensor]:
            return [torch.zeros(shape, dtype=dtype) for _ in range(transformer.layers)]

        return cls(zeros(), zeros())


@dataclass(frozen=True)
class Placement:
    """Where one forward's frames go in the cache, and what its queries see."""

    first_slot: int
    end_slot: int
    evicted: int
    first_written: int
    """The first slot that keeps this forward's keys; lower ones are protected."""
    recompute: bool


class ReferenceRollout:
    """One video: ``switch_prompt`` takes the first or a new prompt, ``run_block`` makes a block."""

    def __init__(
        self,
        model: Transformer,
        config: ModelConfig,
        batch: int,
        total_frames: int,
        observe: Callable[[str, Tensor], None] | None = None,
        attention: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self._attention = attention
        self.model, self.config, self.rollout = model, config, config.rollout
        self.schedule = Schedule.of(config.rollout)
        self.opening = Schedule.of(config.rollout, config.rollout.opening_steps)
        self.dtype = next(model.parameters()).dtype
        capacity = total_frames if self.rollout.is_global else self.rollout.window_frames
        self.capacity = capacity
        self.cache = Cache.empty(config, batch, capacity, self.dtype)
        self.context: list[KeyValue] = []
        self.frames: list[Tensor] = []
        self.observe = observe or (lambda _name, _value: None)

    @property
    def next_frame(self) -> int:
        return self.rollout.frames_per_block * len(self.frames)

    def run_block(self, noise: Tensor, renoise: Sequence[Tensor]) -> Tensor:
        """Denoise one block from its initial noise and one noise per re-noising, or more."""
        block, start = len(self.frames), self.next_frame
        passes = self.schedule.passes if block else self.opening.passes
        x = noise.to(self.dtype)
        for index, level in enumerate(passes):
            self.observe(f"xt.block{block}.pass{index}", x)
            flow = self.forward(x, start, level.timestep)
            x0 = (x.double() - level.sigma * flow.double()).to(self.dtype)
            self.observe(f"flow.block{block}.pass{index}", flow)
            self.observe(f"x0.block{block}.pass{index}", x0)
            x = x0
            if index + 1 < len(passes):
                sigma = torch.tensor(level.sigma_next)
                x = ((1 - sigma) * x0 + sigma * renoise[index]).to(self.dtype)
        flow = self.forward(x, start, self.schedule.clean.timestep)
        self.observe(f"flow.block{block}.pass{len(passes)}", flow)
        self.frames.append(x)
        return x

    def give_block(self, latents: Tensor) -> None:
        """Take a block as it is: it goes through the clean pass alone."""
        x = latents.to(self.dtype)
        self.forward(x, self.next_frame, self.schedule.clean.timestep)
        self.frames.append(x)

    def switch_prompt(self, text_states: Tensor) -> None:
        """Take a new prompt at this block boundary and recompute the cache under it."""
        start = self.next_frame
        if not self.rollout.global_sink:
            for tensor in (*self.cache.keys, *self.cache.values):
                tensor.zero_()
        self.context = self.model.prompt(text_states.to(self.dtype))
        if start == 0:
            return
        recached = min(self.capacity, start)
        latents = torch.cat(self.frames, dim=1)[:, start - recached : start]
        flow = self.forward(
            latents, start - recached, 0.0, rewrite_sink=not self.rollout.global_sink
        )
        self.observe(f"flow.recache{start}", flow)

    def forward(
        self, latents: Tensor, start: int, timestep: float, *, rewrite_sink: bool = False
    ) -> Tensor:
        place = self._place(start, latents.shape[1], rewrite_sink)
        features = sinusoid(timestep, self.config.transformer.freq_dim).to(self.dtype)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self._attend(layer, q, k, v, place, start)

        flow: Tensor = self.model(latents, features, attend, self.context)
        if not place.recompute:
            self.cache.frames_ever = start + latents.shape[1]
            self.cache.frames_held = place.end_slot
        return flow

    def _place(self, start: int, count: int, rewrite_sink: bool) -> Placement:
        end, ever, held = start + count, self.cache.frames_ever, self.cache.frames_held
        recompute = end <= ever and start > 0
        rolls = not self.rollout.is_global and end > ever and count + held > self.capacity
        evicted = count + held - self.capacity if rolls else 0
        end_slot = self.capacity if rolls else held + end - ever
        protects = recompute and not (rewrite_sink and not rolls)
        first_written = self.rollout.sink_frames if protects else 0
        return Placement(end_slot - count, end_slot, evicted, first_written, recompute)

    def _attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, place: Placement, start: int
    ) -> Tensor:
        relative = self.rollout.rope == "relative"
        first_position = place.first_slot if relative else start
        angles = self._angles(first_position, q.shape[1])
        q = rotate(q, angles)
        if not relative:
            k = rotate(k, angles)
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        self._evict(keys, place)
        self._evict(values, place)
        self._write(keys, k, place)
        self._write(values, v, place)
        seen = self._seen_tokens(place)
        if relative:
            held = place.end_slot * self.config.tokens_per_frame
            keys = rotate(keys[:, :held], self._angles(0, held))
            # Here upstream cuts the cache to what is filled before it looks at the sink.
            seen = seen[seen < held]
        keys, values = keys[:, seen], values[:, seen]
        if self._attention is not None:
            return self._attention(q, keys, values)
        return self.model.attention_format.attend(layer, q, keys, values)

    def _angles(self, first_position: int, tokens: int) -> Tensor:
        frames = tokens // self.config.tokens_per_frame
        last = first_position + frames - 1
        if last >= ROPE_TABLE_FRAMES:
            raise UsageError(
                f"frame {last} is past the last position of rotary embeddings "
                f"({ROPE_TABLE_FRAMES - 1}); make a shorter video or set rollout.rope=relative"
            )
        positions = torch.arange(first_position, first_position + frames)
        return rope_table(positions, self.config.token_grid, self.config.transformer.head_dim)

    def _evict(self, cached: Tensor, place: Placement) -> None:
        if not place.evicted:
            return
        tokens = self.config.tokens_per_frame
        sink = self.rollout.sink_frames * tokens
        evicted, held = place.evicted * tokens, self.cache.frames_held * tokens
        cached[:, sink : held - evicted] = cached[:, sink + evicted : held].clone()

    def _write(self, cached: Tensor, new: Tensor, place: Placement) -> None:
        tokens = self.config.tokens_per_frame
        first = max(place.first_slot, place.first_written)
        skipped = (first - place.first_slot) * tokens
        if first < place.end_slot:
            cached[:, first * tokens : place.end_slot * tokens] = new[:, skipped:]

    def _seen_tokens(self, place: Placement) -> Tensor:
        tokens = self.config.tokens_per_frame
        budget = GLOBAL_ATTENTION_TOKENS if self.rollout.is_global else self.capacity * tokens
        sink, end = self.rollout.sink_frames * tokens, place.end_slot * tokens
        recent = torch.arange(max(sink, end - (budget - sink)), max(end, sink))
        return torch.cat([torch.arange(sink), recent])
