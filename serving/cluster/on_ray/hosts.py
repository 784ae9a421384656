"""Hosts behind a handle of Ray Serve."""

import asyncio
import contextvars
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

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
from longlive_trt.serving.cluster.on_ray.router import Route
from longlive_trt.serving.cluster.on_ray.view import FleetView
from longlive_trt.serving.cluster.placement import HostView

_LOST = (RayError, RayServeException, HostLostError)


class RayHosts:
    """``handle`` is that of the hosts' deployment, whose router writes the view."""

    def __init__(self, handle: Any, view: FleetView) -> None:
        self._handle, self._view = handle, view

    async def look(self) -> None:
        """Make Ray make the router, which waits for the first host."""
        await _call(self._handle.ping, Route())

    async def open(self, opening: Opening) -> Opened | Refused:
        if self._view.is_empty:
            raise HostLostError("no host runs")
        key, view = secrets.token_hex(8), None
        try:
            route = Route(key=key, bundle=opening.bundle_key)
            answer: Opened | Refused = await _call(self._handle.open, route, opening)
            view = answer.view
            return answer
        except _LOST as error:
            raise _lost(error) from None
        finally:
            self._view.answered(key, view)

    async def watch(self, joining: Joining) -> AsyncIterator[Sequence[Item]]:
        route = self._to_owner(joining.session)
        stream = _call(self._handle.options(stream=True).watch, route, joining)
        try:
            async for items in stream:
                yield items
        except _LOST as error:
            raise _lost(error) from None
        finally:
            stream.cancel()

    async def tell(self, session: str, viewer: str, items: Sequence[Item]) -> None:
        route = self._to_owner(session)
        try:
            is_here = await _call(self._handle.tell, route, viewer, tuple(items))
        except _LOST as error:
            raise _lost(error) from None
        if not is_here:
            raise HostLostError("the viewer is not there any more")

    async def ask(self, request: Request, session: str | None) -> AsyncIterator[Head | bytes]:
        route = Route() if session is None else self._to_owner(session)
        if self._view.is_empty:
            raise HostLostError("no host runs")
        stream = _call(self._handle.options(stream=True).ask, route, request)
        try:
            async for part in stream:
                yield part
        except _LOST as error:
            raise _lost(error) from None
        finally:
            stream.cancel()

    async def drain(self, host: str, *, undo: bool = False) -> list[str]:
        if not self._view.is_alive(host):
            raise HostLostError("that host does not run")
        try:
            states: list[str] = await _call(self._handle.drain, Route(host=host), undo)
            return states
        except _LOST as error:
            raise _lost(error) from None

    def views(self) -> list[HostView]:
        return self._view.hosts()

    @property
    def free(self) -> int:
        return self._view.free

    def own(self, session: str, host: str | None) -> None:
        self._view.own(session, host)

    def _to_owner(self, session: str) -> Route:
        if self._view.owner(session) is None:
            raise HostLostError("its host does not run any more")
        return Route(session=session)


def _call(method: Any, *arguments: object) -> Any:
    """Under an id of its own. What one conversation asks for at the same time would share its
    socket's, and Ray's router keeps one request for each id: the others would wait for good.
    """
    return contextvars.Context().run(method.remote, *arguments)


def _lost(error: BaseException) -> HostLostError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return HostLostError(lines[-1])


async def until_found(hosts: RayHosts) -> None:
    """Hosts load a model first."""
    while True:
        try:
            await hosts.look()
            return
        except _LOST:
            await asyncio.sleep(1)
