"""What bench measures on a GPU only, on an imagined one: announced prompts, events, memory."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.plugins.cuda.streams import Event
from longlive_trt.runtime.bench.lane import BenchSettings, Lane
from longlive_trt.runtime.bench.measurement import Measurements, measure
from longlive_trt.runtime.prompting.encoder import PromptContexts
from longlive_trt.runtime.session import Session
from tests.fakes.cuda import FakeCuda, Schedule
from tests.fakes.engines import put_in_place

SMALL = BenchSettings(blocks=2, switches=2, seconds=0.02, warmup=0, sessions=1, device="cuda")
SLOW_MS = 60.0

OnRun = dict[str, Callable[[], None]]
Install = Callable[[Schedule], FakeCuda]


@pytest.fixture(scope="module")
def video(video_bundle: Path) -> Bundle:
    """With a VAE and a text encoder."""
    return open_bundle(video_bundle)


@pytest.fixture(scope="module")
def bare(mini_bundle: Callable[[str], Path]) -> Bundle:
    return open_bundle(mini_bundle("relative"))


@pytest.fixture
def on_run() -> OnRun:
    """By graph: what happens on the thread that queues its work."""
    return {}


@pytest.fixture
def install(
    fake_cuda: Callable[..., FakeCuda], monkeypatch: pytest.MonkeyPatch, on_run: OnRun
) -> Install:
    def place(schedule: Schedule) -> FakeCuda:
        cuda = fake_cuda(schedule=schedule)
        put_in_place(cuda, monkeypatch, on_run)
        return cuda

    return place


def run(bundle: Bundle, **changes: Any) -> Measurements:
    return measure([bundle], replace(SMALL, **changes), lambda *_: None, lambda _text: None)


@pytest.mark.parametrize("schedule", ["lazy", "eager", 1])
def test_a_whole_run_gives_everything_back(
    video: Bundle, install: Install, schedule: Schedule
) -> None:
    cuda = install(schedule)
    (times,) = run(video).lanes
    assert (len(times.switches), len(times.announced)) == (2, 2)
    assert all(switch.encode_ms > 0 for switch in times.switches)
    for each in times.announced:
        assert each.encoding_ms > 0 and each.beside.encode_ms == each.alone.encode_ms == 0
        assert each.switch.recache_ms > 0 and len(each.switch.passes_ms) == 4
        assert each.alone.recache_ms == each.beside.recache_ms == 0
    assert cuda.leaks() == {}


@pytest.mark.parametrize("which", ["video", "bare"])
def test_an_announced_prompt_is_no_part_of_its_switch(
    which: str,
    install: Install,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install("eager")
    threads: list[str] = []
    encode = PromptContexts.of_states

    def slow(contexts: PromptContexts, states: Any) -> Any:
        threads.append(threading.current_thread().name)
        time.sleep(SLOW_MS / 1e3)
        return encode(contexts, states)

    monkeypatch.setattr(PromptContexts, "of_states", slow)
    step = Session.step

    def longer(session: Session) -> Any:
        time.sleep(1.5 * SLOW_MS / 1e3)
        return step(session)

    monkeypatch.setattr(Session, "step", longer)
    made = run(request.getfixturevalue(which), blocks=1, switches=1, seconds=0, sessions=0)
    (times,) = made.lanes
    assert "announced switches" in made.readings
    (new,), (announced,) = times.switches, times.announced
    assert new.wall_ms > 2.5 * SLOW_MS
    assert announced.switch.encode_ms < SLOW_MS / 2
    assert announced.switch.wall_ms < new.wall_ms
    assert threads[-1].startswith("prompts")


def test_a_prompt_that_is_not_ready_is_waited_for(
    bare: Bundle, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("eager")
    encode = PromptContexts.of_states

    def very_slow(contexts: PromptContexts, states: Any) -> Any:
        time.sleep(0.4)
        return encode(contexts, states)

    monkeypatch.setattr(PromptContexts, "of_states", very_slow)
    (times,) = run(bare, blocks=1, switches=1, seconds=0, sessions=0).lanes
    (announced,) = times.announced
    assert announced.switch.encode_ms > 100
    parts = announced.switch.rest_ms + announced.switch.encode_ms
    assert parts < announced.switch.wall_ms


def test_nothing_is_announced_on_a_cpu(video: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lane, "announced_switch", lambda *_: pytest.fail("announced"))
    made = run(video, device="cpu", seconds=0, sessions=0)
    assert len(made.lanes[0].switches) == 2 and made.lanes[0].announced == []
    assert "announced switches" not in made.readings
    assert all(each.gpu_bytes is None for each in made.lanes[0].loading.values())


def test_a_text_encoder_is_in_memory_only_while_it_is_needed(
    video: Bundle, install: Install, on_run: OnRun
) -> None:
    install("eager")
    encoded: list[str] = []
    on_run["text"] = lambda: encoded.append("text")
    (times,) = run(video, blocks=1, switches=1, seconds=0, low_memory=True).lanes
    assert times.loading["text"].seconds < 0.05
    # One at the start, two to warm up, one that is new and one that was announced.
    assert len(encoded) == 5
    assert times.switches[0].encode_ms > 0


def test_events_are_given_back_when_the_run_ends(
    bare: Bundle, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = install("eager")
    closed: list[int] = []
    close = Event.close
    monkeypatch.setattr(Event, "close", lambda event: [closed.append(1), close(event)])
    run(bare, blocks=3, switches=0, seconds=0, sessions=0)
    # Two for each of five passes and for the block around them, three times.
    assert len(closed) >= 2 * 6 * 3
    assert "events" not in cuda.leaks()
