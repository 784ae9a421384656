"""All sessions of a server: how many run, who waits, and where one is found."""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from longlive_trt.serving.live.session import LiveSession
from longlive_trt.serving.operation.memory import Freed
from longlive_trt.serving.problems import ProblemError, unknown_session
from longlive_trt.serving.web.hub import Hub
from longlive_trt.serving.web.room import House, Room

logger = logging.getLogger(__name__)

_TICK_S = 0.05
_STATS_S = 1.0
_TICKET_S = 30.0


@dataclass(eq=False)
class Ticket:
    """A place in the queue: an open socket's, or that of a caller who asks again in time."""

    turn: asyncio.Event = field(default_factory=asyncio.Event)
    asked_s: float = field(default_factory=time.monotonic)
    is_held: bool = True
    """By an open socket."""


class Rooms:
    def __init__(self, house: House, slots: int) -> None:
        self._house, self.slots = house, slots
        self._rooms: dict[str, Room] = {}
        self._queue: deque[Ticket] = deque()
        self._tickets: dict[str, Ticket] = {}
        self._reserved = 0
        self.is_draining = False
        self._lengths: deque[float] = deque(maxlen=20)
        self._freed = Freed()
        self.on_queue: Callable[[], None] = lambda: None

    @property
    def open_rooms(self) -> list[Room]:
        return [room for room in self._rooms.values() if room.ended is None]

    @property
    def running(self) -> int:
        return sum(room.ended is None for room in self._rooms.values())

    @property
    def taken(self) -> int:
        """Slots that nobody else can have now."""
        return self.running + self._reserved + len(self._queue)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def position(self, ticket: Ticket) -> int:
        return self._queue.index(ticket) + 1 if ticket in self._queue else 0

    def estimate_s(self, position: int) -> float | None:
        """From how long sessions took; None while none has ended."""
        if not self._lengths:
            return None
        typical = sum(self._lengths) / len(self._lengths)
        return round(typical * position / max(1, self.slots), 1)

    def knows(self, session_id: str) -> bool:
        return session_id in self._rooms

    def find(self, session_id: str, token: str | None) -> Room:
        room = self._rooms.get(session_id)
        if room is None:
            raise unknown_session()
        room.authorize(token)
        return room

    def find_running(self, session_id: str, token: str | None) -> Room:
        room = self.find(session_id, token)
        if room.ended is not None:
            raise ProblemError("session_ended", room.ended.message, state=room.ended.state)
        return room

    # ---- the queue ---------------------------------------------------------------------------

    def line_up(self) -> Ticket:
        """A ticket, whose turn may have come already."""
        self._refuse_while_draining()
        if len(self._queue) >= self._house.settings.limits.waiting:
            raise ProblemError(
                "server_full",
                "The server is full, and so is its queue. Try again in a few minutes.",
                retry_after_s=120,
            )
        ticket = Ticket()
        self._queue.append(ticket)
        self._call_next()
        return ticket

    def claim(self, name: str | None) -> tuple[str, Ticket]:
        """The ticket of a caller that asks again, or a new one; by HTTP nobody is held waiting."""
        ticket = self._tickets.get(name or "")
        if ticket is None or (ticket not in self._queue and not ticket.turn.is_set()):
            name, ticket = secrets.token_urlsafe(12), self.line_up()
            ticket.is_held = False
            self._tickets[name] = ticket
        assert name is not None
        ticket.asked_s = time.monotonic()
        return name, ticket

    def forget(self, name: str) -> None:
        self._tickets.pop(name, None)

    def step_back(self, ticket: Ticket) -> None:
        """Give the place up, or the turn that was not used."""
        if ticket in self._queue:
            self._queue.remove(ticket)
        elif ticket.turn.is_set():
            self._reserved -= 1
            ticket.turn.clear()
        self._call_next()

    def open(
        self,
        ticket: Ticket,
        open_session: Callable[[Hub], LiveSession],
        token: str | None = None,
    ) -> Room:
        """Use a turn."""
        assert ticket.turn.is_set()
        self._refuse_while_draining()
        room = Room(self._house, open_session, token)
        ticket.turn.clear()
        self._reserved -= 1
        self._rooms[room.id] = room
        room.on_end = self._ended
        logger.info("session started", extra={"session": room.id})
        self._measure()
        return room

    # ---- time --------------------------------------------------------------------------------

    async def tick_forever(self) -> None:
        told = 0.0
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            self._tick(now)
            if now - told >= _STATS_S:
                told = now
                self._tell_stats()

    def _tick(self, now: float) -> None:
        for room in list(self._rooms.values()):
            room.tick(now)
            self._forget_old(room)
        for name, ticket in list(self._tickets.items()):
            if now - ticket.asked_s > _TICKET_S:
                self.forget(name)
                self.step_back(ticket)

    async def drain(self) -> list[str]:
        """Nobody comes in any more; what runs is saved and ends. The states' ids."""
        self.is_draining = True
        for ticket in list(self._queue):
            self._queue.remove(ticket)
            ticket.turn.set()
        ended = await asyncio.gather(*(room.end("drained") for room in self.open_rooms))
        return [done.state for done in ended if done.state is not None]

    def close(self) -> None:
        for room in self._rooms.values():
            room.session.discard()
        self._rooms.clear()

    def _refuse_while_draining(self) -> None:
        if self.is_draining:
            raise ProblemError(
                "draining", "The server is going down; try again in a minute.", retry_after_s=60
            )

    def _call_next(self) -> None:
        while self._queue and self.running + self._reserved < self.slots:
            self._reserved += 1
            self._queue.popleft().turn.set()
        self._measure()
        self.on_queue()

    def _ended(self, room: Room) -> None:
        self._lengths.append(time.time() - room.created_s)
        self._freed.more()
        self._call_next()

    def _forget_old(self, room: Room) -> None:
        kept_s = self._house.settings.kept_s
        if room.ended is not None and time.monotonic() - room.ended_s > kept_s:
            room.session.discard()
            self._rooms.pop(room.id, None)
            self._freed.more()

    def _tell_stats(self) -> None:
        for room in self._rooms.values():
            if room.ended is None and room.hub.viewers:
                room.hub.tell(room.stats())

    def _measure(self) -> None:
        metrics = self._house.metrics
        metrics.running.set(self.running)
        metrics.waiting.set(self.waiting)
        metrics.slots.set(self.slots)
