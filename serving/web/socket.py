"""WS /v1/realtime/video: one conversation."""

import asyncio
import base64
import logging
from typing import Any

from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from longlive_trt.errors import UsageError
from longlive_trt.serving.media.mp4 import Timing, initialization
from longlive_trt.serving.problems import ProblemError
from longlive_trt.serving.protocol import (
    ErrorMessage,
    PlaybackShown,
    PromptDraft,
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
    parse_client_message,
)
from longlive_trt.serving.web.hub import FragmentViewer, Viewer
from longlive_trt.serving.web.live import Live
from longlive_trt.serving.web.rates import Rate
from longlive_trt.serving.web.room import Room
from longlive_trt.serving.web.rooms import Ticket
from longlive_trt.serving.web.security import bearer, headers_of, require_access

logger = logging.getLogger(__name__)

NORMAL, GOING_AWAY, POLICY, FAILED, RESTARTING, LATER = 1000, 1001, 1008, 1011, 1012, 1013
_MOST_FAULTS = 50
_CODES = {"drained": RESTARTING, "failed": FAILED}
_PROMPTS = (SessionInteraction, TimelineEdit, SessionRestart)


class _OverError(Exception):
    """The conversation ends, with a close code."""

    def __init__(self, code: int) -> None:
        self.code = code


class Conversation:
    def __init__(self, socket: WebSocket, live: Live) -> None:
        self._socket, self._live = socket, live
        limits = live.settings.limits
        self._messages = Rate(limits.messages_per_second)
        self._prompts = Rate(limits.prompts_per_second)
        self._faults = 0
        self._latest_fault: ProblemError | None = None
        self._viewer: Viewer | None = None
        self._room: Room | None = None
        self._ticket: Ticket | None = None

    async def run(self) -> None:
        await self._socket.accept()
        code = NORMAL
        try:
            await self._converse()
        except _OverError as over:
            code = over.code
        except WebSocketDisconnect:
            code = GOING_AWAY
        except Exception:  # a defect of ours must end this socket and nothing else
            logger.exception("conversation failed")
            code = FAILED
        finally:
            await self._leave(code)

    async def _converse(self) -> None:
        start = await self._first_message()
        viewer = self._viewer = self._make_viewer(start)
        sending = asyncio.create_task(self._send_all(viewer))
        reading = asyncio.create_task(self._read_all())
        entering = asyncio.create_task(self._enter(start, viewer))
        tasks = {sending, reading, entering}
        try:
            while True:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                tasks -= done
                if sending in done or reading in done:
                    return
        finally:
            for task in (reading, entering):
                task.cancel()
            await asyncio.gather(reading, entering, return_exceptions=True)
            viewer.close()
            try:
                await asyncio.wait_for(sending, 2)
            except (TimeoutError, WebSocketDisconnect, RuntimeError):
                sending.cancel()

    # ---- getting in --------------------------------------------------------------------------

    async def _first_message(self) -> SessionStart:
        limits = self._live.settings.limits
        try:
            async with asyncio.timeout(limits.start_timeout_s):
                while True:
                    message = self._understood(await self._text())
                    if isinstance(message, SessionStart):
                        return message
                    if isinstance(message, SessionPing):
                        await self._socket.send_text(_pong(message))
                    elif message is not None:
                        await self._tell_now(
                            ProblemError("not_started", "Send session.start before anything else.")
                        )
                    if self._faults:
                        await self._flush_faults()
        except TimeoutError:
            await self._tell_now(
                ProblemError(
                    "not_started", f"No session.start came within {limits.start_timeout_s:g} s."
                )
            )
            raise _OverError(POLICY) from None

    def _make_viewer(self, start: SessionStart) -> Viewer:
        def count(dropped: int) -> None:
            self._live.metrics.dropped(dropped)

        if start.format == "m4s":
            return FragmentViewer(Timing(self._live.model.facts.fps), count)
        return Viewer(start.format, count)

    async def _enter(self, start: SessionStart, viewer: Viewer) -> None:
        try:
            room = await self._room_for(start, viewer)
            self._room = room
            self._welcome(room, start, viewer)
            room.join(viewer)
        except ProblemError as problem:
            viewer.message(_error(problem))
            raise _OverError(_code_of(problem)) from None

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
                paused=room.paused_by_person,
            )
        )
        if isinstance(viewer, FragmentViewer):
            head = initialization(stream, session.timing)
            viewer.begin(head, session.plan.epoch, room.id)

    # ---- both ways ---------------------------------------------------------------------------

    async def _send_all(self, viewer: Viewer) -> None:
        while (item := await viewer.next()) is not None:
            if isinstance(item.data, str):
                await self._socket.send_text(item.data)
            else:
                await self._socket.send_bytes(item.data)
        if self._room is not None and self._room.ended is None and self._room.is_ending:
            await self._room.over.wait()

    async def _read_all(self) -> None:
        while True:
            message = self._understood(await self._text())
            if message is not None:
                self._obey(message)

    async def _text(self) -> str | bytes:
        event = await self._socket.receive()
        if event["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(event.get("code", GOING_AWAY))
        text = event.get("text")
        return text if text is not None else bytes(event.get("bytes") or b"")

    def _understood(self, data: str | bytes) -> Any:
        """A message, or None where it was none; that is told, and counted."""
        if not self._messages.take():
            self._fault("rate_limited", "Too many messages; wait a moment.")
            return None
        if isinstance(data, bytes):
            self._fault("bad_request", "Binary messages go the other way only; send JSON texts.")
            return None
        try:
            message = parse_client_message(data)
        except ValidationError as error:
            self._fault("bad_request", _first_fault(error))
            return None
        except (ValueError, RecursionError):
            self._fault("bad_request", "That message is not JSON.")
            return None
        if isinstance(message, _PROMPTS) and not self._prompts.take():
            self._fault("rate_limited", "Too many prompts; wait a moment.")
            return None
        return message

    def _obey(self, message: Any) -> None:
        viewer, room = self._viewer, self._room
        assert viewer is not None
        if isinstance(message, SessionPing):
            viewer.message(SessionPong(sent_ms=message.sent_ms))
            return
        if isinstance(message, SessionStop) and room is None:
            raise _OverError(NORMAL)
        if room is None:
            self._fault("not_started", "The session waits for its turn.")
            return
        try:
            self._act(room, viewer, message)
        except ProblemError as problem:
            event = message.event if isinstance(message, SessionInteraction) else None
            viewer.message(_error(problem, event))

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

    def _fault(self, code: Any, sentence: str) -> None:
        self._faults += 1
        problem = ProblemError(code, sentence)
        if self._viewer is not None:
            self._viewer.message(_error(problem))
        if self._faults > _MOST_FAULTS:
            raise _OverError(POLICY)
        self._latest_fault = problem

    async def _flush_faults(self) -> None:
        if self._latest_fault is not None:
            problem, self._latest_fault = self._latest_fault, None
            await self._tell_now(problem)

    async def _tell_now(self, problem: ProblemError) -> None:
        await self._socket.send_text(_error(problem).model_dump_json())


def _error(problem: ProblemError, event_id: str | None = None) -> ErrorMessage:
    return ErrorMessage(code=problem.code, message=problem.sentence, event_id=event_id)


def _code_of(problem: ProblemError) -> int:
    return LATER if problem.code in ("server_full", "loading", "draining") else POLICY


def _pong(ping: SessionPing) -> str:
    return SessionPong(sent_ms=ping.sent_ms).model_dump_json()


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where}: {fault['msg']}" if where else str(fault["msg"])
