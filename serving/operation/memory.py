"""What is over leaves memory in the C library's heaps; it is given back to the system."""

import asyncio
import ctypes

_LATER_S = 1.0


def give_back() -> None:
    """Encoders, threads and sockets allocate in heaps of their threads, which glibc keeps once they
    are gone, and more of them with every session. Other C libraries keep none.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Freed:
    """Told of what is over, gives its memory back a moment later, and that of others with it."""

    def __init__(self) -> None:
        self._giving: asyncio.Task[None] | None = None

    def more(self) -> None:
        if self._giving is None or self._giving.done():
            self._giving = asyncio.create_task(self._give())

    async def _give(self) -> None:
        await asyncio.sleep(_LATER_S)
        await asyncio.to_thread(give_back)
