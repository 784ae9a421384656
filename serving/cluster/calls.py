"""What gateways and hosts say to each other; plain values, whatever carries them."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from longlive_trt.serving.cluster.placement import HostView
from longlive_trt.serving.problems import Code
from longlive_trt.serving.protocol import Format


class HostLostError(Exception):
    """The host does not answer any more, or has never heard of what it was asked for."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """A session that a host is to take."""

    session: str
    token: str
    fence: int = 1
    gateway: str = ""
    waiting: int = 0
    """So many wait at this gateway: hosts are added by it."""
    bundle_key: str | None = None
    """Of a session that ran before."""
    prompt: str = ""
    seed: int | None = None
    switch: str = "exact"
    timeline: tuple[tuple[int, str], ...] = ()
    frames: int | None = None
    resume: str | None = None
    decoder: str | None = None
    epoch: int = 0
    frame: int = 0
    """The first picture that no viewer has."""
    cues: tuple[tuple[int, int, str], ...] = ()
    end: int | None = None
    restarts: int = 0
    is_paused: bool = False
    """By a person."""
    is_job: bool = False
    """A whole video, which nobody watches."""
    for_jpeg: bool = False
    """The first viewer takes no video."""
    created_s: float | None = None


@dataclass(frozen=True)
class Opened:
    session: str
    token: str
    fence: int
    seed: int
    switch: str
    view: HostView


@dataclass(frozen=True)
class Refused:
    why: Literal["full", "owned", "problem"]
    view: HostView
    code: Code = "conflict"
    sentence: str = ""


@dataclass(frozen=True)
class Joining:
    """A viewer of a session, and what it has of it already."""

    session: str
    token: str
    viewer: str
    format: Format
    frame: int = 0
    chunks: int = 0
    pictures: int = 0
    goes_on: bool = False


@dataclass(frozen=True)
class Request:
    """By HTTP."""

    method: str
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    scheme: str = "http"
    root_path: str = ""


@dataclass(frozen=True)
class Head:
    """The beginning of an answer by HTTP; its body follows in pieces."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]


Item = str | bytes | int
"""A text, a binary message, or the code with which a socket closes."""


class Hosts(Protocol):
    """All hosts, as a gateway reaches them; what fails on the way is a :class:`HostLostError`."""

    async def open(self, opening: Opening) -> Opened | Refused:
        """At the host with the most room."""
        ...

    def watch(self, joining: Joining) -> AsyncIterator[Sequence[Item]]: ...

    async def tell(self, session: str, viewer: str, items: Sequence[Item]) -> None:
        """Texts for the session, and how many bytes of its pictures were passed on (numbers)."""
        ...

    def ask(self, request: Request, session: str | None) -> AsyncIterator[Head | bytes]:
        """At the session's owner, or at any; a :class:`Head`, then bytes."""
        ...

    async def drain(self, host: str, *, undo: bool = False) -> list[str]: ...

    def views(self) -> list[HostView]: ...

    @property
    def free(self) -> int: ...

    def own(self, session: str, host: str | None) -> None:
        """Where a session is from now on, as far as this gateway knows."""
        ...
