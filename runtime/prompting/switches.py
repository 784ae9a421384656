"""Which prompt is new at a block, and how it takes over.

The prompts come from a timeline of texts, or from a replay file; either at once, or over several
blocks.
"""

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, get_args

from longlive_trt.basics import Array
from longlive_trt.configs.replay import Replay, prompts_by_block
from longlive_trt.errors import UsageError
from longlive_trt.runtime.prompting.blending import Blend
from longlive_trt.runtime.prompting.encoder import PromptContexts, PromptEncoder
from longlive_trt.runtime.prompting.timeline import Cue
from longlive_trt.runtime.ring import Recache
from longlive_trt.runtime.transformer import Context

States = Callable[[], Array]
"""Gives a prompt's text states when they are needed."""

_BLOCKS_AHEAD = 2
"""So many blocks may be asked for, on a GPU, while an older one is still to be made."""

_BLEND = re.compile(r"blend:([1-9][0-9]{0,5})")


@dataclass(frozen=True)
class SwitchMode:
    """How a video changes its prompt."""

    recache: Recache = "exact"
    blend_blocks: int | None = None

    @classmethod
    def parse(cls, text: str) -> "SwitchMode":
        recaches: tuple[Recache, ...] = get_args(Recache)
        for recache in recaches:
            if text == recache:
                return cls(recache)
        if match := _BLEND.fullmatch(text):
            # A re-cache would be the very jump that a blend is there to avoid.
            return cls("none", int(match[1]))
        raise UsageError(
            f"--switch {text!r}: no way to change the prompt; choose exact, partial, none, or "
            f"blend:N with a number of blocks from 1 to 999999, such as blend:4"
        )

    def __str__(self) -> str:
        return self.recache if self.blend_blocks is None else f"blend:{self.blend_blocks}"


EXACT = SwitchMode()
"""As upstream does."""


@dataclass(frozen=True)
class Change:
    """What blocks are conditioned on from now on, and what of the cache is recomputed for it."""

    context: Context
    recache: Recache = "none"


class Switches(Protocol):
    prompt: str
    """What the video shows or turns to; empty where that is no text."""

    @property
    def blend(self) -> Blend | None:
        """The change of prompt that is under way."""
        ...

    def due(self, first_frame: int) -> Change | None:
        """What changes at the block that starts there, if anything; asked once for each."""
        ...


class Mixer:
    """Conditions the blocks of a blend."""

    def __init__(self, contexts: PromptContexts, blend: Blend | None = None) -> None:
        self._contexts, self.blend = contexts, blend
        # Their memory must not be the next one's while a block that is late has yet to read it.
        self._latest: deque[Context] = deque(maxlen=_BLOCKS_AHEAD)

    def begin(self, before: States, target: States, blocks: int) -> Change:
        """From the prompt before; where a blend is under way, from what it has come to."""
        start = before() if self.blend is None else self.blend.states
        return self._next(Blend.between(start, target(), blocks))

    def go_on(self) -> Change | None:
        return None if self.blend is None else self._next(self.blend)

    def change_to(self, states: Array, recache: Recache) -> Change:
        """All at once."""
        self.blend = None
        self._latest.append(self._contexts.of_states(states))
        return Change(self._latest[-1], recache)

    def _next(self, blend: Blend) -> Change:
        advanced = blend.advanced()
        change = self.change_to(advanced.states, "none")
        self.blend = None if advanced.is_over else advanced
        return change


class TimelineSwitches:
    def __init__(
        self,
        encoder: PromptEncoder,
        starts: Sequence[Cue],
        mode: SwitchMode,
        prompt: str = "",
        blend: Blend | None = None,
    ) -> None:
        """``prompt`` and ``blend``: as a resumed video has them."""
        self._encoder, self._mode = encoder, mode
        self._mixer = Mixer(encoder.contexts, blend)
        self._starts = {cue.frame: cue.prompt for cue in starts}
        self.prompt = prompt

    @property
    def blend(self) -> Blend | None:
        return self._mixer.blend

    def due(self, first_frame: int) -> Change | None:
        if first_frame not in self._starts:
            return self._mixer.go_on()
        before, self.prompt = self.prompt, self._starts[first_frame]
        change = self._change(before if first_frame else None)
        following = min((frame for frame in self._starts if frame > first_frame), default=None)
        if following is not None:
            self._encoder.prepare(self._starts[following])
        return change

    def _change(self, before: str | None) -> Change:
        blocks = self._mode.blend_blocks
        if blocks is None or before is None:
            self._mixer.blend = None
            return Change(self._encoder.context_of(self.prompt), self._mode.recache)
        states_of = self._encoder.states_of
        return self._mixer.begin(
            partial(states_of, before), partial(states_of, self.prompt), blocks
        )


class ReplaySwitches:
    prompt = ""

    def __init__(
        self, contexts: PromptContexts, replay: Replay, block_frames: int, mode: SwitchMode
    ) -> None:
        self._mixer, self._replay, self._mode = Mixer(contexts), replay, mode
        self._boundaries = prompts_by_block(replay.schedule, block_frames)
        self._latest = replay.schedule[0].prompt

    @property
    def blend(self) -> Blend | None:
        return self._mixer.blend

    def due(self, first_frame: int) -> Change | None:
        start, prompt = next(self._boundaries)
        assert start == first_frame
        if prompt is None:
            return self._mixer.go_on()
        before, self._latest = self._latest, prompt
        prompts, blocks = self._replay.prompts, self._mode.blend_blocks
        if blocks is None or first_frame == 0:
            return self._mixer.change_to(prompts[prompt], self._mode.recache)
        return self._mixer.begin(lambda: prompts[before], lambda: prompts[prompt], blocks)


class NoSwitches:
    """A resumed video that keeps its prompt, and may still be turning to it."""

    def __init__(self, prompt: str, mixer: Mixer | None = None) -> None:
        self.prompt, self._mixer = prompt, mixer

    @property
    def blend(self) -> Blend | None:
        return self._mixer.blend if self._mixer else None

    def due(self, _first_frame: int) -> Change | None:
        return self._mixer.go_on() if self._mixer else None
