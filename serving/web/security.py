"""Who may ask at all: host, origin, size, and the server's own token; before any route."""

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from longlive_trt.serving.problems import ProblemError
from longlive_trt.serving.settings import Settings

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' blob:; media-src 'self' blob:; object-src 'none'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Guard:
    """Wraps the application."""

    def __init__(self, app: App, settings: Settings) -> None:
        self._app, self._settings = app, settings
        own = _LOOPBACK if settings.is_loopback else (settings.host,)
        self._hosts = {name.lower() for name in (*own, *settings.allowed_hosts)}
        self._any_host = settings.host in ("0.0.0.0", "::") and not settings.allowed_hosts  # noqa: S104

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = headers_of(scope)
        send = _with_headers(send)
        try:
            self._check_host(headers)
            self._check_origin(headers)
            self._check_length(headers)
        except ProblemError as problem:
            await refuse(scope, receive, send, problem)
            return
        if scope["type"] == "http":
            receive = self._limited(receive)
        await self._app(scope, receive, send)

    def _check_host(self, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if not self._any_host and _name(host) not in self._hosts:
            raise ProblemError(
                "forbidden_host",
                "This server does not go by that name; --allow-host NAME lets it.",
            )

    def _check_origin(self, headers: dict[str, str]) -> None:
        """A page of another site must not reach in; programs send no origin."""
        origin = headers.get("origin")
        if origin is None:
            return
        parts = urlsplit(origin)
        same = parts.netloc.lower() == headers.get("host", "").lower()
        allowed = _name(parts.netloc) in {name.lower() for name in self._settings.allowed_hosts}
        if parts.scheme not in ("http", "https") or not (same or allowed):
            raise ProblemError("forbidden_origin", "Pages of other sites may not use this server.")

    def _check_length(self, headers: dict[str, str]) -> None:
        length = headers.get("content-length", "0")
        most = self._settings.limits.message_bytes
        if not length.isdigit() or int(length) > most:
            raise _too_large(most)

    def _limited(self, receive: Receive) -> Receive:
        most, taken = self._settings.limits.message_bytes, 0

        async def limited() -> Event:
            nonlocal taken
            event = await receive()
            taken += len(event.get("body", b""))
            if taken > most:
                raise _too_large(most)
            return event

        return limited


def headers_of(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def bearer(headers: dict[str, str]) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def same_token(one: str, other: str) -> bool:
    """In a time that does not tell how much of it is right."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


def require_access(settings: Settings, token: str | None) -> None:
    """The server's token, where it has one."""
    wanted = settings.token
    if wanted is None:
        return
    if token is None or not same_token(token, wanted):
        raise ProblemError(
            "unauthorized",
            "This server asks for its access token, which was set where it was started.",
        )


async def refuse(scope: Scope, receive: Receive, send: Send, problem: ProblemError) -> None:
    """A JSON answer; a socket is refused before it is one."""
    body = json.dumps(problem.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    kind = "http.response"
    if scope["type"] == "websocket":
        await receive()
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008, "reason": problem.code})
            return
        kind = "websocket.http.response"
    await send({"type": f"{kind}.start", "status": problem.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body, "more_body": False})


def _with_headers(send: Send) -> Send:
    added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def sending(event: Event) -> None:
        if event["type"] == "http.response.start":
            event = {**event, "headers": [*event.get("headers", []), *added]}
        await send(event)

    return sending


def _name(host: str) -> str:
    """A host without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _too_large(most: int) -> ProblemError:
    return ProblemError("too_large", f"A message may have {most >> 10} KiB at most.")
