"""Who waits for a slot at one gateway, in order."""

import asyncio
import secrets
import time
from dataclasses import dataclass, field

from longlive_trt.serving.problems import ProblemError

_TICKET_S = 30.0


@dataclass(eq=False)
class Place:
    ticket: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    asked_s: float = field(default_factory=time.monotonic)
    is_held: bool = True
    """By an open socket; a caller by HTTP asks again in time."""


class Line:
    """Sessions that move go before everybody who comes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._places: list[Place] = []
        self.moving = 0
        """Sessions without a host."""
        self._changed = asyncio.Event()

    @property
    def waiting(self) -> int:
        return len(self._places) + self.moving

    def __len__(self) -> int:
        return len(self._places)

    def join(self, ticket: str | None = None, *, is_held: bool = True) -> Place:
        """The place of a ticket, or a new one at the end."""
        self._forget_old()
        for place in self._places:
            if place.ticket == ticket:
                place.asked_s = time.monotonic()
                return place
        if len(self._places) >= self._most:
            raise ProblemError(
                "server_full",
                "The server is full, and so is its queue. Try again in a few minutes.",
                retry_after_s=120,
            )
        place = Place(is_held=is_held)
        self._places.append(place)
        return place

    def rejoin(self, place: Place) -> None:
        """At the end, if it is not in the line; nobody is turned away."""
        if place not in self._places:
            self._places.append(place)

    def position(self, place: Place) -> int:
        """1 is the next; 0 is not in the line any more."""
        self._forget_old()
        return self._places.index(place) + 1 if place in self._places else 0

    def may_go(self, place: Place, free: int) -> bool:
        """As many as there are free slots, or one that asks whether there is any: a ticket that
        nobody comes back with keeps one slot, and not all who come after it.
        """
        return self.moving == 0 and 1 <= self.position(place) <= max(1, free)

    def leave(self, place: Place) -> None:
        if place in self._places:
            self._places.remove(place)
            self._changed.set()

    async def wait(self, seconds: float) -> None:
        """Until somebody leaves, or so long."""
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return

    def _forget_old(self) -> None:
        before = time.monotonic() - _TICKET_S
        self._places = [place for place in self._places if place.is_held or place.asked_s >= before]
