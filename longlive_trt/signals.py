"""When Ctrl-C may come."""

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


def stopping_signals() -> list[signal.Signals]:
    """``nohup`` has the last one ignored, and it stays so."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return numbers[:-1] if is_ignored else numbers
