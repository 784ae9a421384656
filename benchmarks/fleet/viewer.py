"""A viewer that behaves as the page does: says what it shows, and comes back by itself."""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from longlive_trt.serving.protocol import LAST_OF_BLOCK, Picture

_BACK_S = 0.5
_REPORT_S = 0.25
_ASK_S = 0.3
_STOP_S = 120.0
_GONE = ("not_found", "session_ended")
"""Of a session that does not come back."""


@dataclass
class Seen:
    """What one viewer saw."""

    blocks: int = 0
    gaps: int = 0
    """Pictures that were neither shown nor taken back."""
    moves: list[dict[str, Any]] = field(default_factory=list)
    comebacks: int = 0
    pauses_s: list[float] = field(default_factory=list)
    """How long nothing came around each change of hosts and each comeback."""
    faults: list[str] = field(default_factory=list)
    payloads: dict[int, bytes] = field(default_factory=dict)


class Viewer:
    def __init__(self, port: int, seed: int, prompt: str, *, keep: bool = False) -> None:
        self._address = f"ws://127.0.0.1:{port}/v1/realtime/video"
        self._start: dict[str, Any] = {"prompt": prompt, "format": "h264", "seed": seed}
        self._keep = keep
        self.seen = Seen()
        self.began: dict[str, Any] = {}
        self.done: dict[str, Any] | None = None
        self.positions: list[int] = []
        self.running = asyncio.Event()
        self.on_message: Callable[[dict[str, Any]], None] = lambda _message: None
        self._socket: ClientConnection | None = None
        self._next = 0
        self._epoch = 0
        self._shown = -1
        self._quiet_since: float | None = None
        self._is_stopping = False

    async def watch(self) -> None:
        """Until the session is done."""
        while self.done is None:
            try:
                await self._once()
            except (WebSocketException, OSError):
                if self._quiet_since is None:
                    self._quiet_since = time.monotonic()
            if self.done is None:
                self.seen.comebacks += 1
                await asyncio.sleep(_BACK_S)

    async def send(self, kind: str, **values: Any) -> None:
        assert self._socket is not None
        await self._socket.send(json.dumps({"type": kind, **values}))

    async def stop(self) -> None:
        """Ask until it is done; what does not end by then is a fault of the fleet's."""
        self._is_stopping = True
        async with asyncio.timeout(_STOP_S):
            while self.done is None:
                with suppress(ConnectionClosed, AssertionError):
                    await self.send("session.stop")
                await asyncio.sleep(_ASK_S)

    async def _once(self) -> None:
        async with connect(self._address, max_size=None, compression=None, proxy=None) as socket:
            self._socket = socket
            own = {name: self.began[name] for name in ("session", "token") if self.began}
            await self.send("session.start", **self._start, **own)
            reporting = asyncio.create_task(self._report())
            try:
                async for data in socket:
                    if isinstance(data, bytes):
                        self._take(Picture.unpack(data))
                    else:
                        self._read(json.loads(data))
            finally:
                reporting.cancel()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_S)
            if self._shown >= 0:
                await self.send("playback.shown", epoch=self._epoch, frame=self._shown)

    def _take(self, picture: Picture) -> None:
        if picture.epoch < self._epoch:
            return
        if self._quiet_since is not None:
            self.seen.pauses_s.append(time.monotonic() - self._quiet_since)
            self._quiet_since = None
        self.seen.gaps += max(0, picture.frame - self._next)
        self._next = self._shown = picture.frame
        self._next += 1
        self.seen.blocks += bool(picture.flags & LAST_OF_BLOCK)
        if self._keep:
            self.seen.payloads[picture.frame] = picture.payload

    def _read(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "video.start":
                if not self.began:
                    self._next = message["frame"]
                # A page that comes back begins where it is told.
                self._next = message["frame"]
                self.began, self._epoch = message, message["epoch"]
                self.running.set()
            case "video.cut":
                self._epoch = message["epoch"]
                self._next = min(self._next, message["frame"])
            case "session.queued":
                self.positions.append(message["position"])
            case "session.moving":
                self._quiet_since = time.monotonic()
            case "session.moved":
                self.seen.moves.append(message)
            case "session.done":
                self.done = message
            case "error":
                self.seen.faults.append(f"{message['code']}: {message['message']}")
                if message["code"] in _GONE:
                    # Its host went while it was saying goodbye.
                    ended = self._is_stopping and message["code"] == "session_ended"
                    self.done = {"reason": "stopped" if ended else message["code"]}
        self.on_message(message)
