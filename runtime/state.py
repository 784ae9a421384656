"""A session on disk, as it stands between two blocks."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from longlive_trt.basics import Array
from longlive_trt.configs import ModelConfig
from longlive_trt.configs.dump import config_values
from longlive_trt.contract import (
    BATCH,
    CACHE_FRAMES,
    CONTEXT_K,
    CONTEXT_TOKENS,
    CONTEXT_V,
    HISTORY,
    K_CACHE,
    LATENTS,
    STEP,
    STEP_FRAMES,
    V_CACHE,
    latent_sizes,
    not_transposed,
    numbered,
)
from longlive_trt.dtypes import FLOAT8
from longlive_trt.engines.base import specs_of
from longlive_trt.engines.bundles.bundle import BATCH as MOST_BATCH
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.errors import OutputError, UsageError
from longlive_trt.files import publish_file
from longlive_trt.reading.documents import parse_json
from longlive_trt.reading.failures import InvalidFieldError, ReadingError, refusing
from longlive_trt.reading.ranges import Range
from longlive_trt.reading.shapes import structured
from longlive_trt.reading.tensors import read_header
from longlive_trt.runtime.decoding.choice import decoder_named
from longlive_trt.runtime.decoding.switching import SwitchableDecoder
from longlive_trt.runtime.memory.base import Buffer, Memory, Tensor, buffers, named
from longlive_trt.runtime.prompting.blending import Blend
from longlive_trt.runtime.prompting.padding import tokens_of_keys
from longlive_trt.runtime.prompting.switches import EXACT, SwitchMode
from longlive_trt.runtime.ring import Ring, RingLayout
from longlive_trt.runtime.session import Session, require_finite

FORMAT = 2
# The file's library writes such numbers for numpy, and cannot read them.
_FP8 = FLOAT8.numpy
_AS_BYTES = "fp8_as_bytes"
_SEEDS = Range(0, 2**64 - 1)
_FRAMES = Range(0, 10**12)
_AGAIN = "use an undamaged copy, or make that part of the video again"


@dataclass(frozen=True)
class _BlendFacts:
    blocks: int
    made: int

    def __post_init__(self) -> None:
        if not 0 <= self.made <= self.blocks or self.blocks not in Range(1, 999_999):
            raise InvalidFieldError("blocks", [self.made, self.blocks], "so many of 1 to 999999")


@dataclass(frozen=True)
class _Facts:
    """What a state's file says beside its tensors."""

    bundle_key: str
    config: ModelConfig
    seed: int
    prompt: str
    switch: str
    blend: _BlendFacts | None
    next_frame: int
    sink_start: int
    vae_frames: int | None
    fp8_as_bytes: tuple[str, ...] = ()
    decoder: Literal["full", "light"] | None = None
    lora: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        block = self.config.rollout.frames_per_block
        decoded = self.next_frame if self.vae_frames is None else self.vae_frames
        for key, value, is_possible, allowed in (
            ("seed", self.seed, self.seed in _SEEDS, "0 to 2**64 - 1"),
            (
                *("next_frame", self.next_frame),
                self.next_frame in _FRAMES and self.next_frame % block == 0,
                f"whole blocks of {block}, {_FRAMES}",
            ),
            (
                *("sink_start", self.sink_start),
                0 <= self.sink_start <= self.next_frame,
                "0 to next_frame",
            ),
            ("vae_frames", decoded, decoded == self.next_frame, "next_frame"),
        ):
            if not is_possible:
                raise InvalidFieldError(key, value, allowed)


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
    decoder: str | None
    """Whose memory it is, of a bundle that holds two decoders."""
    tensors: Mapping[str, Array]
    lora: tuple[str, ...] = ()
    """The adapters that its last block was made with."""

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
    lora: tuple[str, ...] = (),
    overwrite: bool = True,
) -> None:
    """Write a session's state; only safe between blocks."""
    if session.ring.held_from is not None:
        raise UsageError(
            f"{path}: the window changed on the way, and a state has one of a fixed size; make the "
            f"video without changing it"
        )
    session.remember()
    session.settle()
    for frame, latent in session.history.items():
        require_finite(latent, f"{path}: latent frame {frame}")
    # How much of the prompt is padding is seen again in its keys and values.
    context = {k: v for k, v in session.context.items() if k != CONTEXT_TOKENS}
    tensors = session.passes.saved() | _fetched(session.memory, context)
    tensors |= {f"latent.{frame}": latent for frame, latent in session.history.items()}
    decoder = session.decoder
    if decoder is not None:
        tensors |= {f"vae.{name}": cache for name, cache in decoder.saved().items()}
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
        # States of bundles with one decoder are as they always were.
        **({"decoder": decoder.name} if isinstance(decoder, SwitchableDecoder) else {}),
        _AS_BYTES: sorted(name for name, tensor in tensors.items() if tensor.dtype == _FP8),
        **({"lora": lora} if lora else {}),
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


_RESUMES = "--resume takes what --save-state wrote"


