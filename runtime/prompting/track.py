"""Which prompt each block of a video is conditioned on, and what a change of prompt recomputes."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from longlive_trt.basics import Array
from longlive_trt.configs.replay import Replay, prompts_by_block
from longlive_trt.runtime.prompting.blending import Blend
from longlive_trt.runtime.prompting.encoder import PromptContexts
from longlive_trt.runtime.prompting.switches import EXACT, SwitchMode
from longlive_trt.runtime.prompting.timeline import Cue
from longlive_trt.runtime.ring import Recache
from longlive_trt.runtime.transformer import Context

Change = tuple[Context, Recache]
"""What blocks are conditioned on from now on, and what of the cache is recomputed for it."""


class PromptSource(Protocol):
    """Where a track's prompts come from: a text encoder, or a replay file."""

    contexts: PromptContexts

    def context_of(self, prompt: str) -> Context: ...

    def states_of(self, prompt: str) -> Array:
        """Text states [1 or B, text_len, text_dim]."""
        ...

    def prepare(self, prompt: str) -> None:
        """A prompt that will be asked for soon."""
        ...

    def close(self) -> None: ...


class RecordedPrompts:
    """Prompts that are text states already, by name."""

    def __init__(self, contexts: PromptContexts, states: Mapping[str, Array]) -> None:
        self.contexts, self._states = contexts, states

    def context_of(self, prompt: str) -> Context:
        return self.contexts.of_states(self._states[prompt])

    def states_of(self, prompt: str) -> Array:
        return self._states[prompt]

    def prepare(self, prompt: str) -> None:
        """There is nothing to encode."""

    def close(self) -> None:
        self.contexts.close()


def replay_states(replay: Replay) -> dict[str, Array]:
    """A replay's prompts under the names that its file gives them."""
    return {_recorded(number): states for number, states in replay.prompts.items()}


def replay_cues(replay: Replay, frames_per_block: int) -> list[Cue]:
    starts = islice(
        prompts_by_block(replay.schedule, frames_per_block), replay.frames // frames_per_block
    )
    return [Cue(frame, _recorded(number)) for frame, number in starts if number is not None]


def _recorded(number: int) -> str:
    return f"prompt.{number}"


@dataclass(frozen=True)
class Shown:
    """Where a track stands between two blocks."""

    prompt: str
    """What the video shows or turns to."""
    blend: Blend | None = None
    """The change of prompt that is under way."""
    asked: tuple[tuple[str, SwitchMode], ...] = ()
    """The prompt that was asked for and that no block has taken yet."""


class PromptTrack:
    """Cues are known beforehand; other prompts are asked for while the video is made."""

    def __init__(
        self,
        source: PromptSource,
        cues: Sequence[Cue] = (),
        mode: SwitchMode = EXACT,
        *,
        prompt: str = "",
        blend: Blend | None = None,
    ) -> None:
        """``cues`` lie at block starts. ``prompt`` and ``blend``: as a resumed video has them."""
        self.source, self._mode = source, mode
        self._cues: Mapping[int, str] = {cue.frame: cue.prompt for cue in cues}
        self._asked: deque[tuple[str, SwitchMode]] = deque(maxlen=1)
        """Other threads may ask."""
        self.prompt, self.blend = prompt, blend
        self._renewal: SwitchMode | None = None

    @property
    def shown(self) -> Shown:
        return Shown(self.prompt, self.blend, tuple(self._asked))

    def go_back(self, shown: Shown) -> None:
        self.prompt, self.blend = shown.prompt, shown.blend
        self._asked.clear()
        self._asked.extend(shown.asked)

    def ask(self, prompt: str, mode: SwitchMode | None = None) -> None:
        """Change to this prompt at the next block; the latest one before it counts."""
        self.source.prepare(prompt)
        self._asked.append((prompt, mode or self._mode))

    def renew(self, mode: SwitchMode) -> None:
        """Take the same prompt again at the next block, unless that takes another one.

        A blend that is under way is over with it.
        """
        self._renewal = EXACT if mode.blend_blocks is not None else mode

    def due(self, first_frame: int) -> Change | None:
        """What changes at the block that starts there, if anything; asked once for each."""
        wanted = self._wanted(first_frame)
        renewal, self._renewal = self._renewal, None
        if wanted is None and renewal is not None:
            wanted = self.prompt, renewal
        if wanted is None:
            return self._mixed(self.blend) if self.blend else None
        prompt, mode = wanted
        change = self._change(prompt, mode, is_first=first_frame == 0)
        self.prompt = prompt
        following = min((frame for frame in self._cues if frame > first_frame), default=None)
        if following is not None:
            self.source.prepare(self._cues[following])
        return change

    def _wanted(self, first_frame: int) -> tuple[str, SwitchMode] | None:
        if self._asked:
            return self._asked.pop()
        cue = self._cues.get(first_frame)
        return None if cue is None else (cue, self._mode)

    def _change(self, prompt: str, mode: SwitchMode, *, is_first: bool) -> Change:
        """From the prompt before; where a blend is under way, from what it has come to."""
        if mode.blend_blocks is None or is_first:
            context = self.source.context_of(prompt)
            self.blend = None
            return context, mode.recache
        start = self.blend.states if self.blend else self.source.states_of(self.prompt)
        target = self.source.states_of(prompt)
        return self._mixed(Blend.between(start, target, mode.blend_blocks))

    def _mixed(self, blend: Blend) -> Change:
        """The next block of a blend."""
        advanced = blend.advanced()
        context = self.source.contexts.of_states(advanced.states)
        self.blend = None if advanced.is_over else advanced
        return context, "none"
