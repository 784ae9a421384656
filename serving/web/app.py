"""The application: routes, what they answer when something is wrong, and the page."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from longlive_trt import __version__
from longlive_trt.errors import LongLiveError
from longlive_trt.serving import protocol
from longlive_trt.serving.operation.metrics import CONTENT_TYPE
from longlive_trt.serving.problems import Code, ProblemError, fault_in_words
from longlive_trt.serving.web import sessions, videos
from longlive_trt.serving.web.bodies import Drained, ErrorBody, Health, Model, Models, Readiness
from longlive_trt.serving.web.entrance import LATER
from longlive_trt.serving.web.jobs import Jobs
from longlive_trt.serving.web.live import Live
from longlive_trt.serving.web.security import Guard
from longlive_trt.serving.web.sessions import Granted, live_of
from longlive_trt.serving.web.socket import Conversation

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parents[1] / "page"
FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "Not a request that can be read.",
        401: "The token is missing or wrong.",
        404: "There is no such thing, or it is over.",
        409: "Not now.",
        410: "The session is over.",
        413: "Too large.",
        421: "Not a name of this server.",
        422: "Something in the request is not as it should be.",
        429: "Too often.",
        503: "Full, loading or going down; Retry-After says when to ask again.",
    }.items()
}


def make_app(live: Live) -> Guard:
    return Guard(make_inner_app(live), live.settings)


def make_inner_app(live: Live) -> FastAPI:
    """Without the check of who asks."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(_start(live))
        yield
        starting.cancel()
        await live.drain()
        await live.stop()

    app = FastAPI(
        title="longlive-trt",
        version=__version__,
        description="Endless video that answers to typing.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=FAULTS,
    )
    app.state.live, app.state.jobs = live, Jobs(live)
    app.include_router(sessions.router)
    app.include_router(videos.router)
    _add_operation(app)
    _add_socket(app)
    add_answers(app)
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    return app


async def _start(live: Live) -> None:
    try:
        await live.start()
    except (LongLiveError, OSError) as error:
        live.failure = str(error)
        logger.error("the model cannot be loaded: %s", error)
    except Exception as error:
        live.failure = "The model cannot be loaded."
        logger.exception("the model cannot be loaded: %s", error)


def _add_operation(app: FastAPI) -> None:
    @app.get("/v1/models", tags=["model"])
    async def models(request: Request) -> Models:
        live = live_of(request)
        facts = live.model.facts
        return Models(
            data=[
                Model(
                    id=facts.name,
                    width=facts.width,
                    height=facts.height,
                    fps=float(facts.fps),
                    temporal_factor=facts.temporal_factor,
                    bundle_key=facts.bundle_key,
                    suggestions=list(facts.suggestions),
                    decoders=list(facts.decoders),
                    slots=live.rooms.slots,
                    needs_token=live.settings.token is not None,
                )
            ]
        )

    @app.get("/health", tags=["operation"])
    async def health() -> Health:
        return Health(version=__version__)

    @app.get("/ready", tags=["operation"], responses={503: {"model": Readiness}})
    async def ready(request: Request, response: Response) -> Readiness:
        live = live_of(request)
        if live.is_ready:
            rooms = live.rooms
            return Readiness(
                status="ready", running=rooms.running, waiting=rooms.waiting, slots=rooms.slots
            )
        response.status_code = 503
        response.headers["retry-after"] = "5"
        if live.failure is not None:
            return Readiness(status="failed", message=live.failure)
        return Readiness(status="draining" if live.is_draining else "loading")

    @app.get(
        "/metrics",
        tags=["operation"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "Prometheus's text form."}},
    )
    async def metrics(live: Granted) -> Response:
        _ = live.model
        return Response(live.metrics.text(), headers={"content-type": CONTENT_TYPE})

    @app.get("/v1/realtime/schema.json", tags=["socket"])
    async def schema() -> dict[str, Any]:
        return protocol.schema()

    @app.post("/v1/admin/drain", tags=["operation"])
    async def drain(live: Granted) -> Drained:
        """Let nobody in any more, save what runs, and answer when all of it is over."""
        return Drained(saved=await live.drain())


def _add_socket(app: FastAPI) -> None:
    open_sockets: set[WebSocket] = set()

    @app.websocket("/v1/realtime/video")
    async def realtime(socket: WebSocket) -> None:
        live: Live = app.state.live
        if len(open_sockets) >= live.settings.limits.sockets or not live.is_ready:
            await socket.accept()
            code: Code = "draining" if live.is_draining else "loading"
            known = live.failure or "The server is not ready; try again in a moment."
            problem = (
                ProblemError("server_full", "Too many connections; try again in a moment.")
                if live.is_ready
                else ProblemError(code, known)
            )
            values = {"type": "error", "code": problem.code, "message": problem.sentence}
            await socket.send_json(values)
            await socket.close(LATER)
            return
        open_sockets.add(socket)
        try:
            await Conversation(socket, live).run()
        finally:
            open_sockets.discard(socket)


def add_answers(app: FastAPI) -> None:
    def answer(problem: ProblemError, headers: dict[str, str] | None = None) -> JSONResponse:
        headers = dict(headers or {})
        if problem.retry_after_s is not None:
            headers["retry-after"] = str(problem.retry_after_s)
        return JSONResponse(problem.body(), problem.status, headers)

    @app.exception_handler(ProblemError)
    async def of_ours(_request: Request, problem: ProblemError) -> JSONResponse:
        return answer(problem)

    @app.exception_handler(RequestValidationError)
    async def of_input(_request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(ProblemError("bad_request", fault_in_words(error.errors()[0])))

    @app.exception_handler(HTTPException)
    async def of_routing(_request: Request, error: HTTPException) -> JSONResponse:
        sentences = {
            404: ProblemError("not_found", "There is nothing at this address."),
            405: ProblemError("method_not_allowed", "This address does not take that method."),
        }
        problem = sentences.get(error.status_code)
        if problem is None:
            problem = ProblemError("bad_request", str(error.detail))
            body = problem.body()
            return JSONResponse(body, error.status_code, error.headers)
        return answer(problem, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def of_defects(_request: Request, error: Exception) -> JSONResponse:
        logger.error("request failed", exc_info=error)
        return answer(ProblemError("internal", "Something went wrong inside the server."))
