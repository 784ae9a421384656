"""One video in the making."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from longlive_trt.basics import Array, Closing
from longlive_trt.configs import ModelConfig
from longlive_trt.engines.base import Engine
from longlive_trt.errors import NotFiniteError, UsageError
from longlive_trt.plugins.cuda.marks import mark
from longlive_trt.runtime.adapting import AskedAdapter
from longlive_trt.runtime.decoding.host import Decoder, DecoderSnapshot, Decoding, joined
from longlive_trt.runtime.decoding.switching import SwitchableDecoder
from longlive_trt.runtime.memory.base import HostMemory, Memory, Pending, Span, Tensor
from longlive_trt.runtime.noise import FloatArray, NoiseFeed, NoiseSource
from longlive_trt.runtime.ring import PassPlan, Recache, Ring, RingLayout
from longlive_trt.runtime.transformer import Context, LatentHistory, Level, TransformerPasses

_WARM_UP = 8
"""Blocks after which every buffer is there and every pass was captured."""


UseLora = Callable[["Session", Sequence[AskedAdapter], str], None]
"""Exchanges matrices for one session, or says why that would change another."""

_LATEST = "latest"
"""A checkpoint's name for the latents of a block that the cache does not hold yet."""

_AHEAD = 4
"""More blocks than the host can be ahead of the GPU."""


class Block:
    """What one step made. Its values may still be on their way.

    Nothing of a block whose latents are not finite is handed out. They come to the host in any
    case, for prompt switches, so that looking at them is no wait.
    """

    def __init__(
        self,
        index: int,
        latents: Pending,
        decoding: Decoding | None,
        *,
        takes_any_number: bool = False,
    ) -> None:
        self.index = index
        self._latents = latents
        self._coming = None if decoding is None else deque(decoding.parts)
        self._parts: list[Array] = []
        self._is_finite = takes_any_number

    @property
    def latents(self) -> FloatArray:
        """[B, frames_per_block, C, h, w]; waits until they are there."""
        return self._finite_latents().astype(np.float32)

    def pixels(self) -> Array:
        """The block's pictures [B, n, H, W, 3]; waits until they are decoded."""
        self._parts = [joined(self.parts())]
        return self._parts[0]

    def parts(self) -> Iterator[Array]:
        """The same as they come, along their second axis.

        After a prompt, those of the first latent frame do not wait for the others.
        """
        if self._coming is None:
            raise UsageError("this session does not decode; give it a VAE stream")
        self._finite_latents()
        yield from self._parts
        while self._coming:
            self._parts.append(self._coming[0].result())
            self._coming.popleft()
            yield self._parts[-1]

    def _finite_latents(self) -> Array:
        latents = self._latents.result()
        if not self._is_finite:
            require_finite(latents, f"block {self.index + 1}")
            self._is_finite = True
        return latents


def require_finite(latents: Array, what: str) -> None:
    if not np.isfinite(latents).all():
        raise NotFiniteError(
            f"{what}: its latents are not finite (NaN or infinity): the weights are damaged, or "
            "this precision is too narrow for them; build with --precision bf16 or fp32"
        )


@dataclass(frozen=True)
class Checkpoint:
    """A session as it stood between two blocks."""

    ring: Ring
    tensors: Mapping[str, Tensor]
    history: Mapping[int, Array]
    decoder: DecoderSnapshot | None
    pending: tuple[Context, Recache] | None
    """A switch that was asked for and not yet taken."""
    unremembered: PassPlan | None = None
    """Of the last block, where the cache does not hold it yet."""


