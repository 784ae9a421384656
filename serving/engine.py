"""All that serving knows of the runtime: a model, and videos of it that can be taken back.

Everything else in this area works on the two protocols, whatever stands behind them.
"""

import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Protocol

import psutil

from longlive_trt.basics import Array, Closing
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.loader import DeviceChoice
from longlive_trt.errors import UsageError
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.memory.budget import session_budget
from longlive_trt.runtime.noise import SeededNoise
from longlive_trt.runtime.output.mp4 import exact_fps
from longlive_trt.runtime.prompting.blending import Blend
from longlive_trt.runtime.prompting.encoder import EncodedPrompt
from longlive_trt.runtime.prompting.switches import Change, Mixer, SwitchMode
from longlive_trt.runtime.ring import RingLayout
from longlive_trt.runtime.session import Block, Checkpoint
from longlive_trt.runtime.state import SavedState, load_state, restore, save_state

DEMO = "demo"
_MOST_NOTICES = 200
DEMO_SUGGESTIONS = (
    "A red car drives through the desert at sunset",
    "A sailboat on the sea at night under the moon",
    "A steam train through snowy mountains at dawn",
    "A hot air balloon over green meadows at noon",
    "A white bird flies through the forest in the fog",
    "A yellow car in the city at night, in the rain",
    "The same road, while it snows",
)


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


class MadeBlock(Protocol):
    index: int

    def pixels(self) -> Array:
        """[n, height, width, 3] of 8 bits; waits until they are decoded."""
        ...

    @property
    def latents(self) -> Array: ...


class LiveVideo(Protocol):
    """One video. All calls come from one thread, but those of ``prepare``."""

    @property
    def next_block(self) -> int: ...

    def prompt(self, text: str) -> None:
        """From the next block on; waits for the text encoder if it must."""
        ...

    def make(self) -> MadeBlock: ...

    def checkpoint(self) -> Any: ...

    def rollback(self, checkpoint: Any) -> None: ...

    def save(self, path: Path) -> None: ...

    def close(self) -> None: ...


class LiveModel(Protocol):
    @property
    def facts(self) -> ModelFacts: ...

    def open(self, seed: int, switch: str, state: Path | None = None) -> LiveVideo:
        """A new video, or one that goes on from a saved state (with that state's own seed)."""
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


def bundle_folder(name: str) -> Path:
    """Where the bundle lies that ``--bundle`` names."""
    if name == DEMO and not Path(name).is_dir():
        raise UsageError(
            "the demo model is not part of this installation yet; give --bundle FOLDER, such as "
            "the out/demo/bundle that `longlive-trt demo` makes"
        )
    return Path(name)


def load_model(name: str, device: DeviceChoice = "auto") -> "BundleModel":
    return BundleModel(open_bundle(bundle_folder(name)), device)


class BundleModel(Closing):
    """Engines that are loaded once, and the text encoder on a thread of its own."""

    def __init__(self, bundle: Bundle, device: DeviceChoice) -> None:
        for graph, purpose in (("step", "generating"), ("vae_first", "making pictures")):
            bundle.require(graph, purpose)
        RingLayout.of(bundle.config, None)
        self.bundle = bundle
        self._engines = Engines(bundle, device)
        self._truncated: OrderedDict[str, str] = OrderedDict()
        self._encoder = self._engines.prompt_encoder(1, self._note_truncation)
        self._thread = ThreadPoolExecutor(1, "prompts")
        for graph in ("step", "vae_first", "vae_next"):
            self._engines.get(graph, "serving")
        self._facts = self._describe()

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    def open(self, seed: int, switch: str, state: Path | None = None) -> "BundleVideo":
        saved = None if state is None else load_state(state)
        if saved is not None and saved.bundle_key != self.bundle.manifest.key:
            raise UsageError("the state was saved with another model than this server runs")
        return BundleVideo(self, seed, SwitchMode.parse(switch), saved)

    def prepare(self, prompt: str) -> "Future[float]":
        return self._thread.submit(self._timed, prompt)

    def encoded(self, prompt: str) -> EncodedPrompt:
        return self._thread.submit(self._encode, prompt).result()

    def check_switch(self, switch: str) -> str:
        return str(SwitchMode.parse(switch))

    def mixer(self, blend: Blend | None = None) -> Mixer:
        return Mixer(self._encoder.contexts, blend)

    def engines(self) -> Engines:
        return self._engines

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._engines.close()

    def _timed(self, prompt: str) -> float:
        start = time.monotonic()
        self._encode(prompt)
        return time.monotonic() - start

    def _encode(self, prompt: str) -> EncodedPrompt:
        # The encoder is not made for several threads: all its calls come from its own.
        context = self._encoder.context_of(prompt)
        return EncodedPrompt(self._encoder.states_of(prompt), context)

    def notice_of(self, prompt: str) -> str | None:
        kept = self._truncated.get(prompt)
        if kept is None:
            return None
        limit = self.bundle.config.transformer.text_len
        return (
            f"That prompt is longer than the {limit} tokens this model reads; it was cut after "
            f"“{kept[-40:]}”."
        )

    def _note_truncation(self, prompt: str, kept: str) -> None:
        self._truncated[prompt] = kept
        while len(self._truncated) > _MOST_NOTICES:
            self._truncated.popitem(last=False)

    def _describe(self) -> ModelFacts:
        config = self.bundle.config
        assert config.vae is not None
        factor = config.vae.spatial_factor
        budget = session_budget(self.bundle, config)
        shared = ("weights", "encoding", "CUDA")
        own = sum(size for part, size in budget.parts.items() if part not in shared)
        latents = prod(config.latent_shape) * 4 * config.rollout.frames_per_block
        free = (
            self._engines.gpu.memory().free_bytes
            if self._engines.on_gpu
            else psutil.virtual_memory().available
        )
        return ModelFacts(
            name=config.name,
            width=config.latent.width * factor,
            height=config.latent.height * factor,
            fps=exact_fps(config.fps),
            block_latents=config.rollout.frames_per_block,
            temporal_factor=config.temporal_factor,
            bundle_key=self.bundle.manifest.key,
            text_tokens=config.transformer.text_len,
            suggestions=DEMO_SUGGESTIONS,
            session_bytes=own + latents,
            free_bytes=free,
        )


