"""Memory of sessions that are over goes back to the system."""

import ctypes
import subprocess
import sys
import time

import pytest

from longlive_trt.serving.operation import memory
from tests.serving.conftest import Running

IN_HEAPS_OF_THREADS = """
import ctypes, threading, psutil
from longlive_trt.serving.operation.memory import give_back

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def own_mib():
    return psutil.Process().memory_full_info().uss >> 20

def fill():
    blocks = [libc.malloc(1 << 16) for _ in range(640)]
    for block in blocks:
        ctypes.memset(ctypes.c_void_p(block), 1, 1 << 16)
    # The last one keeps the heap from shrinking, as it does in a server.
    for block in blocks[:-1]:
        libc.free(block)

for _ in range(4):
    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
before = own_mib()
give_back()
print(before - own_mib())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="a C library of its own")
def test_heaps_of_threads_that_are_gone() -> None:
    made = subprocess.run(
        [sys.executable, "-c", IN_HEAPS_OF_THREADS], check=True, capture_output=True, text=True
    )
    assert int(made.stdout) > 20


def test_a_session_that_ends(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []
    monkeypatch.setattr(memory, "give_back", lambda: given.append(True))
    socket = live.start()
    socket.picture()
    assert not given
    socket.send("session.stop")
    end = time.monotonic() + 10
    while not given and time.monotonic() < end:
        time.sleep(0.05)
    assert given
