"""/v1/videos: finite videos as jobs."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse

from longlive_trt.serving.problems import ProblemError
from longlive_trt.serving.web.bodies import NewVideo, Video, VideoDeleted, Videos
from longlive_trt.serving.web.jobs import Jobs
from longlive_trt.serving.web.sessions import Granted, in_chunks

router = APIRouter(prefix="/v1/videos", tags=["videos"])


async def jobs_of(request: Request, _live: Granted) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


OwnJobs = Annotated[Jobs, Depends(jobs_of)]


@router.post("")
async def create(body: NewVideo, jobs: OwnJobs) -> Video:
    return jobs.described(jobs.begin(body))


@router.get("")
async def listed(jobs: OwnJobs) -> Videos:
    return Videos(data=[jobs.described(job) for job in jobs.all()])


@router.get("/{id}")
async def show(id: str, jobs: OwnJobs) -> Video:  # noqa: A002
    return jobs.described(jobs.find(id))


@router.delete("/{id}")
async def delete(id: str, jobs: OwnJobs) -> VideoDeleted:  # noqa: A002
    job = jobs.find(id)
    await jobs.delete(job)
    return VideoDeleted(id=job.id)


@router.get(
    "/{id}/content",
    response_class=Response,
    responses={200: {"content": {"video/mp4": {}}, "description": "The video."}},
)
async def content(id: str, jobs: OwnJobs) -> StreamingResponse:  # noqa: A002
    job = jobs.find(id)
    described = jobs.described(job)
    if described.status != "completed" or job.room is None:
        raise ProblemError("conflict", f"The video is not there: it is {described.status}.")
    source = job.room.session.recording
    # Whole blocks were made; what was asked for may be less.
    excerpt = source.excerpt(until=job.frames)
    if excerpt is None:
        raise ProblemError("not_found", "The video was kept for a while only, and is gone.")
    headers = {"content-length": str(excerpt.size_bytes), "cache-control": "no-store"}
    pieces = in_chunks(excerpt.read())
    return StreamingResponse(pieces, media_type="video/mp4", headers=headers)
