"""A server on a free port in a thread, with a model that paints, and sockets to talk to it."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("websockets")

from websockets.sync.client import ClientConnection, connect

from longlive_trt.serving.engine import LiveModel
from longlive_trt.serving.protocol import Picture
from longlive_trt.serving.server import Server, bind, make_server
from longlive_trt.serving.settings import Settings
from tests.fakes.live import FakeModel


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of the error."""
        return str(self.json["error"]["code"])


class Socket:
    """What a client sends, and all that came."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.messages: list[dict[str, Any]] = []
        self.pictures: list[Picture] = []
        self.binary: list[bytes] = []

    def send(self, type: str, **values: Any) -> None:  # noqa: A002
        self.connection.send(json.dumps({"type": type, **values}))

    def take(self, timeout: float = 5.0) -> dict[str, Any] | Picture | bytes:
        data = self.connection.recv(timeout=timeout)
        if isinstance(data, str):
            self.messages.append(json.loads(data))
            return self.messages[-1]
        self.binary.append(data)
        if data[:1] == b"\x01" and data[4:8] not in (b"ftyp", b"moof"):
            self.pictures.append(Picture.unpack(data))
            return self.pictures[-1]
        return data

    def wait(self, type: str, timeout: float = 10.0, **values: Any) -> dict[str, Any]:  # noqa: A002
        """The next message of this type; what comes before it is kept."""
        end = time.monotonic() + timeout
        while True:
            message = self.take(max(0.01, end - time.monotonic()))
            wanted = {"type": type, **values}
            if isinstance(message, dict) and wanted.items() <= message.items():
                return message

    def picture(self, timeout: float = 10.0) -> Picture:
        end = time.monotonic() + timeout
        while True:
            picture = self.take(max(0.01, end - time.monotonic()))
            if isinstance(picture, Picture):
                return picture

    def for_seconds(self, seconds: float) -> None:
        """Take whatever comes."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                self.take(left)
            except TimeoutError:
                return

    def close_code(self, timeout: float = 5.0) -> int | None:
        from websockets.exceptions import ConnectionClosed

        try:
            while True:
                self.take(timeout)
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else None


@dataclass
class Running:
    server: Server
    port: int
    model: Any
    settings: Settings
    listening: socket.socket
    _open: ExitStack = field(default_factory=ExitStack)

    @property
    def rooms(self) -> Any:
        return self.server._live.rooms

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("localhost", self.port, timeout=20)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = dict(headers or {})
        if data is not None:
            headers.setdefault("content-type", "application/json")
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def connect(self, **options: Any) -> Socket:
        # A client that does not read sees no goodbye either.
        options = {"max_size": 1 << 24, "close_timeout": 0.2, **options}
        address = f"ws://localhost:{self.port}/v1/realtime/video"
        return Socket(self._open.enter_context(connect(address, **options)))

    def start(self, prompt: str = "a red car", **values: Any) -> Socket:
        socket = self.connect()
        socket.send("session.start", prompt=prompt, **{"format": "h264", "seed": 1, **values})
        return socket

    def stop(self) -> None:
        self._open.close()
        self.server.should_exit = True


StartServer = Callable[..., Running]


def require_shown_is_no_fault(waiting: Socket) -> None:
    """Of who waits for a seat; to steer without one is a fault, and said."""
    waiting.wait("session.queued")
    waiting.send("playback.shown", epoch=0, frame=9)
    waiting.send("session.interaction", prompt="a boat")
    # The first of the two is no fault.
    assert "waits for its turn" in waiting.wait("error")["message"]
    waiting.send("session.ping", sent_ms=1)
    waiting.wait("session.pong")
    assert [message["type"] for message in waiting.messages].count("error") == 1


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    with servers(tmp_path / "data") as start:
        yield start


@contextmanager
def servers(data: Path) -> Iterator[StartServer]:
    """Options are those of ``Settings``; ``model`` is what is served."""
    running: list[tuple[Running, threading.Thread]] = []

    def start(model: LiveModel | None = None, *, wait: bool = True, **options: Any) -> Running:
        served = model or FakeModel()
        settings = replace(Settings(port=0, sessions=4, data=data), **options)
        listening = bind(settings)
        server = make_server(settings, lambda: served)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        one = Running(server, listening.getsockname()[1], served, settings, listening)
        running.append((one, thread))
        end = time.monotonic() + 20
        while wait and one.ask("GET", "/ready").status != 200:
            assert time.monotonic() < end
            time.sleep(0.01)
        return one

    yield start
    for one, _ in running:
        one.stop()
    for one, thread in running:
        thread.join(20)
        one.listening.close()
        assert not thread.is_alive()


@pytest.fixture
def live(start_server: StartServer) -> Running:
    return start_server()
