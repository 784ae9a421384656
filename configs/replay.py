"""Replay files: all that is random in a rollout, so that engines can be compared."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from longlive_trt.configs.schema import ModelConfig
from longlive_trt.errors import UsageError
from longlive_trt.reading.documents import parse_json
from longlive_trt.reading.failures import ReadingError
from longlive_trt.reading.shapes import field
from longlive_trt.reading.tensors import FLOATS, TensorHeader, read_header

FloatArray = npt.NDArray[np.float32]

_PROMPT_NAME = re.compile(r"prompt\.(0|[1-9][0-9]{0,8})")


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
    """[blocks, noises - 1, B, frames_per_block, C, H, W]: the noise of every re-noising."""
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
    if not path.is_file():
        raise UsageError(f"{path}: no such replay file")
    try:
        header = read_header(path)
        prompts = _prompt_names(header)
        schedule = _parse_schedule(path, header.metadata.get("schedule"), prompts)
        _check_shapes(header, prompts, config)
        replay = Replay(
            _values(header, "noise"),
            _values(header, "renoise"),
            {number: _values(header, name) for number, name in prompts.items()},
            schedule,
        )
    except (ReadingError, OSError) as error:
        raise UsageError(f"{path}: not a readable safetensors file ({error})") from None
    _check_switches(path, replay, config.rollout.frames_per_block)
    return replay


def _prompt_names(header: TensorHeader) -> dict[int, str]:
    """The tensors of prompts by their numbers; others than these may be in the file too."""
    for name in ("noise", "renoise", "prompt.0"):
        if name not in header.entries:
            raise UsageError(f"{header.path}: tensor {name} is missing; a replay file needs it")
    found = (_PROMPT_NAME.fullmatch(name) for name in header.entries)
    return {int(match[1]): match[0] for match in found if match}


def _values(header: TensorHeader, name: str) -> FloatArray:
    values = header.read(name).astype(np.float32)
    if not np.isfinite(values).all():
        raise UsageError(f"{header.path}: {name} holds NaN or infinity")
    return values


def _parse_schedule(path: Path, text: str | None, prompts: Mapping[int, str]) -> tuple[Switch, ...]:
    where = f"{path}: metadata entry schedule"
    expected = '[{"frame": 0, "prompt": 0}, ...]'
    try:
        schedule: tuple[Switch, ...] = field(tuple[Switch, ...], parse_json(text or ""), "schedule")
    except ReadingError:
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


def _check_shapes(header: TensorHeader, prompts: Mapping[int, str], config: ModelConfig) -> None:
    """Before anything is read, which may be large."""
    path, shapes = header.path, {name: entry.shape for name, entry in header.entries.items()}
    noise = shapes["noise"]
    if len(noise) != 5 or noise[0] == 0:
        raise UsageError(
            f"{path}: noise is {list(noise)}; it needs [batch, frames, channels, height, width]"
        )
    batch, frames = noise[:2]
    block = config.rollout.frames_per_block
    if frames == 0 or frames % block:
        raise UsageError(f"{path}: noise has {frames} frames; it needs whole blocks of {block}")
    frame = config.latent_shape
    noises = config.rollout.noises
    text = (config.transformer.text_len, config.transformer.text_dim)
    expected = {
        "noise": (batch, frames, *frame),
        "renoise": (frames // block, noises - 1, batch, block, *frame),
    }
    for name in prompts.values():
        rows = shapes[name][:1] if shapes[name][:1] in ((1,), (batch,)) else (batch,)
        expected[name] = (*rows, *text)
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise UsageError(
                f"{path}: {name} is {list(shapes[name])}, but the model "
                f"({config.name}) needs {list(shape)}"
            )
        if header.entries[name].dtype not in FLOATS:
            raise UsageError(
                f"{path}: {name} is stored as {header.entries[name].dtype}; save it as "
                f"{' or '.join(FLOATS)}"
            )


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
