"""What each way to change the prompt recomputes, and what it changes in a video."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longlive_trt.configs import ModelConfig
from longlive_trt.configs.replay import Replay, Switch
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.noise import ReplayNoise, SeededNoise
from longlive_trt.runtime.prompting.switches import SwitchMode
from longlive_trt.runtime.prompting.track import (
    PromptTrack,
    RecordedPrompts,
    replay_cues,
    replay_states,
)
from longlive_trt.runtime.ring import Recache
from longlive_trt.runtime.session import Session

BLOCK = 3
SINK, PAST = slice(0, 3), slice(3, 9)
"""Slots of the shipped rollout."""

Array = np.ndarray[Any, Any]
Error = Callable[[object, object], float]


@pytest.fixture(scope="module")
def engines_of(mini_bundle: Callable[[str], Path]) -> Iterator[Callable[[str], Engines]]:
    made: dict[str, Engines] = {}

    def of(rope: str) -> Engines:
        if rope not in made:
            made[rope] = Engines(open_bundle(mini_bundle(rope)))
        return made[rope]

    yield of
    for engines in made.values():
        engines.close()


def configured(engines: Engines, **rollout: Any) -> ModelConfig:
    config = engines.bundle.config
    return replace(config, rollout=replace(config.rollout, **rollout))


def states_of(config: ModelConfig, seed: int, rows: int = 1) -> Array:
    shape = (rows, config.transformer.text_len, config.transformer.text_dim)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.fixture
def cache_around_switch(
    engines_of: Callable[[str], Engines], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[dict[str, Array], dict[str, Array]]]:
    """All keys and values before a prompt switch, and before the first block after it."""

    def around(
        rope: str, blocks: int, recache: Recache, **rollout: Any
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        engines = engines_of(rope)
        config = configured(engines, **rollout)
        noise = SeededNoise(1, (1, BLOCK, *config.latent_shape), len(config.rollout.steps))
        contexts = [engines.contexts(1).of_states(states_of(config, n)) for n in range(2)]
        with engines.session(config, noise, total_frames=60, decode=False) as session:
            session.switch_prompt(contexts[0])
            for _ in range(blocks):
                session.step()
            session.remember()
            before = copied(session)
            run, after = session.passes.denoise, dict[str, Array]()

            def spy(*arguments: Any) -> Any:
                after.update(copied(session))
                return run(*arguments)

            monkeypatch.setattr(session.passes, "denoise", spy)
            session.switch_prompt(contexts[1], recache)
            session.step()
            return before, after

    return around


@pytest.mark.parametrize(("recache", "runs"), [("exact", 3), ("partial", 3), ("none", 4)])
def test_what_a_switch_makes_anew_is_not_made_before(
    engines_of: Callable[[str], Engines], recache: Recache, runs: int
) -> None:
    """Of the four blocks before it, the last needs no clean pass; its own comes later."""
    engines = engines_of("absolute")
    config = configured(engines)
    noise = SeededNoise(1, (1, BLOCK, *config.latent_shape), len(config.rollout.steps))
    contexts = [engines.contexts(1).of_states(states_of(config, n)) for n in range(2)]
    ran: list[int] = []
    with engines.session(config, noise, total_frames=60, decode=False) as session:
        remember = session.passes.remember
        session.passes.remember = lambda plan: (ran.append(plan.frames[0]), remember(plan))  # type: ignore[method-assign, assignment, func-returns-value]
        session.switch_prompt(contexts[0])
        for _ in range(4):
            session.step()
        session.switch_prompt(contexts[1], recache)
        session.step()
    assert ran == [BLOCK * number for number in range(runs)]


def copied(session: Session) -> dict[str, Array]:
    return {name: tensor.copy() for name, tensor in session.passes.cache.items()}


def of_layer(cache: Mapping[str, Array], layer: int, slots: slice, config: ModelConfig) -> Array:
    tokens = config.tokens_per_frame
    span = slice(slots.start * tokens, slots.stop * tokens)
    return np.stack([cache[f"{part}_cache.{layer}"][:, span] for part in "kv"])


@pytest.mark.parametrize("rope", ["absolute", "relative"])
def test_none_leaves_the_cache_as_it_is(cache_around_switch: Any, rope: str) -> None:
    for blocks, global_sink in ((2, True), (7, True), (7, False)):
        before, after = cache_around_switch(rope, blocks, "none", global_sink=global_sink)
        assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("rope", ["absolute", "relative"])
def test_partial_recomputes_what_the_next_block_attends(
    engines_of: Callable[[str], Engines],
    cache_around_switch: Any,
    relative_error: Error,
    rope: str,
) -> None:
    config = engines_of(rope).bundle.config
    before, exact = cache_around_switch(rope, 7, "exact")
    _, partial = cache_around_switch(rope, 7, "partial")
    for layer in range(2):
        sinks = [of_layer(cache, layer, SINK, config) for cache in (before, exact, partial)]
        assert all(np.array_equal(sinks[0], sink) for sink in sinks)
    first, last = ([of_layer(c, n, PAST, config) for c in (before, exact, partial)] for n in (0, 1))
    # The first layer's keys and values depend on the latents alone, and those are clean.
    assert relative_error(first[2], first[1]) <= 1e-6
    # The others saw fewer frames; what matters more is that all of them saw the new prompt.
    assert 1e-4 < relative_error(last[2], last[1]) < relative_error(last[0], last[1])


@pytest.mark.parametrize(
    ("blocks", "rollout"),
    [(2, {}), (4, {}), (7, {"global_sink": False}), (7, {"window_frames": -1})],
)
@pytest.mark.parametrize("rope", ["absolute", "relative"])
def test_partial_renews_every_slot_that_exact_renews(
    engines_of: Callable[[str], Engines],
    cache_around_switch: Any,
    relative_error: Error,
    rope: str,
    blocks: int,
    rollout: dict[str, Any],
) -> None:
    config = engines_of(rope).bundle.config
    before, exact = cache_around_switch(rope, blocks, "exact", **rollout)
    _, partial = cache_around_switch(rope, blocks, "partial", **rollout)
    slots = slice(0, exact["k_cache.0"].shape[1] // config.tokens_per_frame)
    caches = (before, exact, partial)
    first, last = ([of_layer(c, n, slots, config) for c in caches] for n in (0, 1))
    assert relative_error(first[2], first[1]) <= 1e-6
    assert relative_error(last[2], last[1]) < 0.5 * relative_error(last[0], last[1])


# ---- whole videos ----------------------------------------------------------------------------


def make_replay(config: ModelConfig, frames: int, starts: Sequence[int], batch: int = 1) -> Replay:
    drawn = np.random.default_rng(frames)
    steps = len(config.rollout.steps)
    normal = drawn.standard_normal
    return Replay(
        noise=normal((batch, frames, *config.latent_shape), np.float32),
        renoise=normal(
            (frames // BLOCK, steps - 1, batch, BLOCK, *config.latent_shape), np.float32
        ),
        prompts={n: states_of(config, n, batch if n else 1) for n in range(len(starts) + 1)},
        schedule=tuple(Switch(frame, n) for n, frame in enumerate((0, *starts))),
    )


def play(engines: Engines, replay: Replay, mode: str) -> list[Array]:
    noise = ReplayNoise(replay, BLOCK)
    recorded = RecordedPrompts(engines.contexts(replay.batch), replay_states(replay))
    track = PromptTrack(recorded, replay_cues(replay, BLOCK), SwitchMode.parse(mode))
    blocks = []
    with engines.session(
        engines.bundle.config, noise, batch=replay.batch, total_frames=replay.frames, decode=False
    ) as session:
        for start in range(0, replay.frames, BLOCK):
            change = track.due(start)
            if change is not None:
                session.switch_prompt(*change)
            blocks.append(session.step().latents)
    return blocks


def same(one: Sequence[Array], other: Sequence[Array]) -> list[bool]:
    return [np.array_equal(*pair) for pair in zip(one, other, strict=True)]


def test_modes_differ_from_the_switch_on_only(engines_of: Callable[[str], Engines]) -> None:
    engines = engines_of("relative")
    replay = make_replay(engines.bundle.config, 27, (15,))
    modes = ("exact", "partial", "none", "blend:2", "blend:3")
    videos = {mode: play(engines, replay, mode) for mode in modes}
    for index, mode in enumerate(modes):
        for other in modes[index + 1 :]:
            assert same(videos[mode], videos[other]) == [True] * 5 + [False] * 4, (mode, other)


def test_a_blend_over_one_block_recomputes_nothing(engines_of: Callable[[str], Engines]) -> None:
    engines = engines_of("absolute")
    replay = make_replay(engines.bundle.config, 24, (6, 15), batch=2)
    assert all(same(play(engines, replay, "blend:1"), play(engines, replay, "none")))


def test_a_blend_of_equal_prompts_changes_nothing(engines_of: Callable[[str], Engines]) -> None:
    engines = engines_of("relative")
    switching = make_replay(engines.bundle.config, 24, (9,))
    prompts = {number: switching.prompts[0].copy() for number in range(2)}
    equal = Replay(switching.noise, switching.renoise, prompts, switching.schedule)
    staying = Replay(switching.noise, switching.renoise, prompts, switching.schedule[:1])
    expected = play(engines, staying, "exact")
    assert all(same(play(engines, equal, "blend:3"), expected))
    # An exact switch to the same prompt does change something: keys are computed together.
    assert not all(same(play(engines, equal, "exact"), expected))


def test_a_blend_conditions_on_mixtures(
    engines_of: Callable[[str], Engines], relative_error: Error
) -> None:
    engines = engines_of("relative")
    config = engines.bundle.config
    replay = make_replay(config, 24, (9, 15), batch=2)
    first, second, third = (replay.prompts[number] for number in range(3))
    middle = first / 3 + second * 2 / 3
    expected_states = {
        0: first,
        9: first * 2 / 3 + second / 3,
        12: middle,
        15: middle * 2 / 3 + third / 3,
        18: middle / 3 + third * 2 / 3,
        21: third,
    }
    contexts = engines.contexts(2)
    noise, expected = ReplayNoise(replay, BLOCK), []
    with engines.session(config, noise, batch=2, total_frames=24, decode=False) as session:
        for start in range(0, 24, BLOCK):
            if start in expected_states:
                session.switch_prompt(contexts.of_states(expected_states[start]), "none")
            expected.append(session.step().latents)
    assert relative_error(play(engines, replay, "blend:3"), expected) <= 1e-5
