"""One machine's server inside a fleet: the live server, with gateways in its viewers' place."""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import cast

from starlette.websockets import WebSocket

from longlive_trt.engines.bundles.stores import Store
from longlive_trt.errors import LongLiveError, UsageError
from longlive_trt.serving.cluster.calls import (
    Head,
    HostLostError,
    Item,
    Joining,
    Opened,
    Opening,
    Refused,
    Request,
)
from longlive_trt.serving.cluster.channel import SILENCE_S, Channel
from longlive_trt.serving.cluster.placement import HostView
from longlive_trt.serving.cluster.settings import FleetSettings
from longlive_trt.serving.cluster.store.keeping import Figures, Keeper
from longlive_trt.serving.cluster.store.registry import Registry, deed
from longlive_trt.serving.cluster.store.states import FleetStates
from longlive_trt.serving.cluster.tunnel import answer
from longlive_trt.serving.cluster.videos.keeping import VideoKeeper, pictures_before
from longlive_trt.serving.cluster.videos.orders import Orders
from longlive_trt.serving.engine import LiveModel
from longlive_trt.serving.live.clock import VideoClock
from longlive_trt.serving.live.schedule import Cue
from longlive_trt.serving.live.wish import Known
from longlive_trt.serving.media.h264 import Sample
from longlive_trt.serving.problems import ProblemError
from longlive_trt.serving.protocol import SessionStart
from longlive_trt.serving.settings import Settings
from longlive_trt.serving.web.app import make_inner_app
from longlive_trt.serving.web.hub import FragmentViewer, Viewer
from longlive_trt.serving.web.live import Live
from longlive_trt.serving.web.room import Room
from longlive_trt.serving.web.rooms import Ticket
from longlive_trt.serving.web.socket import Conversation

logger = logging.getLogger(__name__)

_FRESH_S = 5.0
_UNLIMITED = 1e6


