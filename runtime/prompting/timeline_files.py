"""Timelines from files.

YAML or JSON: a list of ``{frame: 40, prompt: ...}`` or ``{seconds: 2.5, prompt: ...}`` entries, or
a mapping from frame to prompt. JSON Lines, as LongLive's own scripts take them: one video a line,
with its prompts under ``prompts_list`` or ``prompts`` (or one ``prompt``, or just a text); the
frames come from the command line, or spread the prompts equally over the video.

A recipe, as a live session gives it, is JSON too: ``prompts`` is its list, and the seed, the switch
mode, the length and the bundle's key are beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from longlive_trt.errors import UsageError
from longlive_trt.printing import plain, quoted
from longlive_trt.reading.documents import JSON_BYTES, parse_json, parse_yaml
from longlive_trt.reading.failures import ReadingError, refusing
from longlive_trt.reading.files import read_text
from longlive_trt.reading.shapes import structured
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
            f"{path}: a recipe of another version (format {quoted(document.get('format'))}, and "
            f"this one reads {RECIPE_FORMAT}); use the version that made it, or give its list of "
            f"prompts"
        )
    keys = [item.name for item in fields(RecipeSettings)]
    try:
        return structured(RecipeSettings, {key: document[key] for key in keys if key in document})
    except ReadingError as error:
        raise UsageError(f"{path}: the recipe's {error.problem}; take it anew") from None


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
    with refusing(UsageError, path, "check the path and what it holds"):
        text = read_text(path, JSON_BYTES)
    if not text.strip():
        raise UsageError(f"{path}: the file is empty; write at least one prompt into it")
    return text


def _parse_yaml(path: Path, text: str) -> Any:
    with refusing(UsageError, path, "correct the file"):
        return parse_yaml(text)


def _parse_json(path: Path, text: str) -> Any:
    try:
        return parse_json(text)
    except ReadingError as error:
        hint = "; JSON Lines belong in a .jsonl file" if "Extra data" in error.problem else ""
        line = f", line {error.line}" if error.line else ""
        raise UsageError(f"{path}{line}: {error.problem}{hint}") from None


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
    where = f"{path}, frame {plain(key)}"
    return Cue(_frame(int(key) if is_digits else key, where), _prompt(prompt, where), where)


def _cue_of_entry(where: str, entry: Any, clock: Clock) -> Cue:
    keys = set(entry) if isinstance(entry, dict) else set()
    if keys not in ({"frame", "prompt"}, {"seconds", "prompt"}):
        found = plain(", ".join(sorted(map(str, keys)))) if keys else f"a {type(entry).__name__}"
        raise UsageError(
            f"{where}: expected the keys frame and prompt, or seconds and prompt; found {found}"
        )
    prompt = _prompt(entry["prompt"], where)
    if "frame" in entry:
        return Cue(_frame(entry["frame"], where), prompt, where)
    return Cue(clock.latent_frame_at(_seconds(entry["seconds"], where)), prompt, where)


def _frame(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(
            f"{where}: the frame is {quoted(value)}; give a whole number, counted from 0"
        )
    return value


def _seconds(value: Any, where: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:
        raise UsageError(
            f"{where}: the time is {quoted(value)}; give seconds from the start, 0 or more"
        )
    return float(value)


def _prompt(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where}: the prompt is {quoted(value)}, not a text; put it in quotes")
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
        video = parse_json(text)
    except ReadingError as error:
        raise UsageError(
            f"{where}: not JSON ({error.problem}); write one JSON object a line"
        ) from None
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
        raise UsageError(f"{where}: {key} is {quoted(value)}; give a list of one or more texts")
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
