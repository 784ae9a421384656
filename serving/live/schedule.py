"""Which prompt a video shows from which block on, and what a change of plan undoes. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Cue:
    id: int
    block: int
    prompt: str
    event_id: str | None = None
    asked_s: float = 0.0


class Schedule:
    """Cues by the block where they take effect, at most one for each.

    Every change returns the first block that it makes different, or None where it changes nothing;
    what was made from that block on is to be made anew.
    """

    def __init__(self, cues: tuple[Cue, ...] = ()) -> None:
        self._cues = {cue.block: cue for cue in cues}
        self._next_id = max((cue.id for cue in cues), default=0) + 1

    def __iter__(self) -> Iterator[Cue]:
        return iter([self._cues[block] for block in sorted(self._cues)])

    def __len__(self) -> int:
        return len(self._cues)

    def starting_at(self, block: int) -> Cue | None:
        return self._cues.get(block)

    def in_force(self, block: int) -> Cue | None:
        """The cue that a block is made under."""
        earlier = [start for start in self._cues if start <= block]
        return self._cues[max(earlier)] if earlier else None

    def find(self, cue_id: int) -> Cue | None:
        return next((cue for cue in self._cues.values() if cue.id == cue_id), None)

    def upcoming(self, block: int) -> Cue | None:
        return next((cue for cue in self if cue.block > block), None)

    def add(
        self, block: int, prompt: str, *, event_id: str | None = None, now: float = 0.0
    ) -> tuple[Cue, int]:
        """A prompt for a block; one that was planned for the same block gives way."""
        cue = Cue(self._next_id, block, prompt, event_id, now)
        self._next_id += 1
        self._cues[block] = cue
        return cue, block

    def edit(
        self, cue: Cue, *, prompt: str | None = None, block: int | None = None
    ) -> tuple[Cue, int | None]:
        changed = replace(
            cue,
            prompt=cue.prompt if prompt is None else prompt,
            block=cue.block if block is None else block,
        )
        if changed == cue:
            return cue, None
        del self._cues[cue.block]
        self._cues[changed.block] = changed
        return changed, min(cue.block, changed.block)

    def remove(self, cue: Cue) -> int:
        del self._cues[cue.block]
        return cue.block
