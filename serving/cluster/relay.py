"""A viewer's socket at a gateway: it outlives the hosts that its pictures come from."""

import asyncio
import logging
import secrets
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from starlette.websockets import WebSocket, WebSocketDisconnect

from longlive_trt.serving.cluster.calls import HostLostError, Item, Joining
from longlive_trt.serving.cluster.channel import WINDOW_BYTES
from longlive_trt.serving.cluster.gateway import Gateway, Seat
from longlive_trt.serving.cluster.journal import Journal
from longlive_trt.serving.problems import ProblemError
from longlive_trt.serving.protocol import (
    PlaybackShown,
    SessionDecoder,
    SessionInteraction,
    SessionMoved,
    SessionMoving,
    SessionPause,
    SessionPing,
    SessionPong,
    SessionQueued,
    SessionRestart,
    SessionResume,
    SessionStart,
    SessionStop,
    VideoCut,
)
from longlive_trt.serving.web.entrance import (
    NORMAL,
    RESTARTING,
    Entrance,
    OverError,
    error_message,
)
from longlive_trt.serving.web.hub import Viewer
from longlive_trt.serving.web.security import bearer, headers_of, require_access
from longlive_trt.serving.web.socket import code_of

logger = logging.getLogger(__name__)

Reason = Literal["drained", "lost"]
TOO_BIG = 1009
_SPEAK_S = 5.0
_REJOIN_S = 0.2
_UNHEARD_S = 2.0
"""So long may pictures come from a host that takes no commands."""
_JOINS = 25
"""Another gateway may have opened the session this moment: its host is asked again for a while."""
_MOST_KEPT = 200
"""Messages that are kept while a session moves."""
_MOVING: dict[Reason, str] = {
    "drained": "The machine that makes this video is going down; another one takes over.",
    "lost": "The machine that made this video failed; another one takes over.",
}


@dataclass(frozen=True)
class _Said:
    """What a viewer said and its host has not heard yet."""

    text: str
    is_prompt: bool


