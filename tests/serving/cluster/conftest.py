"""Fleets in this process, and sockets to their gateway."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from websockets.sync.client import connect

from tests.fakes.fleet import Fleet, start_fleet
from tests.serving.conftest import Answer, Socket

StartFleet = Callable[..., "Reached"]


class Reached:
    """A fleet, and what its callers do."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def connect(self) -> Socket:
        address = f"ws://localhost:{self.fleet.port}/v1/realtime/video"
        manager = connect(address, max_size=1 << 24, close_timeout=0.2)
        return Socket(self.fleet._open.enter_context(manager))

    def start(self, prompt: str = "a red car", **values: Any) -> Socket:
        socket = self.connect()
        socket.send("session.start", prompt=prompt, **{"format": "h264", "seed": 1, **values})
        return socket

    def ask(self, method: str, path: str, body: object = None, token: str | None = None) -> Answer:
        import http.client

        connection = http.client.HTTPConnection("localhost", self.fleet.port, timeout=20)
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["content-type"] = "application/json"
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartFleet]:
    fleets: list[Fleet] = []

    def begin(**options: Any) -> Reached:
        fleets.append(start_fleet(tmp_path, **options))
        return Reached(fleets[-1])

    yield begin
    for fleet in fleets:
        fleet.stop()
