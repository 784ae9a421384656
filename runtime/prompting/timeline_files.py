"""Timelines from files.

YAML or JSON: a list of ``{frame: 40, prompt: ...}`` or ``{seconds: 2.5, prompt: ...}`` entries, or
a mapping from frame, or time (``2.5s``), to prompt. JSON Lines, as LongLive's own scripts take
them: one video a line, with its prompts under ``prompts_list`` or ``prompts`` (or one ``prompt``,
or just a text); the frames come from the command line, or spread the prompts equally over the
video.

A recipe, as a live session gives it, is JSON too: ``prompts`` is its list, and the seed, the switch
mode, the length and the bundle's key are beside it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from longlive_trt.console.printing import plain, quoted
from longlive_trt.console.wording import counted
from longlive_trt.errors import UsageError
from longlive_trt.reading.documents import JSON_BYTES, parse_json, parse_yaml
from longlive_trt.reading.failures import ReadingError, refusing
from longlive_trt.reading.files import STDIN, read_stdin, read_text
from longlive_trt.reading.shapes import structured
from longlive_trt.runtime.prompting.timeline import (
    Clock,
    Cue,
    Moment,
    Seconds,
    Timeline,
    Wish,
    checked_timeline,
    parse_moment,
)

_JSON_LINES = (".jsonl", ".ndjson")
_YAML = (".yaml", ".yml")
_JSON = ".json"
_KINDS = (*_YAML, _JSON, *_JSON_LINES)
RECIPE_FORMAT = 1


@dataclass(frozen=True)
class TimelineText:
    """A timeline as it was read, which is once: stdin gives nothing twice."""

    name: str
    kind: str
    """The ending of its file, or that which what is in it would have."""
    text: str

    def __str__(self) -> str:
        return self.name

    @property
    def is_json_lines(self) -> bool:
        return self.kind in _JSON_LINES


def open_timeline(path: str | Path | TimelineText) -> TimelineText:
    """Read ``--timeline FILE``; ``-`` is stdin."""
    if isinstance(path, TimelineText):
        return path
    if str(path) in STDIN:
        text = _require_text("stdin", lambda: read_stdin(JSON_BYTES))
        return TimelineText("stdin", _kind_of(text), text)
    kind = Path(path).suffix.lower()
    if kind not in _KINDS:
        raise UsageError(
            f"{path}: no kind of timeline has the ending {Path(path).suffix!r}; use one of "
            f"{', '.join(_KINDS)}"
        )
    return TimelineText(
        str(path), kind, _require_text(str(path), lambda: read_text(Path(path), JSON_BYTES))
    )


def _require_text(name: str, read: Callable[[], str]) -> str:
    with refusing(UsageError, name, "check the path and what it holds"):
        text = read()
    if not text.strip():
        raise UsageError(f"{name}: the file is empty; write at least one prompt into it")
    return text


def _kind_of(text: str) -> str:
    """YAML, unless it begins like JSON; then one document, or a video a line."""
    if text.lstrip()[:1] not in ("{", "[", '"'):
        return _YAML[0]
    try:
        document = parse_json(text)
    except ReadingError as error:
        return _JSON_LINES[0] if "Extra data" in error.problem else _YAML[0]
    is_video = isinstance(document, str) or (isinstance(document, dict) and _is_video(document))
    return _JSON_LINES[0] if is_video else _JSON


def _is_video(document: dict[str, Any]) -> bool:
    prompts = document.get("prompts")
    has_texts = isinstance(prompts, list) and all(isinstance(prompt, str) for prompt in prompts)
    return has_texts or not document.keys().isdisjoint(("prompts_list", "prompt"))


def timeline_from_file(
    path: str | Path | TimelineText,
    clock: Clock,
    *,
    line: int | None = None,
    switch_frames: tuple[Moment, ...] | None = None,
) -> Timeline:
    """``line`` (from 1) and ``switch_frames`` are for JSON Lines."""
    source = open_timeline(path)
    if source.is_json_lines:
        prompts = _prompts_of_line(source, 1 if line is None else line)
        chosen = None if switch_frames is None else tuple(map(clock.frame_of, switch_frames))
        frames = _switch_frames(prompts, chosen, clock, source.name)
        cues = _cues_of_prompts(prompts, (0, *frames), source.name)
        timeline = checked_timeline(cues, clock)
        notices = _spread_notices(frames, clock) if switch_frames is None else ()
        return Timeline(timeline.cues, (*notices, *timeline.notices))
    for option, value in (("a line", line), ("switch frames", switch_frames)):
        if value is not None:
            raise UsageError(
                f"{path}: {option} can be chosen only with a {_JSON_LINES[0]} file; "
                "leave the option out"
            )
    return checked_timeline(_cues_of_document(source.name, _parse(source), clock), clock)


@dataclass(frozen=True)
class RecipeSettings:
    """What a recipe says beside its prompts."""

    seed: int
    switch: str
    frames: int
    bundle_key: str


def recipe_settings(path: str | Path | TimelineText) -> RecipeSettings | None:
    """None where the timeline is no recipe."""
    source = open_timeline(path)
    document: Any = _parse(source) if source.kind == _JSON else None
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


def _parse(source: TimelineText) -> Any:
    return _parse_json(source) if source.kind == _JSON else _parse_yaml(source)


def _parse_yaml(source: TimelineText) -> Any:
    with refusing(UsageError, source.name, "correct the file"):
        return parse_yaml(source.text)


def _parse_json(source: TimelineText) -> Any:
    try:
        return parse_json(source.text)
    except ReadingError as error:
        hint = "; JSON Lines belong in a .jsonl file" if "Extra data" in error.problem else ""
        line = f", line {error.line}" if error.line else ""
        raise UsageError(f"{source}{line}: {error.problem}{hint}") from None


def _cues_of_document(path: str, document: Any, clock: Clock) -> list[Cue]:
    if _is_recipe(document):
        document = document["prompts"]
    if isinstance(document, list) and document:
        return [
            _cue_of_entry(f"{path}, entry {number}", entry, clock)
            for number, entry in enumerate(document, 1)
        ]
    if isinstance(document, dict) and document:
        return [_cue_of_pair(path, key, prompt, clock) for key, prompt in document.items()]
    found = "an empty one" if document in ([], {}) else f"a {type(document).__name__}"
    raise UsageError(
        f"{path}: expected a list of {{frame, prompt}} entries or a mapping from frame to prompt, "
        f"found {found}"
    )


def _cue_of_pair(path: str, key: Any, prompt: Any, clock: Clock) -> Cue:
    # JSON's keys are always texts.
    moment = parse_moment(key) if isinstance(key, str) else key
    where = f"{path}, {'at' if isinstance(moment, Seconds) else 'frame'} {plain(key)}"
    if isinstance(moment, Seconds):
        return clock.cue(Wish(moment, _prompt(prompt, where), where))
    frame = _frame(key if moment is None else moment, where)
    return Cue(frame, _prompt(prompt, where), where)


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
            f"{where}: the frame is {quoted(value)}; give a whole number, counted from 0, or "
            "seconds"
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


def _prompts_of_line(path: TimelineText, line: int) -> list[str]:
    # Not splitlines(): a prompt may hold a U+2028.
    lines = path.text.split("\n")
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
            f"{path}: {counted(len(prompts), 'prompt')} {'needs' if switches == 0 else 'need'} "
            f"{counted(switches, 'switch frame')}, found {len(given)}; "
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
            f"{path}: {switches + 1} prompts, but the video has only {counted(blocks, 'block')} of "
            f"{counted(clock.frames_per_block, 'latent frame')}; make it longer or give fewer "
            "prompts"
        )
    return tuple(
        number * blocks // (switches + 1) * clock.frames_per_block
        for number in range(1, switches + 1)
    )


def _spread_notices(frames: tuple[int, ...], clock: Clock) -> tuple[str, ...]:
    if not frames:
        return ()
    listed = ", ".join(map(clock.timed, frames))
    return (f"the prompts are spread over the video: switches at latent frames {listed}",)
