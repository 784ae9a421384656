"""What a gateway does about whole videos: takes orders, and sees that every order has a host."""

import asyncio
import logging
import math
import random
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

from longlive_trt.errors import LongLiveError
from longlive_trt.serving.cluster.access import answer_text
from longlive_trt.serving.cluster.calls import HostLostError, Opening, Request
from longlive_trt.serving.cluster.gateway import Gateway, Seat
from longlive_trt.serving.cluster.line import Place
from longlive_trt.serving.cluster.store.registry import Deed, News, Registry
from longlive_trt.serving.cluster.videos.orders import Order, Orders
from longlive_trt.serving.problems import ProblemError
from longlive_trt.serving.web.bodies import (
    Model,
    Models,
    NewVideo,
    SessionFacts,
    Video,
    VideoError,
    VideoStatus,
)

logger = logging.getLogger(__name__)

_TEND_S = 1.0
_ROUND_S = 15.0
"""So often a gateway looks for orders whose own gateway is gone."""
_MOVE_S = 600.0

T = TypeVar("T")


class Videos:
    """Orders, parts and files are in the store: any gateway can go on with any order."""

    def __init__(self, gateway: Gateway, registry: Registry, orders: Orders) -> None:
        self._gateway, self._registry, self._orders = gateway, registry, orders
        self._tended: dict[str, asyncio.Task[None]] = {}
        self._places: dict[str, Place] = {}
        self._over: set[str] = set()

    # ---- what callers ask --------------------------------------------------------------------

    async def begin(self, wish: NewVideo) -> Video:
        order = _order(wish, await self._model(), self._gateway.settings.limits.video_seconds)
        if len(self._tended) >= self._gateway.settings.limits.videos:
            raise ProblemError("server_full", "Too many videos are waiting.", retry_after_s=60)
        await self._stored(lambda: self._orders.write(order))
        try:
            await self._place(order, fence=1)
        except ProblemError:
            await self._forget(order.id)
            raise
        self._tend_later(order)
        return await self.show(order.id)

    async def show(self, video: str) -> Video:
        order = await self._order(video)
        failure = await self._stored(lambda: self._orders.failure(video))
        deed, news = await self._standing(video)
        if failure is not None:
            return _described(
                order, "failed", error=VideoError(code=failure[0], message=failure[1])
            )
        if deed is None or news is None:
            return _described(order, "queued")
        if news.status != "ended":
            made = await self._made(order, deed) or (news.states[0].frame if news.states else 0)
            return _described(order, "in_progress", deed, news, made)
        if await self._stored(lambda: self._orders.content_bytes(video)) is None:
            error = VideoError(code="generation_failed", message=news.message or "")
            return _described(order, "failed", deed, news, error=error)
        return _described(order, "completed", deed, news, order.frames)

    async def all(self) -> list[Video]:
        shown = []
        for video in await self._stored(self._orders.ids):
            with suppress(ProblemError):
                shown.append(await self.show(video))
        return sorted(shown, key=lambda one: -one.created_at)

    async def delete(self, video: str) -> None:
        order = await self._order(video)
        tending = self._tended.pop(video, None)
        if tending is not None:
            tending.cancel()
        deed, _ = await self._standing(video)
        if deed is not None:
            self._gateway.hosts.own(video, deed.host)
            with suppress(HostLostError):
                await answer_text(self._gateway, _request("DELETE", order), session=video)
        await self._forget(video)

    async def content(self, video: str) -> tuple[int, Iterator[bytes]]:
        described = await self.show(video)
        size = await self._stored(lambda: self._orders.content_bytes(video))
        if described.status != "completed" or size is None:
            raise ProblemError("conflict", f"The video is not there: it is {described.status}.")
        return size, self._orders.content(video)

    # ---- that orders go on -------------------------------------------------------------------

    async def look_after(self) -> None:
        """For good: orders that a gateway left which is gone."""
        while True:
            await asyncio.sleep(_ROUND_S * random.uniform(0.5, 1.5))  # noqa: S311
            try:
                videos = set(await asyncio.to_thread(self._orders.ids))
            except (LongLiveError, OSError) as error:
                logger.warning("videos not looked after", extra={"why": str(error)})
                continue
            self._over &= videos
            for video in sorted(videos - self._over - self._tended.keys()):
                # One that cannot be read is none of the others' business.
                with suppress(ProblemError):
                    await self._take_up(video)

    async def _take_up(self, video: str) -> None:
        order = await self._order(video)
        deed, news = await self._standing(video)
        failure = await self._stored(lambda: self._orders.failure(video))
        if failure is not None or (news is not None and news.status == "ended"):
            self._over.add(video)
        elif deed is None or await self._made(order, deed) is None:
            self._tend_later(order)

    def _tend_later(self, order: Order) -> None:
        self._tended[order.id] = asyncio.create_task(self._tend(order))

    async def _tend(self, order: Order) -> None:
        """Until it is over, or this gateway goes."""
        try:
            while not await self._attempt(order):
                await asyncio.sleep(_TEND_S)
            self._over.add(order.id)
        finally:
            self._tended.pop(order.id, None)
            self._leave_line(order.id)

    async def _attempt(self, order: Order) -> bool:
        """Whether nothing more is to be done."""
        try:
            return await self._see_to(order)
        except ProblemError as problem:
            if problem.code in ("session_ended", "not_found"):
                return True
            if problem.code in ("internal", "server_full", "draining", "loading"):
                return False
            code, sentence = problem.code, problem.sentence
        logger.warning("video failed", extra={"session": order.id, "why": sentence})
        await self._stored(lambda: self._orders.fail(order.id, code, sentence))
        return True

    async def _see_to(self, order: Order) -> bool:
        deed, news = await self._standing(order.id)
        if news is not None and news.status == "ended":
            return True
        if deed is None:
            await self._order(order.id)
            await self._place(order, fence=1)
        elif await self._made(order, deed) is None:
            await self._move(order, deed, news)
        return False

    async def _place(self, order: Order, fence: int) -> None:
        line = self._gateway.line
        place = self._places.setdefault(order.id, Place())
        line.rejoin(place)
        if await self._gateway.attempt(_opening(order, fence, self._gateway.name), place):
            self._leave_line(order.id)

    async def _move(self, order: Order, deed: Deed, news: News | None) -> None:
        """To another host: its own is gone, unless it got it this moment."""
        seat = Seat(order.id, order.token, deed.fence, order.seed, order.switch, is_job=True)
        if await self._gateway.is_opening(seat):
            return
        logger.info("video moves", extra={"session": order.id})
        if news is None:
            await self._place(order, deed.fence + 1)
        else:
            await self._gateway.reopen(seat, None, _MOVE_S)

    async def _made(self, order: Order, deed: Deed) -> int | None:
        """So many pictures; None where its host is not there any more."""
        self._gateway.hosts.own(order.id, deed.host)
        try:
            text = await answer_text(self._gateway, _request("GET", order), session=order.id)
        except HostLostError:
            return None
        return SessionFacts.model_validate_json(text).made + 1

    def _leave_line(self, video: str) -> None:
        place = self._places.pop(video, None)
        if place is not None:
            self._gateway.line.leave(place)

    # ---- the store ---------------------------------------------------------------------------

    async def _order(self, video: str) -> Order:
        order = await self._stored(lambda: self._orders.read(video))
        if order is None:
            raise ProblemError("not_found", "There is no such video here.")
        return order

    async def _standing(self, video: str) -> tuple[Deed | None, News | None]:
        deed = await self._stored(lambda: self._registry.newest(video))
        if deed is None:
            return None, None
        return deed, await self._stored(lambda: self._registry.news(video, deed.fence))

    async def _forget(self, video: str) -> None:
        await self._stored(lambda: self._orders.delete(video))
        await self._stored(lambda: self._registry.forget(video))

    async def _stored(self, work: Callable[[], T]) -> T:
        return await self._gateway.stored(work)

    async def _model(self) -> Model:
        request = Request("GET", "/v1/models", b"", (), b"")
        try:
            text = await answer_text(self._gateway, request)
        except HostLostError:
            raise ProblemError("loading", "No host is ready yet.", retry_after_s=5) from None
        return Models.model_validate_json(text).data[0]