@dataclass(frozen=True)
class _VideoCheckpoint:
    session: Checkpoint
    prompt: str
    blend: Blend | None


class _OneVideo:
    """A block of a batch of one."""

    def __init__(self, block: Block) -> None:
        self.index, self._block = block.index, block

    def pixels(self) -> Array:
        pixels: Array = self._block.pixels()[0]
        return pixels

    @property
    def latents(self) -> Array:
        return self._block.latents


class BundleVideo:
    def __init__(
        self, model: BundleModel, seed: int, switch: SwitchMode, saved: SavedState | None
    ) -> None:
        config = model.bundle.config if saved is None else saved.config
        self._model, self._config = model, config
        self._seed = seed if saved is None else saved.seed
        self._switch = switch
        shape = (1, config.rollout.frames_per_block, *config.latent_shape)
        noise = SeededNoise(self._seed, shape, len(config.rollout.steps))
        self._session = model.engines().session(config, noise)
        if saved is not None:
            restore(self._session, saved)
        self._prompt = saved.prompt if saved else ""
        self._mixer = model.mixer(saved.blend if saved else None)
        self._wanted: str | None = None

    @property
    def next_block(self) -> int:
        return self._session.blocks_made

    def prompt(self, text: str) -> None:
        self._wanted = text

    def make(self) -> MadeBlock:
        change = self._change()
        if change is not None:
            self._session.switch_prompt(change.context, change.recache)
        return _OneVideo(self._session.step())

    def checkpoint(self) -> _VideoCheckpoint:
        kept = self._session.checkpoint()
        return _VideoCheckpoint(kept, self._prompt, self._mixer.blend)

    def rollback(self, checkpoint: _VideoCheckpoint) -> None:
        self._session.rollback(checkpoint.session)
        self._prompt, self._mixer.blend = checkpoint.prompt, checkpoint.blend
        self._wanted = None

    def save(self, path: Path) -> None:
        save_state(
            path,
            self._session,
            bundle_key=self._model.bundle.manifest.key,
            seed=self._seed,
            prompt=self._prompt,
            switch=self._switch,
            blend=self._mixer.blend,
        )

    def close(self) -> None:
        self._session.settle()
        self._session.close()

    def _change(self) -> Change | None:
        """As ``generate`` takes the prompts of its timeline."""
        if self._wanted is None:
            return self._mixer.go_on()
        before, self._prompt, self._wanted = self._prompt, self._wanted, None
        blocks = self._switch.blend_blocks
        encoded = self._model.encoded(self._prompt)
        if blocks is None or self.next_block == 0:
            self._mixer.blend = None
            return Change(encoded.context, self._switch.recache)
        return self._mixer.begin(
            partial(self._states, before), partial(self._states, self._prompt), blocks
        )

    def _states(self, prompt: str) -> Array:
        return self._model.encoded(prompt).states