class Host:
    """Lives on one event loop."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        fleet: FleetSettings,
        load: Callable[[], LiveModel],
        node: str = "",
    ) -> None:
        self.name, self.node, self._fleet = name, node, fleet
        # Who may ask is checked at the gateway.
        self._settings = replace(settings, token=None)
        self._live = Live(
            self._settings,
            load,
            lambda folder, limits: FleetStates(folder, limits, Store(fleet.store)),
        )
        self._app = make_inner_app(self._live)
        self._registry = Registry(fleet.store)
        self._orders = Orders(fleet.store)
        self._keepers: dict[str, Keeper] = {}
        self._channels: dict[str, Channel] = {}
        self._waiting: dict[str, tuple[int, float]] = {}
        self._listening: asyncio.Task[None] | None = None
        self._version = 0
        self._said: HostView | None = None
        self.figures = Figures()
        self.is_draining = False

    async def start(self) -> None:
        # Before the model: what is refused here is refused in a moment.
        await asyncio.to_thread(self._registry.require_exclusive)
        await self._live.start()
        key, wanted = self._live.model.facts.bundle_key, self._fleet.bundle_key
        if wanted is not None and key != wanted:
            await self._live.stop()
            raise UsageError(
                f"host {self.name}: its bundle has the key {_short(key)}, the fleet's has "
                f"{_short(wanted)}; give every machine the same bundle"
            )
        self._listening = asyncio.create_task(self._end_silent_channels())

    async def stop(self) -> None:
        await self.drain()
        if self._listening is not None:
            self._listening.cancel()
        await self._live.stop()

    @property
    def states(self) -> FleetStates:
        return cast(FleetStates, self._live.states)

    def view(self) -> HostView:
        view = self._described()
        if view != self._said:
            self._version += 1
            self._said = view
        return replace(view, version=self._version)

    def _described(self) -> HostView:
        rooms, figures = self._live.rooms, self.figures
        return HostView(
            self.name,
            rooms.slots,
            rooms.taken,
            self.is_draining,
            self._live.model.facts.bundle_key,
            self.node,
            0,
            (
                ("saves", figures.saves),
                ("save_failures", figures.failures),
                ("save_seconds", round(figures.seconds, 3)),
                ("state_bytes", figures.state_bytes),
                ("viewers", len(self._channels)),
            ),
        )

    @property
    def waiting(self) -> int:
        """Callers without a place at all gateways, as far as is known here."""
        since = time.monotonic() - _FRESH_S
        return sum(count for count, heard_s in self._waiting.values() if heard_s > since)

    # ---- sessions ----------------------------------------------------------------------------

    async def open(self, opening: Opening) -> Opened | Refused:
        self._waiting[opening.gateway] = (opening.waiting, time.monotonic())
        ticket = None if self.is_draining else self._slot()
        if ticket is None:
            return Refused("full", self.view())
        try:
            return await self._open(opening, ticket)
        except ProblemError as problem:
            refused = Refused("problem", self.view(), problem.code, problem.sentence)
        except (LongLiveError, OSError) as error:
            refused = Refused("problem", self.view(), "generation_failed", str(error))
        except BaseException:
            self._live.rooms.step_back(ticket)
            raise
        self._live.rooms.step_back(ticket)
        return replace(refused, view=self.view())

    async def _open(self, opening: Opening, ticket: Ticket) -> Opened | Refused:
        key = self._live.model.facts.bundle_key
        if opening.bundle_key not in (None, key):
            raise ProblemError(
                "conflict",
                f"This session was made with a bundle whose key is {_short(opening.bundle_key)}; "
                f"the fleet's hosts have {_short(key)}, so it cannot go on.",
            )
        if opening.resume is None:
            return await self._admitted(opening, ticket)
        await asyncio.to_thread(self.states.fetch, opening.resume)
        answer: Opened | Refused | None = None
        try:
            answer = await self._resumed(opening, ticket)
            return answer
        finally:
            if not isinstance(answer, Opened):
                self.states.drop(opening.resume)

    async def _resumed(self, opening: Opening, ticket: Ticket) -> Opened | Refused:
        """From a state that was fetched."""
        if not opening.is_job:
            return await self._admitted(opening, ticket)
        pictures = await asyncio.to_thread(self._pictures_before, opening)
        if pictures is not None:
            return await self._admitted(opening, ticket, pictures)
        assert opening.resume is not None
        answer = await self._admitted(replace(opening, resume=None), ticket)
        if isinstance(answer, Opened):
            self.states.drop(opening.resume)
        return answer

    async def _admitted(
        self, opening: Opening, ticket: Ticket, recorded: Sequence[Sample] = ()
    ) -> Opened | Refused:
        key = self._live.model.facts.bundle_key
        opener = self._live.opener(
            prompt=opening.prompt,
            seed=opening.seed,
            switch=opening.switch,
            cues=opening.timeline,
            frames=opening.frames,
            paced=not opening.is_job,
            resume=opening.resume,
            decoder=opening.decoder,
            known=_known(opening, recorded),
        )
        token = hashlib.sha256(opening.token.encode()).hexdigest()
        created_s = opening.created_s or time.time()
        claim = deed(opening.session, opening.fence, self.name, token, key, created_s)
        if not await asyncio.to_thread(self._registry.claim, claim):
            self._live.rooms.step_back(ticket)
            return Refused("owned", self.view())
        room = self._live.rooms.open(ticket, opener, opening.token)
        room.created_s, room.hub.expects_jpeg = created_s, opening.for_jpeg
        room.is_job = opening.is_job
        if opening.is_paused:
            room.pause()
        keeper = self._keeper(room, opening)
        try:
            await keeper.begin(opening.resume)
        except (LongLiveError, OSError):
            await room.end("stopped")
            raise
        self._keepers[room.id] = keeper
        session = room.session
        return Opened(room.id, room.token, opening.fence, session.seed, session.switch, self.view())

    def _keeper(self, room: Room, opening: Opening) -> Keeper:
        shared = (room, opening.fence, self._registry, self.states, self.figures)
        periods = (self._fleet.save_every_s, opening.restarts)
        if opening.is_job:
            return VideoKeeper(*shared, *periods, orders=self._orders)
        return Keeper(*shared, *periods)

    def _pictures_before(self, opening: Opening) -> Sequence[Sample] | None:
        """All that the video shows before its state; without them it is made again."""
        assert opening.resume is not None
        try:
            block = self.states.find(opening.resume).block
            return pictures_before(self._orders, opening.session, self._clock.first_frame(block))
        except (LongLiveError, OSError) as error:
            logger.warning("no pictures", extra={"session": opening.session, "why": str(error)})
            return None

    def _slot(self) -> Ticket | None:
        rooms = self._live.rooms
        if rooms.taken >= rooms.slots:
            return None
        ticket = rooms.line_up()
        if ticket.turn.is_set():
            return ticket
        rooms.step_back(ticket)
        return None

    async def watch(self, joining: Joining) -> AsyncIterator[Sequence[Item]]:
        """All that a viewer is sent, as it comes."""
        if not self.has(joining.session):
            raise HostLostError(f"{self.name}: no such session")
        channel = self._channels[joining.viewer] = Channel()
        start = SessionStart(
            type="session.start",
            session=joining.session,
            token=joining.token,
            format=joining.format,
        )
        channel.hear([start.model_dump_json()])
        conversation = asyncio.create_task(_HostConversation(channel, self._live, joining).run())
        try:
            async for items in channel.batches():
                yield items
        finally:
            channel.hang_up()
            self._channels.pop(joining.viewer, None)
            await asyncio.wait([conversation], timeout=5)

    def tell(self, viewer: str, items: Sequence[Item]) -> bool:
        """Whether the viewer is here."""
        channel = self._channels.get(viewer)
        if channel is None:
            return False
        channel.hear(items)
        return True

    def ask(self, request: Request) -> AsyncIterator[Head | bytes]:
        return answer(self._app, request)

    def has(self, session: str) -> bool:
        """Whether callers of it are right here."""
        keeper = self._keepers.get(session)
        if keeper is None:
            return False
        if keeper.room.is_job:
            # From then on the store says how it stands.
            return not keeper.is_over
        done = keeper.room.ended
        return done is None or done.reason not in ("drained", "moved")

    async def drain(self) -> list[str]:
        """Let nobody in any more, and give every session away; the states' ids."""
        self.is_draining = True
        if not self._live.is_ready:
            return []
        rooms = self._live.rooms.open_rooms
        logger.info("draining", extra={"host": self.name, "sessions": len(rooms)})
        ended = await asyncio.gather(*(room.end("drained") for room in rooms))
        await asyncio.gather(*(keeper.until_over() for keeper in self._ending(rooms)))
        return [done.state for done in ended if done.state is not None]

    def admit(self) -> None:
        """Let sessions in again."""
        self.is_draining = False

    # ---- inside ------------------------------------------------------------------------------

    def _ending(self, rooms: Sequence[Room]) -> list[Keeper]:
        return [keeper for room in rooms if (keeper := self._keepers.get(room.id)) is not None]

    @property
    def _clock(self) -> VideoClock:
        facts = self._live.model.facts
        return VideoClock(facts.fps, facts.block_latents, facts.temporal_factor)

    async def _end_silent_channels(self) -> None:
        """Their gateways are gone; and what is long over is forgotten."""
        while True:
            await asyncio.sleep(SILENCE_S / 4)
            self._tidy(time.monotonic() - SILENCE_S)

    def _tidy(self, heard_s: float) -> None:
        for channel in list(self._channels.values()):
            if channel.heard_s < heard_s:
                channel.hang_up()
        for session, keeper in list(self._keepers.items()):
            if keeper.room.ended is not None and not self._live.rooms.knows(session):
                del self._keepers[session]


class _HostConversation(Conversation):
    def __init__(self, channel: Channel, live: Live, joining: Joining) -> None:
        limits = replace(
            live.settings.limits, messages_per_second=_UNLIMITED, prompts_per_second=_UNLIMITED
        )
        super().__init__(cast(WebSocket, channel), live, limits)
        self._joining = joining

    def _make_viewer(self, start: SessionStart) -> Viewer:
        viewer = super()._make_viewer(start)
        viewer.from_frame = self._joining.frame
        return viewer

    def _welcome(self, room: Room, start: SessionStart, viewer: Viewer) -> None:
        super()._welcome(room, start, viewer)
        if self._joining.goes_on and isinstance(viewer, FragmentViewer):
            viewer.go_on(self._joining.chunks, self._joining.pictures)


def _short(key: str | None) -> str:
    return (key or "")[:16]


def _known(opening: Opening, recorded: Sequence[Sample]) -> Known:
    return Known(
        id=opening.session,
        token=opening.token,
        epoch=opening.epoch,
        frame=opening.frame,
        cues=tuple(Cue(number, block, prompt) for number, block, prompt in opening.cues),
        end=opening.end,
        recorded=recorded,
    )
