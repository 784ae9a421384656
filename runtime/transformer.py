"""The transformer's passes over one video: buffers, bindings, and the cache they read.

No arithmetic happens here. Every buffer is made once; a block fills in its noise and its
positions, runs the bound passes, and copies its clean keys and values to their slots.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ..configs import ModelConfig
from ..configs.schedule import Pass, Schedule
from ..engines.base import Array, Binding, Engine, TensorSpec
from .memory import allocate, named
from .noise import BlockNoise
from .ring import Copy, PassPlan, RingLayout

Context = Mapping[str, Array]
"""``context_k.{l}`` and ``context_v.{l}`` of one prompt."""


class TransformerPasses:
    def __init__(self, engine: Engine, config: ModelConfig, layout: RingLayout, batch: int) -> None:
        self._engine, self._batch = engine, batch
        self._tokens, self._slots = config.tokens_per_frame, layout.slots
        self._schedule = Schedule.of(config.rollout)
        self.cache = self._allocate(engine.inputs, "k_cache", "v_cache", cache_frames=layout.slots)
        self._new = self._allocate(engine.outputs, "k_new", "v_new", frames=layout.block)
        latents, noise = engine.inputs["latents"], engine.inputs["noise"]
        sizes = {"batch": batch, "frames": layout.block}
        # The passes hand the latents to and fro; the last pass's noise has no weight.
        self._latents = [np.zeros(latents.sized(**sizes), latents.dtype) for _ in range(2)]
        self._noise = [
            np.zeros(noise.sized(**sizes), noise.dtype)
            for _ in range(max(1, len(self._schedule.passes) - 1))
        ]
        self._position = _Position(layout.block, layout.slots)
        self._denoising: list[Binding] = []
        self._clean: Binding | None = None

    def use_context(self, context: Context) -> None:
        """Condition all following passes on a prompt."""
        levels = self._schedule.passes
        self._denoising = [
            self._bind(
                context,
                level,
                self._latents[number % 2],
                self._noise[min(number, len(self._noise) - 1)],
                {"latents_next": self._latents[(number + 1) % 2]},
            )
            for number, level in enumerate(levels)
        ]
        result = self._latents[len(levels) % 2]
        self._clean = self._bind(context, self._schedule.clean, result, self._noise[0], self._new)

    def run_block(self, plan: PassPlan, noise: BlockNoise) -> Array:
        """Denoise a block and commit its keys and values; the result is overwritten by the next."""
        assert self._clean is not None, "use_context comes first"
        self._position.set(plan)
        self._latents[0][...] = noise.initial
        for buffer, drawn in zip(self._noise, noise.renoise, strict=False):
            buffer[...] = drawn
        for binding in self._denoising:
            binding.run()
        self._clean.run()
        self._commit(self._new, plan.commits)
        return self._latents[len(self._denoising) % 2]

    def recache(self, plan: PassPlan, latents: Array, context: Context) -> None:
        """Recompute the cache from clean latents under another prompt."""
        frames = len(plan.frames)
        new = self._allocate(self._engine.outputs, "k_new", "v_new", frames=frames)
        position = _Position(frames, self._slots)
        position.set(plan)
        clean = Pass(timestep=0.0, sigma=0.0, sigma_next=0.0)
        self._bind(context, clean, latents, np.zeros_like(latents), new, position).run()
        self._commit(new, plan.commits)

    def _allocate(
        self, specs: Mapping[str, TensorSpec], *prefixes: str, **sizes: int
    ) -> dict[str, Array]:
        return allocate(named(specs, *prefixes), batch=self._batch, **sizes)

    def _bind(
        self,
        context: Context,
        level: Pass,
        latents: Array,
        noise: Array,
        outputs: Mapping[str, Array],
        position: "_Position | None" = None,
    ) -> Binding:
        inputs = {
            "latents": latents,
            "noise": noise,
            "timestep": np.array([level.timestep], np.float32),
            "sigma": np.array([level.sigma], np.float32),
            "sigma_next": np.array([level.sigma_next], np.float32),
            **(position or self._position).arrays,
            **self.cache,
            **context,
        }
        return self._engine.bind(inputs, outputs)

    def _commit(self, new: Mapping[str, Array], copies: Sequence[Copy]) -> None:
        tokens = self._tokens
        for name, cached in self.cache.items():
            fresh = new[name.replace("cache", "new")]
            for copy in copies:
                target = slice(copy.slot * tokens, (copy.slot + copy.frames) * tokens)
                source = slice(
                    copy.source_frame * tokens, (copy.source_frame + copy.frames) * tokens
                )
                cached[:, target] = fresh[:, source]


class _Position:
    """The small integer inputs that say where a pass stands; refilled in place."""

    def __init__(self, frames: int, slots: int) -> None:
        self.arrays: dict[str, Array] = {
            "frame_index": np.zeros(frames, np.int64),
            "cache_index": np.zeros(slots, np.int64),
            "sink_frames": np.zeros(1, np.int64),
            "window_frames": np.zeros(1, np.int64),
        }

    def set(self, plan: PassPlan) -> None:
        for name, array in self.arrays.items():
            array[...] = getattr(plan, name)


class LatentHistory:
    """The clean latents that a prompt switch may have to read again."""

    def __init__(self, layout: RingLayout) -> None:
        self._recent = layout.window
        self._first = layout.sink if layout.unbounded else 0
        self._frames: dict[int, Array] = {}

    def add(self, start: int, latents: Array) -> None:
        for offset in range(latents.shape[1]):
            self._frames[start + offset] = latents[:, offset].copy()
        oldest = start + latents.shape[1] - self._recent
        for frame in [f for f in self._frames if self._first <= f < oldest]:
            del self._frames[frame]

    def take(self, frames: Sequence[int]) -> Array:
        return np.stack([self._frames[frame] for frame in frames], axis=1)

    def items(self) -> list[tuple[int, Array]]:
        return sorted(self._frames.items())

    def restore(self, frames: Mapping[int, Array]) -> None:
        self._frames = dict(frames)
