"""A model that paints what its prompts say, at once: serving's tests need no engines."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from longlive_trt.errors import UsageError
from longlive_trt.serving.engine import ModelFacts

COLORS = {
    "red": (220, 40, 40),
    "orange": (235, 140, 30),
    "yellow": (235, 215, 60),
    "green": (40, 180, 80),
    "blue": (40, 90, 220),
    "purple": (140, 60, 200),
    "white": (240, 240, 240),
}
_LIGHT = {"night": 0.25, "sunset": 0.6, "dusk": 0.6, "dawn": 0.8}
_GRAY = (128, 128, 128)

Array = np.ndarray[Any, Any]


def color_of(prompt: str) -> tuple[int, ...]:
    """What a prompt's pictures are painted in: its color, darker at night."""
    words = re.findall(r"[a-z]+", prompt.lower())
    color = next((COLORS[word] for word in words if word in COLORS), _GRAY)
    light = next((_LIGHT[word] for word in words if word in _LIGHT), 1.0)
    return tuple(round(value * light) for value in color)


@dataclass
class FakeBlock:
    index: int
    latents: Array
    frames: Array

    def pictures(self) -> Iterator[Array]:
        return iter(self.frames)


@dataclass
class FakeModel:
    """``block_s`` is how long a block takes, ``recache_s`` a change of prompt besides, and
    ``opening_s`` a video's beginning; ``made`` is everything that was made, in order."""

    block_s: float = 0.0
    text_s: float = 0.0
    recache_s: float = 0.0
    opening_s: float = 0.0
    width: int = 64
    height: int = 48
    fps: int = 16
    session_bytes: int = 1 << 20
    free_bytes: int = 1 << 30
    sleep: Callable[[float], None] = time.sleep
    made: list[tuple[int, str]] = field(default_factory=list)
    latents: dict[tuple[int, int], bytes] = field(default_factory=dict)
    """The newest that were made, by seed and block."""
    encoded: list[str] = field(default_factory=list)
    failing_at: int | None = None
    decoders: tuple[str, ...] = ("full",)
    open_videos: int = 0
    open_decoders: int = 0
    decode_s: float = 0.0
    """How long a latent frame takes a decoder of its own."""
    is_closed: bool = False

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts(
            name="fake",
            width=self.width,
            height=self.height,
            fps=Fraction(self.fps),
            block_latents=3,
            temporal_factor=4,
            bundle_key="f" * 64,
            text_tokens=32,
            suggestions=("a red car", "a blue boat at night"),
            session_bytes=self.session_bytes,
            free_bytes=self.free_bytes,
            decoders=self.decoders,
        )

    def open(self, seed: int, switch: str, state: Path | None = None) -> "FakeVideo":
        self.open_videos += 1
        if self.opening_s:
            self.sleep(self.opening_s)
        return FakeVideo(self, seed, state)

    def open_decoder(self, name: str) -> "FakeDecoder":
        assert name in self.decoders
        self.open_decoders += 1
        return FakeDecoder(self, name)

    def past_blocks(self, name: str) -> int:
        return 2

    def prepare(self, prompt: str) -> "Future[float]":
        done: Future[float] = Future()
        self.encoded.append(prompt)
        done.set_result(self.text_s)
        return done

    @property
    def newest_seed(self) -> int:
        return next(reversed(self.latents))[0]

    def latents_of(self, seed: int) -> dict[int, bytes]:
        made = list(self.latents.items())
        return {block: data for (of, block), data in made if of == seed}

    def notice_of(self, prompt: str) -> str | None:
        return "That prompt was cut." if len(prompt.split()) > self.facts.text_tokens else None

    def check_switch(self, switch: str) -> str:
        if switch not in ("exact", "partial", "none"):
            raise UsageError(f"--switch {switch!r}: no way to change the prompt")
        return switch

    def close(self) -> None:
        self.is_closed = True


class FakeVideo:
    """What a block shows follows from the seed and from every block before it."""

    def __init__(self, model: FakeModel, seed: int, state: Path | None) -> None:
        self._model = model
        self.blocks_made, self._prompt, self._past = 0, "", str(seed)
        self._seed, self._is_turning = seed, False
        self.decoder_name = model.decoders[0] if len(model.decoders) > 1 else None
        if state is not None:
            self.rollback(json.loads(state.read_text()))

    def prompt(self, text: str) -> None:
        self._prompt, self._is_turning = text, self.blocks_made > 0
        self._past = _digest(self._past, "prompt", text)

    def decoder(self, name: str) -> None:
        assert len(self._model.decoders) > 1 and name in self._model.decoders
        self.decoder_name = name

    def step(self) -> FakeBlock:
        if self._model.failing_at == self.blocks_made:
            raise UsageError("the engine broke")
        seconds = self._model.block_s + (self._model.recache_s if self._is_turning else 0.0)
        self._is_turning = False
        if seconds:
            self._model.sleep(seconds)
        index = self.blocks_made
        self._model.made.append((index, self._prompt))
        self._past = _digest(self._past, "block", str(index))
        self.blocks_made += 1
        past = np.frombuffer(bytes.fromhex(self._past), np.uint8)
        # Its pictures' color is all that a decoder of these latents sees.
        frame = np.concatenate([color_of(self._prompt), past]).astype(np.float32)
        latents = np.stack([frame] * 3)[None]
        self._model.latents[self._seed, index] = latents.tobytes()
        return FakeBlock(index, latents, self._paint(index))

    def _paint(self, index: int) -> Array:
        model = self._model
        frames = 9 if index == 0 else 12
        pixels = np.empty((frames, model.height, model.width, 3), np.uint8)
        color = color_of(self._prompt)
        # The light one's pictures are darker.
        pixels[:] = [value // 2 for value in color] if self.decoder_name == "light" else color
        for number in range(frames):
            # Something that moves, in a corner.
            at = (index * 12 + number) % (model.width // 4)
            pixels[number, :4, at : at + 4] = 255
        return pixels

    def checkpoint(self) -> tuple[int, str, str, str | None]:
        return self.blocks_made, self._prompt, self._past, self.decoder_name

    def rollback(self, checkpoint: tuple[int, str, str, str | None]) -> None:
        self.blocks_made, self._prompt, self._past, self.decoder_name = checkpoint

    def save_state(self, path: Path) -> None:
        path.write_text(json.dumps(self.checkpoint()))

    def close(self) -> None:
        self._model.open_videos -= 1


class FakeDecoder:
    def __init__(self, model: FakeModel, name: str) -> None:
        self._model, self._name = model, name
        self._frames = 0

    def decode(self, latents: Array) -> Array:
        if self._model.decode_s:
            self._model.sleep(self._model.decode_s)
        assert latents.shape[:2] == (1, 1)
        shape = (4 if self._frames else 1, self._model.height, self._model.width, 3)
        self._frames += 1
        color = latents[0, 0, :3] // (2 if self._name == "light" else 1)
        return np.broadcast_to(color.astype(np.uint8), shape).copy()

    def close(self) -> None:
        self._model.open_decoders -= 1


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
