"""What a gateway does about sessions: finds their owners, opens them, and opens them again."""

import asyncio
import hashlib
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from longlive_trt.errors import LongLiveError
from longlive_trt.serving.cluster.calls import HostLostError, Hosts, Opened, Opening
from longlive_trt.serving.cluster.figures import GatewayFigures
from longlive_trt.serving.cluster.journal import Journal
from longlive_trt.serving.cluster.line import Line, Place
from longlive_trt.serving.cluster.settings import FleetSettings
from longlive_trt.serving.cluster.store.registry import Deed, News, Registry, is_session_id
from longlive_trt.serving.operation.memory import Freed
from longlive_trt.serving.problems import ProblemError, unknown_session
from longlive_trt.serving.settings import Settings
from longlive_trt.serving.web.entrance import RESTARTING
from longlive_trt.serving.web.security import same_token

logger = logging.getLogger(__name__)

_Read = TypeVar("_Read")

_RETRY_S = 0.25
_MOVE_RETRY_S, _SLOWEST_S, _SLOWER = 0.1, 1.0, 1.5
_OPENING_S = 5.0
_TRIES = 4
_STATE_TRIES = 3
"""Its owner may replace a state while another host fetches it."""
_EPOCHS = 100
"""So many cuts at most can be younger than the newest news."""


class Conversing(Protocol):
    """A viewer's socket."""

    def end(self, code: int) -> None: ...


@dataclass(frozen=True)
class Seat:
    """Where a session is."""

    session: str
    token: str
    fence: int
    seed: int | None = None
    switch: str = "exact"
    is_job: bool = False
    """Of a whole video, which nobody watches."""


