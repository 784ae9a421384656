"""A session on disk, as it stands between two blocks."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from longlive_trt.basics import Array
from longlive_trt.configs import ModelConfig
from longlive_trt.configs.dump import config_values
from longlive_trt.configs.loader import configure
from longlive_trt.contract import K_CACHE, numbered
from longlive_trt.dtypes import FLOAT8
from longlive_trt.errors import OutputError, UsageError
from longlive_trt.files import publish_file
from longlive_trt.runtime.memory.base import Memory, Tensor
from longlive_trt.runtime.prompting.blending import Blend
from longlive_trt.runtime.prompting.switches import EXACT, SwitchMode
from longlive_trt.runtime.ring import Ring
from longlive_trt.runtime.session import Session, require_finite

FORMAT = 2
# The file's library writes such numbers for numpy, and cannot read them.
_FP8 = FLOAT8.numpy
_AS_BYTES = "fp8_as_bytes"


@dataclass(frozen=True)
class SavedState:
    bundle_key: str
    config: ModelConfig
    seed: int
    prompt: str
    switch: SwitchMode
    blend: Blend | None
    """The change of prompt that was under way."""
    next_frame: int
    sink_start: int
    vae_frames: int | None
    """Latent frames that the VAE has decoded; None if there was none."""
    tensors: Mapping[str, Array]

    @property
    def batch(self) -> int:
        return int(self.tensors[numbered(K_CACHE, 0)].shape[0])


def require_savable(config: ModelConfig) -> None:
    if config.rollout.is_global:
        raise UsageError(
            "rollout.window_frames is -1: global attention keeps no more than the video's length "
            "asks for, so its state cannot be saved or resumed; set a window"
        )


def save_state(
    path: Path,
    session: Session,
    *,
    bundle_key: str,
    seed: int,
    prompt: str,
    switch: SwitchMode = EXACT,
    blend: Blend | None = None,
    overwrite: bool = True,
) -> None:
    """Write a session's state; only safe between blocks."""
    session.settle()
    for frame, latent in session.history.items():
        require_finite(latent, f"{path}: latent frame {frame}")
    memory = session.memory
    tensors: dict[str, Array] = _fetched(memory, {**session.passes.cache, **session.context})
    tensors |= {f"latent.{frame}": latent for frame, latent in session.history.items()}
    decoder = session.decoder
    if decoder is not None:
        caches = {f"vae.{name}": cache for name, cache in decoder.caches.items()}
        tensors |= _fetched(memory, caches)
    if blend is not None:
        tensors |= {"blend.start": blend.start, "blend.target": blend.target}
    described: dict[str, Any] = {
        "format": FORMAT,
        "bundle_key": bundle_key,
        "config": config_values(session.config),
        "seed": seed,
        "prompt": prompt,
        "switch": str(switch),
        "blend": {"blocks": blend.blocks, "made": blend.made} if blend else None,
        "next_frame": session.ring.next_frame,
        "sink_start": session.ring.sink_start,
        "vae_frames": decoder.latent_frames if decoder else None,
        _AS_BYTES: sorted(name for name, tensor in tensors.items() if tensor.dtype == _FP8),
    }
    tensors |= {name: tensors[name].view(np.uint8) for name in described[_AS_BYTES]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with publish_file(path, overwrite=overwrite) as partial:
            text = json.dumps(described)
            save_file(tensors, partial, {"state": text, "sha256": _digest(text, tensors)})
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
            metadata = file.metadata() or {}
            described: dict[str, Any] = json.loads(metadata["state"])
            _require_format(path, described.pop("format"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _require_digest(path, metadata["sha256"], _digest(metadata["state"], tensors))
        narrow = described.pop(_AS_BYTES, [])
        tensors |= {name: tensors[name].view(_FP8) for name in narrow}
        return _state_of(path, described, tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"{path}: not a state file, or cut short; --resume takes what --save-state wrote"
        ) from None


def _require_format(path: Path, found: object) -> None:
    if found != FORMAT:
        raise UsageError(
            f"{path}: a state of another version (format {found}, and this one reads {FORMAT}); "
            f"resume with the version that saved it, or make that part of the video again"
        )


def _require_digest(path: Path, expected: str, found: str) -> None:
    if found != expected:
        raise UsageError(
            f"{path}: damaged since it was saved (sha256 {found}, expected {expected}); use an "
            f"undamaged copy, or make that part of the video again"
        )


def _digest(described: str, tensors: Mapping[str, Array]) -> str:
    """Of all that a state holds, however the file lays it out."""
    digest = hashlib.sha256(described.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _state_of(path: Path, described: dict[str, Any], tensors: dict[str, Array]) -> SavedState:
    config = configure(described.pop("config"), origin=str(path))
    switch, blend = SwitchMode.parse(described.pop("switch")), described.pop("blend")
    if blend is not None:
        start, target = tensors.pop("blend.start"), tensors.pop("blend.target")
        blend = replace(Blend.between(start, target, blend["blocks"]), made=blend["made"])
    return SavedState(config=config, switch=switch, blend=blend, tensors=tensors, **described)


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
