"""The session on ONNX Runtime against the reference rollout in torch, and its reproducibility."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longlive_trt.configs import ModelConfig
from longlive_trt.configs.replay import Replay, Switch, prompts_by_block
from longlive_trt.engines.base import Engine
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.loader import load_engine
from longlive_trt.errors import UsageError
from longlive_trt.export.checkpoints.opening import random_weights
from longlive_trt.export.models import rollout as reference
from longlive_trt.export.models.transformer import Transformer
from longlive_trt.runtime import ring
from longlive_trt.runtime.noise import NoiseSource, ReplayNoise, SeededNoise
from longlive_trt.runtime.prompting.encoder import PromptContexts
from longlive_trt.runtime.session import Session
from longlive_trt.runtime.transformer import Context
from tests.reference import run_replay

MINI_SEED = 3
TOLERANCE = 1e-5

Error = Callable[[object, object], float]
Array = np.ndarray[Any, Any]


@dataclass
class Mini:
    """One model twice: compiled, and in torch."""

    base: ModelConfig
    step: Engine
    prompt: Engine
    transformer: Transformer

    def config(self, **rollout: Any) -> ModelConfig:
        return replace(self.base, rollout=replace(self.base.rollout, **rollout))

    def context(self, states: Array, batch: int = 1) -> Context:
        return PromptContexts(self.prompt, batch).of_states(states)

    def session(
        self, config: ModelConfig, noise: NoiseSource, batch: int = 1, total: int | None = None
    ) -> Session:
        return Session(self.step, config, noise, batch=batch, total_frames=total)

    def compiled(self, config: ModelConfig, replay: Replay) -> Array:
        block = config.rollout.frames_per_block
        noise = ReplayNoise(replay, block)
        boundaries = prompts_by_block(replay.schedule, block)
        blocks = []
        with self.session(config, noise, replay.batch, replay.frames) as session:
            for _ in range(replay.frames // block):
                _, prompt = next(boundaries)
                if prompt is not None:
                    states = replay.prompts[prompt]
                    session.switch_prompt(self.context(states, replay.batch))
                blocks.append(session.step().latents)
        return np.concatenate(blocks, axis=1)

    def in_torch(self, config: ModelConfig, replay: Replay) -> Array:
        return run_replay(self.transformer, config, replay).numpy()


def make_replay(
    config: ModelConfig, frames: int, switches: Sequence[int] = (), *, batch: int = 1, seed: int = 0
) -> Replay:
    drawn = np.random.default_rng(seed)
    block, steps = config.rollout.frames_per_block, len(config.rollout.steps)
    text = (config.transformer.text_len, config.transformer.text_dim)

    def normal(*shape: int) -> Array:
        return drawn.standard_normal(shape, np.float32)

    return Replay(
        noise=normal(batch, frames, *config.latent_shape),
        renoise=normal(frames // block, steps - 1, batch, block, *config.latent_shape),
        # The first prompt serves the whole batch, the others differ by row.
        prompts={n: normal(batch if n else 1, *text) for n in range(len(switches) + 1)},
        schedule=tuple(Switch(frame, n) for n, frame in enumerate((0, *switches))),
    )


@pytest.fixture(scope="module")
def mini(mini_bundle: Callable[[str], Path]) -> Iterator[Callable[[str], Mini]]:
    made: dict[str, Mini] = {}

    def of(rope: str) -> Mini:
        if rope not in made:
            bundle = open_bundle(mini_bundle(rope))
            transformer = Transformer(bundle.config.transformer).eval()
            shapes = {name: tuple(v.shape) for name, v in transformer.state_dict().items()}
            weights = random_weights(shapes, MINI_SEED)
            transformer.load_state_dict({name: weights.load(name) for name in weights.names})
            step, prompt = (load_engine(bundle, graph, threads=1) for graph in ("step", "prompt"))
            made[rope] = Mini(bundle.config, step, prompt, transformer)
        return made[rope]

    # Such small matrices are slower with more threads than with one.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield of
    torch.set_num_threads(threads)
    for each in made.values():
        each.step.close()
        each.prompt.close()


CASES: dict[str, tuple[dict[str, Any], int, tuple[int, ...]]] = {
    "as shipped": ({}, 30, (15,)),
    "no switch": ({}, 24, ()),
    "early switch": ({}, 24, (6,)),
    "switch when the window is just full": ({}, 24, (12,)),
    "switch just past the window": ({}, 24, (15,)),
    "moving sink": ({"global_sink": False}, 30, (18,)),
    "sink that moves three times": ({"global_sink": False}, 36, (15, 18, 27)),
    "moving sink, early and late": ({"global_sink": False}, 30, (3, 21)),
    "two switches in one block": ({}, 30, (16, 17)),
    "switches at every block": ({}, 30, (3, 6, 9, 12, 15, 18, 21)),
    "window 9": ({"window_frames": 9}, 24, (15,)),
    "window 9, sink 1": ({"window_frames": 9, "sink_frames": 1}, 24, (12, 15)),
    "window 9, no sink": ({"window_frames": 9, "sink_frames": 0}, 24, (9, 18)),
    "no past": ({"window_frames": 6}, 18, (9,)),
    "nothing but the block": ({"window_frames": 3, "sink_frames": 0}, 12, (6,)),
    "window 7": ({"window_frames": 7}, 24, (9, 15)),
    "window 7, sink 2, moving": (
        {"window_frames": 7, "sink_frames": 2, "global_sink": False},
        24,
        (9, 15, 18),
    ),
    "window 10": ({"window_frames": 10}, 30, (9, 12, 21)),
    "single frames": (
        {"frames_per_block": 1, "sink_frames": 1, "window_frames": 5},
        12,
        (2, 7, 8),
    ),
    "pairs": ({"frames_per_block": 2, "sink_frames": 2, "window_frames": 7}, 20, (5, 12)),
    "fours": ({"frames_per_block": 4, "sink_frames": 3, "window_frames": 12}, 24, (9, 16)),
    "global": ({"window_frames": -1}, 15, (6,)),
    "global without a sink": ({"window_frames": -1, "sink_frames": 0}, 12, (9,)),
    "one step": ({"steps": (1000,)}, 15, (6,)),
    "six steps, another shift": (
        {"steps": (999, 800, 640, 320, 160, 1), "timestep_shift": 8.0},
        9,
        (3,),
    ),
    "noisy context": ({"context_timestep": 37}, 18, (15,)),
}


QUICK_ABSOLUTE = {
    *("as shipped", "early switch", "sink that moves three times", "window 7, sink 2, moving"),
    *("no past", "global", "noisy context"),
}
"""With relative positions all cases are quick; with absolute ones these stand for the others."""

ROLLOUTS = [
    pytest.param(
        rope,
        case,
        marks=[pytest.mark.exhaustive] if rope == "absolute" and case not in QUICK_ABSOLUTE else [],
    )
    for case in CASES
    for rope in ("absolute", "relative")
]


@pytest.mark.parametrize(("rope", "case"), ROLLOUTS)
def test_session_computes_what_the_reference_does(
    mini: Callable[[str], Mini], relative_error: Error, rope: str, case: str
) -> None:
    rollout, frames, switches = CASES[case]
    model = mini(rope)
    config = model.config(**rollout)
    replay = make_replay(config, frames, switches, batch=1 + len(case) % 2, seed=len(case))
    error = relative_error(model.compiled(config, replay), model.in_torch(config, replay))
    assert error <= TOLERANCE


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[dict[str, Any], int, tuple[int, ...], int]:
    block = draw(st.integers(1, 4))
    sink = draw(st.integers(0, block))
    window = draw(st.one_of(st.just(-1), st.integers(sink + block, sink + block + 7)))
    blocks = draw(st.integers(1, 8))
    starts = st.integers(1, blocks * block)
    switches = draw(st.lists(starts, max_size=4, unique=True).map(sorted).map(tuple))
    steps = draw(st.lists(st.integers(1, 1000), min_size=1, max_size=3, unique=True))
    rollout = {
        "frames_per_block": block,
        "sink_frames": sink,
        "window_frames": window,
        "global_sink": draw(st.booleans()),
        "steps": tuple(sorted(steps, reverse=True)),
    }
    return rollout, blocks * block, switches, draw(st.integers(1, 2))


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(drawn=rollouts(), rope=st.sampled_from(["absolute", "relative"]))
def test_session_computes_what_the_reference_does_for_any_rollout(
    mini: Callable[[str], Mini],
    relative_error: Error,
    drawn: tuple[dict[str, Any], int, tuple[int, ...], int],
    rope: str,
) -> None:
    rollout, frames, switches, batch = drawn
    model = mini(rope)
    config = model.config(**rollout)
    replay = make_replay(config, frames, switches, batch=batch, seed=frames)
    error = relative_error(model.compiled(config, replay), model.in_torch(config, replay))
    assert error <= TOLERANCE


@pytest.mark.parametrize("global_sink", [True, False])
@pytest.mark.parametrize("rope", ["absolute", "relative"])
def test_global_attention_sees_no_more_than_its_budget(
    mini: Callable[[str], Mini],
    relative_error: Error,
    monkeypatch: pytest.MonkeyPatch,
    rope: str,
    global_sink: bool,
) -> None:
    model = mini(rope)
    config = model.config(window_frames=-1, global_sink=global_sink)
    budget = 8 * config.tokens_per_frame
    for module in (ring, reference):
        monkeypatch.setattr(module, "GLOBAL_ATTENTION_TOKENS", budget)
    replay = make_replay(config, 18, (12,))
    unbounded = model.config(window_frames=18)
    limited = model.compiled(config, replay)
    assert relative_error(limited, model.in_torch(config, replay)) <= TOLERANCE
    assert relative_error(limited, model.compiled(unbounded, replay)) > 1e-3


def test_the_comparison_is_sharp(mini: Callable[[str], Mini], relative_error: Error) -> None:
    """Every setting that the cases above vary moves the result by far more than the tolerance."""
    for rope in ("absolute", "relative"):
        model = mini(rope)
        config = model.config()
        replay = make_replay(config, 24, (15,))
        exact = model.compiled(config, replay)
        for change in (
            {"window_frames": 9},
            {"sink_frames": 1},
            {"sink_frames": 0},
            {"global_sink": False},
            {"context_timestep": 5},
            {"timestep_shift": 8.0},
        ):
            moved = model.compiled(model.config(**change), replay)
            assert relative_error(moved, exact) > 1e-3, change


# ---- reproducibility -------------------------------------------------------------------------


def seeded(model: Mini, config: ModelConfig, seed: int = 5) -> SeededNoise:
    rollout = config.rollout
    return SeededNoise(
        seed, (1, rollout.frames_per_block, *config.latent_shape), len(rollout.steps)
    )


def run_blocks(
    model: Mini, config: ModelConfig, blocks: int, total: int | None, seed: int
) -> Array:
    states = make_replay(config, 3).prompts[0]
    noise = seeded(model, config, seed)
    with model.session(config, noise, total=total) as session:
        session.switch_prompt(model.context(states))
        return np.concatenate([session.step().latents for _ in range(blocks)], axis=1)


def test_a_seed_gives_the_same_bits(mini: Callable[[str], Mini]) -> None:
    model = mini("relative")
    config = model.config()
    first = run_blocks(model, config, 6, 18, seed=5)
    assert np.array_equal(first, run_blocks(model, config, 6, 18, seed=5))
    assert not np.array_equal(first, run_blocks(model, config, 6, 18, seed=6))


def test_a_longer_or_endless_video_begins_with_the_same_bits(mini: Callable[[str], Mini]) -> None:
    model = mini("relative")
    config = model.config()
    short = run_blocks(model, config, 5, 15, seed=5)
    assert np.array_equal(short, run_blocks(model, config, 5, 60, seed=5))
    assert np.array_equal(short, run_blocks(model, config, 5, None, seed=5))


def test_rows_of_a_batch_do_not_mix(mini: Callable[[str], Mini], relative_error: Error) -> None:
    model = mini("relative")
    config = model.config()
    pair = make_replay(config, 18, (6,), batch=2)
    both = model.compiled(config, pair)
    for row in range(2):
        alone = Replay(
            noise=pair.noise[row : row + 1],
            renoise=pair.renoise[:, :, row : row + 1],
            prompts={n: p[min(row, len(p) - 1)][None] for n, p in pair.prompts.items()},
            schedule=pair.schedule,
        )
        assert relative_error(model.compiled(config, alone), both[row : row + 1]) <= TOLERANCE


def test_blocks_handed_out_do_not_change_later(mini: Callable[[str], Mini]) -> None:
    model = mini("relative")
    config = model.config()
    with model.session(config, seeded(model, config)) as session:
        states = make_replay(config, 3).prompts[0]
        session.switch_prompt(model.context(states))
        first = session.step()
        kept = first.latents.copy()
        session.step()
        assert np.array_equal(first.latents, kept)
        assert (first.index, session.blocks_made) == (0, 2)


def test_the_latest_prompt_before_a_block_counts(mini: Callable[[str], Mini]) -> None:
    model = mini("relative")
    config = model.config()
    replay = make_replay(config, 6, (3, 4))
    given = [model.context(replay.prompts[number]) for number in range(3)]

    def video(prompts: list[list[int]]) -> Array:
        with model.session(config, seeded(model, config)) as session:
            made = []
            for numbers in prompts:
                for number in numbers:
                    session.switch_prompt(given[number])
                made.append(session.step().latents)
            return np.concatenate(made, axis=1)

    assert np.array_equal(video([[0], [1, 2]]), video([[0], [2]]))
    assert not np.array_equal(video([[0], [1, 2]]), video([[0], [1]]))


def test_prompts_outlive_the_blocks_that_may_be_late(mini: Callable[[str], Mini]) -> None:
    """On a GPU, older blocks that read theirs may still be to be made."""
    model = mini("relative")
    config = model.config()
    contexts: list[weakref.ref[Array]] = []
    with model.session(config, seeded(model, config)) as session:
        for number in range(7):
            context = model.context(make_replay(config, 3, seed=number).prompts[0])
            contexts.append(weakref.ref(context["context_k.0"]))
            session.switch_prompt(context, "none")
            del context
            session.step()
            living = [number for number, array in enumerate(contexts) if array() is not None]
            assert living == [*range(max(0, number - 3), number + 1)]


def test_a_session_without_a_prompt_says_so(mini: Callable[[str], Mini]) -> None:
    model = mini("relative")
    config = model.config()
    with (
        model.session(config, seeded(model, config)) as session,
        pytest.raises(UsageError, match="needs a prompt"),
    ):
        session.step()


def test_a_session_without_a_decoder_has_no_pixels(mini: Callable[[str], Mini]) -> None:
    model = mini("relative")
    config = model.config()
    with model.session(config, seeded(model, config)) as session:
        states = make_replay(config, 3).prompts[0]
        session.switch_prompt(model.context(states))
        with pytest.raises(UsageError, match="does not decode"):
            session.step().pixels()


def test_closing_ends_the_threads(mini: Callable[[str], Mini]) -> None:
    import threading

    model = mini("relative")
    config = model.config()
    states = make_replay(config, 3).prompts[0]
    before = set(threading.enumerate())
    with model.session(config, seeded(model, config)) as session:
        session.switch_prompt(model.context(states))
        session.step()
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) <= before


def test_unsupported_rollouts_are_refused_before_work(mini: Callable[[str], Mini]) -> None:
    absolute = mini("absolute")
    for rollout, total, named in (
        ({}, None, "1023 latent frames"),
        ({}, 1026, "1023 latent frames"),
        ({"sink_frames": 3, "frames_per_block": 2}, 12, "rollout.sink_frames"),
        ({"window_frames": -1}, None, "1023 latent frames"),
    ):
        config = absolute.config(**rollout)
        with pytest.raises(UsageError, match=named):
            absolute.session(config, seeded(absolute, config), total=total)


def test_torch_is_deterministic_enough_to_be_the_reference(mini: Callable[[str], Mini]) -> None:
    model = mini("relative")
    config = model.config()
    replay = make_replay(config, 9, (3,))
    twice = [torch.from_numpy(model.in_torch(config, replay)) for _ in range(2)]
    assert torch.equal(*twice)
