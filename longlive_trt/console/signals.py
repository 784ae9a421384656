"""When Ctrl-C may come, and what is said before a fault ends the process."""

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Let Ctrl-C wait: inside an encoder it would lose packets, inside a rename the video, and
    inside a callback from C it would be lost itself.
    """
    numbers = [n for n in stopping_signals() if signal.getsignal(n) is not None]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    arrived: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        arrived.append(number)

    previous = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


@contextmanager
def bus_errors_told() -> Iterator[None]:
    """A file that is mapped into memory, as weights are, and cut meanwhile ends the process: with
    a line and an exit code, and not with a signal.

    The handler is one of C's, because Python's own are only called once the faulting code goes on.
    """
    libc, handler = ctypes.CDLL(None), _BUS_ERROR_HANDLER
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = ctypes.c_int, ctypes.c_void_p
    previous = libc.signal(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        libc.signal(signal.SIGBUS, previous)


def _tell_bus_error(_number: int) -> None:
    text = (
        b"\nerror: a file that is being read was cut short by somebody, most likely weights of the "
        b"bundle; fetch or build it again\n"
    )
    try:
        os.write(2, text)
    finally:
        os._exit(1)


_BUS_ERROR_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)(_tell_bus_error)


def stopping_signals() -> list[signal.Signals]:
    """``nohup`` has the last one ignored, and it stays so."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return numbers[:-1] if is_ignored else numbers
