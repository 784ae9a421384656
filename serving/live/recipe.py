"""What it takes to make a live video again: its seed, its prompts and where they began."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longlive_trt.errors import UsageError
from longlive_trt.files import publish_file
from longlive_trt.reading.documents import JSON_BYTES, parse_json
from longlive_trt.reading.failures import refusing
from longlive_trt.reading.files import read_bytes
from longlive_trt.reading.shapes import structured
from longlive_trt.runtime.prompting.timeline_files import RECIPE_FORMAT
from longlive_trt.serving.live.clock import VideoClock
from longlive_trt.serving.live.schedule import Cue

FORMAT = 1


@dataclass(frozen=True)
class _Facts:
    """The file beside a state."""

    format: int
    block: int
    seed: int
    switch: str
    bundle_key: str
    cues: tuple[tuple[int, int, str], ...]


@dataclass(frozen=True)
class SavedVideo:
    """A state on disk, and what belongs to it."""

    path: Path
    block: int
    """The first that is still to be made."""
    seed: int
    switch: str
    cues: tuple[Cue, ...]
    bundle_key: str

    def write(self) -> None:
        """Beside the state."""
        values = {
            "format": FORMAT,
            "block": self.block,
            "seed": self.seed,
            "switch": self.switch,
            "bundle_key": self.bundle_key,
            "cues": [[cue.id, cue.block, cue.prompt] for cue in self.cues],
        }
        with publish_file(self.path.with_suffix(".json")) as partial:
            partial.write_text(json.dumps(values), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "SavedVideo":
        beside = path.with_suffix(".json")
        with refusing(UsageError, beside, "begin the video anew"):
            facts = structured(_Facts, parse_json(read_bytes(beside, JSON_BYTES)))
        cues = tuple(Cue(number, block, text) for number, block, text in facts.cues)
        return cls(path, facts.block, facts.seed, facts.switch, cues, facts.bundle_key)


def recipe(
    clock: VideoClock, cues: Sequence[Cue], *, seed: int, switch: str, bundle_key: str, end: int
) -> dict[str, Any]:
    """For ``generate --timeline``: all up to a block (the one after the last)."""
    placed = [cue for cue in cues if cue.block < end]
    frames = clock.latent_frame(end)
    return {
        "format": RECIPE_FORMAT,
        "seed": seed,
        "switch": switch,
        "bundle_key": bundle_key,
        "frames": frames,
        "prompts": [
            {"frame": clock.latent_frame(cue.block), "prompt": cue.prompt} for cue in placed
        ],
        "command": ("longlive-trt generate --bundle BUNDLE --timeline recipe.json --out video.mp4"),
    }
