"""Timelines from files.

YAML or JSON: a list of ``{frame: 40, prompt: ...}`` or ``{seconds: 2.5, prompt: ...}`` entries, or
a mapping from frame to prompt. JSON Lines, as LongLive's own scripts take them: one video a line,
with its prompts under ``prompts_list`` or ``prompts`` (or one ``prompt``, or just a text); the
frames come from the command line, or spread the prompts equally over the video.

A recipe, as a live session gives it, is JSON too: ``prompts`` is its list, and the seed, the switch
mode, the length and the bundle's key are beside it.
"""

import json
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from longlive_trt.errors import UsageError
from longlive_trt.runtime.prompting.timeline import Clock, Cue, Timeline, checked_timeline

_JSON_LINES = (".jsonl", ".ndjson")
_YAML = (".yaml", ".yml")
RECIPE_FORMAT = 1


def timeline_from_file(
    path: str | Path,
    clock: Clock,
    *,
    line: int | None = None,
    switch_frames: tuple[int, ...] | None = None,
) -> Timeline:
    """Read ``--timeline FILE``; ``line`` (from 1) and ``switch_frames`` are for JSON Lines."""
    path = Path(path)
    if path.suffix.lower() in _JSON_LINES:
        prompts = _prompts_of_line(path, 1 if line is None else line)
        frames = _switch_frames(prompts, switch_frames, clock, str(path))
        cues = _cues_of_prompts(prompts, (0, *frames), str(path))
        timeline = checked_timeline(cues, clock)
        notices = _spread_notices(frames) if switch_frames is None else ()
        return Timeline(timeline.cues, (*notices, *timeline.notices))
    for option, value in (("a line", line), ("switch frames", switch_frames)):
        if value is not None:
            raise UsageError(
                f"{path}: {option} can be chosen only with a {_JSON_LINES[0]} file; "
                "leave the option out"
            )
    return checked_timeline(_cues_of_document(path, _parse(path), clock), clock)


@dataclass(frozen=True)
class RecipeSettings:
    """What a recipe says beside its prompts."""

    seed: int
    switch: str
    frames: int
    bundle_key: str


def recipe_settings(path: str | Path) -> RecipeSettings | None:
    """None where the timeline is no recipe."""
    path = Path(path)
    document: Any = _parse(path) if path.suffix.lower() == ".json" else None
    if not _is_recipe(document):
        return None
    if document.get("format") != RECIPE_FORMAT:
        raise UsageError(
            f"{path}: a recipe of another version (format {document.get('format')!r}, and this one "
            f"reads {RECIPE_FORMAT}); use the version that made it, or give its list of prompts"
        )
    keys = {"seed": int, "switch": str, "frames": int, "bundle_key": str}
    for key, kind in keys.items():
        if type(document.get(key)) is not kind:
            raise UsageError(f"{path}: the recipe's {key} is {document.get(key)!r}; take it anew")
    return RecipeSettings(**{key: document[key] for key in keys})


def _is_recipe(document: Any) -> bool:
    return isinstance(document, dict) and isinstance(document.get("prompts"), list)


def _parse(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _parse_json(path, _read_text(path))
    if suffix in _YAML:
        return _parse_yaml(path, _read_text(path))
    known = ", ".join((*_YAML, ".json", *_JSON_LINES))
    raise UsageError(f"{path}: no kind of timeline has the ending {suffix!r}; use one of {known}")


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path}, line {line}: not valid UTF-8 at byte {error.start} "
            f"(0x{data[error.start]:02x}); save the file as UTF-8"
        ) from None
    if not text.strip():
        raise UsageError(f"{path}: the file is empty; write at least one prompt into it")
    return text


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys; here that would lose a prompt silently."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                problem = f"the key {key!r} appears twice; keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return mapping


def _parse_yaml(path: Path, text: str) -> Any:
    try:
        return _UniqueKeyLoader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path}{line}: {error.problem or 'not valid YAML'}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid YAML ({error})") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for key, value in pairs:
        if key in unique:
            raise ValueError(f"the key {key!r} appears twice; keep one")
        unique[key] = value
    return unique


def _parse_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        hint = "; JSON Lines belong in a .jsonl file" if error.msg == "Extra data" else ""
        raise UsageError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}){hint}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid JSON ({error})") from None


def _cues_of_document(path: Path, document: Any, clock: Clock) -> list[Cue]:
    if _is_recipe(document):
        document = document["prompts"]
    if isinstance(document, list) and document:
        return [
            _cue_of_entry(f"{path}, entry {number}", entry, clock)
            for number, entry in enumerate(document, 1)
        ]
    if isinstance(document, dict) and document:
        return [_cue_of_pair(path, key, prompt) for key, prompt in document.items()]
    found = "an empty one" if document in ([], {}) else f"a {type(document).__name__}"
    raise UsageError(
        f"{path}: expected a list of {{frame, prompt}} entries or a mapping from frame to prompt, "
        f"found {found}"
    )


