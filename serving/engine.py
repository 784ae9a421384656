"""All that serving knows of the runtime: a model, and videos of it that can be taken back.

Everything else in this area works on the two protocols, whatever stands behind them.
"""

import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Protocol

import psutil

from longlive_trt.basics import Array, Closing
from longlive_trt.configs import ModelConfig
from longlive_trt.configs.schema import ROPE_TABLE_FRAMES
from longlive_trt.contract import PIXELS, STEP
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.loader import DeviceChoice
from longlive_trt.runtime.decoding.choice import decoder_named, decoders_of
from longlive_trt.runtime.decoding.host import FrameStream
from longlive_trt.runtime.decoding.switching import past_frames
from longlive_trt.runtime.memory.budget import (
    Budget,
    decoder_budget,
    require_memory,
    session_budget,
)
from longlive_trt.runtime.output.base import Pixels
from longlive_trt.runtime.output.muxed import exact_fps
from longlive_trt.runtime.pipeline import Pipeline
from longlive_trt.runtime.plan import VideoOptions, plan_video
from longlive_trt.runtime.prompting.encoder import PromptEncoder
from longlive_trt.runtime.prompting.notices import notices
from longlive_trt.runtime.prompting.switches import SwitchMode
from longlive_trt.runtime.prompting.tokenizer import TokenizedPrompt
from longlive_trt.runtime.ring import RingLayout
from longlive_trt.runtime.state import load_state
from longlive_trt.runtime.transformer import Context

_FIRST = "-"
"""Stands in for a first prompt: the one that is asked for comes before it."""
_MOST_NOTICES = 200


@dataclass(frozen=True)
class ModelFacts:
    name: str
    width: int
    height: int
    fps: Fraction
    block_latents: int
    temporal_factor: int
    bundle_key: str
    text_tokens: int
    suggestions: tuple[str, ...]
    session_bytes: int
    """What one more session takes, about."""
    free_bytes: int
    """What there was for sessions once the engines were loaded."""
    blocks: int | None = None
    """The longest video; None is without end."""
    decoders: tuple[str, ...] = ("full",)
    """What pictures can be made by; a video begins with the first."""


class MadeBlock(Protocol):
    @property
    def index(self) -> int: ...

    @property
    def frames(self) -> Pixels:
        """[n, height, width, 3] of 8 bits; waits until they are decoded."""
        ...

    def pictures(self) -> Iterator[Pixels]:
        """The same one after another, each as soon as it is decoded."""
        ...

    @property
    def latents(self) -> Array:
        """Waits until the transformer is done with the block."""
        ...


class LiveVideo(Protocol):
    """One video, as the public API has it; all calls come from one thread."""

    @property
    def blocks_made(self) -> int:
        """The number of the next block."""
        ...

    @property
    def decoder_name(self) -> str | None:
        """Of the decoder in use, where there is another to change to."""
        ...

    def prompt(self, text: str) -> None:
        """From the next block on."""
        ...

    def decoder(self, name: str) -> None:
        """From the next block on."""
        ...

    def step(self) -> MadeBlock: ...

    def checkpoint(self) -> Any: ...

    def rollback(self, checkpoint: Any) -> None: ...

    def save_state(self, path: Path) -> None: ...

    def close(self) -> None: ...


class LiveDecoder(Protocol):
    """Makes pictures of latents that were kept; calls come from one thread at a time."""

    def decode(self, latents: Array) -> Pixels:
        """Of the latent frame [1, 1, C, h, w] that follows; [n, height, width, 3] of 8 bits."""
        ...

    def close(self) -> None: ...


class LiveModel(Protocol):
    @property
    def facts(self) -> ModelFacts: ...

    def open(self, seed: int, switch: str, state: Path | None = None) -> LiveVideo:
        """A new video, or one that goes on from a saved state (with that state's own seed)."""
        ...

    def open_decoder(self, name: str) -> LiveDecoder:
        """One of the model's, beside all videos; EngineError if there is no room for it."""
        ...

    def past_blocks(self, name: str) -> int:
        """So many blocks that decoder reads before the one whose pictures are wanted."""
        ...

    def prepare(self, prompt: str) -> "Future[float]":
        """Encode a prompt beside whatever runs; gives the seconds that it took."""
        ...

    def notice_of(self, prompt: str) -> str | None:
        """What its writer should know about a prompt that was encoded."""
        ...

    def check_switch(self, switch: str) -> str:
        """The mode in its own words; UsageError if there is none of that name."""
        ...

    def close(self) -> None: ...


def load_model(
    folder: Path,
    device: DeviceChoice = "auto",
    decoder: str | None = None,
    decode_device: str | None = None,
) -> "BundleModel":
    return BundleModel(open_bundle(folder), device, decoder, decode_device)


