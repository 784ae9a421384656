"""/v1/sessions: live videos by HTTP."""

import time
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from longlive_trt.errors import UsageError
from longlive_trt.serving.live.wish import require_decoder
from longlive_trt.serving.problems import ProblemError
from longlive_trt.serving.protocol import Name
from longlive_trt.serving.web.bodies import (
    InteractionTaken,
    NewInteraction,
    NewSession,
    Recipe,
    SessionCreated,
    SessionFacts,
    StateSaved,
)
from longlive_trt.serving.web.live import Live
from longlive_trt.serving.web.remakes import BreakableResponse
from longlive_trt.serving.web.room import Room
from longlive_trt.serving.web.security import bearer, headers_of, require_access

_POLL_S = 5


def live_of(request: Request) -> Live:
    live: Live = request.app.state.live
    return live


async def granted(request: Request) -> Live:
    """For callers that show the server's token, where it has one."""
    live = live_of(request)
    require_access(live.settings, bearer(headers_of(request.scope)))
    return live


async def own_room(request: Request, id: str) -> Room:  # noqa: A002
    """For callers that show the session's token."""
    return live_of(request).rooms.find(id, bearer(headers_of(request.scope)))


Granted = Annotated[Live, Depends(granted)]
Own = Annotated[Room, Depends(own_room)]

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])


@router.post("", status_code=201)
async def create(request: Request, body: NewSession, live: Granted) -> SessionCreated:
    """Begin a live video. Watch it through the socket; nothing runs for long unwatched."""
    opener = live.opener(
        prompt=body.prompt,
        seed=body.seed,
        switch=body.switch,
        decoder=body.decoder,
        cues=tuple((cue.frame, cue.prompt) for cue in body.timeline),
        resume=body.resume,
    )
    name, ticket = live.rooms.claim(body.ticket)
    if not ticket.turn.is_set():
        position = live.rooms.position(ticket)
        raise ProblemError(
            "server_full",
            f"All {live.rooms.slots} places are taken; you are number {position} in the queue.",
            retry_after_s=_POLL_S,
            position=position,
            waiting=live.rooms.waiting,
            ticket=name,
        )
    live.rooms.forget(name)
    try:
        room = live.rooms.open(ticket, opener)
    except UsageError as error:
        live.rooms.step_back(ticket)
        raise ProblemError("conflict", str(error)) from None
    except BaseException:
        live.rooms.step_back(ticket)
        raise
    return SessionCreated(
        id=room.id,
        token=room.token,
        ws_url=socket_url(request),
        seed=str(room.session.seed),
        switch=room.session.switch,
    )


@router.get("/{id}")
async def show(room: Own) -> SessionFacts:
    return facts_of(room)


@router.delete("/{id}")
async def stop(room: Own) -> SessionFacts:
    await room.end("stopped")
    return facts_of(room)


@router.post("/{id}/interactions", status_code=202)
async def interact(room: Own, body: NewInteraction) -> InteractionTaken:
    """A new prompt, from the first block that nobody has seen on."""
    _require_running(room)
    if not room.prompts.take():
        raise ProblemError("rate_limited", "Too many prompts; wait a moment.", retry_after_s=1)
    queued = room.interact(body.prompt, body.frame, body.event_id)
    return InteractionTaken(
        cue=queued.cue, takes_effect=queued.takes_effect, speculated=queued.speculated
    )


@router.post("/{id}/state", status_code=201)
async def save(room: Own) -> StateSaved:
    """Keep the video as it stands, to go on from there later, bit for bit."""
    _require_running(room)
    return StateSaved(state_id=await room.save())


@router.get(
    "/{id}/recording.mp4",
    response_class=Response,
    responses={200: {"content": {"video/mp4": {}}, "description": "The video so far."}},
)
async def recording(
    request: Request,
    room: Own,
    seconds: Annotated[float | None, Query(gt=0, le=86_400)] = None,
    decoder: Annotated[Name | None, Query()] = None,
) -> StreamingResponse:
    """All that was shown, or the last seconds of it; by a decoder, or as it was shown."""
    source, live = room.session.recording, live_of(request)
    until = None if room.ended is not None else _shown_end(room)
    headers = {
        "content-disposition": 'attachment; filename="longlive.mp4"',
        "cache-control": "no-store",
    }
    if decoder is not None:
        require_decoder(live.model.facts, decoder)
        if room.session.latents is not None:
            made = await live.remakes.open(room.session, decoder, seconds, until)
            return BreakableResponse(made, media_type="video/mp4", headers=headers)
    excerpt = source.excerpt(seconds, until)
    if excerpt is None:
        raise ProblemError("conflict", "Nothing was shown yet.")
    pieces: Iterator[bytes] = excerpt.read()
    headers["content-length"] = str(excerpt.size_bytes)
    return StreamingResponse(in_chunks(pieces), media_type="video/mp4", headers=headers)


@router.get("/{id}/recipe")
async def recipe(room: Own) -> Recipe:
    """What `longlive-trt generate --timeline` makes the same video from, bit for bit."""
    return Recipe.model_validate(room.recipe())


def facts_of(room: Room) -> SessionFacts:
    session, ended = room.session, room.ended
    plan, stats = session.plan, room.stats()
    return SessionFacts(
        id=room.id,
        status="running" if ended is None else "ended",
        seed=str(session.seed),
        switch=session.switch,
        fps=float(session.clock.fps),
        width=session.stream.width,
        height=session.stream.height,
        shown=stats.shown,
        made=stats.made,
        viewers=stats.viewers,
        epoch=plan.epoch,
        cues=room.timeline(),
        state=ended.state if ended else None,
        message=ended.message if ended else None,
    )


def socket_url(request: Request) -> str:
    secure = request.url.scheme == "https"
    root = request.scope.get("root_path", "").rstrip("/")
    host = request.headers.get("host", "")
    return f"{'wss' if secure else 'ws'}://{host}{root}/v1/realtime/video"


def _shown_end(room: Room) -> int:
    """The picture after the newest that was on screen."""
    return room.session.plan.playhead.shown(time.monotonic()) + 1


def _require_running(room: Room) -> None:
    if room.ended is not None:
        raise ProblemError("session_ended", room.ended.message, state=room.ended.state)


def in_chunks(pieces: Iterator[bytes], size: int = 1 << 18) -> Iterator[bytes]:
    """Samples are small; a piece for each would cost more than it carries."""
    waiting, length = [], 0
    for piece in pieces:
        waiting.append(piece)
        length += len(piece)
        if length >= size:
            yield b"".join(waiting)
            waiting, length = [], 0
    yield b"".join(waiting)
