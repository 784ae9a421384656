"""One socket: what its client sends, how often, and in which order; what it means is for others."""

import asyncio
import logging
import traceback
from typing import Any

from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from longlive_trt.serving.problems import ProblemError, fault_in_words
from longlive_trt.serving.protocol import (
    ErrorMessage,
    SessionInteraction,
    SessionPing,
    SessionPong,
    SessionRestart,
    SessionStart,
    TimelineEdit,
    parse_client_message,
)
from longlive_trt.serving.settings import Limits
from longlive_trt.serving.web.hub import Viewer
from longlive_trt.serving.web.rates import Rate

logger = logging.getLogger(__name__)

NORMAL, GOING_AWAY, POLICY, FAILED, RESTARTING, LATER = 1000, 1001, 1008, 1011, 1012, 1013
_MOST_FAULTS = 50
_PROMPTS = (SessionInteraction, TimelineEdit, SessionRestart)


class OverError(Exception):
    """The conversation ends, with a close code."""

    def __init__(self, code: int) -> None:
        self.code = code


class Entrance:
    def __init__(self, socket: WebSocket, limits: Limits) -> None:
        self._socket, self._limits = socket, limits
        self._messages = Rate(limits.messages_per_second)
        self._prompts = Rate(limits.prompts_per_second)
        self._faults = 0
        self._latest_fault: ProblemError | None = None
        self._viewer: Viewer | None = None

    # ---- what a kind of conversation does ----------------------------------------------------

    def _make_viewer(self, start: SessionStart) -> Viewer:
        raise NotImplementedError

    async def _enter(self, start: SessionStart, viewer: Viewer) -> None:
        raise NotImplementedError

    def _obey(self, message: Any) -> None:
        raise NotImplementedError

    async def _leave(self, code: int) -> None:
        raise NotImplementedError

    async def run(self) -> None:
        await self._socket.accept()
        code = NORMAL
        try:
            await self._converse()
        except (OverError, WebSocketDisconnect) as end:
            code = end.code if isinstance(end, OverError) else GOING_AWAY
            # They hold the task that it ended, which holds it: a circle around all of this.
            traceback.clear_frames(end.__traceback__)
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
        limits = self._limits
        try:
            async with asyncio.timeout(limits.start_timeout_s):
                while True:
                    message = self._understood(await self._text())
                    if isinstance(message, SessionStart):
                        return message
                    if isinstance(message, SessionPing):
                        await self._socket.send_text(pong(message))
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
            raise OverError(POLICY) from None

    # ---- both ways ---------------------------------------------------------------------------

    async def _send_all(self, viewer: Viewer) -> None:
        while (item := await viewer.next()) is not None:
            if isinstance(item.data, str):
                await self._socket.send_text(item.data)
            else:
                await self._socket.send_bytes(item.data)

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
            self._fault("bad_request", fault_in_words(error.errors(include_input=False)[0]))
            return None
        except (ValueError, RecursionError):
            self._fault("bad_request", "That message is not JSON.")
            return None
        if isinstance(message, _PROMPTS) and not self._prompts.take():
            self._fault("rate_limited", "Too many prompts; wait a moment.")
            return None
        return message

    # ---- faults ------------------------------------------------------------------------------

    def _fault(self, code: Any, sentence: str) -> None:
        self._faults += 1
        problem = ProblemError(code, sentence)
        if self._viewer is not None:
            self._viewer.message(error_message(problem))
        if self._faults > _MOST_FAULTS:
            raise OverError(POLICY)
        self._latest_fault = problem

    async def _flush_faults(self) -> None:
        if self._latest_fault is not None:
            problem, self._latest_fault = self._latest_fault, None
            await self._tell_now(problem)

    async def _tell_now(self, problem: ProblemError) -> None:
        await self._socket.send_text(error_message(problem).model_dump_json())


def error_message(problem: ProblemError, event_id: str | None = None) -> ErrorMessage:
    return ErrorMessage(code=problem.code, message=problem.sentence, event_id=event_id)


def pong(ping: SessionPing) -> str:
    return SessionPong(sent_ms=ping.sent_ms).model_dump_json()
