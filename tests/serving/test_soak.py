"""Long runs: memory stays where it is. LONGLIVE_SOAK_S says how long."""

import gc
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest

from tests.fakes.live import FakeModel
from tests.serving.conftest import servers

SECONDS = float(os.environ.get("LONGLIVE_SOAK_S", "60"))

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(SECONDS + 300)]


def test_memory_is_flat(tmp_path: Path) -> None:
    """In a process of its own: this one's memory moves by what other tests have left behind."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        sizes = pool.submit(sizes_of_a_long_video, tmp_path / "data").result(SECONDS + 120)
    settled = [size for passed, size in sizes if passed > SECONDS / 4]
    assert len(settled) > 10
    assert max(settled) - settled[0] < 24 << 20, settled


def sizes_of_a_long_video(data: Path) -> list[tuple[float, int]]:
    """Of this process, with the seconds that had passed."""
    with servers(data) as start_server:
        live = start_server(FakeModel(width=320, height=192), idle_s=1e9)
        socket = live.start()
        process = psutil.Process()
        begun, number = time.monotonic(), 0
        sizes: list[tuple[float, int]] = []
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
    return sizes
