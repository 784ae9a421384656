"""The transformer's passes over one video: buffers, bindings, and the cache they read.

No arithmetic happens here. Every buffer is made once, and addresses never change: a block fills in
its positions, runs the bound passes on the noise that was brought before, and copies its clean keys
and values to their slots.
"""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from longlive_trt.basics import Array
from longlive_trt.configs import ModelConfig
from longlive_trt.configs.schedule import Pass, Schedule
from longlive_trt.contract import (
    BATCH,
    CACHE_FRAMES,
    CACHE_INDEX,
    CONTEXT_K,
    CONTEXT_TOKENS,
    CONTEXT_V,
    FRAME_INDEX,
    K_CACHE,
    K_NEW,
    LATENTS,
    LATENTS_NEXT,
    LEVEL_INPUTS,
    NOISE,
    SINK_FRAMES,
    STEP_FRAMES,
    V_CACHE,
    V_NEW,
    WINDOW_FRAMES,
    is_transposed,
    next_of,
    stem_of,
)
from longlive_trt.engines.base import Binding, Engine
from longlive_trt.plugins.attention.value_layout import plain_values, transposed_values
from longlive_trt.plugins.cuda.marks import mark
from longlive_trt.runtime.memory.base import (
    Buffer,
    HostMemory,
    Memory,
    Pending,
    Span,
    Tensor,
    buffers,
    named,
)
from longlive_trt.runtime.ring import Copy, PassPlan, RingLayout

Context = Mapping[str, Tensor]
"""``context_k.{l}`` and ``context_v.{l}`` of one prompt, and ``context_tokens``."""

_AHEAD = 2
_CLEAN = Pass(timestep=0.0, sigma=0.0, sigma_next=0.0)

Steps = tuple[int, ...]


@dataclass(frozen=True)
class Level:
    """One way to make blocks: so many steps, and so large a window."""

    steps: Steps
    layout: RingLayout


