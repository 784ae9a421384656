"""Several videos side by side, each on one core."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch


@contextmanager
def single_threaded() -> Iterator[None]:
    """Engines opened here, and torch, have one thread each.

    Several threads for each of several videos would wait for each other.
    """
    import torch

    from longlive_trt.engines.loader import load_engine
    from longlive_trt.runtime import assembly

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with patch.object(assembly, "load_engine", partial(load_engine, threads=1)):
            yield
    finally:
        torch.set_num_threads(before)


def make_way(niceness: int) -> None:
    """Everything else on the machine comes first."""
    os.nice(max(0, niceness - os.nice(0)))
