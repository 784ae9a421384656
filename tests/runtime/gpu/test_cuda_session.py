"""Sessions on an imagined GPU, whose work runs at any moment that is allowed, against the CPU's."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.errors import EngineError
from longlive_trt.plugins.cuda.streams import Rows
from longlive_trt.runtime.assembly import WHOLE_BLOCKS, Engines
from longlive_trt.runtime.decoding.cuda import CudaDecoder
from longlive_trt.runtime.noise import SeededNoise
from longlive_trt.runtime.ring import Recache
from longlive_trt.runtime.session import Block, Session
from longlive_trt.runtime.state import load_state, restore, save_state
from tests.fakes.cuda import Schedule
from tests.runtime.gpu.conftest import OnGpus

Array = np.ndarray[Any, np.dtype[Any]]
OnGpu = Callable[..., Engines]

SCHEDULES = [
    *("lazy", 1),
    *(pytest.param(schedule, marks=pytest.mark.exhaustive) for schedule in ("eager", 2)),
]
"""When the imagined GPU does its work: as late as may be, at once, or in a random order."""


@pytest.fixture
def on_gpu(on_gpus: OnGpus) -> OnGpu:
    return lambda schedule, **options: on_gpus(schedule, **options)[1]


@dataclass(frozen=True)
class Script:
    """A video to make."""

    blocks: int
    switches: dict[int, Recache] = field(default_factory=dict)
    batch: int = 1
    seed: int = 0
    lag: int = 1
    """So many blocks are made before a block's pictures are read."""


@dataclass
class Video:
    latents: list[Array] = field(default_factory=list)
    pixels: list[Array] = field(default_factory=list)

    def add(self, block: Block) -> None:
        self.latents.append(block.latents)
        self.pixels.append(block.pixels())


def open_session(
    engines: Engines, batch: int = 1, seed: int = 0, *, debug: bool = False
) -> Session:
    config = engines.bundle.config
    shape = (batch, config.rollout.frames_per_block, *config.latent_shape)
    noise = SeededNoise(seed, shape, len(config.rollout.steps))
    return engines.session(config, noise, batch=batch, debug=debug)


def states(engines: Engines, number: int, batch: int = 1) -> Array:
    sizes = engines.bundle.config.transformer
    shape = (batch, sizes.text_len, sizes.text_dim)
    return np.random.default_rng(number).standard_normal(shape, np.float32)


class Director:
    """Makes a video block by block, as a script says."""

    def __init__(self, engines: Engines, script: Script, *, debug: bool = False) -> None:
        self._engines, self._script = engines, script
        self._contexts = engines.contexts(script.batch)
        self._waiting: list[Block] = []
        self.session = open_session(engines, script.batch, script.seed, debug=debug)
        self.video = Video()

    def make_block(self) -> None:
        number, script = self.session.blocks_made, self._script
        if number == 0 or number in script.switches:
            given = states(self._engines, number + script.seed, script.batch)
            # Nobody else holds the context: its memory is the next one's.
            context = self._contexts.of_states(given)
            self.session.switch_prompt(context, script.switches.get(number, "exact"))
        self._waiting.append(self.session.step())
        if len(self._waiting) > script.lag:
            self.video.add(self._waiting.pop(0))

    def make(self, blocks: int) -> None:
        for _ in range(blocks):
            self.make_block()

    def finish(self) -> Video:
        while self._waiting:
            self.video.add(self._waiting.pop(0))
        self.session.close()
        return self.video


def make_video(engines: Engines, script: Script) -> Video:
    director = Director(engines, script)
    director.make(script.blocks)
    return director.finish()


def require_same(found: Video, expected: Video) -> None:
    for name in ("latents", "pixels"):
        pairs = zip(getattr(found, name), getattr(expected, name), strict=True)
        differing = [i for i, (one, other) in enumerate(pairs) if not np.array_equal(one, other)]
        assert not differing, f"{name} of blocks {differing}"


SCRIPTS = {
    "one prompt": Script(7),
    "exact switch": Script(8, {5: "exact"}),
    "partial switch": Script(8, {5: "partial"}),
    "no re-cache": Script(7, {5: "none"}),
    "early switches": Script(6, {1: "exact", 3: "exact"}),
    "a switch at every block": Script(7, dict.fromkeys(range(1, 7), "exact")),
    "a switch at every block, and no re-cache": Script(
        8, dict.fromkeys(range(1, 8), "none"), lag=2
    ),
    "two rows": Script(7, {5: "exact"}, batch=2),
    "read at once": Script(5, lag=0),
    "read three blocks later": Script(8, {4: "none"}, lag=3),
}