class TransformerPasses:
    """Noise and results of two successive blocks lie in different places.

    While one block is made from its noise, that of the next is brought (``noise``), and the result
    of the one before is read.
    """

    def __init__(
        self,
        engine: Engine,
        config: ModelConfig,
        layout: RingLayout,
        batch: int,
        memory: Memory | None = None,
        levels: Sequence[Level] = (),
    ) -> None:
        """``levels``: other ways to make blocks, with windows that are no larger."""
        self._engine, self._batch, self._layout = engine, batch, layout
        self._memory = memory or HostMemory()
        self._tokens = config.tokens_per_frame
        rollout = config.rollout
        self._opening, self.steps = rollout.opening_steps, rollout.steps
        ways = [(rollout.steps, layout.slots), (self._opening, layout.slots)]
        ways += [(level.steps, level.layout.slots) for level in levels]
        self._schedules = {steps: Schedule.of(rollout, steps).passes for steps, _ in ways}
        self._denoising_levels = list(dict.fromkeys(chain(*self._schedules.values())))
        self._levels = [*self._denoising_levels, Schedule.of(rollout).clean, _CLEAN]
        self._noises = max(map(len, self._schedules))
        self._tensors = self._memory.reserve(self._buffers(), "keys, values and latents")
        self.cache = self._part(K_CACHE, V_CACHE)
        self._new = self._part(K_NEW, V_NEW)
        self._transposed = {
            spec.name for spec in named(engine.inputs, V_CACHE) if is_transposed(spec.shape)
        }
        self.prompt = self._part(CONTEXT_K, CONTEXT_V)
        if CONTEXT_TOKENS in self._tensors:
            self.prompt[CONTEXT_TOKENS] = self._tensors[CONTEXT_TOKENS]
        self._write_levels()
        self._results = [self._tensors[f"result.{which}"] for which in range(2)]
        self.noise = [self._memory.inlet(self._noise(which)) for which in range(2)]
        self._windows = {slots: self._bind_window(slots) for _, slots in ways}
        self._denoising = {
            (steps, slots): [self._bind_denoising(steps, slots, which) for which in range(2)]
            for steps, slots in dict.fromkeys(ways)
        }
        self._scratch: dict[str, Tensor] | None = None
        self._recaching: dict[tuple[int, int], _Recaching] = {}
        self._blocks_run = 0

    def use_context(self, context: Context) -> None:
        """Condition all following passes on a prompt."""
        by_length = defaultdict(list)
        for name, tensor in self.prompt.items():
            by_length[tensor.shape[1]].append((tensor, context[name]))
        for length, pairs in by_length.items():
            self._memory.copy(pairs, [Span(0, 0, length)])

    @property
    def place(self) -> int:
        """Where the next block's noise is read, and where its result will be."""
        return self._blocks_run % 2

    def denoise(self, plan: PassPlan) -> Tensor:
        """What was brought to this block's place.

        ``steps`` and the plan's window are those of one of the levels. The result stays as it is
        until the block after the next is made.
        """
        which, slots = self.place, len(plan.cache_index)
        steps = self.steps if plan.frames[0] else self._opening
        window = self._windows[slots]
        window.position.set(plan)
        with self.noise[which].reading():
            for number, binding in enumerate(self._denoising[steps, slots][which]):
                with mark(f"pass {number}"):
                    binding.run()
        self._blocks_run += 1
        return self._results[which]

    def give(self, plan: PassPlan, latents: Array) -> Tensor:
        """Clean latents in the place of what :meth:`denoise` would make."""
        self._windows[len(plan.cache_index)].position.set(plan)
        result = self._results[self.place]
        self._memory.write(result, latents)
        self._blocks_run += 1
        return result

    @property
    def latest(self) -> Tensor:
        """What the last :meth:`denoise` or :meth:`give` made."""
        return self._results[1 - self.place]

    def remember(self, plan: PassPlan) -> None:
        """Compute and commit the keys and values of the latest block."""
        window = self._windows[len(plan.cache_index)]
        window.position.set(plan)
        with mark("clean pass"):
            window.clean[1 - self.place].run()
        with mark("commit"):
            self._commit(self._new, plan.commits)

    def recache(self, plan: PassPlan, latents: Array) -> None:
        """Recompute the cache from clean latents under the prompt in use."""
        recaching = self.prepare_recache(len(plan.frames), len(plan.cache_index))
        recaching.position.set(plan)
        self._memory.write(recaching.latents, latents)
        recaching.binding.run()
        self._commit(recaching.new, plan.commits)

    def prepare_recache(self, frames: int, slots: int | None = None) -> "_Recaching":
        """Reserve and bind what a re-cache of so many frames needs."""
        key = frames, self._layout.slots if slots is None else slots
        if key not in self._recaching:
            self._recaching[key] = self._bind_recache(*key)
        return self._recaching[key]

    def saved(self) -> dict[str, Array]:
        """The cache on the host, by token, however it lies here."""
        arrays = {name: self._memory.fetch(cached).result() for name, cached in self.cache.items()}
        for name in self._transposed:
            arrays[name] = plain_values(arrays[name], self._layout.slots * self._tokens)
        return arrays

    def restore(self, saved: Mapping[str, Array]) -> None:
        """The cache as it was saved."""
        for name, cached in self.cache.items():
            array = saved[name]
            lies_by_token = name not in self._transposed
            self._memory.write(cached, array if lies_by_token else transposed_values(array))

    def _bind_recache(self, frames: int, slots: int) -> "_Recaching":
        specs = {LATENTS: self._engine.inputs[LATENTS]}
        specs |= {spec.name: spec for spec in named(self._engine.outputs, K_NEW, V_NEW)}
        if self._scratch is None:
            largest = buffers(specs.values(), batch=self._batch, frames=self._layout.window)
            self._scratch = self._memory.reserve(largest, "recomputing the cache")
        views = {
            name: self._memory.view(
                self._scratch[name], spec.sized(batch=self._batch, frames=frames)
            )
            for name, spec in specs.items()
        }
        latents = views.pop(LATENTS)
        position = _Position(self._memory, frames, slots)
        cache = self._windows[slots].cache
        binding = self._bind(_CLEAN, position, cache, latents, latents, views)
        return _Recaching(position, latents, views, binding)

    def _buffers(self) -> dict[str, Buffer]:
        inputs, outputs = self._engine.inputs, self._engine.outputs
        sizes = {BATCH: self._batch, STEP_FRAMES: self._layout.block}
        kept = named(inputs, K_CACHE, V_CACHE, CONTEXT_K, CONTEXT_V)
        # Not all engines read it.
        kept += [spec for name, spec in inputs.items() if name == CONTEXT_TOKENS]
        latents = Buffer.of(inputs[LATENTS], **sizes)
        return {
            **buffers(kept, cache_frames=self._layout.slots, **sizes),
            **buffers(named(outputs, K_NEW, V_NEW), **sizes),
            **{f"latents.{number}": latents for number in range(2)},
            **{f"result.{number}": latents for number in range(2)},
            **{
                f"noise.{which}.{number}": latents
                for which in range(2)
                for number in range(self._noises)
            },
            **{
                f"{name}.{number}": Buffer((1,), np.dtype(np.float32))
                for name in LEVEL_INPUTS
                for number in range(len(self._levels))
            },
        }

    def _part(self, *prefixes: str) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self._tensors.items() if stem_of(name) in prefixes}

    def _write_levels(self) -> None:
        for number, level in enumerate(self._levels):
            for name in LEVEL_INPUTS:
                value = np.array([getattr(level, name)], np.float32)
                self._memory.write(self._tensors[f"{name}.{number}"], value)

    def _noise(self, which: int) -> list[Tensor]:
        """What a block begins with, and then what each pass but the last adds."""
        return [self._tensors[f"noise.{which}.{number}"] for number in range(self._noises)]

    def _bind_window(self, slots: int) -> "_Window":
        position = _Position(self._memory, self._layout.block, slots)
        clean = self._levels[-2]
        cache = self._cache_of(slots)
        return _Window(
            position,
            cache,
            [self._bind(clean, position, cache, r, r, self._new) for r in self._results],
        )

    def _cache_of(self, slots: int) -> dict[str, Tensor]:
        """The first so many slots of the cache."""
        if slots == self._layout.slots:
            return self.cache
        # Of several rows, the beginnings do not lie together.
        assert self._batch == 1
        sizes = {BATCH: self._batch, STEP_FRAMES: self._layout.block, CACHE_FRAMES: slots}
        specs = self._engine.inputs
        # Of what lies transposed, a row goes on behind the slots; a pass reads as far as keys go.
        return {
            name: tensor
            if name in self._transposed
            else self._memory.view(tensor, specs[name].sized(**sizes))
            for name, tensor in self.cache.items()
        }

    def _bind_denoising(self, steps: Steps, slots: int, which: int) -> list[Binding]:
        """The passes hand the latents to and fro; the last one's are the result."""
        window, (*passes, last) = self._windows[slots], self._schedules[steps]
        position, cache = window.position, window.cache
        initial, *added = self._noise(which)
        bound, latents = [], initial
        for number, level in enumerate(passes):
            following = self._tensors[f"latents.{number % 2}"]
            outputs = {LATENTS_NEXT: following}
            bound.append(self._bind(level, position, cache, latents, added[number], outputs))
            latents = following
        # The last one's noise has no weight: the latents stand in.
        outputs = {LATENTS_NEXT: self._results[which]}
        bound.append(self._bind(last, position, cache, latents, latents, outputs))
        return bound

    def _bind(
        self,
        level: Pass,
        position: "_Position",
        cache: Mapping[str, Tensor],
        latents: Tensor,
        noise: Tensor,
        outputs: Mapping[str, Tensor],
    ) -> Binding:
        inputs = {
            LATENTS: latents,
            NOISE: noise,
            **{name: self._tensors[f"{name}.{self._number_of(level)}"] for name in LEVEL_INPUTS},
            **position.tensors,
            **cache,
            **self.prompt,
        }
        return self._engine.bind(inputs, outputs)

    def _number_of(self, level: Pass) -> int:
        """The last of equal ones: the clean pass may be the re-cache's."""
        return len(self._levels) - 1 - self._levels[::-1].index(level)

    def _commit(self, new: Mapping[str, Tensor], copies: Sequence[Copy]) -> None:
        tokens = self._tokens
        spans = [
            Span(copy.slot * tokens, copy.source_frame * tokens, copy.frames * tokens)
            for copy in copies
        ]
        pairs = {name: (cached, new[next_of(name)]) for name, cached in self.cache.items()}
        transposed = [pairs.pop(name) for name in sorted(self._transposed)]
        self._memory.commit(pairs.values(), spans, transposed)