class BundleModel(Closing):
    """Engines that are loaded once, and one text encoder for all videos."""

    def __init__(
        self,
        bundle: Bundle,
        device: DeviceChoice,
        decoder: str | None = None,
        decode_device: str | None = None,
    ) -> None:
        # Refused now, not when somebody has typed the first prompt.
        self._longest, self._decoder = _longest_frames(bundle.config), decoder
        plan_video(bundle, VideoOptions(prompt=_FIRST, frames=self._longest, decoder=decoder))
        self.bundle = bundle
        self._pipeline = Pipeline(bundle, device, decode_device=decode_device)
        self._notices: OrderedDict[str, str] = OrderedDict()
        engines = self._pipeline.engines
        encoder = engines.prompt_encoder(1, self._note)
        encoder.load()
        self._prompts = _SharedPrompts(encoder)
        for graph in (STEP, *decoder_named(bundle, decoder).graphs):
            engines.get(graph, "serving")
        self._facts = self._describe()

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    def open(self, seed: int, switch: str, state: Path | None = None) -> LiveVideo:
        mode = SwitchMode.parse(switch)
        plan = plan_video(self.bundle, self._options(seed, mode, state))
        # Prompts come one by one, the first one too.
        return self._pipeline.open(replace(plan, cues=()), prompts=self._prompts)

    def open_decoder(self, name: str) -> LiveDecoder:
        engines, config = self._pipeline.engines, self.bundle.config
        decoder = decoder_named(self.bundle, name)
        if engines.on_gpu:
            budget = decoder_budget(self.bundle, config, decoder=name, way="frames")
            require_memory(engines.decode_gpu or engines.gpu, budget, {})
        return _BundleDecoder(engines.stream_of(decoder, 1, PIXELS, config.latent.size))

    def past_blocks(self, name: str) -> int:
        config, decoder = self.bundle.config, decoder_named(self.bundle, name).config
        block = config.rollout.frames_per_block
        return past_frames(decoder, block, RingLayout.of(config, self._longest).window) // block

    def _options(self, seed: int, switch: SwitchMode, state: Path | None) -> VideoOptions:
        if state is None:
            return VideoOptions(
                prompt=_FIRST,
                seed=seed,
                switch=switch,
                frames=self._longest,
                decoder=self._decoder,
            )
        # Lengths count from where a state was saved.
        done = 0 if self._longest is None else load_state(state).next_frame
        left = None if self._longest is None else self._longest - done
        return VideoOptions(resume=state, switch=switch, frames=left, decoder=self._decoder)

    def prepare(self, prompt: str) -> "Future[float]":
        return self._prompts.begin(prompt)

    def check_switch(self, switch: str) -> str:
        return str(SwitchMode.parse(switch))

    def close(self) -> None:
        self._prompts.end()
        self._pipeline.close()

    def notice_of(self, prompt: str) -> str | None:
        return self._notices.get(prompt)

    def _note(self, prompt: str, tokens: TokenizedPrompt) -> None:
        lines = notices(prompt, tokens, self.bundle.config)
        if not lines:
            return
        self._notices[prompt] = " ".join(f"{line[:1].upper()}{line[1:]}." for line in lines)
        while len(self._notices) > _MOST_NOTICES:
            self._notices.popitem(last=False)

    def _describe(self) -> ModelFacts:
        config = self.bundle.config
        decoder = decoder_named(self.bundle, self._decoder)
        factor = decoder.config.spatial_factor
        session_bytes, free_bytes = self._room(decoder.name)
        return ModelFacts(
            name=config.name,
            width=config.latent.width * factor,
            height=config.latent.height * factor,
            fps=exact_fps(config.fps),
            block_latents=config.rollout.frames_per_block,
            temporal_factor=config.temporal_factor,
            bundle_key=self.bundle.manifest.key,
            text_tokens=config.transformer.text_len,
            suggestions=config.prompts.suggestions,
            session_bytes=session_bytes,
            free_bytes=free_bytes,
            decoders=tuple(sorted(decoders_of(self.bundle), key=lambda one: one != decoder.name)),
            blocks=None
            if self._longest is None
            else self._longest // config.rollout.frames_per_block,
        )

    def _room(self, decoder: str) -> tuple[int, int]:
        """What a session takes and what is free, where fewest sessions fit."""
        config, engines = self.bundle.config, self._pipeline.engines
        budget = partial(
            session_budget, self.bundle, config, total_frames=self._longest, decoder=decoder
        )
        latents = prod(config.latent_shape) * 4 * config.rollout.frames_per_block
        if not engines.on_gpu:
            return _of_each(budget()) + latents, psutil.virtual_memory().available
        other = engines.decode_gpu
        own = _of_each(budget(decode=other is None)) + latents
        rooms = [(own, engines.gpu.memory().free_bytes)]
        if other is not None:
            decoding = _of_each(decoder_budget(self.bundle, config, decoder=decoder))
            rooms.append((decoding, other.memory().free_bytes))
        return min(rooms, key=lambda room: room[1] / room[0])


@dataclass(frozen=True)
class _BundleDecoder:
    _stream: FrameStream

    def decode(self, latents: Array) -> Pixels:
        pictures: Pixels = self._stream.decode(latents)[0]
        return pictures

    def close(self) -> None:
        self._stream.close()


def _of_each(budget: Budget) -> int:
    """Without what sessions share."""
    shared = ("weights", "encoding", "CUDA")
    return sum(size for part, size in budget.parts.items() if part not in shared)


def _longest_frames(config: ModelConfig) -> int | None:
    """Absolute positions end, and so does a video of them."""
    rollout = config.rollout
    if rollout.rope == "relative" and not rollout.is_global:
        return None
    return ROPE_TABLE_FRAMES // rollout.frames_per_block * rollout.frames_per_block


class _SharedPrompts:
    """The source of all videos' prompts: encoded once, on a thread of its own."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder, self.contexts = encoder, encoder.contexts
        self._thread = ThreadPoolExecutor(1, "prompts")

    def begin(self, prompt: str) -> "Future[float]":
        return self._thread.submit(self._timed, prompt)

    def context_of(self, prompt: str) -> Context:
        return self._thread.submit(self._encoder.context_of, prompt).result()

    def states_of(self, prompt: str) -> Array:
        return self._thread.submit(self._encoder.states_of, prompt).result()

    def prepare(self, prompt: str) -> None:
        """Sessions do that when the prompt is sent."""

    def close(self) -> None:
        """A video's end is not the prompts'."""

    def end(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._encoder.close()

    def _timed(self, prompt: str) -> float:
        start = time.monotonic()
        self._encoder.context_of(prompt)
        return time.monotonic() - start
