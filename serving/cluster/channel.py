"""One viewer's socket, as a host has it: its other end is at a gateway."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from longlive_trt.serving.cluster.calls import Item

WINDOW_BYTES = 1 << 20
"""So much is on its way at a time: what a slow viewer does not take waits at the host, where old
pictures are left out."""
GATHER_S = 0.03
"""A block's pictures follow each other closely, and are not due yet: they go together."""
SILENCE_S = 20.0
"""A gateway says something more often than that."""


class Channel:
    """Takes the place of a WebSocket in a conversation."""

    def __init__(self) -> None:
        self.scope: dict[str, Any] = {"type": "websocket", "headers": []}
        self._incoming: asyncio.Queue[str | None] = asyncio.Queue()
        self._outgoing: list[Item] = []
        self._filled, self._has_room = asyncio.Event(), asyncio.Event()
        self._has_room.set()
        self._on_way = 0
        self._is_over = False
        self.heard_s = time.monotonic()

    # ---- as a socket -------------------------------------------------------------------------

    async def accept(self) -> None:
        """Done at the gateway."""

    async def receive(self) -> dict[str, Any]:
        text = await self._incoming.get()
        if text is None:
            return {"type": "websocket.disconnect", "code": 1001}
        return {"type": "websocket.receive", "text": text}

    async def send_text(self, text: str) -> None:
        await self._send(text)

    async def send_bytes(self, data: bytes) -> None:
        await self._send(data)

    async def close(self, code: int = 1000) -> None:
        self._outgoing.append(code)
        self._is_over = True
        self._filled.set()

    # ---- as the way to the gateway -----------------------------------------------------------

    def hear(self, items: Sequence[Item]) -> None:
        """Texts of the viewer, and how many bytes it was sent."""
        self.heard_s = time.monotonic()
        for item in items:
            if isinstance(item, str):
                self._incoming.put_nowait(item)
            elif isinstance(item, int):
                self._on_way = max(0, self._on_way - item)
        if self._on_way < WINDOW_BYTES:
            self._has_room.set()

    def hang_up(self) -> None:
        self._incoming.put_nowait(None)
        self._has_room.set()

    async def batches(self) -> AsyncIterator[list[Item]]:
        """Whatever there is, at once; ends after the code of the close."""
        while not self._is_over or self._outgoing:
            await self._filled.wait()
            if not any(isinstance(item, str | int) for item in self._outgoing):
                await asyncio.sleep(GATHER_S)
            self._filled.clear()
            items, self._outgoing = self._outgoing, []
            if items:
                yield items

    async def _send(self, item: str | bytes) -> None:
        await self._has_room.wait()
        self._on_way += len(item)
        if self._on_way >= WINDOW_BYTES:
            self._has_room.clear()
        self._outgoing.append(item)
        self._filled.set()
