"""/v1/videos at a gateway; as the live server has them."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse

from longlive_trt.serving.cluster.access import Granted
from longlive_trt.serving.cluster.videos.making import Videos
from longlive_trt.serving.web.bodies import NewVideo, Video, VideoDeleted
from longlive_trt.serving.web.bodies import Videos as VideoList

router = APIRouter(prefix="/v1/videos", tags=["videos"])


async def videos_of(request: Request, _gateway: Granted) -> Videos:
    videos: Videos = request.app.state.videos
    return videos


Own = Annotated[Videos, Depends(videos_of)]


@router.post("")
async def create(body: NewVideo, videos: Own) -> Video:
    return await videos.begin(body)


@router.get("")
async def listed(videos: Own) -> VideoList:
    return VideoList(data=await videos.all())


@router.get("/{id}")
async def show(id: str, videos: Own) -> Video:  # noqa: A002
    return await videos.show(id)


@router.delete("/{id}")
async def delete(id: str, videos: Own) -> VideoDeleted:  # noqa: A002
    await videos.delete(id)
    return VideoDeleted(id=id)


@router.get(
    "/{id}/content",
    response_class=Response,
    responses={200: {"content": {"video/mp4": {}}, "description": "The video."}},
)
async def content(id: str, videos: Own) -> StreamingResponse:  # noqa: A002
    size, pieces = await videos.content(id)
    headers = {"content-length": str(size), "cache-control": "no-store"}
    return StreamingResponse(pieces, media_type="video/mp4", headers=headers)