def _cue_of_pair(path: Path, key: Any, prompt: Any) -> Cue:
    # JSON's keys are always texts.
    is_digits = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10
    where = f"{path}, frame {key}"
    return Cue(_frame(int(key) if is_digits else key, where), _prompt(prompt, where), where)


def _cue_of_entry(where: str, entry: Any, clock: Clock) -> Cue:
    keys = set(entry) if isinstance(entry, dict) else set()
    if keys not in ({"frame", "prompt"}, {"seconds", "prompt"}):
        found = ", ".join(sorted(map(str, keys))) if keys else f"a {type(entry).__name__}"
        raise UsageError(
            f"{where}: expected the keys frame and prompt, or seconds and prompt; found {found}"
        )
    prompt = _prompt(entry["prompt"], where)
    if "frame" in entry:
        return Cue(_frame(entry["frame"], where), prompt, where)
    return Cue(clock.latent_frame_at(_seconds(entry["seconds"], where)), prompt, where)


def _frame(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"{where}: the frame is {value!r}; give a whole number, counted from 0")
    return value


def _seconds(value: Any, where: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:
        raise UsageError(f"{where}: the time is {value!r}; give seconds from the start, 0 or more")
    return float(value)


def _prompt(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where}: the prompt is {value!r}, not a text; put it in quotes")
    return value


def _prompts_of_line(path: Path, line: int) -> list[str]:
    # Not splitlines(): a prompt may hold a U+2028.
    lines = _read_text(path).split("\n")
    videos = {
        number: _prompts_of_video(f"{path}, line {number}", text)
        for number, text in enumerate(lines, 1)
        if text.strip()
    }
    if line not in videos:
        raise UsageError(
            f"{path}: no video in line {line}; choose a line from {min(videos)} to {max(videos)}"
        )
    return videos[line]


def _prompts_of_video(where: str, text: str) -> list[str]:
    try:
        video = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON ({error}); write one JSON object a line") from None
    if isinstance(video, str):
        return [video]
    for key in ("prompts_list", "prompts", "prompt"):
        if isinstance(video, dict) and key in video:
            return _listed_prompts(where, key, video[key])
    raise UsageError(
        f"{where}: no prompts; write an object with the key prompts_list, prompts or prompt"
    )


def _listed_prompts(where: str, key: str, value: Any) -> list[str]:
    prompts = [value] if isinstance(value, str) else value
    if not isinstance(prompts, list) or not prompts:
        raise UsageError(f"{where}: {key} is {value!r}; give a list of one or more texts")
    return [_prompt(prompt, f"{where}, prompt {i}") for i, prompt in enumerate(prompts, 1)]


def _cues_of_prompts(prompts: list[str], frames: Sequence[int], path: str) -> list[Cue]:
    return [
        Cue(frame, prompt, f"{path}, prompt {number} at frame {frame}")
        for number, (frame, prompt) in enumerate(zip(frames, prompts, strict=True), 1)
    ]


def _switch_frames(
    prompts: list[str], given: tuple[int, ...] | None, clock: Clock, path: str
) -> tuple[int, ...]:
    switches = len(prompts) - 1
    if given is None:
        return _spread(switches, clock, path)
    if len(given) != switches:
        raise UsageError(
            f"{path}: {len(prompts)} prompts need {switches} switch frames, found {len(given)}; "
            "give one for every prompt but the first"
        )
    return given


def _spread(switches: int, clock: Clock, path: str) -> tuple[int, ...]:
    if switches == 0:
        return ()
    if clock.total_frames is None:
        raise UsageError(
            f"{path}: {switches + 1} prompts cannot be spread over an endless video; "
            "say at which frames to switch"
        )
    blocks = clock.total_frames // clock.frames_per_block
    if switches >= blocks:
        raise UsageError(
            f"{path}: {switches + 1} prompts, but the video has only {blocks} blocks of "
            f"{clock.frames_per_block} latent frames; make it longer or give fewer prompts"
        )
    return tuple(
        number * blocks // (switches + 1) * clock.frames_per_block
        for number in range(1, switches + 1)
    )


def _spread_notices(frames: tuple[int, ...]) -> tuple[str, ...]:
    if not frames:
        return ()
    listed = ", ".join(map(str, frames))
    return (f"the prompts are spread over the video: switches at latent frames {listed}",)
