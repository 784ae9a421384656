"""Engines on imagined GPUs, the same bundle's on the CPU, and the GPU that is there."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.errors import PluginError
from longlive_trt.plugins.cuda import driver
from longlive_trt.runtime.assembly import Engines
from tests.fakes.cuda import FakeCuda, Schedule
from tests.fakes.engines import put_in_place

OnGpus = Callable[..., tuple[FakeCuda, Engines]]


@pytest.fixture(scope="module")
def target() -> str:
    """What bundles are built for here."""
    try:
        major, minor = driver.device_facts(0).capability
    except PluginError as error:
        pytest.skip(str(error))
    if (major, minor) < (8, 0):
        pytest.skip(f"needs compute capability (8, 0), found {(major, minor)}")
    return f"sm{major}{minor}"


@pytest.fixture(scope="module")
def bundle(video_bundle: Path) -> Bundle:
    return open_bundle(video_bundle)


@pytest.fixture(scope="module")
def on_cpu(bundle: Bundle) -> Iterator[Engines]:
    with Engines(bundle, "cpu") as engines:
        yield engines


@pytest.fixture
def on_gpus(
    bundle: Bundle, fake_cuda: Callable[..., FakeCuda], monkeypatch: pytest.MonkeyPatch
) -> Iterator[OnGpus]:
    """Engines on GPUs of a schedule; all that was queued must have been sound in the end."""
    opened: list[tuple[FakeCuda, Engines]] = []

    def open_engines(
        schedule: Schedule, devices: int = 1, **options: Any
    ) -> tuple[FakeCuda, Engines]:
        cuda = fake_cuda(schedule=schedule, devices=devices)
        put_in_place(cuda, monkeypatch)
        opened.append((cuda, Engines(bundle, "cuda", **options)))
        return opened[-1]

    yield open_engines
    for cuda, engines in opened:
        engines.close()
        cuda.finish_all()
        assert cuda.queues.fault is None
