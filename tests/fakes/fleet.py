"""A fleet in one process: real hosts and a real gateway, and nothing between them but calls."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn

from longlive_trt.serving.cluster.calls import (
    Head,
    HostLostError,
    Item,
    Joining,
    Opened,
    Opening,
    Refused,
    Request,
)
from longlive_trt.serving.cluster.gateway import Gateway
from longlive_trt.serving.cluster.host import Host
from longlive_trt.serving.cluster.placement import HostView, Placement
from longlive_trt.serving.cluster.settings import FleetSettings
from longlive_trt.serving.cluster.store.registry import Registry
from longlive_trt.serving.cluster.web import make_gateway_app
from longlive_trt.serving.engine import LiveModel
from longlive_trt.serving.server import bind
from longlive_trt.serving.settings import Settings
from tests.fakes.live import FakeModel


class LocalHosts:
    """As ``Hosts`` has them; a host can be killed, as a machine is."""

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        self.dead: set[str] = set()
        self.deaf_s: dict[str, float] = {}
        """Hosts that do not answer what they are told, and for how long that is not noticed."""
        self.placement = Placement()
        self.told: list[tuple[str, str]] = []

    def add(self, host: Host) -> None:
        self.hosts[host.name] = host

    def kill(self, name: str) -> None:
        self.dead.add(name)

    async def open(self, opening: Opening) -> Opened | Refused:
        self._look()
        name = self.placement.best(opening.bundle_key) or next(iter(self._alive()), None)
        if name is None:
            raise HostLostError("no host")
        self.placement.sent(name)
        answer = await self.hosts[name].open(opening)
        self.placement.answered(name, answer.view)
        return answer

    async def watch(self, joining: Joining) -> AsyncIterator[Sequence[Item]]:
        host = self._owner(joining.session)
        items = host.watch(joining)
        while True:
            coming = asyncio.ensure_future(anext(items, None))  # type: ignore[arg-type]
            while not coming.done():
                await asyncio.wait([coming], timeout=0.01)
                if host.name in self.dead:
                    coming.cancel()
                    raise HostLostError("killed")
            batch = coming.result()
            if batch is None:
                return
            yield batch

    async def tell(self, session: str, viewer: str, items: Sequence[Item]) -> None:
        host = self._owner(session)
        if host.name in self.deaf_s:
            await asyncio.sleep(self.deaf_s[host.name])
            raise HostLostError("no answer")
        if not host.tell(viewer, items):
            raise HostLostError("no such viewer")
        self.told += [(host.name, item) for item in items if isinstance(item, str)]

    async def ask(self, request: Request, session: str | None) -> AsyncIterator[Head | bytes]:
        host = self._owner(session) if session else self.hosts[self._alive()[0]]
        if session and not host.has(session):
            raise HostLostError("no such session")
        async for part in host.ask(request):
            yield part

    async def drain(self, host: str, *, undo: bool = False) -> list[str]:
        if undo:
            self.hosts[host].admit()
            return []
        return await self.hosts[host].drain()

    def views(self) -> list[HostView]:
        self._look()
        return self.placement.hosts

    @property
    def free(self) -> int:
        self._look()
        return self.placement.free

    def own(self, session: str, host: str | None) -> None:
        if host is not None:
            self.placement.own(session, host)

    def _alive(self) -> list[str]:
        return [name for name in self.hosts if name not in self.dead]

    def _look(self) -> None:
        self.placement.keep_only(self._alive())
        for name in self._alive():
            self.placement.hear(self.hosts[name].view())

    def _owner(self, session: str) -> Host:
        name = self.placement.owner(session)
        if name is None or name not in self.hosts or name in self.dead:
            raise HostLostError("gone")
        return self.hosts[name]


@dataclass
class Fleet:
    hosts: LocalHosts
    gateway: Gateway
    registry: Registry
    port: int
    store: Path
    loop: asyncio.AbstractEventLoop
    stop: Callable[[], None]
    add: Callable[[str], Host]
    models: dict[str, Any]
    _open: ExitStack

    def on_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def running(self) -> dict[str, int]:
        return {view.name: view.running for view in self.hosts.views()}

    def owner(self, session: str) -> str:
        deed = self.registry.newest(session)
        assert deed is not None
        return deed.host


def start_fleet(
    folder: Path,
    *,
    hosts: int = 2,
    slots: int = 2,
    save_every_s: float = 3600,
    model: Callable[[], LiveModel] = FakeModel,
    **options: Any,
) -> Fleet:
    store = folder / "store"
    settings = replace(Settings(port=0, sessions=slots), **options)
    fleet = FleetSettings(store=str(store), save_every_s=save_every_s, patience_s=20)
    local, registry, models = LocalHosts(), Registry(str(store)), {}
    gateway = Gateway("gateway-1", settings, fleet, local, registry)
    listening = bind(settings)
    server = uvicorn.Server(
        uvicorn.Config(
            make_gateway_app(gateway),
            log_config=None,
            ws="websockets-sansio",
            lifespan="on",
            timeout_graceful_shutdown=2,
        )
    )
    ready = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def add(name: str) -> Host:
        models[name] = model()
        host = Host(name, replace(settings, data=folder / name), fleet, lambda: models[name])
        await host.start()
        local.add(host)
        return host

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        for number in range(1, hosts + 1):
            await add(f"host-{number}")
        ready.set()
        await server.serve(sockets=[listening])
        for host in local.hosts.values():
            await host.stop()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    opened = ExitStack()
    assert ready.wait(30)
    while not server.started:
        time.sleep(0.01)

    def stop() -> None:
        opened.close()
        server.should_exit = True
        thread.join(30)
        listening.close()
        assert not thread.is_alive()

    def add_now(name: str) -> Host:
        return asyncio.run_coroutine_threadsafe(add(name), loops[0]).result(20)

    port = listening.getsockname()[1]
    return Fleet(local, gateway, registry, port, store, loops[0], stop, add_now, models, opened)
