"""Ranges for profilers such as Nsight Systems; without the package nvtx they cost nothing."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from typing import Any


@cache
def _nvtx() -> Any:
    try:
        return import_module("nvtx")
    except ImportError:
        return None


def mark(name: str) -> AbstractContextManager[Any]:
    """A range on the host's timeline."""
    nvtx = _nvtx()
    return nullcontext() if nvtx is None else nvtx.annotate(name, domain="longlive-trt")
