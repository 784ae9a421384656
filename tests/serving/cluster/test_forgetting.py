"""A host runs for weeks: of a session that is over its recording stays for a while, then nothing.

Nothing waits for Python's collector of circles. It goes through what is old only after a quarter
as much again became old; until then memory grows.
"""

import asyncio
import gc
import json
import secrets
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("fastapi")

from benchmarks.fleet.painter import Painter
from longlive_trt.serving.cluster import host as of_host
from longlive_trt.serving.cluster.calls import Joining, Opened, Opening
from longlive_trt.serving.cluster.host import Host
from longlive_trt.serving.cluster.settings import FleetSettings
from longlive_trt.serving.live import session as of_session
from longlive_trt.serving.live.hidden import Speculation
from longlive_trt.serving.media.h264 import BlockEncoder
from longlive_trt.serving.operation.memory import give_back
from longlive_trt.serving.protocol import LAST_OF_BLOCK, Picture
from longlive_trt.serving.settings import Settings
from longlive_trt.serving.web.room import Room

KEPT_S = 1.0
quick = partial(Painter, fps=1600)


@asynccontextmanager
async def a_host(folder: Path) -> AsyncIterator[Host]:
    settings = Settings(sessions=2, kept_s=KEPT_S, data=folder / "data")
    host = Host("host", settings, FleetSettings(store=str(folder / "store")), quick)
    await host.start()
    try:
        yield host
    finally:
        await host.stop()


async def visit(host: Host, number: int, blocks: int = 6, *, hangs_up: bool = False) -> Room:
    """Somebody watches, types, and ends the session; or its gateway goes, and it is ended."""
    opening = Opening(session=secrets.token_urlsafe(12), token="secret", prompt=f"car {number}")  # noqa: S106
    assert isinstance(await host.open(opening), Opened)
    room = host._live.rooms.find(opening.session, "secret")
    seen = 0
    stream: Any = host.watch(Joining(opening.session, "secret", "viewer", "h264"))
    async for items in stream:
        said = [json.dumps({"type": "session.interaction", "prompt": f"boat {number}"})]
        for picture in (Picture.unpack(item) for item in items if isinstance(item, bytes)):
            seen += bool(picture.flags & LAST_OF_BLOCK)
            report = {"epoch": picture.epoch, "frame": picture.frame}
            said = [json.dumps({"type": "playback.shown", **report})]
        if seen >= blocks and hangs_up:
            break
        if seen >= blocks:
            said = [json.dumps({"type": "session.stop"})]
        host.tell("viewer", [*said, sum(len(item) for item in items if not isinstance(item, int))])
    await stream.aclose()
    await room.end("stopped")
    return room


async def until(holds: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def until_forgotten(host: Host) -> None:
    await until(lambda: not host._live.rooms._rooms and not host._keepers)


@contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts look often for what they may forget."""
    monkeypatch.setattr(of_host, "SILENCE_S", 0.4)


def test_what_only_a_running_session_needs_goes_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders: weakref.WeakSet[Any] = weakref.WeakSet()

    class Noted(BlockEncoder):
        def __init__(self, *of: Any) -> None:
            super().__init__(*of)
            encoders.add(self)

    monkeypatch.setattr(of_session, "BlockEncoder", Noted)

    async def run() -> None:
        async with a_host(tmp_path) as host:
            with no_collector():
                room = await visit(host, 1)
                assert room.hub.first_frame_at_hand() is None and not encoders
            excerpt = room.session.recording.excerpt()
            assert excerpt is not None and excerpt.frames > 12

    asyncio.run(run())


def test_hidden_blocks_go_when_a_session_ends(tmp_path: Path) -> None:
    """They hold pictures, and a model's state after each."""

    async def run() -> None:
        async with a_host(tmp_path) as host:
            opening = Opening(session="abcDEF12_-", token="secret", prompt="a car")  # noqa: S106
            assert isinstance(await host.open(opening), Opened)
            room = host._live.rooms.find(opening.session, opening.token)
            hidden = room.session.plan.hidden
            hidden.add(Speculation(9, "a boat", 0, None, None))
            await room.end("stopped")
            assert hidden.first is None

    asyncio.run(run())


def test_what_is_forgotten_is_freed_at_once(tmp_path: Path) -> None:
    async def run() -> None:
        async with a_host(tmp_path) as host:
            with no_collector():
                rooms = [
                    weakref.ref(await visit(host, number, hangs_up=number == 1))
                    for number in range(3)
                ]
                assert all(room() is not None for room in rooms), "their recordings can be fetched"
                sessions = [weakref.ref(room().session) for room in rooms]  # type: ignore[union-attr]
                await until_forgotten(host)
                assert [one() for one in (*rooms, *sessions)] == [None] * 6

    asyncio.run(run())


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_a_host_takes_no_more_memory_with_every_session(tmp_path: Path) -> None:
    """In a process of its own: this one's memory moves by what other tests have left behind."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        sizes = pool.submit(sizes_of_a_busy_host, tmp_path).result(580)
    # The first hundred fill what the C library keeps for the next.
    settled = sizes[len(sizes) // 2 :]
    assert max(settled) - settled[0] < 2 << 20, sizes


def sizes_of_a_busy_host(folder: Path) -> list[int]:
    """What its process has for itself, after every 20 of 280 sessions."""
    of_host.SILENCE_S = 0.4

    async def sizes() -> list[int]:
        found = []
        async with a_host(folder) as host:
            for number in range(280):
                await visit(host, number, 12)
                if number % 20 == 19:
                    await until_forgotten(host)
                    gc.collect()
                    give_back()
                    found.append(psutil.Process().memory_full_info().uss)
        return found

    return asyncio.run(sizes())
