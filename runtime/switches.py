"""Which prompt is new at a block: from a timeline of texts, or from a replay file."""

from collections.abc import Sequence
from typing import Protocol

from ..configs.replay import Replay, prompts_by_block
from .prompts import PromptContexts, PromptEncoder
from .timeline import Cue
from .transformer import Context


class Switches(Protocol):
    prompt: str
    """What the last context shows; empty where that is no text."""

    def due(self, first_frame: int) -> Context | None:
        """The context to switch to at the block that starts there, if any."""
        ...


class TimelineSwitches:
    def __init__(self, encoder: PromptEncoder, starts: Sequence[Cue], prompt: str = "") -> None:
        self._encoder = encoder
        self._starts = {cue.frame: cue.prompt for cue in starts}
        self.prompt = prompt

    def due(self, first_frame: int) -> Context | None:
        if first_frame not in self._starts:
            return None
        self.prompt = self._starts[first_frame]
        context = self._encoder.context_of(self.prompt)
        following = min((frame for frame in self._starts if frame > first_frame), default=None)
        if following is not None:
            self._encoder.prepare(self._starts[following])
        return context


class ReplaySwitches:
    prompt = ""

    def __init__(self, contexts: PromptContexts, replay: Replay, block_frames: int) -> None:
        self._contexts, self._replay = contexts, replay
        self._boundaries = prompts_by_block(replay.schedule, block_frames)

    def due(self, first_frame: int) -> Context | None:
        start, prompt = next(self._boundaries)
        assert start == first_frame
        return None if prompt is None else self._contexts.of_states(self._replay.prompts[prompt])


class NoSwitches:
    """A resumed video that keeps its prompt."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt

    def due(self, _first_frame: int) -> Context | None:
        return None