class _Position:
    """The small integer inputs that say where a pass stands; refilled in place."""

    def __init__(self, memory: Memory, frames: int, slots: int) -> None:
        sizes = {FRAME_INDEX: frames, CACHE_INDEX: slots, SINK_FRAMES: 1, WINDOW_FRAMES: 1}
        buffers = {name: Buffer((size,), np.dtype(np.int64)) for name, size in sizes.items()}
        self._memory = memory
        self.tensors = memory.reserve(buffers, "positions")
        self._plan: PassPlan | None = None

    def set(self, plan: PassPlan) -> None:
        if plan == self._plan:
            return
        self._plan = plan
        for name, tensor in self.tensors.items():
            values = np.atleast_1d(np.array(getattr(plan, name), np.int64))
            self._memory.write(tensor, values)


@dataclass(frozen=True)
class _Window:
    """A window of one size: where its passes stand, what they read, and its clean passes."""

    position: _Position
    cache: Mapping[str, Tensor]
    clean: Sequence[Binding]


@dataclass(frozen=True)
class _Recaching:
    position: _Position
    latents: Tensor
    new: Mapping[str, Tensor]
    binding: Binding


class LatentHistory:
    """The clean latents that a prompt switch may have to read again."""

    def __init__(self, layout: RingLayout) -> None:
        self._recent = layout.window
        self._first = layout.sink if layout.unbounded else 0
        self._frames: dict[int, Array] = {}
        self._coming: deque[tuple[int, Pending]] = deque()

    def add(self, start: int, latents: Pending) -> None:
        """A block that may still be in the making; the host may be two blocks ahead."""
        self._coming.append((start, latents))
        while self._coming and (self._coming[0][1].is_there or len(self._coming) > _AHEAD):
            self._arrive()

    def take(self, frames: Sequence[int]) -> Array:
        self._settle()
        return np.stack([self._frames[frame] for frame in frames], axis=1)

    def items(self) -> list[tuple[int, Array]]:
        self._settle()
        return sorted(self._frames.items())

    def restore(self, frames: Mapping[int, Array]) -> None:
        self._frames = dict(frames)
        self._coming.clear()

    def _settle(self) -> None:
        while self._coming:
            self._arrive()

    def _arrive(self) -> None:
        start, pending = self._coming.popleft()
        latents = pending.result()
        count = latents.shape[1]
        for offset in range(count):
            self._frames[start + offset] = latents[:, offset].copy()
        oldest = start + count - self._recent
        for frame in [f for f in self._frames if self._first <= f < oldest]:
            del self._frames[frame]
