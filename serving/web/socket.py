"""WS /v1/realtime/video: one conversation about a session of this server."""

import asyncio
import base64
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from longlive_trt.errors import UsageError
from longlive_trt.serving.media.mp4 import Timing, initialization
from longlive_trt.serving.problems import ProblemError
from longlive_trt.serving.protocol import (
    PlaybackShown,
    PromptDraft,
    SessionDecoder,
    SessionInteraction,
    SessionPause,
    SessionPing,
    SessionPong,
    SessionQueued,
    SessionRestart,
    SessionResume,
    SessionStart,
    SessionStop,
    TimelineEdit,
    TimelineRemove,
    VideoStart,
)
from longlive_trt.serving.settings import Limits
from longlive_trt.serving.web.entrance import (
    FAILED,
    LATER,
    NORMAL,
    POLICY,
    RESTARTING,
    Entrance,
    OverError,
    error_message,
)
from longlive_trt.serving.web.hub import FragmentViewer, Viewer
from longlive_trt.serving.web.live import Live
from longlive_trt.serving.web.room import Room
from longlive_trt.serving.web.rooms import Ticket
from longlive_trt.serving.web.security import bearer, headers_of, require_access

_CODES = {"drained": RESTARTING, "failed": FAILED}


class Conversation(Entrance):
    def __init__(self, socket: WebSocket, live: Live, limits: Limits | None = None) -> None:
        super().__init__(socket, limits or live.settings.limits)
        self._live = live
        self._room: Room | None = None
        self._ticket: Ticket | None = None

    # ---- getting in --------------------------------------------------------------------------

    def _make_viewer(self, start: SessionStart) -> Viewer:
        on_drop = self._live.metrics.dropped
        if start.format == "m4s":
            return FragmentViewer(Timing(self._live.model.facts.fps), on_drop)
        return Viewer(start.format, on_drop)

    async def _enter(self, start: SessionStart, viewer: Viewer) -> None:
        try:
            room = await self._room_for(start, viewer)
            self._room = room
            self._welcome(room, start, viewer)
            room.join(viewer)
        except ProblemError as problem:
            viewer.message(error_message(problem))
            raise OverError(code_of(problem)) from None

    async def _room_for(self, start: SessionStart, viewer: Viewer) -> Room:
        live = self._live
        if start.session is not None:
            return live.rooms.find_running(start.session, start.token)
        require_access(live.settings, start.access or bearer(headers_of(self._socket.scope)))
        opener = live.opener(
            prompt=start.prompt or "",
            seed=start.seed,
            switch=start.switch,
            cues=tuple((cue.frame, cue.prompt) for cue in start.timeline),
            frames=start.num_frames,
            resume=start.resume,
            decoder=start.decoder,
        )
        self._ticket = ticket = live.rooms.line_up()
        told = None
        while not ticket.turn.is_set():
            position = live.rooms.position(ticket)
            if position != told:
                told = position
                estimate = live.rooms.estimate_s(position)
                viewer.message(
                    SessionQueued(
                        position=position, waiting=live.rooms.waiting, estimate_s=estimate
                    )
                )
            try:
                await asyncio.wait_for(ticket.turn.wait(), 0.25)
            except TimeoutError:
                continue
        self._ticket = None
        try:
            return live.rooms.open(ticket, opener)
        except BaseException as error:
            live.rooms.step_back(ticket)
            if isinstance(error, UsageError | OSError):
                raise ProblemError("generation_failed", str(error)) from None
            raise

    def _welcome(self, room: Room, start: SessionStart, viewer: Viewer) -> None:
        session, facts = room.session, self._live.model.facts
        stream = session.stream
        viewer.message(
            VideoStart(
                request_id=room.id,
                session=room.id,
                token=room.token,
                model=facts.name,
                format=start.format,
                width=stream.width if start.format != "jpeg" else facts.width,
                height=stream.height if start.format != "jpeg" else facts.height,
                fps=float(facts.fps),
                codec=None if start.format == "jpeg" else stream.codec,
                description=(
                    None
                    if start.format == "jpeg"
                    else base64.b64encode(stream.description).decode()
                ),
                epoch=session.plan.epoch,
                seed=str(session.seed),
                switch=session.switch,
                frame=room.first_frame(),
                block_frames=session.clock.frames_of(1),
                bundle_key=facts.bundle_key,
                resumed_at_frame=session.resumed_at,
                decoders=list(facts.decoders),
                decoder=session.decoder,
                paused=room.paused_by_person,
            )
        )
        if isinstance(viewer, FragmentViewer):
            head = initialization(stream, session.timing)
            viewer.begin(head, session.plan.epoch, room.id)

    async def _send_all(self, viewer: Viewer) -> None:
        await super()._send_all(viewer)
        if self._room is not None and self._room.ended is None and self._room.is_ending:
            await self._room.over.wait()

    def _obey(self, message: Any) -> None:
        viewer, room = self._viewer, self._room
        assert viewer is not None
        if isinstance(message, SessionPing):
            viewer.message(SessionPong(sent_ms=message.sent_ms))
            return
        if isinstance(message, SessionStop) and room is None:
            raise OverError(NORMAL)
        if room is None:
            # A client that came back may still say what it has shown.
            if not isinstance(message, PlaybackShown):
                self._fault("not_started", "The session waits for its turn.")
            return
        try:
            self._act(room, viewer, message)
        except ProblemError as problem:
            event = message.event if isinstance(message, SessionInteraction) else None
            viewer.message(error_message(problem, event))

    def _act(self, room: Room, viewer: Viewer, message: Any) -> None:
        match message:
            case PlaybackShown():
                room.shown(message.epoch, message.frame)
            case SessionInteraction():
                viewer.message(room.interact(message.text, message.frame, message.event))
            case PromptDraft():
                room.active()
                room.session.draft(message.prompt)
            case TimelineEdit():
                room.edit(message.cue, message.prompt, message.frame)
            case TimelineRemove():
                room.active()
                room.session.remove(message.cue)
            case SessionPause():
                room.pause()
            case SessionResume():
                room.resume()
            case SessionDecoder():
                room.active()
                room.session.use_decoder(message.decoder)
            case SessionRestart():
                room.active()
                room.session.restart(message.seed, message.prompt)
            case SessionStop():
                room.end_later("stopped")
            case SessionStart():
                raise ProblemError("already_started", "This socket has its session already.")

    # ---- the end -----------------------------------------------------------------------------

    async def _leave(self, code: int) -> None:
        if self._ticket is not None:
            self._live.rooms.step_back(self._ticket)
        room, viewer = self._room, self._viewer
        if room is not None and viewer is not None:
            room.leave(viewer)
            if room.ended is not None:
                code = _CODES.get(room.ended.reason, code)
        try:
            await self._socket.close(code)
        except (RuntimeError, WebSocketDisconnect):
            return


def code_of(problem: ProblemError) -> int:
    return LATER if problem.code in ("server_full", "loading", "draining") else POLICY
