"""The gateway's application: the live server's addresses, answered by whichever host it takes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Response, WebSocket
from fastapi import Request as WebRequest
from starlette.staticfiles import StaticFiles

from longlive_trt import __version__
from longlive_trt.serving import protocol
from longlive_trt.serving.cluster.access import Granted, answer, answer_text, asked, gateway_of
from longlive_trt.serving.cluster.calls import HostLostError
from longlive_trt.serving.cluster.gateway import Gateway
from longlive_trt.serving.cluster.placement import HostView
from longlive_trt.serving.cluster.relay import Relay
from longlive_trt.serving.cluster.store.cleaning import Cleaner, clean_forever
from longlive_trt.serving.cluster.store.registry import Registry
from longlive_trt.serving.cluster.videos import routes
from longlive_trt.serving.cluster.videos.making import Videos
from longlive_trt.serving.cluster.videos.orders import Orders
from longlive_trt.serving.operation.metrics import CONTENT_TYPE
from longlive_trt.serving.problems import ProblemError
from longlive_trt.serving.web.app import FAULTS, PAGE, add_answers
from longlive_trt.serving.web.bodies import (
    Body,
    Drained,
    Health,
    Models,
    NewSession,
    Readiness,
    SessionCreated,
)
from longlive_trt.serving.web.entrance import LATER, RESTARTING
from longlive_trt.serving.web.security import Guard, bearer, headers_of
from longlive_trt.serving.web.sessions import socket_url

logger = logging.getLogger(__name__)

_POLL_S = 5
_PATIENCE_S = 10.0
_ANY = ["GET", "POST", "DELETE"]


class HostFacts(Body):
    name: str
    node: str
    slots: int
    running: int
    is_draining: bool
    bundle_key: str
    figures: dict[str, float]


class FleetFacts(Body):
    hosts: list[HostFacts]
    slots: int
    running: int
    waiting: int
    moving: int


router = APIRouter()


async def _nothing() -> None:
    return


def make_gateway_app(gateway: Gateway, on_start: Callable[[], Awaitable[None]] = _nothing) -> Guard:
    store = gateway.fleet.store
    videos = Videos(gateway, Registry(store), Orders(store))
    cleaner = Cleaner(
        store, gateway.fleet.keep_days, lambda: [view.name for view in gateway.hosts.views()]
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        tasks = [
            asyncio.ensure_future(on_start()),
            asyncio.create_task(videos.look_after()),
            asyncio.create_task(clean_forever(cleaner)),
        ]
        yield
        for task in tasks:
            task.cancel()

    app = FastAPI(
        title="longlive-trt",
        version=__version__,
        description="Endless video that answers to typing, from a fleet.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=FAULTS,
    )
    app.state.gateway, app.state.videos = gateway, videos
    app.include_router(router)
    app.include_router(routes.router)
    add_answers(app)
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    return Guard(app, gateway.settings)


# ---- sessions ------------------------------------------------------------------------------------


@router.post("/v1/sessions", status_code=201, tags=["sessions"])
async def create(request: WebRequest, body: NewSession, gateway: Granted) -> SessionCreated:
    opening = replace(
        gateway.new_opening(),
        prompt=body.prompt,
        seed=body.seed,
        switch=body.switch,
        timeline=tuple((cue.frame, cue.prompt) for cue in body.timeline),
        resume=body.resume,
        decoder=body.decoder,
    )
    line = gateway.line
    place = line.join(body.ticket, is_held=False)
    try:
        seat = await gateway.attempt(opening, place)
    except BaseException:
        line.leave(place)
        raise
    if seat is None:
        position = line.position(place)
        raise ProblemError(
            "server_full",
            f"All places are taken; you are number {position} in the queue.",
            retry_after_s=_POLL_S,
            position=position,
            waiting=line.waiting,
            ticket=place.ticket,
        )
    line.leave(place)
    return SessionCreated(
        id=seat.session,
        token=seat.token,
        ws_url=socket_url(request),
        seed=str(seat.seed),
        switch=seat.switch,
    )


@router.api_route("/v1/sessions/{id}", methods=_ANY, tags=["sessions"])
@router.api_route("/v1/sessions/{id}/{what}", methods=_ANY, tags=["sessions"])
async def own(request: WebRequest, id: str) -> Response:  # noqa: A002
    """As the live server has them; its owner answers."""
    gateway = gateway_of(request)
    seat = await gateway.locate(id, bearer(headers_of(request.scope)))
    passed_on = await asked(request)
    try:
        return await answer(gateway, passed_on, session=id)
    except HostLostError:
        await gateway.reopen(seat, None, _PATIENCE_S)
    return await answer(gateway, passed_on, session=id)


# ---- the fleet -----------------------------------------------------------------------------------


@router.get("/v1/models", tags=["model"])
async def models(request: WebRequest) -> Models:
    gateway = gateway_of(request)
    if not gateway.hosts.views():
        raise ProblemError("loading", "No host is ready yet.", retry_after_s=5)
    try:
        text = await answer_text(gateway, await asked(request))
    except HostLostError:
        raise ProblemError("loading", "No host answers.", retry_after_s=5) from None
    found = Models.model_validate_json(text)
    slots = sum(view.slots for view in gateway.hosts.views())
    needs_token = gateway.settings.token is not None
    changed = {"slots": slots, "needs_token": needs_token}
    return Models(data=[model.model_copy(update=changed) for model in found.data])


@router.get("/health", tags=["operation"])
async def health() -> Health:
    return Health(version=__version__)


@router.get("/ready", tags=["operation"], responses={503: {"model": Readiness}})
async def ready(request: WebRequest, response: Response) -> Readiness:
    gateway = gateway_of(request)
    views = gateway.hosts.views()
    if views and not gateway.is_closing:
        return Readiness(
            status="ready",
            running=sum(view.running for view in views),
            waiting=gateway.line.waiting,
            slots=sum(view.slots for view in views),
        )
    response.status_code = 503
    response.headers["retry-after"] = "5"
    return Readiness(status="draining" if gateway.is_closing else "loading")


@router.get("/metrics", tags=["operation"], response_class=Response)
async def metrics(gateway: Granted) -> Response:
    return Response(gateway.figures.text(), headers={"content-type": CONTENT_TYPE})


@router.get("/v1/realtime/schema.json", tags=["socket"])
async def schema() -> dict[str, Any]:
    return protocol.schema()


@router.get("/v1/admin/hosts", tags=["operation"])
async def hosts(gateway: Granted) -> FleetFacts:
    views = gateway.hosts.views()
    return FleetFacts(
        hosts=[_facts(view) for view in views],
        slots=sum(view.slots for view in views),
        running=sum(view.running for view in views),
        waiting=len(gateway.line),
        moving=gateway.line.moving,
    )


@router.post("/v1/admin/hosts/{host}/drain", tags=["operation"])
async def drain(gateway: Granted, host: str, undo: Annotated[bool, Query()] = False) -> Drained:
    """Let nobody in there any more, and give its sessions to other hosts; or let them in again."""
    if host not in {view.name for view in gateway.hosts.views()}:
        raise ProblemError("not_found", "There is no such host; GET /v1/admin/hosts lists them.")
    try:
        return Drained(saved=await gateway.hosts.drain(host, undo=undo))
    except HostLostError:
        raise ProblemError("conflict", "That host does not answer any more.") from None


@router.websocket("/v1/realtime/video")
async def realtime(socket: WebSocket) -> None:
    gateway: Gateway = socket.app.state.gateway
    limit = gateway.settings.limits.sockets
    if gateway.is_closing or len(gateway.sockets) >= limit:
        await socket.accept()
        await socket.close(RESTARTING if gateway.is_closing else LATER)
        return
    relay = Relay(socket, gateway)
    gateway.sockets.add(relay)
    try:
        await relay.run()
    finally:
        gateway.sockets.discard(relay)
        gateway.freed.more()


def _facts(view: HostView) -> HostFacts:
    return HostFacts(
        name=view.name,
        node=view.node,
        slots=view.slots,
        running=view.running,
        is_draining=view.is_draining,
        bundle_key=view.bundle_key,
        figures=dict(view.figures),
    )