def test_a_decoder_is_rehearsed_when_its_first_session_opens(
    on_gpu: OnGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then what follows finds its convolutions chosen, a session's first blocks and prompts too."""
    engines, rehearsed = on_gpu("lazy"), []
    rehearse = CudaDecoder._rehearse
    monkeypatch.setattr(
        CudaDecoder, "_rehearse", lambda decoder: (rehearsed.append(decoder), rehearse(decoder))
    )
    for _ in range(2):
        make_video(engines, Script(2))
    assert len(rehearsed) == 1
    whole, single = (engines.get("vae_next", "a test", role) for role in (WHOLE_BLOCKS, ""))
    assert whole is not single


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", SCRIPTS)
def test_a_gpu_makes_the_same_video(
    on_cpu: Engines, on_gpu: OnGpu, case: str, schedule: Schedule
) -> None:
    expected = make_video(on_cpu, SCRIPTS[case])
    require_same(make_video(on_gpu(schedule), SCRIPTS[case]), expected)


def test_pictures_do_not_wait_for_the_clean_pass(on_cpu: Engines, on_gpu: OnGpu) -> None:
    """It comes with the next block."""
    expected = make_video(on_cpu, Script(5)).pixels[4]
    director = Director(on_gpu("lazy"), Script(5))
    director.make(4)
    session = director.session
    session.remember()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.passes, "remember", lambda _plan: pytest.fail("asked for"))
        pictures = session.step().pixels()
    assert np.array_equal(pictures, expected)
    director.finish()


def test_after_a_prompt_the_first_pictures_come_by_themselves(
    on_cpu: Engines, on_gpu: OnGpu
) -> None:
    """Those of each latent frame on a CPU, in any case."""
    expected = make_video(on_cpu, Script(3, {2: "exact"})).pixels
    for engines, parts in ((on_cpu, [3, 3, 3]), (on_gpu("eager"), [2, 1, 2])):
        contexts = engines.contexts(1)
        with open_session(engines) as session:
            for number, count in enumerate(parts):
                if number != 1:
                    session.switch_prompt(contexts.of_states(states(engines, number)))
                came = list(session.step().parts())
                assert len(came) == count
                assert np.array_equal(np.concatenate(came, axis=1), expected[number])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_little_memory_makes_the_same_video(
    on_cpu: Engines, on_gpu: OnGpu, schedule: Schedule
) -> None:
    script = Script(6, {3: "exact"})
    found = make_video(on_gpu(schedule, low_memory=True), script)
    require_same(found, make_video(on_cpu, script))


def test_switches_matter(on_cpu: Engines) -> None:
    """The comparison above tells the scripts from one another."""
    plain = make_video(on_cpu, Script(8)).latents[-1]
    modes: tuple[Recache, ...] = ("exact", "partial", "none")
    made = [make_video(on_cpu, Script(8, {5: mode})).latents[-1] for mode in modes]
    for number, one in enumerate(made):
        assert not np.array_equal(one, plain)
        assert all(not np.array_equal(one, other) for other in made[:number])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_blocks_that_were_taken_back(on_cpu: Engines, on_gpu: OnGpu, schedule: Schedule) -> None:
    script = Script(8, {5: "exact"})
    expected = make_video(on_cpu, script)
    director = Director(on_gpu(schedule), script)
    director.make(4)
    checkpoint = director.session.checkpoint()
    for blocks in (1, 3):
        director.make(blocks)
        director.session.rollback(checkpoint)
    director.make(4)
    found = director.finish()
    assert len(found.latents) == 12
    require_same(Video(found.latents[:4], found.pixels[:4]), first(expected, 4))
    require_same(Video(found.latents[8:], found.pixels[8:]), last(expected, 4))