class Gateway:
    def __init__(
        self, name: str, settings: Settings, fleet: FleetSettings, hosts: Hosts, registry: Registry
    ) -> None:
        self.name, self.settings, self.fleet = name, settings, fleet
        self.hosts: Hosts = hosts
        self._registry = registry
        self.line = Line(settings.limits.waiting)
        self.figures = GatewayFigures(self)
        self._moves: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.sockets: set[Conversing] = set()
        self.freed = Freed()
        self.is_closing = False

    async def close(self) -> None:
        """Every viewer is told to come back: there is another gateway, or will be."""
        self.is_closing = True
        for relay in list(self.sockets):
            relay.end(RESTARTING)

    def reopen_doors(self) -> None:
        self.is_closing = False

    # ---- new sessions ------------------------------------------------------------------------

    def new_opening(self) -> Opening:
        return Opening(
            session=secrets.token_urlsafe(12), token=secrets.token_urlsafe(24), gateway=self.name
        )

    async def open(
        self, opening: Opening, place: Place, on_position: Callable[[int], None]
    ) -> Seat:
        """As soon as it is its turn and a host has room."""
        try:
            while True:
                seat = await self.attempt(opening, place)
                if seat is not None:
                    return seat
                on_position(self.line.position(place))
                await self.line.wait(_RETRY_S)
        finally:
            self.line.leave(place)

    async def attempt(self, opening: Opening, place: Place) -> Seat | None:
        """None while it has to wait."""
        self._refuse_while_closing()
        if not self.line.may_go(place, self.hosts.free):
            return None
        return await self._place(opening)

    async def _place(self, opening: Opening) -> Seat | None:
        """None where no host has room. One that was thought to have may be full by now."""
        for _ in range(_TRIES):
            seat = await self._place_once(opening)
            if seat is not None or not self.hosts.free:
                return seat
        return None

    async def _place_once(self, opening: Opening) -> Seat | None:
        waiting = self.line.waiting
        try:
            answer = await self.hosts.open(replace(opening, waiting=waiting))
        except HostLostError as error:
            logger.warning("no host takes a session", extra={"why": str(error)})
            return None
        if isinstance(answer, Opened):
            self.hosts.own(answer.session, answer.view.name)
            logger.info(
                "session placed",
                extra={"session": answer.session, "host": answer.view.name, "fence": answer.fence},
            )
            return Seat(
                answer.session,
                answer.token,
                answer.fence,
                answer.seed,
                answer.switch,
                opening.is_job,
            )
        if answer.why == "problem":
            raise ProblemError(answer.code, answer.sentence)
        return None

    # ---- sessions that there are -------------------------------------------------------------

    async def locate(self, session: str, token: str | None) -> Seat:
        """For whoever shows the session's token."""
        deed = await self._newest(session)
        shown = hashlib.sha256((token or "").encode()).hexdigest()
        age = time.time() - deed.created_s
        if token is None or age > self.settings.limits.token_age_s:
            raise unknown_session()
        if not same_token(shown, deed.token_sha256):
            raise unknown_session()
        self.hosts.own(session, deed.host)
        return Seat(session, token, deed.fence)

    async def reopen(self, seat: Seat, journal: Journal | None, patience_s: float) -> Seat:
        """At another host, unless somebody did it already."""
        self.line.moving += 1
        try:
            async with asyncio.timeout(patience_s), self._moves[seat.session]:
                return await self._reopen(seat, journal)
        except TimeoutError:
            raise ProblemError(
                "server_full",
                "The session's machine is gone, and no other has room for it yet. Its state is "
                "kept: come back to it with its id and token.",
                retry_after_s=60,
            ) from None
        finally:
            self.line.moving -= 1
            if not self._moves[seat.session].locked():
                self._moves.pop(seat.session, None)

    async def _reopen(self, seat: Seat, journal: Journal | None) -> Seat:
        failures, delay_s = 0, _MOVE_RETRY_S
        is_anew = False
        while True:
            self._refuse_while_closing()
            deed = await self._newest(seat.session)
            if deed.fence > seat.fence:
                self.hosts.own(seat.session, deed.host)
                return replace(seat, fence=deed.fence)
            news = await self._news(deed)
            opening = _opening_again(self.name, seat, deed, news, journal)
            try:
                moved = await self._place(replace(opening, resume=None) if is_anew else opening)
                if moved is not None:
                    return moved
            except ProblemError as problem:
                failures += 1
                if problem.code != "not_found" or is_anew:
                    raise
                if journal is not None:
                    journal.state = None
                # The store has lost it; the same seed and prompts make the same video.
                is_anew = failures == _STATE_TRIES
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * _SLOWER, _SLOWEST_S)

    async def is_opening(self, seat: Seat) -> bool:
        """Whether the owner may not have got to it yet."""
        deed = await self._newest(seat.session)
        is_young = time.time() - deed.claimed_s < _OPENING_S
        alive = {view.name for view in self.hosts.views() if not view.is_draining}
        return deed.fence == seat.fence and is_young and deed.host in alive

    async def _newest(self, session: str) -> Deed:
        deed = None
        if is_session_id(session):
            deed = await self.stored(lambda: self._registry.newest(session))
        if deed is None:
            raise unknown_session()
        return deed

    async def _news(self, deed: Deed) -> News:
        news = await self.stored(lambda: self._registry.news(deed.session, deed.fence))
        if news is None:
            raise unknown_session()
        if news.status == "ended":
            raise ProblemError(
                "session_ended", news.message or "The session is over.", state=news.state
            )
        return news

    async def stored(self, read: Callable[[], _Read]) -> _Read:
        try:
            return await asyncio.to_thread(read)
        except (LongLiveError, OSError) as error:
            logger.error("the store failed", extra={"why": str(error)})
            raise ProblemError(
                "internal", "The fleet's store does not answer; try again in a minute."
            ) from None

    def _refuse_while_closing(self) -> None:
        if self.is_closing:
            raise ProblemError(
                "draining", "The server is going down; try again in a minute.", retry_after_s=60
            )


def _opening_again(
    gateway: str, seat: Seat, deed: Deed, news: News, journal: Journal | None
) -> Opening:
    """From the newest state that belongs to what the viewer sees, or from the beginning: the same
    seed and prompts make the same video.
    """
    restarts = max(news.restarts, journal.restarts if journal else 0)
    is_behind = restarts > news.restarts
    seed = journal.seed if journal and is_behind and journal.seed is not None else news.seed
    frame = journal.frame if journal and journal.has_begun else None
    state = None if is_behind else news.usable_state(frame)
    if journal is not None and journal.state is not None and not is_behind:
        state = journal.state
    return Opening(
        session=seat.session,
        token=seat.token,
        fence=deed.fence + 1,
        gateway=gateway,
        bundle_key=deed.bundle_key,
        seed=seed,
        switch=news.switch,
        resume=state,
        decoder=journal.decoder if journal else None,
        epoch=journal.epoch + 1 if journal else news.epoch + _EPOCHS,
        frame=journal.frame if journal else 0,
        cues=journal.cues if journal and journal.cues else news.cues,
        end=news.end,
        restarts=restarts,
        is_paused=journal is not None and journal.is_paused,
        is_job=seat.is_job,
        for_jpeg=journal is not None and journal.format == "jpeg",
        created_s=deed.created_s,
    )
