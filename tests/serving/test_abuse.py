"""Clients that mean harm, or know no better: the server stays up, and whole."""

import json
import os
import random
import socket
import struct
import threading
import time
from typing import Any

import psutil
import pytest
from websockets.exceptions import WebSocketException

from longlive_trt.serving.settings import Limits
from tests.fakes.live import FakeModel
from tests.serving.conftest import Running, StartServer

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(600)]


def assert_well(live: Running) -> None:
    """New sessions start, and nothing is left of the old ones."""
    end = time.monotonic() + 20
    while live.ask("GET", "/ready").json["running"]:
        assert time.monotonic() < end
        time.sleep(0.1)
    with live.connect().connection as connection:
        connection.send('{"type": "session.start", "prompt": "x", "format": "h264"}')
        assert json.loads(connection.recv(timeout=10))["type"] == "video.start"
        connection.send('{"type": "session.stop"}')
    end = time.monotonic() + 10
    while live.model.open_videos:
        assert time.monotonic() < end
        time.sleep(0.05)


def frame(opcode: int, payload: bytes, *, masked: bool = True, length: int | None = None) -> bytes:
    """A socket frame as RFC 6455 has it, or not quite."""
    size = len(payload) if length is None else length
    head = bytes([0x80 | opcode])
    flag = 0x80 if masked else 0
    if size < 126:
        head += bytes([flag | size])
    elif size < 1 << 16:
        head += bytes([flag | 126]) + struct.pack(">H", size)
    else:
        head += bytes([flag | 127]) + struct.pack(">Q", size)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))


def upgraded(live: Running) -> socket.socket:
    raw = socket.create_connection(("localhost", live.port), timeout=5)
    raw.sendall(
        f"GET /v1/realtime/video HTTP/1.1\r\nHost: localhost:{live.port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    assert b"101" in raw.recv(4096).split(b"\r\n")[0]
    return raw


@pytest.mark.parametrize("seed", range(3))
def test_random_and_truncated_frames(start_server: StartServer, seed: int) -> None:
    live = start_server(return_s=0.2)
    chance = random.Random(seed)
    texts = [
        b'{"type": "session.start", "prompt": "x", "format": "h264"}',
        b'{"type": "session.interaction", "prompt": "y"}',
        b'{"type": "playback.shown", "epoch": 9007199254740991, "frame": 9007199254740991}',
        b'{"type": "timeline.edit", "cue": 1, "frame": 9007199254740991}',
        b'{"type": "prompt.draft", "prompt": "\\ud800"}',
        b"[" * 5000,
        b"\xff\xfe\xfd",
    ]
    for _ in range(60):
        raw = upgraded(live)
        try:
            for _ in range(chance.randrange(1, 8)):
                what = chance.random()
                if what < 0.5:
                    data = frame(1, chance.choice(texts))
                elif what < 0.7:
                    data = frame(chance.randrange(16), os.urandom(chance.randrange(300)))
                elif what < 0.8:
                    data = frame(1, b"x", length=1 << chance.randrange(8, 63))
                elif what < 0.9:
                    data = frame(1, b"unmasked", masked=False)
                else:
                    data = os.urandom(chance.randrange(200))
                raw.sendall(data[: chance.choice((len(data), chance.randrange(1, len(data) + 1)))])
        except OSError:
            pass
        finally:
            raw.close()
    assert_well(live)


def test_a_thousand_connections(start_server: StartServer) -> None:
    live = start_server(limits=Limits(sockets=100, start_timeout_s=3), return_s=0.2)
    held: list[Any] = []
    refused = 0
    files = psutil.Process().num_fds()
    for _ in range(1000):
        try:
            held.append(upgraded(live))
        except (OSError, AssertionError):
            refused += 1
    assert len(held) + refused == 1000
    # Those over the limit were told and closed; the others are closed when they say nothing.
    time.sleep(4)
    for raw in held:
        raw.close()
    time.sleep(1)
    assert psutil.Process().num_fds() < files + 20
    assert_well(live)


def test_requests_that_never_end(live: Running) -> None:
    slow = []
    for _ in range(50):
        raw = socket.create_connection(("localhost", live.port), timeout=5)
        raw.sendall(
            f"POST /v1/sessions HTTP/1.1\r\nHost: localhost:{live.port}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode()
        )
        slow.append(raw)
    assert live.ask("GET", "/health").status == 200
    assert_well(live)
    for raw in slow:
        raw.close()


def test_many_clients_at_once_that_do_whatever(start_server: StartServer) -> None:
    live = start_server(sessions=3, return_s=0.2, limits=Limits(waiting=5))

    def client(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(4):
            try:
                one = live.start(f"car {seed}", format=chance.choice(("h264", "jpeg", "m4s")))
                for _ in range(chance.randrange(12)):
                    kind = chance.choice(("session.interaction", "prompt.draft", "session.restart"))
                    one.send(kind, prompt=f"boat {chance.random()}")
                    one.send(chance.choice(("session.pause", "session.resume", "session.ping")))
                    one.for_seconds(chance.random() * 0.2)
                if chance.random() < 0.5:
                    one.send("session.stop")
                one.connection.close()
            except (WebSocketException, OSError, TimeoutError):
                continue

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_well(live)


def test_schemathesis_finds_nothing(start_server: StartServer) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="scripts/live_tools.sh installs it")
    live = start_server(FakeModel(), sessions=50, limits=Limits(videos=10_000, waiting=10_000))
    schema = schemathesis.openapi.from_url(f"http://localhost:{live.port}/openapi.json")
    checked = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path == "/v1/admin/drain":
            continue
        from hypothesis import HealthCheck, given, settings

        @given(case=operation.as_strategy())
        @settings(
            max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        def check(case: Any) -> None:
            response = case.call(base_url=f"http://localhost:{live.port}")
            assert response.status_code < 500 or response.status_code == 503, response.text
            if response.status_code >= 400:
                assert set(response.json()) == {"error"}, response.text

        check()
        checked += 1
    assert checked >= 15
    assert live.ask("GET", "/health").status == 200
