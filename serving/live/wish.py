"""What a new session is asked for, and what is known of one that ran elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

from longlive_trt.serving.engine import ModelFacts
from longlive_trt.serving.live.recipe import SavedVideo
from longlive_trt.serving.live.schedule import Cue
from longlive_trt.serving.media.h264 import Sample
from longlive_trt.serving.problems import ProblemError


@dataclass(frozen=True, kw_only=True)
class Known:
    """What viewers know of a session that ran elsewhere before: it goes on as if it had not."""

    id: str
    token: str
    epoch: int = 0
    frame: int = 0
    """The first picture that nobody has."""
    cues: tuple[Cue, ...] = ()
    """The newest timeline that was told; empty is that of the state."""
    end: int | None = None
    """The block after the last, where there is one."""
    recorded: Sequence[Sample] = ()
    """All pictures before the state's, where its recording is to begin with the video."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a new session is to show."""

    prompt: str
    seed: int = 0
    switch: str = "exact"
    cues: Sequence[tuple[int, str]] = ()
    """Prompts from pictures on, after the first."""
    frames: int | None = None
    paced: bool = True
    decoder: str | None = None
    """One of the model's; None is its first, or that of the state."""
    saved: SavedVideo | None = None
    known: Known | None = None


def require_decoder(facts: ModelFacts, name: str) -> None:
    if name not in facts.decoders:
        held = " and the ".join(facts.decoders)
        raise ProblemError(
            "bad_request", f"There is no decoder {name!r} here, only the {held} one."
        )
