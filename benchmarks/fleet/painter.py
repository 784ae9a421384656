"""A model that paints at once: where speed is none of the question, the fleet can be measured."""

import hashlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from longlive_trt.errors import UsageError
from longlive_trt.serving.engine import LiveDecoder, ModelFacts

_WIDTH, _HEIGHT, _FPS = 64, 48, 16
_LATENTS, _FACTOR = 3, 4


@dataclass(frozen=True)
class Painted:
    index: int
    latents: Any
    frames: Any

    def pictures(self) -> Iterator[Any]:
        return iter(self.frames)


class Painter:
    """What a block shows follows from the seed and from everything before it."""

    def __init__(self, block_s: float = 0.0, state_bytes: int = 0, fps: int = _FPS) -> None:
        self.block_s, self.state_bytes = block_s, state_bytes
        self.facts = ModelFacts(
            name="painter",
            width=_WIDTH,
            height=_HEIGHT,
            fps=Fraction(fps),
            block_latents=_LATENTS,
            temporal_factor=_FACTOR,
            bundle_key="0" * 64,
            text_tokens=32,
            suggestions=(),
            session_bytes=1 << 20,
            free_bytes=1 << 30,
        )

    def open(self, seed: int, switch: str, state: Path | None = None) -> "Painting":
        return Painting(self, seed, state)

    def open_decoder(self, name: str) -> LiveDecoder:
        raise UsageError(f"no decoder {name!r}: what is painted has no latents")

    def past_blocks(self, name: str) -> int:
        return 0

    def prepare(self, prompt: str) -> "Future[float]":
        done: Future[float] = Future()
        done.set_result(0.0)
        return done

    def notice_of(self, prompt: str) -> str | None:
        return None

    def check_switch(self, switch: str) -> str:
        return switch

    def close(self) -> None:
        """Nothing is held."""


class Painting:
    def __init__(self, painter: Painter, seed: int, state: Path | None) -> None:
        self._painter = painter
        self.blocks_made, self._past = 0, str(seed)
        if state is not None:
            self.blocks_made, self._past = json.loads(state.read_text().rstrip())

    def prompt(self, text: str) -> None:
        self._past = _digest(self._past, "prompt", text)

    @property
    def decoder_name(self) -> str | None:
        return None

    def decoder(self, name: str) -> None:
        raise AssertionError(f"there is no decoder {name}")

    def step(self) -> Painted:
        time.sleep(self._painter.block_s)
        index = self.blocks_made
        self._past = _digest(self._past, "block", str(index))
        self.blocks_made += 1
        latents = np.frombuffer(bytes.fromhex(self._past), np.uint8)
        pictures = _LATENTS * _FACTOR - (0 if index else _FACTOR - 1)
        pixels = np.empty((pictures, _HEIGHT, _WIDTH, 3), np.uint8)
        pixels[:] = latents[:3]
        pixels[:, : latents.size // 2, : latents.size] = latents[:, None]
        return Painted(index, latents, pixels)

    def checkpoint(self) -> tuple[int, str]:
        return self.blocks_made, self._past

    def rollback(self, checkpoint: tuple[int, str]) -> None:
        self.blocks_made, self._past = checkpoint

    def save_state(self, path: Path) -> None:
        path.write_text(json.dumps(self.checkpoint()).ljust(self._painter.state_bytes))

    def close(self) -> None:
        """Nothing is held."""


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
