"""What all tests of the runtime share."""

from collections.abc import Iterator
from functools import partial

import pytest

from longlive_trt.engines.loader import load_engine
from longlive_trt.runtime import assembly


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models as small as these are slower on more threads than on one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "load_engine", partial(load_engine, threads=1))
        yield
