"""A fleet under a real Ray on this machine, and who watches it."""

import asyncio
import json
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.fleet.viewer import Viewer
from longlive_trt.serving.cluster.settings import FleetSettings
from longlive_trt.serving.cluster.store.registry import Registry
from longlive_trt.serving.engine import LiveModel
from longlive_trt.serving.settings import Settings

HOSTS, SLOTS = 4, 2
_VIDEO_S = 240
_PROMPTS = ("a red car in the city", "a blue boat at sea", "a green train in the mountains")


@dataclass
class Trial:
    port: int
    settings: Settings
    fleet: FleetSettings
    load: Callable[[], LiveModel]
    keep: bool
    """Pictures, to be compared."""
    count: int = HOSTS
    blocks: int = 4
    """So many are watched before the prompt, after it, and after the move."""

    def ask(self, method: str, path: str, token: str | None = None) -> Any:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        address = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(address, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=180) as answer:  # noqa: S310
            return json.loads(answer.read())

    def read(self, path: str) -> bytes:
        address = f"http://127.0.0.1:{self.port}{path}"
        with urllib.request.urlopen(address, timeout=180) as answer:
            data: bytes = answer.read()
        return data

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        def send() -> Any:
            request = urllib.request.Request(
                f"http://127.0.0.1:{self.port}{path}",
                json.dumps(body).encode(),
                {"content-type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=180) as answer:  # noqa: S310
                return json.loads(answer.read())

        return await asyncio.to_thread(send)

    async def until_video(self, video: str, holds: Callable[[Any], bool]) -> Any:
        end = time.monotonic() + _VIDEO_S
        while not holds(now := await asyncio.to_thread(self.ask, "GET", f"/v1/videos/{video}")):
            if time.monotonic() > end or now["status"] == "failed":
                raise TimeoutError(f"{video}: {now}")
            await asyncio.sleep(0.2)
        return now

    async def hosts(self) -> list[dict[str, Any]]:
        answer = await asyncio.to_thread(self.ask, "GET", "/v1/admin/hosts")
        found: list[dict[str, Any]] = answer["hosts"]
        return found

    async def until(self, holds: Callable[[list[dict[str, Any]]], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not holds(hosts := await self.hosts()):
            if time.monotonic() > end:
                raise TimeoutError(f"after {seconds} s: {hosts}")
            await asyncio.sleep(0.5)

    def owner(self, viewer: Viewer) -> str:
        deed = Registry(self.fleet.store).newest(viewer.began["session"])
        assert deed is not None
        return deed.host

    def fullest(self, viewers: list[Viewer]) -> str:
        """The host with the most of these sessions."""
        return Counter([self.owner(viewer) for viewer in viewers]).most_common(1)[0][0]

    def viewer(self, number: int) -> Viewer:
        prompt = _PROMPTS[number % len(_PROMPTS)]
        return Viewer(self.port, number, prompt, keep=self.keep)


class Audience:
    """Viewers that watch, and are sent home at the end."""

    def __init__(self, trial: Trial, count: int, first: int = 0) -> None:
        self.viewers = [trial.viewer(first + number) for number in range(count)]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> list[Viewer]:
        for viewer in self.viewers:
            self._tasks.append(asyncio.create_task(viewer.watch()))
            await asyncio.wait_for(viewer.running.wait(), 120)
        return self.viewers

    async def __aexit__(self, *error: object) -> None:
        await asyncio.gather(*(viewer.stop() for viewer in self.viewers))
        await asyncio.gather(*self._tasks)