class Relay(Entrance):
    def __init__(self, socket: WebSocket, gateway: Gateway) -> None:
        super().__init__(socket, gateway.settings.limits)
        self._gateway = gateway
        self._seat: Seat | None = None
        self._kept: deque[_Said] = deque()
        self._passed_bytes = 0
        self._has_news = asyncio.Event()
        self._is_joined = asyncio.Event()
        self._move: tuple[Reason, float] | None = None
        self._is_skipping = False
        self._code: int | None = None
        self._is_given_away = False
        self._running: asyncio.Task[None] | None = None
        self._ended_with: int | None = None

    async def _converse(self) -> None:
        running = self._running = asyncio.create_task(super()._converse())
        try:
            await running
        except asyncio.CancelledError:
            if self._ended_with is None:
                raise
            raise OverError(self._ended_with) from None
        finally:
            running.cancel()

    def end(self, code: int) -> None:
        """From outside."""
        self._ended_with = code
        if self._running is not None:
            self._running.cancel()

    # ---- getting in --------------------------------------------------------------------------

    def _make_viewer(self, start: SessionStart) -> Viewer:
        self._journal = Journal(start.format)
        return Viewer(start.format, lambda _dropped: None)

    async def _enter(self, start: SessionStart, viewer: Viewer) -> None:
        try:
            seat = await self._seat_for(start, viewer)
            while True:
                self._seat = seat
                reason = await self._follow(seat, viewer)
                seat = await self._go_on_elsewhere(seat, reason, viewer)
        except ProblemError as problem:
            viewer.message(error_message(problem))
            raise OverError(code_of(problem)) from None

    async def _seat_for(self, start: SessionStart, viewer: Viewer) -> Seat:
        gateway = self._gateway
        if start.session is not None:
            return await gateway.locate(start.session, start.token)
        token = start.access or bearer(headers_of(self._socket.scope))
        require_access(gateway.settings, token)
        opening = replace(
            gateway.new_opening(),
            prompt=start.prompt or "",
            seed=start.seed,
            switch=start.switch,
            timeline=tuple((cue.frame, cue.prompt) for cue in start.timeline),
            frames=start.num_frames,
            resume=start.resume,
            decoder=start.decoder,
            for_jpeg=start.format == "jpeg",
        )
        told = 0

        def tell(position: int) -> None:
            nonlocal told
            if position != told:
                told = position
                waiting = gateway.line.waiting
                viewer.message(SessionQueued(position=position, waiting=waiting))

        return await gateway.open(opening, gateway.line.join(), tell)

    # ---- from the host -----------------------------------------------------------------------

    async def _follow(self, seat: Seat, viewer: Viewer) -> Reason:
        """Until the session leaves its host; an end that is one for the viewer ends all of this."""
        for _ in range(_JOINS):
            try:
                await self._attend(self._joining(seat), viewer)
            except (HostLostError, TimeoutError) as error:
                logger.info("host lost", extra={"session": seat.session, "why": str(error)})
            if self._is_given_away:
                self._is_given_away, self._code = False, None
                return "drained"
            if self._code is not None:
                raise OverError(self._code)
            if not await self._gateway.is_opening(seat):
                return "lost"
            await asyncio.sleep(_REJOIN_S)
        return "lost"

    async def _attend(self, joining: Joining, viewer: Viewer) -> None:
        """Until its host sends no more; what is said meanwhile goes there, and what does not get
        there any more stays for the next.
        """
        async with asyncio.timeout(None) as unheard:
            speaking = asyncio.create_task(self._speak(joining, unheard))
            try:
                async for items in self._gateway.hosts.watch(joining):
                    for item in items:
                        self._take(item, viewer)
            finally:
                self._is_joined.clear()
                speaking.cancel()
                await asyncio.wait([speaking])

    def _joining(self, seat: Seat) -> Joining:
        journal = self._journal
        return Joining(
            seat.session,
            seat.token,
            f"{seat.session}/{secrets.token_urlsafe(6)}",
            journal.format,
            journal.frame,
            journal.chunks,
            journal.pictures,
            journal.has_begun,
        )

    def _take(self, item: Item, viewer: Viewer) -> None:
        if isinstance(item, int):
            self._code = item
            return
        is_again = self._journal.has_begun
        before = self._journal.chunks
        message = self._journal.read(item)
        if message is None:
            if self._is_skipping:
                self._is_skipping = False
                self._pass_on(len(item))
            else:
                viewer.forward(item)
            return
        kind = message["type"]
        if kind == "video.start":
            self._joined(message, viewer, is_again)
        if kind == "session.done" and message["reason"] in ("drained", "moved"):
            self._is_given_away = True
        elif kind == "video.start" and is_again:
            self._pass_on(len(item))
        elif kind == "video.chunk_metadata" and message["kind"] == "init" and before > 0:
            self._journal.chunks, self._is_skipping = before, True
            self._pass_on(len(item))
        else:
            viewer.forward(item)

    def _joined(self, message: dict[str, Any], viewer: Viewer, is_again: bool) -> None:
        self._is_joined.set()
        self._has_news.set()
        if not is_again:
            return
        frame = self._journal.frame
        viewer.message(VideoCut(epoch=message["epoch"], frame=frame, reason="moved"))
        if self._move is not None:
            reason, begun = self._move
            self._move = None
            seconds = time.monotonic() - begun
            self._gateway.figures.moved(reason, seconds)
            viewer.message(_moved(reason, frame, seconds, message))

    # ---- to the host -------------------------------------------------------------------------

    def _obey(self, message: Any) -> None:
        viewer = self._viewer
        assert viewer is not None
        if isinstance(message, SessionPing):
            viewer.message(SessionPong(sent_ms=message.sent_ms))
        elif self._seat is None and isinstance(message, SessionStop):
            raise OverError(NORMAL)
        elif isinstance(message, PlaybackShown) and not self._is_joined.is_set():
            # The next owner begins with what comes after it.
            return
        elif self._seat is None:
            self._fault("not_started", "The session waits for its turn.")
        elif isinstance(message, SessionStart):
            problem = ProblemError("already_started", "This socket has its session already.")
            viewer.message(error_message(problem))
        elif len(self._kept) >= _MOST_KEPT:
            self._fault("rate_limited", "The session moves; send that again in a moment.")
        else:
            is_prompt = isinstance(message, SessionInteraction)
            self._kept.append(_Said(message.model_dump_json(), is_prompt))
            self._has_news.set()
            self._note(message)

    def _note(self, message: Any) -> None:
        """What the next owner has to know, if this one does not get to say it."""
        if isinstance(message, SessionRestart):
            self._journal.seed = message.seed
        if isinstance(message, SessionPause | SessionResume):
            self._journal.is_paused = isinstance(message, SessionPause)
        if isinstance(message, SessionDecoder):
            self._journal.decoder = message.decoder

    def _pass_on(self, count: int) -> None:
        """So many bytes made their way to the viewer: as many more may come. Said in passing, or
        when the host could come to wait for it.
        """
        self._passed_bytes += count
        if self._passed_bytes > WINDOW_BYTES // 4:
            self._has_news.set()

    async def _speak(self, joining: Joining, unheard: asyncio.Timeout) -> None:
        """In order, and often enough that the host knows that somebody is here. One that does not
        listen is given up, if its pictures do not end by themselves.
        """
        await self._is_joined.wait()
        try:
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._has_news.wait(), _SPEAK_S)
                self._has_news.clear()
                said, self._kept = list(self._kept), deque()
                passed, self._passed_bytes = self._passed_bytes, 0
                await self._tell(joining, said, passed)
        except HostLostError:
            unheard.reschedule(asyncio.get_running_loop().time() + _UNHEARD_S)

    async def _tell(self, joining: Joining, said: list[_Said], passed: int) -> None:
        begun = time.monotonic()
        for one in said:
            if one.is_prompt:
                self._journal.sent(one.text)
        try:
            texts = [one.text for one in said]
            await self._gateway.hosts.tell(joining.session, joining.viewer, [*texts, passed])
        except (HostLostError, asyncio.CancelledError):
            # Prompts are in the journal already.
            self._kept.extendleft(one for one in reversed(said) if not one.is_prompt)
            raise
        for _ in said:
            self._gateway.figures.command(time.monotonic() - begun)

    async def _send_all(self, viewer: Viewer) -> None:
        while (item := await viewer.next()) is not None:
            if isinstance(item.data, str):
                await self._socket.send_text(item.data)
            else:
                await self._socket.send_bytes(item.data)
                self._gateway.figures.sent(len(item.data))
            self._pass_on(len(item.data))

    async def _text(self) -> str | bytes:
        data = await super()._text()
        if len(data) > self._limits.message_bytes:
            raise OverError(TOO_BIG)
        return data

    # ---- moving ------------------------------------------------------------------------------

    async def _go_on_elsewhere(self, seat: Seat, reason: Reason, viewer: Viewer) -> Seat:
        journal, gateway = self._journal, self._gateway
        if gateway.is_closing:
            raise OverError(RESTARTING)
        if not journal.has_begun:
            return await gateway.reopen(seat, None, gateway.fleet.patience_s)
        self._move = (reason, time.monotonic())
        logger.info("session moves", extra={"session": seat.session, "reason": reason})
        viewer.message(SessionMoving(reason=reason, frame=journal.frame, message=_MOVING[reason]))
        found = await gateway.reopen(seat, journal, gateway.fleet.patience_s)
        # What may not have become part of the video comes before what was said since.
        again = [_Said(text, True) for text in journal.take_unconfirmed()]
        self._kept.extendleft(reversed(again))
        journal.state = None
        return found

    async def _leave(self, code: int) -> None:
        try:
            await self._socket.close(code)
        except (RuntimeError, WebSocketDisconnect):
            return


def _moved(reason: Reason, frame: int, seconds: float, start: dict[str, Any]) -> SessionMoved:
    again = max(0, frame - start["resumed_at_frame"])
    at_s = start["resumed_at_frame"] / start["fps"]
    words = f"It goes on after {seconds:.1f} s, from the same picture."
    if reason == "lost":
        words += (
            f" Its last saved state was of {at_s:.1f} s: what was shown since is made again, the "
            f"same, and its recording begins anew there."
        )
    blocks = -(-again // start["block_frames"])
    return SessionMoved(
        reason=reason, frame=frame, after_s=round(seconds, 3), made_again=blocks, message=words
    )
