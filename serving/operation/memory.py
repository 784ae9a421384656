"""What ended sessions leave in the C library's heaps, given back to the system."""

import ctypes


def give_back() -> None:
    """Encoders and their threads allocate in heaps of their own, which glibc keeps once they are
    gone, and more of them with every session. Other C libraries keep none.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