class Session(Closing):
    """Makes a video block by block, with prompts that change at block boundaries.

    The pictures of a block are decoded, and the noise of the next one drawn and brought to its
    place, while the caller goes on; neither changes a bit of the result.
    """

    def __init__(
        self,
        step: Engine,
        config: ModelConfig,
        noise: NoiseSource,
        *,
        batch: int = 1,
        total_frames: int | None = None,
        decoder: Decoder | None = None,
        memory: Memory | None = None,
        debug: bool = False,
        takes_any_number: bool = False,
        levels: Sequence[Level] = (),
        given: Array | None = None,
        use_lora: UseLora | None = None,
    ) -> None:
        """``debug``: a block that does what no live session may do is an error.
        ``levels``: other ways to make blocks, which :meth:`use` changes to.
        ``given``: latents [1 or B, K, C, h, w] of the first blocks, which are remembered as if they
        had been made; the video goes on from them.
        ``takes_any_number``: blocks that are not finite are handed out, to be compared.
        ``use_lora``: exchanges the matrices of its engine, for :meth:`use_lora`.
        """
        self.config = config
        self.is_closed = False
        self._use_lora = use_lora
        self.memory = memory or HostMemory()
        self.ring = Ring(RingLayout.of(config, total_frames))
        self.passes = TransformerPasses(step, config, self.ring.layout, batch, self.memory, levels)
        self.history = LatentHistory(self.ring.layout)
        self.decoder = decoder
        self._has_prompt = False
        self._pending: tuple[Context, Recache] | None = None
        self._unremembered: PassPlan | None = None
        self._is_awaited = False
        """Whoever gave a prompt waits for the next block's pictures."""
        # A context's memory is free once nobody holds it, and the copy of it may still be queued.
        self._taken: deque[Context] = deque(maxlen=_AHEAD)
        self._reading: list[Decoding | None] = [None, None]
        self._steps, self._debug = 0, debug
        self._takes_any_number = takes_any_number
        self._given = None if given is None else np.broadcast_to(given, (batch, *given.shape[1:]))
        end = None if total_frames is None else -(-total_frames // self.ring.layout.block)
        self._noise = NoiseFeed(noise, self.passes.noise, end=end)
        self._noise.prepare(0, self.passes.place)

    @property
    def blocks_made(self) -> int:
        return self.ring.next_frame // self.ring.layout.block

    @property
    def context(self) -> Context:
        """The prompt that the last block was made under."""
        if not self._has_prompt:
            raise UsageError("a session needs a prompt before its first block")
        return self.passes.prompt

    def switch_prompt(self, context: Context, recache: Recache = "exact") -> None:
        """Take a prompt at the next block boundary; the latest one before it counts."""
        self._pending = context, recache

    def use(self, level: Level) -> bool:
        """Make blocks so from the next one on; False where the cache does not lie right yet.

        Nothing is copied: what a changed window keeps must lie at its beginning, which is so once
        in each turn of the larger one.
        """
        self.remember()
        resized = self.ring.resized(level.layout)
        if resized is None:
            return False
        self.ring, self.passes.steps = resized, level.steps
        return True

    def use_decoder(self, name: str) -> None:
        """Make pictures with another of the session's decoders from the next block on."""
        decoder = self.decoder
        if not isinstance(decoder, SwitchableDecoder):
            raise UsageError(
                "this session has no second decoder to change to; export one with --light-vae"
            )
        layout, end = self.ring.layout, self.ring.next_frame
        count = decoder.past_frames(name, layout.block, min(end, layout.window))
        past = self.history.take(range(end - count, end)) if count else None
        decoder.take_over(name, past, layout.block)

    def use_lora(self, *adapters: AskedAdapter, switch: str = "exact") -> None:
        """Make blocks with these adapters from the next one on; with none, as it was built.

        Sessions of one pipeline share its matrices, so no other one may be open. Call it between
        two blocks. A :class:`Video` then reads its prompt anew, and recomputes its past as
        ``switch`` says; without a video, give the prompt's new context to :meth:`switch_prompt`.
        """
        if self.is_closed:
            raise UsageError("the session is closed; open another one")
        if self._use_lora is None:
            raise UsageError(
                "this session was made of an engine alone, whose matrices nothing can exchange; "
                "get it from a pipeline (Pipeline.video)"
            )
        self._use_lora(self, adapters, switch)

    def step(self) -> Block:
        """Make the next block."""
        steady = self._debug and self._pending is None and self._steps >= _WARM_UP
        with mark(f"block {self.blocks_made}"):
            if self._pending is not None:
                self._take_prompt(*self._pending)
            assert self.context
            with self.memory.steady() if steady else nullcontext():
                self.remember()
            place = self.passes.place
            if self._given_block is None:
                self._noise.require(self.blocks_made, place)
            self._noise.prepare(self.blocks_made + 1, 1 - place)
            with self.memory.steady() if steady else nullcontext():
                return self._make()

    def remember(self) -> None:
        """Give the cache the last block's keys and values, if it does not hold them yet.

        The clean pass waits for the next block: pictures do not wait for it, and a prompt that
        recomputes what it would give makes it needless.
        """
        plan, self._unremembered = self._unremembered, None
        if plan is not None:
            self.passes.remember(plan)

    def _make(self) -> Block:
        index, plan = self.blocks_made, self.ring.block_plan()
        which = self.passes.place
        reading = self._reading[which]
        if reading is not None:
            # The decoder still reads what this block's result goes over.
            reading.release()
        given = self._given_block
        made = self.passes.denoise(plan) if given is None else self.passes.give(plan, given)
        latents = self.memory.fetch(made)
        decoding = self.decoder.start(made, is_awaited=self._is_awaited) if self.decoder else None
        self._reading[which] = decoding
        self._unremembered, self._is_awaited = plan, False
        self.history.add(plan.frames[0], latents)
        self.ring = self.ring.after_block()
        self._steps += 1
        return Block(index, latents, decoding, takes_any_number=self._takes_any_number)

    @property
    def _given_block(self) -> Array | None:
        """The latents of the next block, where they are given."""
        start, block = self.ring.next_frame, self.ring.layout.block
        if self._given is None or start >= self._given.shape[1]:
            return None
        return self._given[:, start : start + block]

    def checkpoint(self) -> Checkpoint:
        """Remember how things stand, to come back with :meth:`rollback`."""
        tensors = {**self.passes.cache, **self.context}
        if self._unremembered is not None:
            tensors[_LATEST] = self.passes.latest
        kept = self.memory.clone(tensors, "a checkpoint")
        decoder = self.decoder.snapshot() if self.decoder else None
        history = dict(self.history.items())
        return Checkpoint(self.ring, kept, history, decoder, self._pending, self._unremembered)

    def rollback(self, checkpoint: Checkpoint) -> None:
        """Forget the blocks that were made since; the next one is made anew."""
        # Blocks that nobody looks at would let the host get ever further ahead.
        self.memory.settle()
        targets = {**self.passes.cache, **self.context}
        self._unremembered = checkpoint.unremembered
        if self._unremembered is not None:
            reading = self._reading[1 - self.passes.place]
            if reading is not None:
                reading.release()
            targets[_LATEST] = self.passes.latest
        pairs = [(target, checkpoint.tensors[name]) for name, target in targets.items()]
        for target, source in pairs:
            self.memory.copy([(target, source)], [Span(0, 0, target.shape[1])])
        self.history.restore(checkpoint.history)
        if self.decoder is not None:
            assert checkpoint.decoder is not None
            self.decoder.reinstate(checkpoint.decoder)
        self.ring, self._pending = checkpoint.ring, checkpoint.pending
        self._noise.prepare(self.blocks_made, self.passes.place)

    def resume(self, ring: Ring) -> None:
        """Go on where a saved session stood; its tensors and history were restored before."""
        self.ring, self._has_prompt = ring, True
        self._noise.prepare(self.blocks_made, self.passes.place)

    def settle(self) -> None:
        """Wait for what runs beside the caller."""
        if self.decoder is not None:
            self.decoder.settle()
        self.memory.settle()

    def close(self) -> None:
        self.is_closed = True
        self._noise.close()
        if self.decoder is not None:
            self.decoder.close()
        self.memory.close()

    def _take_prompt(self, context: Context, recache: Recache) -> None:
        plan = None
        if self.ring.next_frame and recache != "none":
            plan = self.ring.recache_plan(recache)
        if plan is not None and self._is_recomputed_by(plan):
            self._unremembered = None
        else:
            self.remember()
        self._pending, self._has_prompt, self._is_awaited = None, True, True
        self._taken.append(context)
        self.passes.use_context(context)
        if plan is not None:
            if plan.commits:
                with mark("re-cache"):
                    self.passes.recache(plan, self.history.take(plan.frames))
            self.ring = self.ring.after_recache()

    def _is_recomputed_by(self, plan: PassPlan) -> bool:
        """Whether all that the clean pass would give is made anew, or dropped."""
        waiting = self._unremembered
        return waiting is not None and set(waiting.frames) <= set(plan.frames)
