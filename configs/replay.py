"""Replay files: all that is random in a rollout, so that engines can be compared."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from longlive_trt.configs.schema import ModelConfig
from longlive_trt.errors import UsageError

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Switch:
    """The prompt asked for from a latent frame on."""

    frame: int
    prompt: int


@dataclass(frozen=True)
class Replay:
    noise: FloatArray
    """[B, T, C, H, W]: where every frame starts."""
    renoise: FloatArray
    """[blocks, steps - 1, B, frames_per_block, C, H, W]: the noise of every re-noising."""
    prompts: Mapping[int, FloatArray]
    """Text states [1 or B, text_len, text_dim] by number."""
    schedule: tuple[Switch, ...]

    @property
    def batch(self) -> int:
        return int(self.noise.shape[0])

    @property
    def frames(self) -> int:
        return int(self.noise.shape[1])


def prompts_by_block(
    schedule: Iterable[Switch], block_frames: int
) -> Iterator[tuple[int, int | None]]:
    """(first frame, prompt newly taken there or None) of block after block, without end.

    A switch waits for the first block that starts at or after its frame, and a block takes one
    switch at most: a second one that is due waits for the next block.
    """
    pending = list(schedule)
    start = 0
    while True:
        due = bool(pending) and pending[0].frame <= start
        yield start, pending.pop(0).prompt if due else None
        start += block_frames


def load_replay(path: Path, config: ModelConfig) -> Replay:
    """Read and check a replay file against the model that is to run it."""
    tensors, metadata = _read(path)
    for name in ("noise", "renoise", "prompt.0"):
        if name not in tensors:
            raise UsageError(f"{path}: tensor {name} is missing; a replay file needs it")
    prompts = {
        int(name.removeprefix("prompt.")): tensor
        for name, tensor in tensors.items()
        if name.removeprefix("prompt.").isdecimal()
    }
    schedule = _parse_schedule(path, metadata.get("schedule"), prompts)
    replay = Replay(tensors["noise"], tensors["renoise"], prompts, schedule)
    _check_shapes(path, replay, config)
    _check_switches(path, replay, config.rollout.frames_per_block)
    return replay


def _read(path: Path) -> tuple[dict[str, FloatArray], dict[str, str]]:
    if not path.is_file():
        raise UsageError(f"{path}: no such replay file")
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            tensors = {name: np.asarray(file.get_tensor(name), np.float32) for name in names}
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path}: not a readable safetensors file ({error})") from None


def _parse_schedule(
    path: Path, text: str | None, prompts: Mapping[int, FloatArray]
) -> tuple[Switch, ...]:
    where = f"{path}: metadata entry schedule"
    expected = '[{"frame": 0, "prompt": 0}, ...]'
    try:
        entries = json.loads(text or "")
        schedule = tuple(
            Switch(_whole(entry["frame"]), _whole(entry["prompt"])) for entry in entries
        )
    except (ValueError, TypeError, KeyError):
        raise UsageError(f"{where} is missing or not JSON of the form {expected}") from None
    if not schedule or schedule[0].frame != 0:
        raise UsageError(f"{where} must begin with frame 0")
    for earlier, later in pairwise(schedule):
        if later.frame <= earlier.frame:
            raise UsageError(f"{where}: frame {later.frame} comes after frame {earlier.frame}")
    for switch in schedule:
        if switch.prompt not in prompts:
            raise UsageError(f"{where} asks for prompt.{switch.prompt}, which is not in the file")
    return schedule


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError(value)
    return value


def _check_shapes(path: Path, replay: Replay, config: ModelConfig) -> None:
    if replay.noise.ndim != 5 or replay.batch == 0:
        raise UsageError(
            f"{path}: noise is {list(replay.noise.shape)}; "
            f"it needs [batch, frames, channels, height, width]"
        )
    batch, frames = replay.noise.shape[:2]
    block = config.rollout.frames_per_block
    if frames == 0 or frames % block:
        raise UsageError(f"{path}: noise has {frames} frames; it needs whole blocks of {block}")
    frame = config.latent_shape
    steps = len(config.rollout.steps)
    text = (config.transformer.text_len, config.transformer.text_dim)
    expected = {
        "noise": (replay.noise, (batch, frames, *frame)),
        "renoise": (replay.renoise, (frames // block, steps - 1, batch, block, *frame)),
    }
    for number, states in replay.prompts.items():
        rows = states.shape[0] if states.shape[:1] in ((1,), (batch,)) else batch
        expected[f"prompt.{number}"] = (states, (rows, *text))
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise UsageError(
                f"{path}: {name} is {list(tensor.shape)}, but the model "
                f"({config.name}) needs {list(shape)}"
            )
        if not np.isfinite(tensor).all():
            raise UsageError(f"{path}: {name} holds NaN or infinity")


def _check_switches(path: Path, replay: Replay, block_frames: int) -> None:
    """Every prompt is shown: what would take over after the last block never does."""
    boundaries = prompts_by_block(replay.schedule, block_frames)
    blocks = islice(boundaries, replay.frames // block_frames)
    taken = sum(prompt is not None for _, prompt in blocks)
    if late := replay.schedule[taken:]:
        raise UsageError(
            f"{path}: metadata entry schedule: prompt.{late[0].prompt} for frame {late[0].frame} "
            f"would take over past the end of the video ({replay.frames} latent frames, and its "
            f"last block starts at {replay.frames - block_frames}); choose an earlier frame, or "
            f"record noise for a longer video"
        )
