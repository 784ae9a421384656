"""Live videos on an imagined GPU: several threads and streams, and the same bits as on a CPU."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from longlive_trt.serving.engine import load_model
from longlive_trt.serving.live.generator import Generator
from longlive_trt.serving.live.session import LiveSession
from longlive_trt.serving.live.wish import Wish
from longlive_trt.serving.settings import Settings
from tests.fakes.cuda import FakeCuda, Schedule
from tests.fakes.engines import put_in_place
from tests.serving.test_bits import Witness, assert_same

Install = Callable[[Schedule], FakeCuda]


@pytest.fixture
def install(fake_cuda: Callable[..., FakeCuda], monkeypatch: pytest.MonkeyPatch) -> Install:
    def place(schedule: Schedule) -> FakeCuda:
        cuda = fake_cuda(schedule=schedule)
        put_in_place(cuda, monkeypatch)
        return cuda

    return place


@pytest.mark.parametrize("schedule", ["lazy", pytest.param("eager", marks=pytest.mark.exhaustive)])
def test_cuts_and_drafts_of_two_sessions(
    video_bundle: Path, tmp_path: Path, install: Install, schedule: Schedule
) -> None:
    cuda = install(schedule)
    generator, sessions = Generator(), list[tuple[LiveSession, Witness]]()
    with load_model(video_bundle, "cuda") as model:
        open_one: Any = partial(LiveSession, model, generator)
        for seed in (1, 2):
            seen = Witness()
            shared = (seen, seen, Settings(), tmp_path)
            wish = Wish(prompt="a red car at dusk", seed=seed)
            sessions.append((open_one(wish, *shared, on_block=seen.on_block), seen))
        for session, seen in sessions:
            seen.wait_for(3)
            session.draft("a blue boat at night")
        time.sleep(1.0)
        for session, _ in sessions:
            session.interact("a blue boat at night")
            session.draft("something else")
        for session, seen in sessions:
            seen.wait_for(6)
            folder = tmp_path / str(session.seed)
            folder.mkdir()
            session.pause()
            # The recipe is made on the CPU: the bits are the same.
            assert_same(session, seen, video_bundle, folder)
        for session, _ in sessions:
            session.close().result(30)
            session.discard()
        generator.close()
    cuda.finish_all()
    assert cuda.queues.fault is None
    assert cuda.leaks() == {}
