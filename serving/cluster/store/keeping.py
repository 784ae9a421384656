"""What a host keeps of a session in the store, so that another can go on with it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

from longlive_trt.errors import LongLiveError
from longlive_trt.serving.cluster.store.registry import FORMAT, Kept, News, Registry, Status
from longlive_trt.serving.cluster.store.states import FleetStates
from longlive_trt.serving.problems import ProblemError
from longlive_trt.serving.web.room import Room

logger = logging.getLogger(__name__)

_LOOK_S = 0.5
_STATUS: dict[str, Status] = {"drained": "moving"}
"""All other ends are for good, though some leave a state to be resumed from."""


@dataclass
class Figures:
    """Of all sessions of a host since it started."""

    saves: int = 0
    failures: int = 0
    seconds: float = 0.0
    """How long the last save took."""
    state_bytes: int = 0


class Keeper:
    """One session's, at its owner."""

    def __init__(
        self,
        room: Room,
        fence: int,
        registry: Registry,
        states: FleetStates,
        figures: Figures,
        save_every_s: float,
        restarts: int,
    ) -> None:
        self.room, self.fence = room, fence
        self._registry, self._states, self._figures = registry, states, figures
        self._save_every_s, self._restarts_before = save_every_s, restarts
        self._due_s = time.monotonic() + save_every_s
        self._states_kept: tuple[Kept, ...] = ()
        self._fetched: str | None = None
        """The state that it began from, while it lies on this machine."""
        self._told: News | None = None
        self._began_at = room.session.resumed_at
        self._task: asyncio.Task[None] | None = None

    async def begin(self, state: str | None) -> None:
        """Told first with what it began from."""
        self._fetched = state
        if state is not None:
            frame = self.room.session.resumed_at
            self._states_kept = (Kept(state, frame, self._restarts),)
        await self._tell(self._news("running"))
        self._task = asyncio.create_task(self._run())

    async def until_over(self) -> None:
        """Until nothing more is told of a session that ended."""
        if self._task is not None:
            await asyncio.shield(self._task)

    @property
    def is_over(self) -> bool:
        return self._task is not None and self._task.done()

    # ---- what else is kept -------------------------------------------------------------------

    async def _keep_pictures(self, frame: int) -> None:
        """Those before a state's; of a live session they were shown."""

    async def _finish(self) -> None:
        """The video has come to its end."""

    # ---- inside ------------------------------------------------------------------------------

    async def _run(self) -> None:
        while not self.room.over.is_set():
            try:
                await asyncio.wait_for(self.room.over.wait(), _LOOK_S)
            except TimeoutError:
                await self._attempt(self._look)
        await self._attempt(self._see_off)

    async def _attempt(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (LongLiveError, OSError) as error:
            self._figures.failures += 1
            logger.error("the store failed", extra={"session": self.room.id, "why": str(error)})

    async def _drop_fetched(self) -> None:
        if self._fetched is not None:
            await asyncio.to_thread(self._states.drop, self._fetched)
            self._fetched = None

    async def _look(self) -> None:
        if self.room.session.plan.made > self.room.session.plan.begin:
            # Whoever made a block has read the state before it.
            await self._drop_fetched()
        if time.monotonic() >= self._due_s and not self.room.is_ending:
            self._due_s = time.monotonic() + self._save_every_s
            await self._save()
        elif self._told is not None:
            news = self._news("running")
            if self._noticed(news) != self._noticed(self._told):
                await self._tell(news)

    async def _save(self) -> None:
        if await asyncio.to_thread(self._registry.is_superseded, self.room.id, self.fence):
            logger.warning("another host owns the session", extra={"session": self.room.id})
            self.room.end_later("moved")
            return
        begun = time.monotonic()
        restarts = self._restarts
        try:
            state = await self.room.save()
        except ProblemError:
            # Nothing was made yet.
            return
        # What is newest may be of pictures that no viewer got before the host fell.
        newest, *older = self._add(state, restarts)
        await self._keep_pictures(newest.frame)
        self._states_kept = (newest, *older[:1])
        await self._tell(self._news("running"))
        await self._delete(older[1:])
        self._figures.saves += 1
        self._figures.seconds = time.monotonic() - begun
        self._figures.state_bytes = self._states.last_bytes

    async def _see_off(self) -> None:
        done = self.room.ended
        assert done is not None
        await self._drop_fetched()
        if done.reason == "moved":
            return
        status, before = _STATUS.get(done.reason, "ended"), self._states_kept
        if done.state is not None:
            newest = self._add(done.state, self._restarts)[0]
            await self._keep_pictures(newest.frame)
            self._states_kept = (newest,)
        elif status == "ended":
            self._states_kept = ()
        if done.reason == "finished":
            await self._finish()
        await self._tell(replace(self._news(status), message=done.message))
        await self._delete(one for one in before if one not in self._states_kept)

    def _add(self, state: str, restarts: int) -> tuple[Kept, ...]:
        block = self._states.blocks.pop(state)
        frame = self.room.session.clock.first_frame(block)
        return (Kept(state, frame, restarts), *self._states_kept)

    async def _delete(self, states: Iterable[Kept]) -> None:
        for one in states:
            await asyncio.to_thread(self._states.delete, one.id)

    async def _tell(self, news: News) -> None:
        await asyncio.to_thread(self._registry.tell, self.room.id, self.fence, news)
        self._told = news

    @property
    def _restarts(self) -> int:
        return self._restarts_before + self.room.session.restarts

    def _news(self, status: Status) -> News:
        session = self.room.session
        return News(
            format=FORMAT,
            status=status,
            seed=session.seed,
            switch=session.switch,
            restarts=self._restarts,
            epoch=session.plan.epoch,
            cues=tuple((cue.id, cue.block, cue.prompt) for cue in session.cues()),
            end=session.plan.end,
            states=self._states_kept,
            written_s=time.time(),
            began_at=self._began_at,
        )

    @staticmethod
    def _noticed(news: News) -> tuple[object, ...]:
        return news.cues, news.seed, news.restarts, news.epoch
