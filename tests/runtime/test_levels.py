"""Blocks made in several ways in one video: other steps for the first one, windows that change."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from longlive_trt.configs import ModelConfig
from longlive_trt.configs.dump import config_sha256, config_values
from longlive_trt.configs.loader import configure
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.errors import ConfigError
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.noise import SeededNoise
from longlive_trt.runtime.ring import Ring, RingLayout
from longlive_trt.runtime.session import Session
from longlive_trt.runtime.transformer import Level


def layout(window: int, sink: int = 3, block: int = 3) -> RingLayout:
    return RingLayout(block, sink, window, moving_sink=False, relative=True, unbounded=False)


def held(ring: Ring, slots: dict[int, int]) -> list[int]:
    """The frames that a block would see, by what really lies in the slots it is told to read."""
    plan = ring.block_plan()
    sink = [slots[n] for n in range(plan.sink_frames)]
    past = [slots[ring.layout.sink + n] for n in range(plan.window_frames)]
    return sorted((*sink, *past))


@pytest.mark.parametrize("seed", range(20))
def test_a_ring_whose_window_changes_reads_only_what_lies_there(seed: int) -> None:
    """Against what was really written: a dictionary from slots to frames."""
    random = np.random.default_rng(seed)
    windows = [6, 9, 12, 15, 21]
    ring, slots, changes = Ring(layout(21)), dict[int, int](), 0
    for _ in range(120):
        if random.random() < 0.4:
            wanted = layout(int(random.choice(windows)))
            resized = ring.resized(wanted)
            changes += resized is not None and wanted != ring.layout
            ring = resized or ring
        if random.random() < 0.1 and ring.next_frame:
            plan = ring.recache_plan("exact")
            ring = ring.after_recache()
        else:
            newest = ring.next_frame - 1
            past = [f for f in held(ring, slots) if f >= 3]
            assert past == list(range(newest - len(past) + 1, newest + 1))
            assert len(past) <= ring.layout.past
            plan = ring.block_plan()
            ring = ring.after_block()
        for copy in plan.commits:
            for n in range(copy.frames):
                slots[copy.slot + n] = plan.frames[copy.source_frame + n]
    assert changes > 10


def test_a_full_window_comes_back() -> None:
    ring = Ring(layout(12))
    for _ in range(6):
        ring = ring.after_block()
    smaller = next(r for r in [ring.resized(layout(9)), ring.after_block().resized(layout(9))] if r)
    assert smaller.block_plan().window_frames == 3
    larger = smaller.resized(layout(12))
    assert larger is not None and larger.block_plan().window_frames == 3
    assert larger.after_block().block_plan().window_frames == 6


@pytest.fixture(scope="module")
def engines(mini_bundle: Callable[[str], Path]) -> Engines:
    return Engines(open_bundle(mini_bundle("relative")))


def session(engines: Engines, config: ModelConfig, *, levels: tuple[Level, ...] = ()) -> Session:
    step = engines.get("step", "testing")
    shape = (1, config.rollout.frames_per_block, *config.latent_shape)
    made = Session(step, config, SeededNoise(1, shape, config.rollout.noises), levels=levels)
    text = (config.transformer.text_len, config.transformer.text_dim)
    states = np.random.default_rng(0).standard_normal((1, *text), np.float32)
    made.switch_prompt(engines.contexts(1).of_states(states))
    return made


def with_rollout(config: ModelConfig, **changes: object) -> ModelConfig:
    return replace(config, rollout=replace(config.rollout, **changes))  # type: ignore[arg-type]


def test_first_steps_are_those_of_the_first_block_alone(engines: Engines) -> None:
    base = engines.bundle.config
    few = with_rollout(base, steps=(1000, 500))
    opened = with_rollout(few, first_steps=base.rollout.steps)
    with session(engines, base) as whole, session(engines, opened) as own:
        assert np.array_equal(whole.step().latents, own.step().latents)
        assert len(own.passes._denoising[own.passes.steps, own.ring.layout.slots][0]) == 2
        assert not np.array_equal(whole.step().latents, own.step().latents)
    with session(engines, few) as short, session(engines, opened) as own:
        for each in (own, short):
            each.step()
            each.remember()
        # From the same cache, the next block is the one that two steps make.
        for name, cache in own.passes.cache.items():
            short.passes.cache[name][...] = cache
        assert np.array_equal(own.step().latents, short.step().latents)


def test_a_session_may_change_its_steps_and_come_back(engines: Engines) -> None:
    base = engines.bundle.config
    full = RingLayout.of(base, None)
    top, fast = Level(base.rollout.steps, full), Level((1000, 500), full)
    plain = session(engines, base)
    changing = session(engines, base, levels=(fast,))
    with plain, changing:
        assert np.array_equal(plain.step().latents, changing.step().latents)
        assert changing.use(fast)
        plain.step(), changing.step()
        assert changing.use(top)
        plain.remember()
        for name, cache in plain.passes.cache.items():
            changing.passes.cache[name][...] = cache
        assert np.array_equal(plain.step().latents, changing.step().latents)


def test_a_smaller_window_sees_what_a_session_of_that_window_sees(engines: Engines) -> None:
    """From the same keys, what one of the smaller size makes."""
    base = engines.bundle.config
    narrow = with_rollout(base, window_frames=9)
    level = Level(base.rollout.steps, RingLayout.of(narrow, None))
    with session(engines, base, levels=(level,)) as wide, session(engines, narrow) as small:
        for _ in range(5):
            wide.step(), small.step()
        while not wide.use(level):
            wide.step(), small.step()
        small.remember()
        tokens = base.tokens_per_frame * small.ring.layout.slots
        for name, cache in small.passes.cache.items():
            cache[...] = wide.passes.cache[name][:, :tokens]
        for _ in range(3):
            assert np.allclose(wide.step().latents, small.step().latents, atol=1e-6)


def test_records_of_models_without_first_steps_are_as_they_were() -> None:
    config = configure({}, origin="test")
    assert "first_steps" not in config_values(config)["rollout"]
    other = with_rollout(config, first_steps=(1000, 500))
    assert configure(config_values(other), origin="test") == other
    assert config_sha256(other) != config_sha256(config)


@pytest.mark.parametrize("steps", [[], [500, 1000], [1200]])
def test_impossible_first_steps(steps: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"first_steps is .* falling timesteps"):
        configure({"rollout": {"first_steps": steps}}, origin="test")