def test_takes_that_nobody_looks_at(on_cpu: Engines, on_gpu: OnGpu) -> None:
    """The host must not get so far ahead that prompts are lost before they were read."""
    latents = []
    for engines in (on_cpu, on_gpu("lazy")):
        contexts = engines.contexts(1)
        with open_session(engines) as session:
            session.switch_prompt(contexts.of_states(states(engines, 0)))
            session.step()
            checkpoint = session.checkpoint()
            for number in range(1, 9):
                session.rollback(checkpoint)
                session.switch_prompt(contexts.of_states(states(engines, number)), "none")
                take = session.step()
                if number == 2:
                    kept = take
            latents.append([kept.latents, take.latents])
    for found, expected in zip(*latents, strict=True):
        assert np.array_equal(found, expected)


def first(video: Video, blocks: int) -> Video:
    return Video(video.latents[:blocks], video.pixels[:blocks])


def last(video: Video, blocks: int) -> Video:
    return Video(video.latents[-blocks:], video.pixels[-blocks:])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("places", ["gpu, gpu", "gpu, cpu", "cpu, gpu"])
def test_a_state_is_saved_and_resumed(
    on_cpu: Engines, on_gpu: OnGpu, tmp_path: Path, places: str, schedule: Schedule
) -> None:
    script = Script(6, {1: "exact"})
    expected = make_video(on_cpu, script)
    engines = {"cpu": on_cpu, "gpu": on_gpu(schedule)}
    before, after = (engines[place] for place in places.split(", "))
    director = Director(before, script)
    director.make(3)
    save_state(tmp_path / "state", director.session, bundle_key="", seed=0, prompt="")
    require_same(director.finish(), first(expected, 3))
    resumed = Director(after, script)
    restore(resumed.session, load_state(tmp_path / "state"))
    resumed.make(3)
    require_same(resumed.finish(), last(expected, 3))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sessions_share_engines_and_streams(
    on_cpu: Engines, on_gpu: OnGpu, schedule: Schedule
) -> None:
    scripts = [
        Script(6, {3: "exact"}),
        Script(5, {1: "none"}, seed=1, lag=2),
        Script(4, batch=2, seed=2),
    ]
    engines = on_gpu(schedule)
    directors = [Director(engines, script) for script in scripts]
    for turn in range(6):
        for director, script in zip(directors, scripts, strict=True):
            if turn < script.blocks:
                director.make_block()
            if turn == script.blocks:
                # One that ends leaves the others as they are.
                director.finish()
    for director, script in zip(directors, scripts, strict=True):
        require_same(director.finish(), make_video(on_cpu, script))


def test_decoding_waits_for_nobody(on_gpu: OnGpu, bundle: Bundle) -> None:
    """The next block is made while the pictures of the one before are not."""
    engines = on_gpu("lazy")
    director = Director(engines, Script(2, lag=2))
    director.make(2)
    block = director._waiting[1]
    assert block.latents.any()
    decoding = engines.stream("decoding")
    event = decoding.record(engines.gpu.event())
    assert not event.is_over
    event.close()
    director.finish()


def test_pictures_that_nobody_has_read_keep_their_values(on_cpu: Engines, on_gpu: OnGpu) -> None:
    """However far decoding gets before they leave the GPU."""
    script = Script(5, lag=5)
    director = Director(on_gpu("lazy"), script)
    director.make(5)
    director.session.settle()
    require_same(director.finish(), make_video(on_cpu, script))


def test_pictures_are_read_on_another_thread(on_cpu: Engines, on_gpu: OnGpu) -> None:
    script = Script(4)
    director = Director(on_gpu("lazy"), replace(script, lag=4))
    director.make(4)
    reader = threading.Thread(target=director.finish)
    reader.start()
    reader.join(60)
    require_same(director.video, make_video(on_cpu, script))


