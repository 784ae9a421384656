"""A request by HTTP, answered by an application in this process."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from longlive_trt.serving.cluster.calls import Head, Request
from longlive_trt.serving.web.security import App, Event


async def answer(app: App, request: Request) -> AsyncIterator[Head | bytes]:
    """The head, then the body in pieces."""
    events: asyncio.Queue[Event | None] = asyncio.Queue(maxsize=8)
    asked = False
    gone = asyncio.Event()

    async def receive() -> Event:
        nonlocal asked
        if asked:
            await gone.wait()
            return {"type": "http.disconnect"}
        asked = True
        return {"type": "http.request", "body": request.body, "more_body": False}

    async def run() -> None:
        try:
            await app(_scope(request), receive, events.put)
        finally:
            await events.put(None)

    running = asyncio.create_task(run())
    try:
        while (event := await events.get()) is not None:
            if event["type"] == "http.response.start":
                yield Head(event["status"], tuple((n, v) for n, v in event["headers"]))
            elif event.get("body"):
                yield event["body"]
        await running
    finally:
        gone.set()
        running.cancel()


def _scope(request: Request) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.scheme,
        "path": request.path,
        "raw_path": request.path.encode(),
        "query_string": request.query,
        "root_path": request.root_path,
        "headers": list(request.headers),
        "client": None,
        "server": None,
    }
