"""A running session as callers know it: its id, its token, who watches, and how it ends."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import psutil

from longlive_trt.errors import LongLiveError
from longlive_trt.serving.live.kept.states import States
from longlive_trt.serving.live.plan import Planned
from longlive_trt.serving.live.recipe import recipe
from longlive_trt.serving.live.schedule import Cue as PlannedCue
from longlive_trt.serving.live.session import LiveSession
from longlive_trt.serving.operation.metrics import Metrics
from longlive_trt.serving.problems import ProblemError, unknown_session
from longlive_trt.serving.protocol import (
    Cue,
    CueState,
    DoneReason,
    InteractionQueued,
    SessionDone,
    Stats,
    TakesEffect,
    TimelineMessage,
)
from longlive_trt.serving.settings import Settings
from longlive_trt.serving.web.hub import FragmentViewer, Hub, Viewer, applied
from longlive_trt.serving.web.rates import Rate
from longlive_trt.serving.web.security import same_token

logger = logging.getLogger(__name__)

_WORDS: dict[DoneReason, str] = {
    "finished": "The video has come to its end.",
    "stopped": "The session was stopped.",
    "idle": "Nobody steered this session for a while, so it made room. It can be resumed.",
    "left": "Nobody watched this session any more, so its state was saved. It can be resumed.",
    "drained": "The server is going down. The session's state was saved and can be resumed.",
    "failed": "The video could not go on.",
    "moved": "The session goes on at another host.",
}


@dataclass(frozen=True)
class House:
    """What rooms share."""

    settings: Settings
    states: States
    metrics: Metrics
    slots: Callable[[], int]
    running: Callable[[], int]


class Room:
    """Lives on the event loop."""

    def __init__(
        self, house: House, open_session: Callable[[Hub], LiveSession], token: str | None = None
    ) -> None:
        """``token`` is that of a session that its viewers know already."""
        self._house = house
        self.created_s = time.time()
        self.token = token or secrets.token_urlsafe(24)
        self._begun = self._active = self._left = time.monotonic()
        self.ended_s = 0.0
        self._hub = Hub(
            asyncio.get_running_loop(),
            on_change=self._tell_timeline,
            on_finish=self._finish_later,
            on_failure=self._fail,
            on_first_picture=self._first_picture,
        )
        self._hub.on_applied = self._tell_applied
        self.session = open_session(self._hub)
        self.id = self.session.id
        self.ended: SessionDone | None = None
        self._ending: asyncio.Task[SessionDone] | None = None
        self.over = asyncio.Event()
        self._paused_by_person = False
        self._asked: dict[int, float] = {}
        self.prompts = Rate(house.settings.limits.prompts_per_second)
        """Those that come by HTTP."""
        self.is_job = False
        """Made for itself, whether or not anybody watches."""
        self.on_end: Callable[[Room], None] = lambda _room: None
        # What came out before anybody watches is made ahead only.
        self.session.pause()

    def authorize(self, token: str | None) -> None:
        age = time.time() - self.created_s
        fresh = age < self._house.settings.limits.token_age_s
        if token is None or not fresh or not same_token(token, self.token):
            raise unknown_session()

    # ---- viewers -----------------------------------------------------------------------------

    @property
    def hub(self) -> Hub:
        return self._hub

    def join(self, viewer: Viewer) -> None:
        if len(self._hub.viewers) >= self._house.settings.limits.viewers_per_session:
            raise ProblemError("server_full", "Too many viewers watch this session already.")
        if self.ended is not None:
            raise ProblemError("session_ended", self.ended.message)
        self._hub.join(viewer, self.first_frame())
        self._active = time.monotonic()
        if not self._paused_by_person:
            self.session.resume()
        self._tell_timeline()

    def leave(self, viewer: Viewer) -> None:
        self._hub.leave(viewer)
        if not self._hub.viewers:
            self._left = time.monotonic()
            self.session.pause()

    def first_frame(self) -> int:
        """Where a viewer that comes now begins: the block on screen, or the first at hand."""
        plan = self.session.plan
        shown = max(plan.playhead.shown(time.monotonic()), plan.playhead.begin)
        begin = plan.clock.first_frame(plan.clock.block_of(shown))
        at_hand = self._hub.first_frame_at_hand()
        return begin if at_hand is None else max(begin, at_hand)

    def active(self) -> None:
        self._active = time.monotonic()

    # ---- what callers ask --------------------------------------------------------------------

    def interact(
        self, prompt: str, frame: int | None = None, event_id: str | None = None
    ) -> InteractionQueued:
        self.active()
        planned = self.session.interact(prompt, frame=frame, event_id=event_id)
        self._asked[planned.cue.id] = time.monotonic()
        logger.info("prompt", extra={"session": self.id, "prompt": prompt})
        return self._queued(planned, event_id)

    def edit(self, cue: int, prompt: str | None, frame: int | None) -> None:
        self.active()
        self.session.edit(cue, prompt=prompt, frame=frame)

    def pause(self) -> None:
        self._paused_by_person = True
        self.session.pause()

    def resume(self) -> None:
        self.active()
        self._paused_by_person = False
        if self._hub.viewers:
            self.session.resume()

    def shown(self, epoch: int, frame: int) -> None:
        self.session.shown(epoch, frame)
        plan = self.session.plan
        now = time.monotonic()
        if epoch != plan.epoch or not self._asked:
            return
        for cue in self.session.cues():
            if cue.id in self._asked and plan.clock.first_frame(cue.block) <= frame:
                waited = now - self._asked.pop(cue.id)
                self._house.metrics.prompt_to_display.observe(waited)

    def timeline(self) -> list[Cue]:
        clock, plan = self.session.clock, self.session.plan
        shown = plan.playhead.shown(time.monotonic())
        cues = self.session.cues()
        following = {cue.id: after for cue, after in pairwise(cues)}
        return [
            Cue(
                id=cue.id,
                prompt=cue.prompt,
                frame=clock.first_frame(cue.block),
                block=cue.block,
                seconds=clock.seconds(clock.first_frame(cue.block)),
                state=self._state(cue, following.get(cue.id), shown),
            )
            for cue in cues
        ]

    def stats(self) -> Stats:
        session = self.session
        plan, costs, now = session.plan, session.costs, time.monotonic()
        shown = plan.playhead.shown(now)
        stages = {name: round(s * 1000, 1) for name, s in costs.latest().items() if name != "cycle"}
        busy = costs.of("cycle")
        frames = plan.clock.frames_of(1)
        hidden = plan.hidden.first
        return Stats(
            shown=shown,
            made=plan.playhead.available,
            lead_ms=round(max(0.0, plan.clock.seconds(plan.playhead.available - shown)) * 1000),
            fps=round(frames / busy, 1) if busy else 0.0,
            stages_ms=stages,
            block_ms=round(plan.clock.block_s * 1000),
            memory_bytes=_resident_bytes(),
            dropped=self._hub.dropped,
            viewers=len(self._hub.viewers),
            running=self._house.running(),
            slots=self._house.slots(),
            paused=plan.playhead.paused,
            decoder=self.session.decoder,
            speculation="ready" if hidden else _draft_word(plan.draft_state),
        )

    def recipe(self) -> dict[str, object]:
        session = self.session
        return recipe(
            session.clock,
            session.cues(),
            seed=session.seed,
            switch=session.switch,
            bundle_key=session.bundle_key,
            end=session.plan.made,
        )

    async def save(self) -> str:
        path = self._house.states.new_path()
        saved = await asyncio.wrap_future(self.session.save(path))
        if saved is None:
            raise ProblemError("conflict", "Nothing was made yet, so there is nothing to save.")
        return await asyncio.to_thread(self._house.states.keep, saved)

    # ---- the end -----------------------------------------------------------------------------

    async def end(self, reason: DoneReason, message: str | None = None) -> SessionDone:
        """Once: save what can be resumed, tell everybody, let the slot go."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(reason, message or _WORDS[reason]))
        return await asyncio.shield(self._ending)

    def tick(self, now: float) -> None:
        """Called a few times a second."""
        settings = self._house.settings
        plan = self.session.plan
        for viewer in self._hub.viewers:
            if isinstance(viewer, FragmentViewer):
                viewer.release(plan.first_unseen(now))
        if self._ending is not None or self.is_job:
            return
        if not self._hub.viewers and now - self._left > settings.return_s:
            self.end_later("left")
        elif now - self._active > settings.idle_s:
            self.end_later("idle")

    async def _end(self, reason: DoneReason, message: str) -> SessionDone:
        state = None
        if reason in ("idle", "left", "drained"):
            try:
                state = await self.save()
            except (ProblemError, LongLiveError, OSError) as error:
                logger.warning("state not saved", extra={"session": self.id, "why": str(error)})
        await asyncio.wrap_future(self.session.close())
        if reason == "finished":
            await asyncio.sleep(0)
        frames = self.session.recording.total
        done = SessionDone(
            reason=reason,
            message=message,
            frames=frames,
            request_id=self.id,
            stopped=reason != "finished",
            state=state,
        )
        for viewer in list(self._hub.viewers):
            if isinstance(viewer, FragmentViewer):
                viewer.release_all()
            viewer.message(done.model_copy(update={"chunks": viewer.chunks}))
            viewer.close()
        self.ended = done
        self.ended_s = time.monotonic()
        logger.info("session ended", extra={"session": self.id, "reason": reason, "frames": frames})
        self._hub.end()
        self.over.set()
        self.on_end(self)
        return self.ended

    @property
    def is_ending(self) -> bool:
        return self._ending is not None

    @property
    def paused_by_person(self) -> bool:
        return self._paused_by_person

    def end_later(self, reason: DoneReason, message: str | None = None) -> None:
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(reason, message or _WORDS[reason]))

    def _finish_later(self) -> None:
        self.end_later("finished")

    def _fail(self, error: BaseException) -> None:
        expected = isinstance(error, LongLiveError)
        logger.error("session failed", extra={"session": self.id}, exc_info=error)
        words = str(error) if expected else "Something went wrong inside the server."
        self.end_later("failed", f"{_WORDS['failed']} {words}")

    # ---- what is told ------------------------------------------------------------------------

    def _tell_timeline(self) -> None:
        self._hub.tell(TimelineMessage(cues=self.timeline()))

    def _tell_applied(self, cue: PlannedCue, epoch: int) -> None:
        frame = self.session.clock.first_frame(cue.block)
        self._hub.tell(applied(cue, frame, epoch))

    def _queued(self, planned: Planned, event_id: str | None) -> InteractionQueued:
        return InteractionQueued(
            event_id=event_id,
            cue=planned.cue.id,
            prompt=planned.cue.prompt,
            takes_effect=TakesEffect(
                block=planned.cue.block, frame=planned.frame, in_ms=round(planned.in_s * 1000)
            ),
            speculated=planned.speculation is not None,
        )

    def _state(self, cue: PlannedCue, after: PlannedCue | None, shown: int) -> CueState:
        clock = self.session.clock
        if clock.first_frame(cue.block) > shown:
            return "made" if cue.block < self.session.plan.made else "sent"
        return "live" if after is None or clock.first_frame(after.block) > shown else "past"

    def _first_picture(self, now: float) -> None:
        self._house.metrics.first_frame.observe(now - self._begun)


def _draft_word(state: str) -> Literal["none", "encoded"]:
    return "encoded" if state == "encoded" else "none"


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)