def test_a_session_moves_to_another_thread(on_cpu: Engines, on_gpu: OnGpu) -> None:
    script = Script(4, {2: "exact"})
    director = Director(on_gpu(1), script)
    for _ in range(4):
        thread = threading.Thread(target=director.make_block)
        thread.start()
        thread.join(60)
    require_same(director.finish(), make_video(on_cpu, script))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sessions_of_two_threads_share_a_gpu(
    on_cpu: Engines, on_gpu: OnGpu, schedule: Schedule
) -> None:
    """One's captures and the other's work are queued on the same streams at the same time."""
    engines = on_gpu(schedule)
    scripts = [Script(8, {3: "exact", 6: "none"}), Script(8, {5: "exact"}, seed=1, lag=2)]
    # Prompts are encoded on one stream, one after the other.
    directors = [Director(engines, script) for script in scripts]
    contexts = [
        {
            number: engines.contexts(1).of_states(states(engines, number + script.seed))
            for number in (0, *script.switches)
        }
        for script in scripts
    ]
    videos: list[Video | BaseException] = [Video(), Video()]

    def make(which: int) -> None:
        try:
            session, script = directors[which].session, scripts[which]
            video = Video()
            for number in range(script.blocks):
                if number in contexts[which]:
                    recache = script.switches.get(number, "exact")
                    session.switch_prompt(contexts[which][number], recache)
                video.add(session.step())
            session.close()
            videos[which] = video
        except BaseException as error:
            videos[which] = error

    threads = [threading.Thread(target=make, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for found, script in zip(videos, scripts, strict=True):
        assert isinstance(found, Video), found
        require_same(found, make_video(on_cpu, script))


def test_what_was_closed_is_forgotten(on_gpu: OnGpu) -> None:
    """Engines serve any number of videos."""
    engines = on_gpu("lazy")
    for _ in range(5):
        open_session(engines).close()
        engines.contexts(1).close()
        engines.prompt_encoder(1).close()
    assert len(engines._memories) <= 2
    assert len(engines._encoders) == 1


def test_engines_are_opened_on_any_thread(on_gpu: OnGpu, on_cpu: Engines) -> None:
    engines, videos = on_gpu(2), []
    thread = threading.Thread(target=lambda: videos.append(make_video(engines, Script(2))))
    thread.start()
    thread.join(60)
    require_same(videos[0], make_video(on_cpu, Script(2)))


# ---- debug mode ------------------------------------------------------------------------------


def debugged(engines: Engines, script: Script) -> Director:
    """A session after its first blocks, in which everything was reserved."""
    director = Director(engines, script, debug=True)
    director.make(12)
    return director


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_live_session_does_nothing_that_costs_time(on_gpu: OnGpu, schedule: Schedule) -> None:
    """Its caller waits for pictures; the session makes one copy a block, and nothing else."""
    engines = on_gpu(schedule)
    director, counts = debugged(engines, Script(20)), engines.gpu.ledger.counts
    before = dict(counts)
    director.make(8)
    made = {happening: counts[happening] - before.get(happening, 0) for happening in counts}
    made.pop("host wait")
    assert {happening: count for happening, count in made.items() if count} == {
        "copy on the device": 8
    }
    director.finish()


def test_a_session_may_switch_while_it_is_debugged(on_cpu: Engines, on_gpu: OnGpu) -> None:
    script = Script(18, {14: "exact"})
    director = debugged(on_gpu("lazy"), script)
    director.make(6)
    require_same(director.finish(), make_video(on_cpu, script))


@pytest.mark.parametrize(
    "what", ["allocation", "free", "host wait", "copy on the device", "64 bytes of GPU memory"]
)
def test_what_a_live_session_must_not_do(on_gpu: OnGpu, what: str) -> None:
    engines = on_gpu("lazy")
    director, gpu, stream = debugged(engines, Script(16)), engines.gpu, engines.stream("decoding")
    with gpu.reserve(64, "a test") as block:
        rows = [Rows(block.pointer, block.pointer + 32, 32)]
        slips: dict[str, Callable[[], object]] = {
            "allocation": lambda: gpu.reserve(8, "a test"),
            "free": block.close,
            "host wait": stream.synchronize,
            "copy on the device": lambda: stream.copy_rows(rows),
            # Some library, which tells nobody.
            "64 bytes of GPU memory": lambda: gpu.driver().cuMemAlloc(64),
        }
        denoise = director.session.passes.denoise

        def slip(*arguments: Any) -> Any:
            slips[what]()
            return denoise(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(director.session.passes, "denoise", slip)
            with pytest.raises(EngineError, match=f"^debug: {what}"):
                director.session.step()
    director.finish()


def test_a_caller_who_reads_too_late_lets_the_session_wait(on_gpu: OnGpu) -> None:
    """The host is never more than two blocks ahead of the GPU."""
    director = Director(on_gpu("lazy"), Script(16, lag=3), debug=True)
    with pytest.raises(EngineError, match=r"^debug: host wait in"):
        director.make(12)
    director.finish()
