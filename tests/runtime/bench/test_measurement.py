"""What is measured when: whose runs are whose, the steady state, turns, and interrupts."""

import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longlive_trt.engines import loader
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.errors import BundleError, EngineError, PluginError, UsageError
from longlive_trt.exports import GraphInfo
from longlive_trt.runtime.bench import lane as bench_lane
from longlive_trt.runtime.bench import measurement as bench
from longlive_trt.runtime.bench import timing as bench_timing
from longlive_trt.runtime.bench.lane import WARM_UP_SWITCHES, BenchSettings, Lane, LaneTimes
from longlive_trt.runtime.bench.measurement import Measurements, measure
from longlive_trt.runtime.bench.timing import TRANSFORMER, Recorder, TimedEngines
from longlive_trt.runtime.session import Session
from tests.runtime.bench.samples import NumberingStopwatch

SMALL = BenchSettings(blocks=3, switches=2, seconds=0.05, warmup=0, sessions=2)
PASSES = 5


def run(*bundles: Bundle, settings: BenchSettings = SMALL, **changes: Any) -> Measurements:
    return measure(bundles, replace(settings, **changes), lambda *_: None, lambda _text: None)


@pytest.fixture(scope="module")
def relative(mini_bundle: Callable[[str], Path]) -> Bundle:
    return open_bundle(mini_bundle("relative"))


@pytest.fixture(scope="module")
def absolute(mini_bundle: Callable[[str], Path]) -> Bundle:
    return open_bundle(mini_bundle("absolute"))


@pytest.fixture
def numbering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_timing, "HostStopwatch", NumberingStopwatch)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Session, int]]:
    """The session and the first frame of every block made, in order."""
    made: list[tuple[Session, int]] = []
    original = Session.step

    def step(session: Session) -> Any:
        made.append((session, session.ring.next_frame))
        return original(session)

    monkeypatch.setattr(Session, "step", step)
    return made


@pytest.mark.gpu
def test_a_gpu_is_measured_by_its_events(relative: Bundle) -> None:
    try:
        loader.require_runnable(relative, "cuda")
    except (BundleError, EngineError) as error:
        pytest.skip(str(error))
    with TimedEngines(relative, "cuda") as timed:
        with timed.recorder.timing(TRANSFORMER):
            timed.engines.gpu.make_current()
        timed.engines.stream(TRANSFORMER).synchronize()
        (idle_ms,) = timed.recorder.durations_ms().by_label[TRANSFORMER]
        assert 0 <= idle_ms < 5
    (times,) = run(relative, device="cuda").lanes
    assert len(times.blocks) == 3 and len(times.intervals_ms) > 0
    for blocks, passes in ((times.blocks, PASSES), (times.switches, PASSES - 1)):
        assert all(ms > 0 for block in blocks for ms in block.passes_ms)
        assert {len(block.passes_ms) for block in blocks} == {passes}
    for block in (*times.blocks, *times.switches):
        assert sum(block.passes_ms) < block.transformer_ms < block.wall_ms
    assert all(switch.recache_ms > 0 and switch.encode_ms > 0 for switch in times.switches)


# ---- which run belongs to what ---------------------------------------------------------------


def test_runs_are_told_apart_by_their_order(relative: Bundle, numbering: None) -> None:
    (times,) = run(relative).lanes
    first, *_, last = times.blocks
    assert [len(block.passes_ms) for block in times.blocks] == [PASSES] * 3
    # The clean pass is the one before: it comes first.
    clean = first.passes_ms[-1]
    assert first.passes_ms == (*(clean + n for n in range(1, PASSES)), clean)
    assert last.passes_ms[0] == first.passes_ms[0] + 2 * PASSES
    assert all(block.recache_ms == block.encode_ms == block.vae_ms == 0 for block in times.blocks)
    one, two = times.switches
    # Each is a re-cache, which makes the clean pass needless, and a block; the first two are not
    # counted.
    assert one.recache_ms == last.passes_ms[-2] + 1 + 2 * PASSES
    assert one.passes_ms[0] == one.recache_ms + 1
    assert two.recache_ms == one.passes_ms[-1] + 1
    assert (one.encode_ms, two.encode_ms) == (3.0, 4.0)
    assert first.transformer_ms + 1 == times.blocks[1].transformer_ms
    assert times.graph_runs_ms["step"] == sorted(
        ms for block in times.blocks for ms in block.passes_ms
    )
    assert times.graph_runs_ms["prompt"] == [3.0, 4.0]
    assert "vae_next" not in times.graph_runs_ms


