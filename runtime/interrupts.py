"""Ctrl-C once finishes the block and keeps everything; twice stops at once. A terminal that goes
away asks for the same.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from longlive_trt.console.signals import stopping_signals


class StopRequest:
    def __init__(self) -> None:
        self.is_asked = False


@contextmanager
def stop_on_signals(notify: Callable[[str], None]) -> Iterator[StopRequest]:
    request = StopRequest()

    def handle(_number: int, _frame: FrameType | None) -> None:
        if request.is_asked:
            raise KeyboardInterrupt
        request.is_asked = True
        # The signal may have come while something else was being said, to the same stream.
        with suppress(RuntimeError):
            notify("stopping after this block; press Ctrl-C again to stop at once")

    numbers = stopping_signals()
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
