"""Blocks that were made in secret under a draft: for the next place on screen, and the one after.

With the second, there is one for whenever Enter comes: the first is of no use once its place has
come, and another takes a while to make.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PLACES = 2


@dataclass(eq=False)
class Speculation:
    """A hidden block, and the state after it."""

    block: int
    prompt: str
    epoch: int
    made: Any
    checkpoint: Any
    samples: list[Any] = field(default_factory=list)
    """Encoded pictures, once they are."""


class HiddenBlocks:
    """All of one draft, by their places. Whoever shares it holds the plan's lock."""

    def __init__(self) -> None:
        self._blocks: dict[int, Speculation] = {}
        self.outcomes: Callable[[str], None] = lambda _outcome: None

    @property
    def first(self) -> Speculation | None:
        return self._blocks[min(self._blocks)] if self._blocks else None

    def holds(self, hidden: Speculation) -> bool:
        return self._blocks.get(hidden.block) is hidden

    def add(self, hidden: Speculation) -> None:
        self._blocks[hidden.block] = hidden

    def drop(self, outcome: str, *, since: int = 0, before: float = float("inf")) -> None:
        for block in [block for block in self._blocks if since <= block < before]:
            del self._blocks[block]
            self.outcomes(outcome)

    def drop_others(self, prompt: str | None, outcome: str) -> None:
        """Those that another draft was the reason for."""
        if self.first is not None and self.first.prompt != prompt:
            self.drop(outcome)

    def place_for(self, unseen: int, ready: int, most: int) -> int | None:
        """Where the next one is wanted: from ``ready`` on, where it can be in time.

        ``unseen`` is the first block that nobody has seen, ``most`` the last that can be begun.
        """
        places = range(max(ready, unseen), min(unseen + PLACES - 1, most) + 1)
        return next((block for block in places if block not in self._blocks), None)

    def take(self) -> Speculation:
        """The first, for good; what else there is was made in vain."""
        assert self.first is not None
        hidden = self._blocks.pop(self.first.block)
        self.outcomes("promoted")
        self.drop("discarded")
        return hidden