def load_state(path: Path) -> SavedState:
    if not path.is_file():
        raise UsageError(f"{path}: no such state file; --resume takes what --save-state wrote")
    with refusing(UsageError, f"{path}: not a state file, or cut short", _RESUMES):
        header = read_header(path)
        text = header.metadata.get("state", "")
        described = parse_json(text)
        if not isinstance(described, dict):
            raise ReadingError("it does not say what it holds")
        _require_format(path, described.pop("format", None))
        tensors = header.read_all()
        _require_digest(path, header.metadata.get("sha256", ""), _digest(text, tensors))
        return _state_of(structured(_Facts, described), tensors)


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


def _state_of(facts: _Facts, tensors: dict[str, Array]) -> SavedState:
    for name in facts.fp8_as_bytes:
        if name not in tensors or tensors[name].dtype != np.uint8:
            raise ReadingError(f"tensor {name} is missing, or not kept as bytes")
        tensors[name] = tensors[name].view(_FP8)
    blend = None
    if facts.blend is not None:
        if not {"blend.start", "blend.target"} <= tensors.keys():
            raise ReadingError("the tensors of a change of prompt are missing")
        between = Blend.between(
            tensors.pop("blend.start"), tensors.pop("blend.target"), facts.blend.blocks
        )
        blend = replace(between, made=facts.blend.made)
    first = tensors.get(numbered(K_CACHE, 0))
    if first is None or first.ndim != 4 or first.shape[0] not in MOST_BATCH:
        raise ReadingError("the keys of the first layer are missing, or of no such shape")
    return SavedState(
        bundle_key=facts.bundle_key,
        config=facts.config,
        seed=facts.seed,
        prompt=facts.prompt,
        switch=SwitchMode.parse(facts.switch),
        blend=blend,
        next_frame=facts.next_frame,
        sink_start=facts.sink_start,
        vae_frames=facts.vae_frames,
        decoder=facts.decoder,
        tensors=tensors,
        lora=facts.lora,
    )


def require_kept(path: Path, state: SavedState, bundle: Bundle, layout: RingLayout) -> None:
    """Refuse tensors that sessions of this bundle do not keep, before any is opened."""
    own, other = bundle.config, state.config
    same_graphs = replace(other, rollout=own.rollout, fps=own.fps) == own
    if not same_graphs or other.rollout.rope != own.rollout.rope:
        raise UsageError(
            f"{path}: saved with a configuration of another model than the bundle's; resume with "
            f"the bundle that made it"
        )
    for name, buffer in _expected(state, bundle, layout).items():
        tensor = state.tensors.get(name)
        if tensor is None:
            raise UsageError(f"{path}: tensor {name} is missing; {_AGAIN}")
        if tensor.shape != buffer.shape or tensor.dtype != buffer.dtype:
            raise UsageError(
                f"{path}: {name} is {tensor.dtype} {list(tensor.shape)}, and the bundle needs "
                f"{buffer.dtype} {list(buffer.shape)}; {_AGAIN}"
            )


def _expected(state: SavedState, bundle: Bundle, layout: RingLayout) -> dict[str, Buffer]:
    config, graphs = state.config, bundle.manifest.graphs
    sizes = {BATCH: state.batch, STEP_FRAMES: layout.block, CACHE_FRAMES: layout.slots}
    step = specs_of(graphs[STEP].inputs)
    kept = named(step, K_CACHE, V_CACHE, CONTEXT_K, CONTEXT_V)
    by_token = [replace(spec, shape=not_transposed(spec.shape)) for spec in kept]
    expected = buffers(by_token, **sizes)
    if state.vae_frames is not None:
        _, following = decoder_named(bundle, state.decoder).graphs
        histories = named(specs_of(graphs[following].inputs), HISTORY)
        latent = latent_sizes(*config.latent.size)
        expected |= {
            f"vae.{spec.name}": Buffer.of(spec, batch=state.batch, **latent) for spec in histories
        }
    frame = Buffer((state.batch, *config.latent_shape), step[LATENTS].dtype)
    oldest = max(0, state.next_frame - layout.window)
    expected |= {f"latent.{number}": frame for number in range(oldest, state.next_frame)}
    if state.blend is not None:
        _require_blend(state, config)
    return expected


def _require_blend(state: SavedState, config: ModelConfig) -> None:
    text = (config.transformer.text_len, config.transformer.text_dim)
    assert state.blend is not None
    for states in (state.blend.start, state.blend.target):
        if states.shape not in ((1, *text), (state.batch, *text)):
            raise UsageError(
                f"the saved change of prompt is of {list(states.shape)}, and the bundle's text "
                f"states are {list(text)}; {_AGAIN}"
            )


def restore(session: Session, state: SavedState) -> None:
    """Put a new session of the same configuration where the saved one stood."""
    session.passes.restore(state.tensors)
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
        values = _tokens_of(state) if name == CONTEXT_TOKENS else state.tensors[name]
        session.memory.write(tensor, values)
    session.resume(ring)


def _tokens_of(state: SavedState) -> Array:
    return tokens_of_keys(*(state.tensors[numbered(stem, 0)] for stem in (CONTEXT_K, CONTEXT_V)))


def _fetched(memory: Memory, tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: memory.fetch(tensor).result() for name, tensor in tensors.items()}
