"""One video in the making."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..configs import ModelConfig
from ..engines.base import Array, Closing, Engine
from ..errors import UsageError
from .decoder import VaeStream
from .noise import BlockNoise, FloatArray, NoiseSource
from .ring import Ring, RingLayout
from .transformer import Context, LatentHistory, TransformerPasses


@dataclass(frozen=True)
class Block:
    index: int
    latents: FloatArray
    """[B, frames_per_block, C, h, w]"""
    _pixels: "Future[Array] | None"

    def pixels(self) -> Array:
        """The block's pictures [B, n, H, W, 3]; waits until they are decoded."""
        if self._pixels is None:
            raise UsageError("this session does not decode; give it a VAE stream")
        return self._pixels.result()


class Session(Closing):
    """Makes a video block by block, with prompts that change at block boundaries.

    The pictures of a block are decoded, and the noise of the next one drawn, while the caller
    goes on; neither changes a bit of the result.
    """

    def __init__(
        self,
        step: Engine,
        config: ModelConfig,
        noise: NoiseSource,
        *,
        batch: int = 1,
        total_frames: int | None = None,
        decoder: VaeStream | None = None,
    ) -> None:
        self.config = config
        self.ring = Ring(RingLayout.of(config, total_frames))
        self.passes = TransformerPasses(step, config, self.ring.layout, batch)
        self.history = LatentHistory(self.ring.layout)
        self.decoder = decoder
        self._noise, self._total_frames = noise, total_frames
        self._context: Context | None = None
        self._pending: Context | None = None
        self._decoding = ThreadPoolExecutor(1, "decode")
        self._drawing = ThreadPoolExecutor(1, "noise")
        self._drawn: tuple[int, Future[BlockNoise]] | None = None

    @property
    def blocks_made(self) -> int:
        return self.ring.next_frame // self.ring.layout.block

    @property
    def context(self) -> Context:
        """The prompt that the last block was made under."""
        if self._context is None:
            raise UsageError("a session needs a prompt before its first block")
        return self._context

    def switch_prompt(self, context: Context) -> None:
        """Take a prompt at the next block boundary; the latest one before it counts."""
        self._pending = context

    def step(self) -> Block:
        """Make the next block."""
        if self._pending is not None:
            self._take_prompt(self._pending)
        assert self.context
        index, plan = self.blocks_made, self.ring.block_plan()
        made = self.passes.run_block(plan, self._noise_of(index))
        self.history.add(plan.frames[0], made)
        self.ring = self.ring.after_block()
        latents = made.astype(np.float32)
        pixels = self._decoding.submit(self.decoder.decode, latents) if self.decoder else None
        return Block(index, latents, pixels)

    def resume(self, ring: Ring, context: Context) -> None:
        """Go on where a saved session stood; its caches and history were restored before."""
        self.ring = ring
        self._context = context
        self.passes.use_context(context)

    def settle(self) -> None:
        """Wait for what runs beside the caller."""
        self._decoding.submit(lambda: None).result()

    def close(self) -> None:
        self._decoding.shutdown(cancel_futures=True)
        self._drawing.shutdown(cancel_futures=True)

    def _take_prompt(self, context: Context) -> None:
        self._context, self._pending = context, None
        if self.ring.next_frame:
            plan = self.ring.recache_plan()
            self.passes.recache(plan, self.history.take(plan.frames), context)
            self.ring = self.ring.after_recache()
        self.passes.use_context(context)

    def _noise_of(self, index: int) -> BlockNoise:
        if self._drawn is not None and self._drawn[0] == index:
            noise = self._drawn[1].result()
        else:
            noise = self._noise.block(index)
        self._drawn = None
        following = index + 1
        if self._total_frames is None or following * self.ring.layout.block < self._total_frames:
            self._drawn = (following, self._drawing.submit(self._noise.block, following))
        return noise