def test_a_step_that_runs_in_one_has_no_passes(
    relative: Bundle, numbering: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(Recorder):
        def timing(self, label: str) -> Any:
            return super().timing("whole" if label == "step" else label)

    monkeypatch.setattr(bench_timing, "Recorder", Elsewhere)
    (times,) = run(relative).lanes
    assert [block.passes_ms for block in times.blocks] == [()] * 3
    assert times.blocks[1].transformer_ms > 0
    assert times.switches[0].recache_ms == 0


def test_parts_add_up_to_the_whole(video_bundle: Path) -> None:
    require_parts(open_bundle(video_bundle))


@pytest.mark.exhaustive
def test_engines_take_most_of_the_time_of_a_real_model(tiny_bundle: Path) -> None:
    times = require_parts(open_bundle(tiny_bundle))
    assert times.first_frame_ms[0] > times.blocks[0].transformer_ms
    for one in (*times.blocks, *times.switches):
        assert one.rest_ms < one.wall_ms / 2


def require_parts(bundle: Bundle) -> LaneTimes:
    (times,) = run(bundle, blocks=1, switches=1, sessions=1, seconds=0).lanes
    (block,), (switch,) = times.blocks, times.switches
    assert block.vae_ms > 0 and block.encode_ms == block.recache_ms == 0
    assert sum(block.passes_ms) < block.transformer_ms < block.wall_ms
    assert 0 < block.between_passes_ms < block.transformer_ms
    for one in (block, switch):
        parts = (sum(one.passes_ms), one.recache_ms, one.vae_ms, one.encode_ms, one.rest_ms)
        assert sum(parts) == pytest.approx(one.wall_ms)
        assert one.rest_ms > 0
    assert switch.recache_ms > 0 and switch.encode_ms > 0
    assert len(times.graph_runs_ms["text"]) == len(times.graph_runs_ms["prompt"]) == 1
    assert len(times.graph_runs_ms["vae_next"]) == 3
    assert len(times.first_frame_ms) == len(times.open_ms) == 1
    return times


# ---- the steady state ------------------------------------------------------------------------


@pytest.mark.parametrize(("warmup", "first"), [(0, 5), (7, 7)])
def test_nothing_is_counted_before_the_window_is_full(
    relative: Bundle, steps: list[tuple[Session, int]], warmup: int, first: int
) -> None:
    run(relative, warmup=warmup, sessions=0, seconds=0)
    frames = [frame for _, frame in steps]
    # Blocks of three frames: those before the window is full, then what is counted.
    assert frames == [3 * number for number in range(first + 3 + WARM_UP_SWITCHES + 2)]


def test_sessions_that_end_are_followed_by_others(
    absolute: Bundle, steps: list[tuple[Session, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_lane, "longest_session", lambda _: 11)
    monkeypatch.setattr(bench, "longest_session", lambda _: 11)
    made = run(absolute, blocks=6, switches=2, seconds=0.2, sessions=1)
    (times,) = made.lanes
    assert (len(times.blocks), len(times.switches)) == (6, 2)
    assert sum(times.intervals_ms) >= 200
    # Five blocks fill a window; the rest is left for the pipeline.
    assert len({id(session) for session, _ in steps}) > 2
    assert max(frame for _, frame in steps) < 11 * 3


def test_absolute_positions_bound_a_session(absolute: Bundle, relative: Bundle) -> None:
    assert bench_lane.longest_session(absolute.config) == 341
    assert bench_lane.longest_session(relative.config) is None
    with pytest.raises(UsageError, match=r"--warmup 337.*341 blocks.*warm up less"):
        bench.check_measurable([absolute], replace(SMALL, warmup=337))
    bench.check_measurable([absolute], replace(SMALL, warmup=336))


def test_phases_that_are_not_wanted_do_not_run(
    relative: Bundle, steps: list[tuple[Session, int]]
) -> None:
    made = run(relative, blocks=1, switches=0, seconds=0)
    assert list(made.readings) == ["loading", "steady state"]
    assert len(steps) == 5 + 1
    (times,) = made.lanes
    assert times.switches == times.intervals_ms == times.first_frame_ms == []
    assert all(len(found) >= 2 and found[0].process_bytes > 1e6 for found in made.readings.values())


# ---- what a bundle lacks ---------------------------------------------------------------------


def test_what_a_bundle_lacks_is_said(relative: Bundle) -> None:
    told: list[str] = []
    made = measure([relative], replace(SMALL, seconds=0), lambda *_: None, told.append)
    assert made.notices == told and made.decoded is False
    assert "no VAE inside" in told[0] and "random text states" in told[1]
    assert run(relative, decode=False, switches=0, seconds=0).notices == []


def test_random_prompts_differ(relative: Bundle, numbering: None) -> None:
    lane = Lane(relative, SMALL, decode=False)
    with lane:
        one, two, again = (
            lane._prompts.numbered(number).context()["context_v.0"] for number in (1, 2, 1)
        )
    assert (one == again).all() and not (one == two).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window_frames": -1}, ("window_frames is -1", "no steady state")),
        ({"sink_frames": 4}, ("sink_frames",)),
    ],
)
def test_models_without_a_steady_state(
    relative: Bundle, change: dict[str, int], words: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as caught:
        run(changed(relative, **change))
    assert all(word in str(caught.value) for word in words)


def test_a_vae_alone_cannot_be_measured(relative: Bundle) -> None:
    without = replace(relative.manifest, graphs={"vae_first": GraphInfo((), ())})
    with pytest.raises(UsageError, match="measuring needs the transformer"):
        run(replace(relative, manifest=without))


def test_a_gpu_that_is_not_there(relative: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_ordinal: int = 0) -> None:
        raise PluginError("no driver")

    monkeypatch.setattr(loader, "device_facts", missing)
    engine = replace(relative.manifest.engine, target="sm90")
    for_gpu = replace(relative, manifest=replace(relative.manifest, engine=engine))
    with pytest.raises(BundleError, match=r"a GPU was asked for.*--device cpu"):
        run(relative, device="cuda")
    with pytest.raises(BundleError, match=r"engines for sm90.*no GPU"):
        run(for_gpu)
    with pytest.raises(BundleError, match="sm90 do not run on a CPU"):
        run(for_gpu, device="cpu")


# ---- two bundles -----------------------------------------------------------------------------


def test_two_bundles_take_turns(relative: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = relative, replace(relative)
    turns: list[str] = []
    for name in ("block", "switch"):
        original = getattr(Lane, name)

        def noted(lane: Lane, session: Session, name: str = name, original: Any = original) -> None:
            turns.append(f"{name} {'ab'[lane.bundle is second]}")
            original(lane, session)

        monkeypatch.setattr(Lane, name, noted)
    made = run(first, second, seconds=0)
    assert turns == [
        *("block a", "block b", "block b", "block a", "block a", "block b"),
        *("switch a", "switch b", "switch b", "switch a"),
    ]
    assert [len(times.blocks) for times in made.lanes] == [3, 3]


def test_bundles_of_other_models_are_not_compared(relative: Bundle, absolute: Bundle) -> None:
    with pytest.raises(UsageError, match=r"another model.*latent\.height is 6, and 4 there"):
        run(relative, absolute)
    fewer_steps = changed(relative, steps=(1000, 500))
    with pytest.raises(UsageError, match=r"rollout\.steps is \[1000, 500\]"):
        run(relative, fewer_steps)
    config = replace(relative.config, name="another name", fps=24.0)
    renamed = replace(relative, manifest=replace(relative.manifest, config=config))
    bench.check_measurable([relative, renamed], SMALL)


# ---- interrupts ------------------------------------------------------------------------------


@pytest.fixture
def interrupting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, Any], None]]:
    """Does something at the beginning of the n-th counted block."""

    def at(number: int, happening: Callable[[], None]) -> None:
        original = Lane.block

        def block(lane: Lane, session: Session) -> None:
            if len(lane._plain) == number:
                happening()
            original(lane, session)

        monkeypatch.setattr(Lane, "block", block)

    return at


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_keeps_the_blocks_so_far(relative: Bundle, interrupting: Any) -> None:
    interrupting(1, press_ctrl_c)
    told: list[str] = []
    made = measure([relative], SMALL, lambda *_: None, told.append)
    (times,) = made.lanes
    assert made.interrupted and (len(times.blocks), times.switches) == (2, [])
    assert any("stopping after this block" in text for text in told)
    assert "prompt switches" not in made.readings


def test_two_interrupts_end_it_at_once(relative: Bundle, interrupting: Any) -> None:
    interrupting(1, lambda: [press_ctrl_c(), press_ctrl_c()])
    made = run(relative)
    assert made.interrupted and len(made.lanes[0].blocks) == 1


def test_an_error_is_not_an_interrupt(relative: Bundle, interrupting: Any) -> None:
    def fail() -> None:
        raise EngineError("the GPU is gone")

    interrupting(1, fail)
    with pytest.raises(EngineError, match="the GPU is gone"):
        run(relative)
    assert not [thread for thread in threading.enumerate() if thread.name == "sampler"]


def changed(bundle: Bundle, **rollout: Any) -> Bundle:
    config = bundle.config
    config = replace(config, rollout=replace(config.rollout, **rollout))
    return replace(bundle, manifest=replace(bundle.manifest, config=config))
