"""A session on disk, as it stands between two blocks."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..configs import ModelConfig
from ..configs.dump import config_values
from ..configs.loader import configure
from ..engines.base import Array
from ..errors import OutputError, UsageError
from ..files import publish_file
from .memory import Memory, Tensor
from .ring import Ring
from .session import Session

FORMAT = 1


@dataclass(frozen=True)
class SavedState:
    bundle_key: str
    config: ModelConfig
    seed: int
    prompt: str
    next_frame: int
    sink_start: int
    vae_frames: int | None
    """Latent frames that the VAE has decoded; None if there was none."""
    tensors: Mapping[str, Array]

    @property
    def batch(self) -> int:
        return int(self.tensors["k_cache.0"].shape[0])


def save_state(path: Path, session: Session, *, bundle_key: str, seed: int, prompt: str) -> None:
    """Write a session's state; only safe between blocks."""
    session.settle()
    memory = session.memory
    tensors: dict[str, Array] = _fetched(memory, {**session.passes.cache, **session.context})
    tensors |= {f"latent.{frame}": latent for frame, latent in session.history.items()}
    decoder = session.decoder
    if decoder is not None:
        caches = {f"vae.{name}": cache for name, cache in decoder.caches.items()}
        tensors |= _fetched(memory, caches)
    described = {
        "format": FORMAT,
        "bundle_key": bundle_key,
        "config": config_values(session.config),
        "seed": seed,
        "prompt": prompt,
        "next_frame": session.ring.next_frame,
        "sink_start": session.ring.sink_start,
        "vae_frames": decoder.latent_frames if decoder else None,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with publish_file(path) as partial:
            save_file(dict(tensors), partial, {"state": json.dumps(described)})
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{path}: the state cannot be written ({error}); free some space or choose "
            f"another place"
        ) from error


def load_state(path: Path) -> SavedState:
    if not path.is_file():
        raise UsageError(f"{path}: no such state file; --resume takes what --save-state wrote")
    try:
        with safe_open(path, framework="numpy") as file:
            described: dict[str, Any] = json.loads((file.metadata() or {})["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if described.pop("format") != FORMAT:
            raise UsageError(f"{path}: a state of another version; it cannot be resumed here")
        config = configure(described.pop("config"), origin=str(path))
        return SavedState(config=config, tensors=tensors, **described)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"{path}: not a state file, or cut short; --resume takes what --save-state wrote"
        ) from None


def restore(session: Session, state: SavedState) -> None:
    """Put a new session of the same configuration where the saved one stood."""
    for name, cached in session.passes.cache.items():
        session.memory.write(cached, state.tensors[name])
    session.history.restore(
        {
            int(name.removeprefix("latent.")): np.array(latent)
            for name, latent in state.tensors.items()
            if name.startswith("latent.")
        }
    )
    if session.decoder is not None:
        assert state.vae_frames is not None
        caches = {name: state.tensors[f"vae.{name}"] for name in session.decoder.caches}
        session.decoder.restore(state.vae_frames, caches)
    ring = Ring(session.ring.layout, state.next_frame, state.sink_start)
    for name, tensor in session.passes.prompt.items():
        session.memory.write(tensor, state.tensors[name])
    session.resume(ring)


def _fetched(memory: Memory, tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: memory.fetch(tensor).result() for name, tensor in tensors.items()}
