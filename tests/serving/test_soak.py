"""Long runs: memory stays where it is. LONGLIVE_SOAK_S says how long."""

import gc
import os
import time

import psutil
import pytest

from tests.fakes.live import FakeModel
from tests.serving.conftest import StartServer

SECONDS = float(os.environ.get("LONGLIVE_SOAK_S", "60"))

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(SECONDS + 300)]


def test_memory_is_flat(start_server: StartServer) -> None:
    live = start_server(FakeModel(width=320, height=192), idle_s=1e9)
    socket = live.start()
    process = psutil.Process()
    begun, sizes, number = time.monotonic(), [], 0
    while (passed := time.monotonic() - begun) < SECONDS:
        socket.for_seconds(2)
        socket.messages.clear()
        socket.pictures.clear()
        socket.binary.clear()
        number += 1
        if number % 3 == 0:
            socket.send("prompt.draft", prompt=f"car {number}")
        if number % 3 == 1:
            socket.send("session.interaction", prompt=f"boat {number}")
        if number > 480:
            socket.send("session.restart")
            number = 0
        gc.collect()
        sizes.append((passed, process.memory_info().rss))
    settled = [size for passed, size in sizes if passed > SECONDS / 4]
    assert max(settled) - settled[0] < 24 << 20, settled