def _order(wish: NewVideo, model: Model, most_seconds: float) -> Order:
    seconds, size = float(wish.seconds), f"{model.width}x{model.height}"
    if not 0 < seconds <= most_seconds:
        raise ProblemError("bad_request", f"seconds: from a fraction to {most_seconds:g}.")
    if wish.size not in (None, size):
        raise ProblemError("bad_request", f"size: this model makes {size}.")
    return Order(
        prompt=wish.prompt,
        seed=secrets.randbelow(1 << 32) if wish.seed is None else wish.seed,
        switch=wish.switch,
        timeline=tuple((cue.frame, cue.prompt) for cue in wish.timeline),
        seconds=seconds,
        frames=math.ceil(seconds * model.fps),
        model=model.id,
        size=size,
    )


def _opening(order: Order, fence: int, gateway: str) -> Opening:
    return Opening(
        session=order.id,
        token=order.token,
        fence=fence,
        gateway=gateway,
        prompt=order.prompt,
        seed=order.seed,
        switch=order.switch,
        timeline=order.timeline,
        frames=order.frames,
        is_job=True,
    )


def _request(method: str, order: Order) -> Request:
    headers = ((b"host", b"localhost"), (b"authorization", f"Bearer {order.token}".encode()))
    return Request(method, f"/v1/sessions/{order.id}", b"", headers, b"")


def _described(
    order: Order,
    status: VideoStatus,
    deed: Deed | None = None,
    news: News | None = None,
    made: int = 0,
    error: VideoError | None = None,
) -> Video:
    is_over = status in ("completed", "failed")
    return Video(
        id=order.id,
        model=order.model,
        status=status,
        progress=100 if status == "completed" else min(99, 100 * made // order.frames),
        created_at=int(order.created_s),
        completed_at=int(news.written_s) if is_over and news is not None else None,
        seconds=f"{order.seconds:g}",
        size=order.size,
        seed=str(order.seed),
        prompt=order.prompt,
        error=error,
        note=_note(order, deed, news),
    )


def _note(order: Order, deed: Deed | None, news: News | None) -> str | None:
    """What became of it when its host went."""
    if deed is None or news is None or deed.fence == 1:
        return None
    if not news.began_at:
        return "The host that made it went away; another made it again from the beginning."
    at_s = order.seconds * news.began_at / order.frames
    return (
        f"The host that made it went away; another went on from {at_s:.1f} s, with the same bits."
    )
