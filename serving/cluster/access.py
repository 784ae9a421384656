"""Who may ask a gateway by HTTP, and how a host's answer comes back."""

from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends
from fastapi import Request as WebRequest
from fastapi.responses import StreamingResponse

from longlive_trt.serving.cluster.calls import Head, HostLostError, Request
from longlive_trt.serving.cluster.gateway import Gateway
from longlive_trt.serving.web.security import bearer, headers_of, require_access

_SKIPPED = {b"content-length", b"transfer-encoding", b"connection"}


def gateway_of(request: WebRequest) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


async def granted(request: WebRequest) -> Gateway:
    """For callers that show the fleet's token, where it has one."""
    gateway = gateway_of(request)
    require_access(gateway.settings, bearer(headers_of(request.scope)))
    return gateway


Granted = Annotated[Gateway, Depends(granted)]


async def asked(request: WebRequest) -> Request:
    """As it is passed on."""
    scope = request.scope
    return Request(
        method=request.method,
        path=scope["path"].removeprefix(scope.get("root_path", "")),
        query=scope["query_string"],
        headers=tuple((bytes(name), bytes(value)) for name, value in scope["headers"]),
        body=await request.body(),
        scheme=request.url.scheme,
    )


async def answer(
    gateway: Gateway, request: Request, *, session: str | None = None
) -> StreamingResponse:
    parts = gateway.hosts.ask(request, session)
    head = await anext(parts, None)
    if not isinstance(head, Head):
        raise HostLostError("no answer")
    response = StreamingResponse(_bodies(parts), status_code=head.status)
    response.raw_headers = [(name, value) for name, value in head.headers if name not in _SKIPPED]
    return response


async def answer_text(gateway: Gateway, request: Request, *, session: str | None = None) -> bytes:
    """A short one, whole; a host that has none is as good as gone."""
    response, data = await answer(gateway, request, session=session), b""
    if response.status_code >= HTTPStatus.BAD_REQUEST:
        raise HostLostError(f"it answered {response.status_code}")
    async for part in response.body_iterator:
        assert isinstance(part, bytes)
        data += part
    return data


async def _bodies(parts: AsyncIterator[Head | bytes]) -> AsyncIterator[bytes]:
    async for part in parts:
        assert isinstance(part, bytes)
        yield part
